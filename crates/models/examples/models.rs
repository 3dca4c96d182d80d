//! Trains and scores from Arrow files, for the tests against XGBoost (tests/clients/test_models.py) and the benchmark (tests/benches/models.py).
//! Prints one JSON document; times are in seconds, CPU time is left to whoever runs it.
//!
//! ```text
//! cargo run -p holdfast-models --example models -- train --data train.arrow --label churned --model churn.ubj
//! cargo run -p holdfast-models --example models -- predict --data new.arrow --model churn.ubj --out scores.arrow --contributions
//! cargo run -p holdfast-models --example models -- train-sequence --rows train.arrow --history weeks.arrow --label churned --model lstm
//! cargo run -p holdfast-models --example models -- predict-sequence --rows new.arrow --history weeks.arrow --model lstm --out scores.arrow
//! ```

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, AsArray, Float32Array, Float64Array, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use clap::{Args, Parser, ValueEnum};
use holdfast_models::lifetime::{BgNbd, Cohort, History, ParetoNbd, RepeatBuying};
use holdfast_models::sequence::{
    Gaps, SequenceArtefact, SequenceLayout, SequenceModel, SequenceParameters, SequenceTrainingSet, Sequences,
};
use holdfast_models::{Format, Hessboost, Matrix, Model, Parameters, Signature, TrainingSet, labels_of};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
enum Command {
    /// Trains on every column but the label and the weight.
    Train {
        #[arg(long)]
        data: PathBuf,
        #[arg(long)]
        label: String,
        #[arg(long)]
        weight: Option<String>,
        /// For early stopping; the same columns.
        #[arg(long)]
        validation: Option<PathBuf>,
        /// JSON, as in `{"rounds": 100}`.
        #[arg(long, default_value = "{}")]
        parameters: String,
        /// Written as JSON where it ends in .json, else as UBJSON.
        #[arg(long)]
        model: PathBuf,
    },
    /// Scores every row: margins, probabilities and, if asked, SHAP values.
    Predict {
        #[arg(long)]
        data: PathBuf,
        #[arg(long)]
        model: PathBuf,
        #[arg(long)]
        out: PathBuf,
        #[arg(long)]
        contributions: bool,
        /// Rows that are scored alone for the time of one, in turn.
        #[arg(long, default_value_t = 0)]
        rows_alone: usize,
    },
    /// Trains an LSTM. Every column of the history but the key and the step is a channel.
    TrainSequence {
        #[command(flatten)]
        sequences: SequenceFiles,
        #[arg(long)]
        label: String,
        /// JSON, as in `{"hidden": 16}`.
        #[arg(long, default_value = "{}")]
        parameters: String,
        /// Written as `<model>.safetensors` and `<model>.json`.
        #[arg(long)]
        model: PathBuf,
    },
    /// Scores rows by an LSTM.
    PredictSequence {
        #[command(flatten)]
        sequences: SequenceFiles,
        #[arg(long)]
        model: PathBuf,
        #[arg(long)]
        out: PathBuf,
        /// Rows that are scored alone for the time of one, in turn.
        #[arg(long, default_value_t = 0)]
        rows_alone: usize,
    },
    /// Fits a model of repeat buying to columns repeats, last and observed.
    Lifetime {
        #[arg(long)]
        data: PathBuf,
        #[arg(long)]
        model: Lifetime,
    },
}

#[derive(Args)]
struct SequenceFiles {
    /// The rows that are wanted, with their key.
    #[arg(long)]
    rows: PathBuf,
    /// One row a key and step.
    #[arg(long)]
    history: PathBuf,
    #[arg(long, default_value = "customer_id")]
    key: String,
    #[arg(long, default_value = "week")]
    step: String,
    #[arg(long, default_value_t = 52)]
    steps: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Lifetime {
    BgNbd,
    ParetoNbd,
}

#[expect(clippy::print_stdout, reason = "whoever started it reads the answer there")]
fn main() -> Outcome<()> {
    let answer = match Command::parse() {
        Command::Train { data, label, weight, validation, parameters, model } => {
            train(&data, &label, weight.as_deref(), validation.as_deref(), &parameters, &model)?
        }
        Command::Predict { data, model, out, contributions, rows_alone } => {
            predict(&data, &model, &out, contributions, rows_alone)?
        }
        Command::TrainSequence { sequences, label, parameters, model } => {
            train_sequence(&sequences, &label, &parameters, &model)?
        }
        Command::PredictSequence { sequences, model, out, rows_alone } => {
            predict_sequence(&sequences, &model, &out, rows_alone)?
        }
        Command::Lifetime { data, model: Lifetime::BgNbd } => lifetime::<BgNbd>(&data)?,
        Command::Lifetime { data, model: Lifetime::ParetoNbd } => lifetime::<ParetoNbd>(&data)?,
    };
    println!("{answer}");
    Ok(())
}

/// What a file of training rows holds.
struct Rows {
    signature: Signature,
    features: Matrix,
    labels: Vec<bool>,
    weights: Option<Vec<f32>>,
}

impl Rows {
    fn read(path: &Path, label: &str, weight: Option<&str>, signature: Option<&Signature>) -> Outcome<Self> {
        let batch = read(path)?;
        let column =
            |name: &str| batch.column_by_name(name).ok_or_else(|| format!("{}: no column {name}", path.display()));
        let labels = labels_of(column(label)?)?;
        let weights = match weight {
            Some(name) => {
                Some(cast(column(name)?, &DataType::Float32)?.as_primitive::<Float32Type>().values().to_vec())
            }
            None => None,
        };
        let schema = batch.schema();
        let features = schema.fields().iter().enumerate();
        let features = features.filter(|(_, field)| field.name() != label && Some(field.name().as_str()) != weight);
        let features = batch.project(&features.map(|(place, _)| place).collect::<Vec<_>>())?;
        let signature = signature.cloned().map_or_else(|| Signature::of(&features), Ok)?;
        Ok(Self { features: signature.matrix(&features)?, signature, labels, weights })
    }

    fn set(&self) -> TrainingSet<'_> {
        TrainingSet { features: &self.features, labels: &self.labels, weights: self.weights.as_deref() }
    }
}

fn train(
    data: &Path,
    label: &str,
    weight: Option<&str>,
    validation: Option<&Path>,
    parameters: &str,
    model: &Path,
) -> Outcome<Value> {
    let parameters: Parameters = serde_json::from_str(parameters)?;
    let rows = Rows::read(data, label, weight, None)?;
    let validation = validation.map(|path| Rows::read(path, label, weight, Some(&rows.signature))).transpose()?;
    let validation = validation.as_ref().map(Rows::set);
    let began = Instant::now();
    let trained = Model::fit(&Hessboost, &rows.signature, &rows.set(), validation.as_ref(), &parameters)?;
    let fit_seconds = began.elapsed().as_secs_f64();
    let format = if model.extension().is_some_and(|ending| ending == "json") { Format::Json } else { Format::Ubjson };
    std::fs::write(model, trained.model.write(format)?)?;
    let useless: Vec<&str> = trained.useless.iter().map(|useless| &*useless.feature).collect();
    Ok(json!({ "rounds": trained.model.rounds(), "useless": useless, "fit_seconds": fit_seconds }))
}

fn predict(data: &Path, model: &Path, out: &Path, contributions: bool, rows_alone: usize) -> Outcome<Value> {
    let began = Instant::now();
    let model = Model::read(&Hessboost, &std::fs::read(model)?)?;
    let load_seconds = began.elapsed().as_secs_f64();
    let features = model.signature().matrix(&read(data)?)?;
    let width = features.columns();
    // The first row lays the trees out.
    model.probability(&features.values()[..width])?;
    let began = Instant::now();
    for row in features.values().chunks_exact(width).cycle().take(rows_alone) {
        std::hint::black_box(model.probability(row)?);
    }
    let row_seconds = (rows_alone > 0).then(|| began.elapsed().as_secs_f64() / rows_alone as f64);
    let began = Instant::now();
    let margins = model.margins(&features)?;
    let margin_seconds = began.elapsed().as_secs_f64();
    let mut columns: Vec<(String, ArrayRef)> = vec![
        ("probability".to_owned(), Arc::new(Float64Array::from(model.probabilities(&features)?))),
        ("margin".to_owned(), Arc::new(Float32Array::from(margins))),
    ];
    let mut contribution_seconds = None;
    if contributions {
        let began = Instant::now();
        let values = model.contributions(&features)?;
        contribution_seconds = Some(began.elapsed().as_secs_f64());
        let names = model.signature().features().iter().map(|feature| feature.name.as_str()).chain(["bias"]);
        for (place, name) in names.enumerate() {
            let column: Vec<f32> = values.iter().skip(place).step_by(width + 1).copied().collect();
            columns.push((format!("of {name}"), Arc::new(Float32Array::from(column))));
        }
    }
    let batch = RecordBatch::try_from_iter(columns)?;
    write(out, &batch)?;
    Ok(json!({
        "rows": batch.num_rows(),
        "rounds": model.rounds(),
        "load_seconds": load_seconds,
        "margin_seconds": margin_seconds,
        "contribution_seconds": contribution_seconds,
        "row_seconds": row_seconds,
    }))
}

impl SequenceFiles {
    /// The sequences, and the batch of the rows that are wanted.
    fn read(&self) -> Outcome<(Sequences, RecordBatch)> {
        let (rows, history) = (read(&self.rows)?, read(&self.history)?);
        let schema = history.schema();
        let names = schema.fields().iter().map(|field| field.name().clone());
        let layout = SequenceLayout {
            keys: vec![self.key.clone()],
            step: self.step.clone(),
            channels: names.filter(|name| *name != self.key && *name != self.step).collect(),
            steps: self.steps,
            gaps: Gaps::Quiet,
        };
        Ok((Sequences::of_batches(&layout, &rows, &[history])?, rows))
    }
}

fn train_sequence(files: &SequenceFiles, label: &str, parameters: &str, model: &Path) -> Outcome<Value> {
    let parameters: SequenceParameters = serde_json::from_str(parameters)?;
    let began = Instant::now();
    let (sequences, rows) = files.read()?;
    let read_seconds = began.elapsed().as_secs_f64();
    let label = rows.column_by_name(label).ok_or_else(|| format!("{}: no column {label}", files.rows.display()))?;
    let set = SequenceTrainingSet { sequences: &sequences, labels: &labels_of(label)?, groups: None };
    let began = Instant::now();
    let trained = SequenceModel::fit(&set, &parameters, &mut |_| {})?;
    let fit_seconds = began.elapsed().as_secs_f64();
    let artefact = trained.model.write()?;
    std::fs::write(model.with_extension("safetensors"), artefact.weights)?;
    std::fs::write(model.with_extension("json"), artefact.signature)?;
    let useless: Vec<&str> = trained.useless.iter().map(|useless| &*useless.feature).collect();
    Ok(json!({
        "rows": sequences.rows(),
        "best_epoch": trained.model.epochs(),
        "epochs": trained.epochs,
        "useless": useless,
        "without_steps": trained.without_steps,
        "read_seconds": read_seconds,
        "fit_seconds": fit_seconds,
    }))
}

fn predict_sequence(files: &SequenceFiles, model: &Path, out: &Path, rows_alone: usize) -> Outcome<Value> {
    let weights = std::fs::read(model.with_extension("safetensors"))?;
    let signature = std::fs::read(model.with_extension("json"))?;
    let model = SequenceModel::read(&SequenceArtefact { weights, signature })?;
    let (sequences, _) = files.read()?;
    let alone = (0..rows_alone.min(sequences.rows())).map(|row| sequences.take(&[row]));
    let alone: Vec<Sequences> = alone.collect::<Result<_, _>>()?;
    let began = Instant::now();
    for row in &alone {
        std::hint::black_box(model.margins(row)?);
    }
    let row_seconds = (!alone.is_empty()).then(|| began.elapsed().as_secs_f64() / alone.len() as f64);
    let began = Instant::now();
    let margins = model.margins(&sequences)?;
    let margin_seconds = began.elapsed().as_secs_f64();
    let columns: [(&str, ArrayRef); 2] = [
        ("probability", Arc::new(Float64Array::from(model.probabilities(&sequences)?))),
        ("margin", Arc::new(Float32Array::from(margins))),
    ];
    write(out, &RecordBatch::try_from_iter(columns)?)?;
    Ok(json!({ "rows": sequences.rows(), "margin_seconds": margin_seconds, "row_seconds": row_seconds }))
}

fn lifetime<M: RepeatBuying>(data: &Path) -> Outcome<Value> {
    let batch = read(data)?;
    let column = |name: &str| -> Outcome<Vec<f64>> {
        let column = batch.column_by_name(name).ok_or_else(|| format!("{}: no column {name}", data.display()))?;
        Ok(cast(column, &DataType::Float64)?.as_primitive::<Float64Type>().values().to_vec())
    };
    let (repeats, last, observed) = (column("repeats")?, column("last")?, column("observed")?);
    let began = Instant::now();
    let rows = repeats.iter().zip(&last).zip(&observed).enumerate().map(|(row, ((repeats, last), observed))| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let repeats = *repeats as u32;
        History::new(repeats, *last, *observed, row)
    });
    let histories: Vec<History> = rows.collect::<Result<_, _>>()?;
    let cohort = Cohort::new(histories.iter().copied())?;
    let group_seconds = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let fit = M::fit(&cohort)?;
    let fit_seconds = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let expected: f64 = histories.iter().map(|history| fit.model.expected_purchases(history, 39.0)).sum();
    let quiet: f64 = histories.iter().map(|history| fit.model.no_purchase(history, 13.0)).sum();
    let score_seconds = began.elapsed().as_secs_f64();
    let parameters =
        M::NAMES.into_iter().zip(fit.model.parameters()).map(|(name, value)| (name.to_owned(), json!(value)));
    Ok(json!({
        "model": M::LABEL,
        "parameters": parameters.collect::<serde_json::Map<_, _>>(),
        "log_likelihood": fit.log_likelihood,
        "has_covariance": fit.covariance.is_some(),
        "customers": fit.customers,
        "groups": cohort.groups().len(),
        "expected_purchases_39": expected,
        "expected_quiet_13": quiet,
        "group_seconds": group_seconds,
        "fit_seconds": fit_seconds,
        "score_seconds": score_seconds,
    }))
}

fn read(path: &Path) -> Outcome<RecordBatch> {
    let reader = FileReader::try_new(File::open(path)?, None)?;
    let schema = reader.schema();
    let batches: Vec<RecordBatch> = reader.collect::<Result<_, _>>()?;
    Ok(concat_batches(&schema, &batches)?)
}

fn write(path: &Path, batch: &RecordBatch) -> Outcome<()> {
    let mut writer = FileWriter::try_new(File::create(path)?, &batch.schema())?;
    writer.write(batch)?;
    Ok(writer.finish()?)
}
