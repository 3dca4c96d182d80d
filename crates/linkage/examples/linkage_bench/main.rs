//! Links the records of CSV files and reports quality against a known truth, and time: what `tests/benches/linkage.py` runs beside Splink.
//!
//! ```sh
//! cargo run -p holdfast-linkage --example linkage_bench -- --data febrl3.csv --column given_name=forename --column surname=surname \
//!     --truth rec_id --truth-parts 2
//! ```

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a command-line report"
)]
#![expect(clippy::cast_possible_truncation, reason = "small numbers")]

mod generate;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Array as _, ArrayRef, AsArray as _, StringArray};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema};
use clap::Parser;
use holdfast_linkage::*;

#[derive(Parser)]
struct Args {
    /// A CSV file with a header; two are linked with each other.
    #[arg(long, required = true)]
    data: Vec<PathBuf>,
    /// Write so many made-up records to the file of `--data` instead.
    #[arg(long)]
    generate: Option<usize>,
    /// `name=kind`.
    #[arg(long = "column")]
    columns: Vec<String>,
    /// The column whose equal values are one person.
    #[arg(long)]
    truth: Option<String>,
    /// Only so many parts of the truth, between dashes.
    #[arg(long)]
    truth_parts: Option<usize>,
    /// Threads; 0 for as many as the machine runs at once.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// More probabilities from which pairs are links.
    #[arg(long = "link")]
    links: Vec<f64>,
    /// One JSON document, for the comparison.
    #[arg(long)]
    json: bool,
    /// Print the rules, the model and the curve of size limits.
    #[arg(long)]
    verbose: bool,
}

fn main() {
    let args = Args::parse();
    if let Some(records) = args.generate {
        let file = File::create(&args.data[0]).unwrap();
        generate::write(records, args.seed, std::io::BufWriter::new(file)).unwrap();
        return;
    }
    let kinds = args.columns.iter().map(|text| {
        let (name, kind) = text.split_once('=').expect("name=kind");
        (name, serde_json::from_value::<ColumnKind>(kind.into()).expect("a kind"))
    });
    let mut spec = LinkageSpec::new(kinds);
    spec.seed = args.seed;
    let workers = if args.threads == 0 { Threads::all() } else { Threads::count(args.threads) };
    let sets: Vec<Vec<(String, StringArray)>> = args.data.iter().map(|path| read(path)).collect();
    let named: Vec<Vec<NamedColumn<'_>>> =
        sets.iter().map(|set| set.iter().map(|(name, array)| (name.as_str(), array)).collect()).collect();

    let start = Instant::now();
    let records = match &named[..] {
        [one] => Records::one_set(&spec, one),
        [left, right] => Records::two_sets(&spec, left, right),
        _ => panic!("one or two files"),
    }
    .unwrap();
    let encode_s = start.elapsed().as_secs_f64();
    let (model, fit) = LinkageModel::fit(&records, &spec, workers).unwrap();
    let train_s = start.elapsed().as_secs_f64();
    let mut edges = Vec::new();
    let score = model.score(&records, workers, |batch| edges.extend_from_slice(batch)).unwrap();
    let predict_s = start.elapsed().as_secs_f64() - train_s;

    if !args.json {
        println!("{} records, {} pairs compared, {} edges", records.rows(), score.pairs, score.edges);
        println!("{} patterns, {} steps, converged: {}", fit.patterns, fit.steps, fit.converged);
        println!("encode {encode_s:.3} s, fit {:.3} s, score {predict_s:.3} s", train_s - encode_s);
        for skipped in &fit.skipped {
            println!("skipped {skipped:?}");
        }
    }
    if args.verbose {
        describe(&model, &fit, &records, &edges);
    }
    let Some(truth) = &args.truth else { return };
    let truth = truth_labels(&sets, truth, args.truth_parts);
    let known = quality::pairs_within(&truth);
    let mut results = Vec::new();
    for probability in [0.5].iter().chain(&args.links) {
        for guard in [Guard::None, Guard::SizeSuggested] {
            results.push((format!("p ≥ {probability}, {}", label(guard)), *probability, guard));
        }
    }
    results.push(("agreement".to_owned(), model.review_probability, Guard::Agreement));
    let results = results.into_iter().map(|(label, probability, guard)| {
        let start = Instant::now();
        let clusters = cluster(&model.scorer(&records).unwrap(), records.rows(), &edges, weight_of(probability), guard);
        let cluster_s = start.elapsed().as_secs_f64();
        // Edges of the guard by agreement are those that link by the model's own threshold.
        let linking = if guard == Guard::Agreement { model.link_probability } else { probability };
        let said: Vec<&Edge> = edges.iter().filter(|edge| edge.probability() >= linking).collect();
        let right = said.iter().filter(|edge| truth[edge.left as usize] == truth[edge.right as usize]).count();
        let edge = Quality { precision: right as f64 / said.len() as f64, recall: right as f64 / known as f64 };
        let found = cluster_quality(&clusters, &truth);
        serde_json::json!({
            "label": label,
            "edge_p": edge.precision, "edge_r": edge.recall, "edge_f1": edge.f1(),
            "cluster_p": found.pairs.precision, "cluster_r": found.pairs.recall, "cluster_f1": found.pairs.f1(),
            "b3_f1": found.b_cubed.f1(), "largest": found.largest, "over_merged": found.over_merged,
            "cluster_s": cluster_s,
        })
    });
    if args.json {
        let report = serde_json::json!({
            "records": records.rows(), "true_pairs": known, "train_s": train_s, "predict_s": predict_s,
            "pairs": score.pairs, "results": results.collect::<Vec<_>>(),
        });
        println!("{report}");
    } else {
        results.for_each(|result| println!("{result:.4}"));
    }
}

fn label(guard: Guard) -> &'static str {
    match guard {
        Guard::None => "no guard",
        Guard::SizeMax(_) => "size given",
        Guard::SizeSuggested => "size suggested",
        Guard::Agreement => "agreement",
    }
}

fn describe(model: &LinkageModel, fit: &FitReport, records: &Records, edges: &[Edge]) {
    for (rule, pairs) in &fit.rule_pairs {
        println!("rule {rule}: {pairs} pairs");
    }
    println!("match probability {:.3e}, expected matches {:.0}", model.match_probability, fit.expected_matches);
    for one in &model.comparisons {
        println!("{}", one.comparison.column);
        for (at, level) in one.levels.iter().enumerate() {
            let label = one.comparison.levels.get(at).map_or("none".to_owned(), ToString::to_string);
            println!("    {label:40} m {:.5} u {:.3e} bits {:+.2}", level.m, level.u, level.bits());
        }
    }
    println!("size suggested {}", size_suggested(records.rows(), edges));
    let sizes = [2, 3, 4, 6, 8, 10, 15, 20, 25, 30, 40, 60, 100, 1_000, 10_000];
    for point in size_curve(records.rows(), edges, weight_of(model.link_probability), &sizes) {
        println!("{point:?}");
    }
}

fn read(path: &Path) -> Vec<(String, StringArray)> {
    let format = Format::default().with_header(true);
    let (schema, _) = format.infer_schema(File::open(path).unwrap(), Some(1)).unwrap();
    let names: Vec<String> = schema.fields().iter().map(|field| field.name().trim().to_owned()).collect();
    let schema = Schema::new(names.iter().map(|name| Field::new(name, DataType::Utf8, true)).collect::<Vec<_>>());
    let reader = ReaderBuilder::new(Arc::new(schema))
        .with_format(format)
        .with_batch_size(1 << 16)
        .build(File::open(path).unwrap());
    let batches: Vec<_> = reader.unwrap().map(Result::unwrap).collect();
    names
        .into_iter()
        .enumerate()
        .map(|(at, name)| {
            let arrays: Vec<ArrayRef> = batches.iter().map(|batch| Arc::clone(batch.column(at))).collect();
            let arrays: Vec<&dyn arrow::array::Array> = arrays.iter().map(AsRef::as_ref).collect();
            let all = arrow::compute::concat(&arrays).unwrap();
            let trimmed =
                all.as_string::<i32>().iter().map(|value| value.map(str::trim).filter(|value| !value.is_empty()));
            (name, trimmed.collect())
        })
        .collect()
}

fn truth_labels(sets: &[Vec<(String, StringArray)>], column: &str, parts: Option<usize>) -> Vec<u32> {
    let mut labels: HashMap<String, u32> = HashMap::new();
    let mut all = Vec::new();
    for set in sets {
        let (_, array) = set.iter().find(|(name, _)| name == column).expect("the column of the truth");
        for row in 0..array.len() {
            let value = array.value(row);
            let value =
                parts.map_or(value.to_owned(), |parts| value.split('-').take(parts).collect::<Vec<_>>().join("-"));
            let next = labels.len() as u32;
            all.push(*labels.entry(value).or_insert(next));
        }
    }
    all
}
