use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_engine::FeatureReference;
use holdfast_feature_store::{
    Asked, Dataset, HistoricalOptions, Made, Spine, SpineFormat, TrainingSetRequest, ValueStatus, make_training_set,
};
use holdfast_types::Progress;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::commands::{grouped, maintain, print, print_json, set_readable};
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Join the rows of a file (keys and moments) with features as they were known at each moment
///
/// The same request of the same lake gives the same id and the same bytes. `holdfast features datasets replay` gives them again later.
#[derive(Debug, clap::Args)]
pub(crate) struct TrainingSetArgs {
    /// The rows to be answered: a .parquet or .csv file with the key columns and a moment each
    #[arg(long, value_name = "FILE")]
    spine: PathBuf,
    /// The features of this service: NAME, or NAME@v3
    #[arg(long, value_name = "NAME", required_unless_present = "features", conflicts_with = "features")]
    service: Option<String>,
    /// These features: view:feature, view, view@v3:feature, with commas between them
    #[arg(long, value_name = "REFERENCES", value_delimiter = ',')]
    features: Vec<FeatureReference>,
    /// Where to write the training set, as Parquet
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A label: VIEW or VIEW:COLUMN, the row of the key in (T, T + horizon]
    #[arg(long, value_name = "REFERENCE", requires = "horizon")]
    label: Option<String>,
    /// How long after its moment a row's label is looked for: 90d, 36h
    #[arg(long, value_name = "TIME", requires = "label", value_parser = maintain::duration)]
    horizon: Option<Duration>,
    /// Take rows whose horizon is not over yet; their label may still change
    #[arg(long, requires = "label")]
    open_horizon: bool,
    /// The spine's column with the moments
    #[arg(long, value_name = "COLUMN", default_value = "event_timestamp")]
    timestamp: String,
    /// What happened exactly at a row's moment is not seen
    #[arg(long)]
    strict: bool,
    /// See what became known later than a row's moment, too: more than anybody had then
    #[arg(long)]
    ignore_known_at: bool,
    /// Call columns view__feature
    #[arg(long)]
    full_names: bool,
    /// Columns that say why a value is not there: one a view, one a value, or none
    #[arg(long, value_name = "KIND", default_value = "view")]
    status: StatusArgument,
    /// Add view__event_timestamp: when the row that counts happened
    #[arg(long)]
    event_timestamps: bool,
    /// Timestamps without a zone are in UTC
    #[arg(long)]
    timestamps_are_utc: bool,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum StatusArgument {
    None,
    View,
    Value,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    dataset: &'a Dataset,
    was_known: bool,
    file: &'a Path,
    seconds: f64,
}

pub(crate) async fn run(project: &Project, args: &TrainingSetArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let began = Instant::now();
    let request = TrainingSetRequest {
        asked: match &args.service {
            Some(service) => Asked::Service(service.clone()),
            None => Asked::Features(args.features.clone()),
        },
        label: args.label.clone().zip(args.horizon),
        open_horizon: args.open_horizon,
        spine: Spine { file: args.spine.clone(), format: SpineFormat::of(&args.spine)? },
        options: HistoricalOptions {
            timestamp: args.timestamp.clone(),
            strict: args.strict,
            ignore_known_at: args.ignore_known_at,
            full_names: args.full_names,
            status: match args.status {
                StatusArgument::None => ValueStatus::None,
                StatusArgument::View => ValueStatus::View,
                StatusArgument::Value => ValueStatus::Value,
            },
            event_timestamps: args.event_timestamps,
            zoneless_is_utc: args.timestamps_are_utc,
        },
        memory_bytes: memory(project),
        made_by: None,
    };
    let lake = project.open_lake_to_write().await?;
    let mut output = Output::create(&args.out)?;
    let made = make_training_set(&lake, &request, output.writer(), terminal.as_ref()).await?;
    output.keep()?;
    let seconds = began.elapsed().as_secs_f64();
    let Made { dataset, was_known, missing } = &made;
    terminal.finish("training set", &summary(dataset, &args.out, seconds));
    for (view, not_found, too_old) in missing {
        let told = [
            (*not_found, "have nothing that was known at their moment"),
            (*too_old, "have only what is older than the ttl"),
        ];
        let told =
            told.into_iter().filter(|(rows, _)| *rows > 0).map(|(rows, what)| format!("{} rows {what}", grouped(rows)));
        terminal.note(&format!("     Note {view}: {}", told.collect::<Vec<_>>().join(", ")));
    }
    if args.json {
        return print_json(&Report { dataset, was_known: *was_known, file: &args.out, seconds });
    }
    print(&format!("{}\n", dataset.id))
}

pub(super) fn summary(dataset: &Dataset, file: &Path, seconds: f64) -> String {
    format!(
        " Finished {}: {} rows, {} columns in {seconds:.1}s, {}",
        dataset.id,
        grouped(dataset.output.rows),
        dataset.output.columns,
        file.display()
    )
}

/// What a join may take: half of what there is, beside the history that it reads.
pub(super) fn memory(project: &Project) -> usize {
    project.memory_bytes() / 2
}

/// A file that appears whole under its name, or not at all.
pub(super) struct Output {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl Output {
    pub(super) fn create(path: &Path) -> Result<Self, CliError> {
        let path = std::path::absolute(path).map_err(|source| CliError::File {
            what: "cannot resolve",
            path: path.to_owned(),
            source,
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let file = NamedTempFile::new_in(folder).map_err(|source| CliError::File {
            what: "cannot write in",
            path: folder.to_owned(),
            source,
        })?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    pub(super) fn writer(&mut self) -> &mut BufWriter<NamedTempFile> {
        &mut self.file
    }

    pub(super) fn keep(self) -> Result<(), CliError> {
        let failed = |source| CliError::File { what: "cannot write", path: self.path.clone(), source };
        let file = self.file.into_inner().map_err(|error| failed(error.into_error()))?;
        set_readable(&file).map_err(failed)?;
        file.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}
