use super::*;
use crate::Hessboost;
use crate::sequence::tests::{complaints_and_refunds, quick};
use crate::testing::{Dice, say};

/// What a table of aggregates knows of the sequences: sum, highest and mean square of every channel; and one feature that tells a little.
fn aggregates(sequences: &Sequences, labels: &[bool], seed: u64) -> (Signature, Matrix) {
    let mut dice = Dice::new(seed);
    let names = ["complaints", "refunds", "visits"].iter().flat_map(|channel| {
        ["sum", "most", "square"].map(|what| Feature { name: format!("{channel}_{what}"), kind: FeatureKind::Number })
    });
    let mut features: Vec<Feature> = names.collect();
    features.push(Feature { name: "tenure".to_owned(), kind: FeatureKind::Number });
    let signature = Signature::new(features).unwrap();
    let mut values = Vec::new();
    for (row, &label) in labels.iter().enumerate() {
        for channel in 0..3 {
            let steps = (0..sequences.steps()).map(|step| sequences.step(row, step)[channel]);
            values.push(steps.clone().sum());
            values.push(steps.clone().fold(0.0, f32::max));
            values.push(steps.map(|value| value * value).sum());
        }
        #[expect(clippy::cast_possible_truncation, reason = "made-up values")]
        values.push((dice.normal() + if label { 0.8 } else { 0.0 }) as f32);
    }
    let matrix = signature.matrix_of(values).unwrap();
    (signature, matrix)
}

fn ablation(order_matters: bool) -> Hybrid {
    let (train, labels) = complaints_and_refunds(1600, 21);
    let (test, truth) = complaints_and_refunds(1000, 22);
    let shuffled = |labels: Vec<bool>, seed| {
        let mut dice = Dice::new(seed);
        labels.into_iter().map(|label| if order_matters { label } else { dice.unit() < 0.4 }).collect::<Vec<bool>>()
    };
    let (labels, truth) = (shuffled(labels, 23), shuffled(truth, 24));
    let (signature, features) = aggregates(&train, &labels, 25);
    let (_, test_features) = aggregates(&test, &truth, 26);
    let train = HybridSet { features: &features, sequences: &train, labels: &labels, groups: None };
    let test = HybridSet { features: &test_features, sequences: &test, labels: &truth, groups: None };
    let trees = Parameters { rounds: 60, max_depth: 3, ..Parameters::default() };
    let bootstrap = Bootstrap { replicates: 300, ..Bootstrap::default() };
    let mut heard = std::collections::BTreeSet::new();
    let folds = Folds::Grouped(3);
    let trained =
        hybrid(&Hessboost, &signature, &train, &test, &folds, &trees, &quick(), &bootstrap, &mut |fold, _| {
            heard.insert(fold);
        });
    assert_eq!(heard.into_iter().collect::<Vec<_>>(), [None, Some(0), Some(1), Some(2)]);
    let trained = trained.unwrap();
    let ablation = &trained.ablation;
    say(&format!("order matters: {order_matters}; {:?}; alone {:?}", ablation.auc, ablation.sequence_auc));
    trained
}

#[test]
fn the_hybrid_wins_where_order_matters() {
    let trained = ablation(true);
    let ablation = &trained.ablation;
    assert!(ablation.hybrid_wins && ablation.auc.difference.low > 0.1, "{:?}", ablation.auc);
    assert!(ablation.log_loss.difference.high < 0.0);
    assert!(ablation.sequence_auc.is_some_and(|auc| auc > 0.9));
    assert_eq!(trained.hybrid.model.signature().features().last().unwrap().name, SEQUENCE_FEATURE);
    let line = ablation.report.lines.iter().find(|line| line.measure == "auc").unwrap();
    let plain = line.baseline.unwrap().value;
    assert!(plain < 0.76, "aggregates know nothing of the order, {plain} is what the one other feature tells");
    assert!((line.difference.unwrap().value - ablation.auc.difference.value).abs() < 1e-12);
    assert!(serde_json::to_string(ablation).unwrap().contains("\"hybrid_wins\":true"));
}

#[test]
fn the_hybrid_does_not_win_where_order_tells_nothing() {
    let ablation = ablation(false).ablation;
    assert!(!ablation.hybrid_wins, "{:?}", ablation.auc);
    assert!(ablation.auc.difference.value.abs() < 0.03, "{:?}", ablation.auc);
}

#[test]
fn tables_and_sequences_of_other_rows_are_refused() {
    let (sequences, labels) = complaints_and_refunds(100, 31);
    let (signature, features) = aggregates(&sequences, &labels, 32);
    let fewer = sequences.take(&(0..99).collect::<Vec<_>>()).unwrap();
    let good = HybridSet { features: &features, sequences: &sequences, labels: &labels, groups: None };
    let bad = HybridSet { sequences: &fewer, ..good };
    let run = |train: &HybridSet<'_>, test: &HybridSet<'_>, trees: &Parameters| {
        let (folds, bootstrap) = (Folds::Grouped(2), Bootstrap::default());
        hybrid(&Hessboost, &signature, train, test, &folds, trees, &quick(), &bootstrap, &mut |_, _| {}).unwrap_err()
    };
    assert!(run(&bad, &good, &Parameters::default()).to_string().contains("99 values where 100"));
    assert!(run(&good, &bad, &Parameters::default()).to_string().contains("99 values where 100"));
    let stops = Parameters { stop_after: std::num::NonZeroUsize::new(3), ..Parameters::default() };
    assert!(run(&good, &good, &stops).to_string().contains("stop_after"));
    let named = Feature { name: SEQUENCE_FEATURE.to_owned(), kind: FeatureKind::Number };
    assert!(with_sequence(&Signature::new(vec![named]).unwrap()).is_err());
    assert!(features.with_column(&[None]).is_err());
    assert!(features.with_column(&[Some(f64::NAN); 100]).is_err());
    let wider = features.with_column(&[None; 100]).unwrap();
    assert!(
        wider.columns() == 11
            && wider.values()[10].is_nan()
            && wider.values()[11].to_bits() == features.values()[10].to_bits()
    );
}
