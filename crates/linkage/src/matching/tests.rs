//! What the parts do together, on small made-up records.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::StringArray;

use super::blocking::Candidates;
use super::random::Numbers;
use super::*;

const FORENAMES: [&str; 12] =
    ["anna", "ben", "clara", "david", "emma", "felix", "greta", "hugo", "ida", "jonas", "klara", "louis"];
const SURNAMES: [&str; 12] =
    ["adams", "baker", "cooper", "dixon", "evans", "fisher", "grant", "hughes", "irwin", "jones", "king", "lewis"];

/// People with one to three records each, some with an error, a missing value or swapped names; columns and the person of each row.
fn people(count: u64, seed: u64) -> (Vec<(&'static str, StringArray)>, Vec<u32>) {
    let numbers = Numbers::new(seed);
    let mut columns: [Vec<Option<String>>; 4] = Default::default();
    let mut truth = Vec::new();
    for person in 0..count {
        let pick = |at: u64, limit: u32| numbers.below(person * 1_000 + at, limit);
        let forename = format!("{}{}", FORENAMES[pick(0, 12) as usize], ["", "lie", "ton"][pick(1, 3) as usize]);
        let surname = format!("{}{}", SURNAMES[pick(2, 12) as usize], ["", "son", "man", "er"][pick(3, 4) as usize]);
        let birth = format!("{}-{:02}-{:02}", 1940 + pick(4, 60), 1 + pick(5, 12), 1 + pick(6, 28));
        let postcode = format!("{}", 1_000 + pick(7, 500));
        for record in 0..=u64::from(pick(8, 3)) {
            let chance = |at: u64, limit: u32| numbers.below(person * 1_000 + 100 * (record + 1) + at, limit);
            let mut values = [forename.clone(), surname.clone(), birth.clone(), postcode.clone()].map(Some);
            if record > 0 {
                match chance(0, 8) {
                    0 => values.swap(0, 1),
                    1 => values[3] = None,
                    2 => values[2] = Some(birth.replacen("19", "18", 1)),
                    3 => values[1] = Some(surname.replacen('e', "i", 1)),
                    4 => values[0] = Some(forename[..1].to_owned()),
                    _ => {}
                }
            }
            for (column, value) in columns.iter_mut().zip(values) {
                column.push(value);
            }
            truth.push(u32::try_from(person).unwrap());
        }
    }
    let names = ["forename", "surname", "birth", "postcode"];
    (names.into_iter().zip(columns.map(StringArray::from)).collect(), truth)
}

fn named<'a>(columns: &'a [(&'static str, StringArray)]) -> Vec<NamedColumn<'a>> {
    columns.iter().map(|(name, array)| (*name, array)).collect()
}

fn spec() -> LinkageSpec {
    let mut spec = LinkageSpec::new([
        ("forename", ColumnKind::Forename),
        ("surname", ColumnKind::Surname),
        ("birth", ColumnKind::BirthDate),
        ("postcode", ColumnKind::Postcode),
    ]);
    spec.sample_pairs = 200_000;
    spec
}

fn edges_of(model: &LinkageModel, records: &Records, threads: usize) -> Vec<Edge> {
    let mut edges = Vec::new();
    model.score(records, Threads::count(threads), |batch| edges.extend_from_slice(batch)).unwrap();
    edges
}

#[test]
fn people_are_found_again() {
    let (columns, truth) = people(1_500, 11);
    let records = Records::one_set(&spec(), &named(&columns)).unwrap();
    let (model, report) = LinkageModel::fit(&records, &spec(), Threads::count(1)).unwrap();
    assert!(report.converged);
    let edges = edges_of(&model, &records, 1);
    let scorer = model.scorer(&records).unwrap();
    for guard in [Guard::None, Guard::Agreement] {
        let labels = cluster(&scorer, records.rows(), &edges, 0.0, guard);
        let found = cluster_quality(&labels, &truth);
        assert!(found.pairs.f1() > 0.97, "{guard:?} {found:?}");
    }
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let (columns, _) = people(800, 5);
    let records = Records::one_set(&spec(), &named(&columns)).unwrap();
    let (model, report) = LinkageModel::fit(&records, &spec(), Threads::count(1)).unwrap();
    let edges = edges_of(&model, &records, 1);
    assert!(!edges.is_empty());
    for threads in [2, 3, 7] {
        let (again, report_again) = LinkageModel::fit(&records, &spec(), Threads::count(threads)).unwrap();
        assert_eq!(again, model, "{threads} threads");
        assert_eq!(report_again, report, "{threads} threads");
        assert!(edges_of(&again, &records, threads) == edges, "{threads} threads");
    }
}

#[test]
fn a_stored_model_scores_the_same() {
    let (columns, _) = people(300, 9);
    let records = Records::one_set(&spec(), &named(&columns)).unwrap();
    let (model, _) = LinkageModel::fit(&records, &spec(), Threads::count(2)).unwrap();
    let again = LinkageModel::from_toml(&model.to_toml().unwrap()).unwrap();
    assert_eq!(again, model);
    assert!(edges_of(&again, &records, 1) == edges_of(&model, &records, 1));

    let mut broken = again;
    broken.comparisons[1].levels.pop();
    let error = broken.scorer(&records).expect_err("a level is missing").to_string();
    assert!(error.contains("comparisons[1].levels"), "{error}");
}

#[test]
fn an_explanation_adds_up_to_the_weight() {
    let (columns, _) = people(300, 9);
    let records = Records::one_set(&spec(), &named(&columns)).unwrap();
    let (model, _) = LinkageModel::fit(&records, &spec(), Threads::count(2)).unwrap();
    let scorer = model.scorer(&records).unwrap();
    for edge in edges_of(&model, &records, 1) {
        let explanation = scorer.explain(edge.left, edge.right);
        let sum: f64 = explanation.steps.iter().map(|step| step.bits + step.term_bits).sum();
        assert!((sum + explanation.prior_bits - edge.weight).abs() < 1e-9);
    }
}

/// All pairs that agree on a rule's keys, in either direction, by looking at every pair.
fn by_brute_force(records: &Records, rules: &[BlockingRule], left_rows: Option<u32>) -> BTreeSet<(u32, u32)> {
    let key = |expression: &KeyExpression, row: u32| -> Option<String> {
        let value: Vec<char> = records.value(&expression.column, row)?.chars().collect();
        let to = expression.to.unwrap_or(value.len()).min(value.len());
        let part: String = value.get(expression.from..to)?.iter().collect();
        (!part.is_empty()).then_some(part)
    };
    let gives = |rule: &BlockingRule, one: u32, two: u32| {
        rule.keys.iter().all(|each| key(&each.left, one).is_some() && key(&each.left, one) == key(&each.right, two))
    };
    let mut pairs = BTreeSet::new();
    for one in 0..records.rows() {
        for two in one + 1..records.rows() {
            let is_across = left_rows.is_none_or(|left| one < left && two >= left);
            let is_given =
                rules.iter().any(|rule| gives(rule, one, two) || (left_rows.is_none() && gives(rule, two, one)));
            if is_across && is_given {
                pairs.insert((one, two));
            }
        }
    }
    pairs
}

#[test]
fn blocking_gives_each_pair_of_brute_force_once() {
    let (columns, _) = people(150, 3);
    let rules = [
        BlockingRule::new(&["surname", "postcode[..2]"]).unwrap(),
        BlockingRule::new(&["forename = surname", "surname = forename"]).unwrap(),
        BlockingRule::new(&["birth[..4]"]).unwrap(),
        BlockingRule::new(&["forename[..2]", "surname[2..5]", "postcode[1..]"]).unwrap(),
        BlockingRule::new(&["forename[..1] = surname[..1]"]).unwrap(),
    ];
    let one_set = Records::one_set(&spec(), &named(&columns)).unwrap();
    let (other, _) = people(100, 4);
    let two_sets = Records::two_sets(&spec(), &named(&columns), &named(&other)).unwrap();
    for records in [one_set, two_sets] {
        let candidates = Candidates::new(&records, &rules, u64::MAX, None, 2).unwrap();
        let mut found: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        for batch in 0..candidates.batches() {
            candidates.each_pair(batch, |one, two| *found.entry((one, two)).or_insert(0) += 1);
        }
        assert!(found.values().all(|times| *times == 1));
        let expected = by_brute_force(&records, &rules, records.left_rows());
        assert!(expected.len() > 100);
        assert_eq!(found.into_keys().collect::<BTreeSet<_>>(), expected);
    }
}

#[test]
fn a_skipped_block_is_told_and_later_rules_still_give_its_pairs() {
    let names = StringArray::from(vec!["ann", "ann", "ann", "bob", "bob"]);
    let places = StringArray::from(vec!["york", "york", "rome", "rome", "rome"]);
    let spec = LinkageSpec::new([("name", ColumnKind::Forename), ("place", ColumnKind::Place)]);
    let records = Records::one_set(&spec, &[("name", &names), ("place", &places)]).unwrap();
    let rules = [BlockingRule::new(&["name"]).unwrap(), BlockingRule::new(&["name", "place"]).unwrap()];
    let candidates = Candidates::new(&records, &rules, 2, None, 1).unwrap();
    let mut pairs = BTreeSet::new();
    for batch in 0..candidates.batches() {
        candidates.each_pair(batch, |one, two| assert!(pairs.insert((one, two))));
    }
    assert_eq!(pairs, BTreeSet::from([(3, 4), (0, 1)]));
    assert_eq!(candidates.skipped.len(), 1);
    assert_eq!((candidates.skipped[0].blocks, candidates.skipped[0].pairs), (1, 3));
    assert_eq!(candidates.skipped[0].largest_key, "ann");
}

#[test]
fn swapped_names_count_once_and_missing_values_not_at_all() {
    let (mut columns, _) = people(400, 21);
    // The last two records are one person with swapped names, the third last has no birth date.
    let add = |array: &StringArray, more: [Option<&str>; 3]| array.iter().chain(more).collect::<StringArray>();
    columns[0].1 = add(&columns[0].1, [Some("zoe"), Some("zoe"), Some("quill")]);
    columns[1].1 = add(&columns[1].1, [Some("quill"), Some("quill"), Some("zoe")]);
    columns[2].1 = add(&columns[2].1, [None, Some("1980-02-03"), Some("1980-02-03")]);
    columns[3].1 = add(&columns[3].1, [Some("1234"), Some("1234"), Some("1234")]);
    let records = Records::one_set(&spec(), &named(&columns)).unwrap();
    let (model, _) = LinkageModel::fit(&records, &spec(), Threads::count(1)).unwrap();
    let scorer = model.scorer(&records).unwrap();
    let last = records.rows() - 1;
    let step = |explanation: &Explanation, column: &str| {
        explanation.steps.iter().find(|step| step.column == column).cloned().unwrap()
    };

    let swapped = scorer.explain(last - 1, last);
    assert_eq!(step(&swapped, "forename").level, "swapped with surname");
    assert_eq!(step(&swapped, "surname").level, "missing");
    assert!(step(&swapped, "surname").bits.abs() < f64::EPSILON);
    assert!(swapped.probability > 0.95, "{swapped:?}");

    let without_birth = scorer.explain(last - 2, last - 1);
    let birth = step(&without_birth, "birth");
    assert_eq!((birth.level.as_str(), birth.m), ("missing", None));
    assert!(birth.bits.abs() < f64::EPSILON && birth.term_bits.abs() < f64::EPSILON);
}

#[test]
fn rare_values_weigh_more() {
    let (columns, _) = people(600, 2);
    let records = Records::one_set(&spec(), &named(&columns)).unwrap();
    let (model, _) = LinkageModel::fit(&records, &spec(), Threads::count(1)).unwrap();
    let scorer = model.scorer(&records).unwrap();
    let surname = &records.columns[records.column_at("surname").unwrap()];
    let common = (0..surname.counts.len()).max_by_key(|code| surname.counts[*code]).unwrap();
    let rare = (0..surname.counts.len())
        .filter(|code| surname.counts[*code] > 1)
        .min_by_key(|code| surname.counts[*code])
        .unwrap();
    let term_bits = |code: usize| {
        let mut rows = (0..records.rows()).filter(|row| surname.codes[*row as usize] as usize == code);
        let explanation = scorer.explain(rows.next().unwrap(), rows.next().unwrap());
        explanation.steps.iter().find(|step| step.column == "surname").unwrap().term_bits
    };
    let ratio = f64::from(surname.counts[common]) / f64::from(surname.counts[rare]);
    assert!((term_bits(rare) - term_bits(common) - ratio.log2()).abs() < 1e-9);
}

#[test]
fn hanzi_and_pinyin_of_one_name_agree() {
    let names = StringArray::from(vec![
        "王小明",
        "Wang Xiaoming",
        "xiaoming WANG",
        "張偉",
        "张伟",
        "李娜",
        "Li Na",
        "陈静",
        "刘洋",
        "赵磊",
    ]);
    let births = StringArray::from(vec![
        "1985年3月7日",
        "1985-03-07",
        "19850307",
        "1990-01-01",
        "1990/1/1",
        "1971-05-06",
        "1971-05-06",
        "1960-01-02",
        "1961-02-03",
        "1962-03-04",
    ]);
    let mut spec = LinkageSpec::new([("name", ColumnKind::FullName), ("birth", ColumnKind::BirthDate)]);
    spec.sample_pairs = 1_000;
    let records = Records::one_set(&spec, &[("name", &names), ("birth", &births)]).unwrap();
    let (model, _) = LinkageModel::fit(&records, &spec, Threads::count(1)).unwrap();
    let scorer = model.scorer(&records).unwrap();
    let level = |one, two, column: &str| {
        scorer.explain(one, two).steps.into_iter().find(|step| step.column == column).unwrap().level
    };
    assert_eq!(level(0, 1, "name"), "pinyin <= 0");
    assert_eq!(level(1, 2, "name"), "exact");
    assert_eq!(level(3, 4, "name"), "exact");
    assert_eq!(level(5, 6, "name"), "pinyin <= 0");
    assert_eq!(level(7, 8, "name"), "none");
    assert_eq!(level(0, 2, "birth"), "exact");
}

#[test]
fn records_without_a_column_or_of_another_length_are_refused() {
    let names = StringArray::from(vec!["ann", "bob"]);
    let places = StringArray::from(vec!["york"]);
    let spec = LinkageSpec::new([("name", ColumnKind::Forename), ("place", ColumnKind::Place)]);
    let missing = Records::one_set(&spec, &[("name", &names)]).expect_err("no place").to_string();
    assert!(missing.contains("column place"), "{missing}");
    let uneven = Records::one_set(&spec, &[("name", &names), ("place", &places)]).expect_err("one row").to_string();
    assert!(uneven.contains("another number of rows"), "{uneven}");
}

#[test]
fn records_in_which_no_rule_gives_a_pair_cannot_be_fitted() {
    let names = StringArray::from(vec!["ann", "bob", "cleo"]);
    let spec = LinkageSpec::new([("name", ColumnKind::FullName)]);
    let records = Records::one_set(&spec, &[("name", &names)]).unwrap();
    assert!(matches!(LinkageModel::fit(&records, &spec, Threads::count(1)), Err(LinkageError::Fit(_))));
}

#[test]
fn a_size_limit_cuts_the_weakest_links_first() {
    let edge = |left, right, weight| Edge { left, right, weight, levels: 0 };
    // Two triangles joined by a weak link.
    let edges = [
        edge(0, 1, 9.0),
        edge(1, 2, 8.0),
        edge(0, 2, 7.0),
        edge(3, 4, 9.0),
        edge(4, 5, 8.0),
        edge(3, 5, 7.0),
        edge(2, 3, 1.0),
    ];
    let curve = size_curve(6, &edges, 0.0, &[2, 3, 6]);
    let shape: Vec<_> =
        curve.iter().map(|point| (point.size_max, point.clusters, point.largest, point.links_cut)).collect();
    assert_eq!(shape, [(2, 2, 2, 5), (3, 2, 3, 1), (6, 1, 6, 0)]);
}

#[test]
fn edges_become_columns() {
    let edges =
        [Edge { left: 1, right: 4, weight: 0.0, levels: 0x21 }, Edge { left: 2, right: 3, weight: 3.0, levels: 0x03 }];
    let batch = edge_batch(&edges, 2).unwrap();
    let text = arrow::util::pretty::pretty_format_batches(&[batch]).unwrap().to_string();
    assert!(text.contains("| 1    | 4     | 0.0    | 0.5                | [1, 2] |"), "{text}");
    assert!(text.contains("| [3, 0] |"), "{text}");
}
