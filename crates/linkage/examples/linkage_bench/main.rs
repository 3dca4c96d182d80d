//! Links the records of CSV files and reports quality against a known truth, and time: what `tests/benches/linkage.py` runs beside Splink.
//!
//! ```sh
//! cargo run -p holdfast-linkage --example linkage_bench -- --data febrl3.csv --column given_name=forename --column surname=surname \
//!     --truth rec_id --truth-parts 2
//! ```

#![expect(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, reason = "a command-line report")]

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
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// One JSON document with the default guard, for the comparison.
    #[arg(long)]
    json: bool,
    /// Print the model and the curve of size limits.
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
    let encoded = start.elapsed();
    let (model, report) = LinkageModel::fit(&records, &spec, workers).unwrap();
    let fitted = start.elapsed();
    let mut edges = Vec::new();
    let scored_report = model.score(&records, workers, |batch| edges.extend_from_slice(batch)).unwrap();
    let scored = start.elapsed();

    println!(
        "records {} candidates {} patterns {} steps {} edges {} expected matches {:.0} lambda {:.3e}",
        records.rows(),
        report.candidate_pairs,
        report.patterns,
        report.steps,
        scored_report.edges,
        report.expected_matches,
        model.match_probability
    );
    println!(
        "encode {:.3} s, fit {:.3} s, score {:.3} s",
        encoded.as_secs_f64(),
        (fitted - encoded).as_secs_f64(),
        (scored - fitted).as_secs_f64()
    );
    for skipped in &report.skipped {
        println!("skipped {skipped:?}");
    }
    if args.verbose {
        for (rule, pairs) in &report.rule_pairs {
            println!("rule {rule}: {pairs}");
        }
        for one in &model.comparisons {
            println!("{}", one.comparison.column);
            for (at, level) in one.levels.iter().enumerate() {
                let label = one.comparison.levels.get(at).map_or("none".to_owned(), ToString::to_string);
                println!("    {label:40} m {:.5} u {:.3e} bits {:+.2}", level.m, level.u, level.bits());
            }
        }
    }
    let Some(truth) = &args.truth else { return };
    let truth = truth_labels(&sets, truth, args.truth_parts);
    let known = quality::pairs_within(&truth);
    for probability in [0.05, 0.5, 0.9, 0.95, 0.99, 0.999] {
        let least = weight_of(probability);
        let said: Vec<&Edge> = edges.iter().filter(|edge| edge.weight >= least).collect();
        let right = said.iter().filter(|edge| truth[edge.left as usize] == truth[edge.right as usize]).count();
        let quality = Quality { precision: right as f64 / said.len() as f64, recall: right as f64 / known as f64 };
        println!("p {probability}: edges P {:.4} R {:.4} F1 {:.4}", quality.precision, quality.recall, quality.f1());
        let scorer = model.scorer(&records).unwrap();
        let suggested = size_suggested(records.rows(), &edges);
        for guard in [Guard::None, Guard::SizeSuggested, Guard::SizeMax(20), Guard::SizeMax(25), Guard::Agreement] {
            let start = Instant::now();
            let labels = cluster(&scorer, records.rows(), &edges, least, guard);
            let seconds = start.elapsed().as_secs_f64();
            let found = cluster_quality(&labels, &truth);
            println!(
                "    {:16} clusters P {:.4} R {:.4} F1 {:.4} | B3 {:.4} | largest {} | over-merged {:.4} | {seconds:.2} s",
                if guard == Guard::SizeSuggested { format!("suggested {suggested}") } else { format!("{guard:?}") },
                found.pairs.precision,
                found.pairs.recall,
                found.pairs.f1(),
                found.b_cubed.f1(),
                found.largest,
                found.over_merged,
            );
        }
    }
}

fn read(path: &Path) -> Vec<(String, StringArray)> {
    let format = Format::default().with_header(true);
    let (schema, _) = format.infer_schema(File::open(path).unwrap(), Some(1)).unwrap();
    let names: Vec<String> = schema.fields().iter().map(|field| field.name().trim().to_owned()).collect();
    let schema = Schema::new(names.iter().map(|name| Field::new(name, DataType::Utf8, true)).collect::<Vec<_>>());
    let reader = ReaderBuilder::new(Arc::new(schema)).with_format(format).with_batch_size(1 << 20).build(File::open(path).unwrap());
    let batches: Vec<_> = reader.unwrap().map(Result::unwrap).collect();
    names
        .into_iter()
        .enumerate()
        .map(|(at, name)| {
            let arrays: Vec<ArrayRef> = batches.iter().map(|batch| Arc::clone(batch.column(at))).collect();
            let arrays: Vec<&dyn arrow::array::Array> = arrays.iter().map(AsRef::as_ref).collect();
            let all = arrow::compute::concat(&arrays).unwrap();
            let trimmed = all.as_string::<i32>().iter().map(|value| value.map(str::trim).filter(|value| !value.is_empty()));
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
            let value = parts.map_or(value.to_owned(), |parts| value.split('-').take(parts).collect::<Vec<_>>().join("-"));
            let next = labels.len() as u32;
            all.push(*labels.entry(value).or_insert(next));
        }
    }
    all
}
