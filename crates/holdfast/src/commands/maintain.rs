use std::sync::Arc;
use std::time::{Duration, Instant};

use globset::Glob;
use holdfast_engine::{EngineError, HistoryMerged, compact_history, is_history};
use holdfast_feature_store::Datasets;
use holdfast_ingest::{Inbox, SourceSpec, SweepSettings, Swept, sweep_inbox};
use holdfast_lake::{Fence, KeptRuns, Lake, LakeError, MaintainSettings, TableMaintenance};
use holdfast_types::{Progress, TableName};
use serde::Serialize;

use super::{grouped, print_json};
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// What was staged so recently may still be committed, and what was current so recently is being read.
const RETENTION_MIN: Duration = Duration::from_secs(60 * 60);

/// Merge small files, write checkpoints, delete what nobody can read any more and what of inboxes is in raw
#[derive(Debug, clap::Args)]
pub(crate) struct MaintainArgs {
    /// Only these tables: raw.orders, raw.*, *.orders
    #[arg(long, value_name = "GLOB")]
    table: Vec<String>,
    /// How long old versions and runs stay readable, and objects in inboxes: 7d, 36h; at least 1h [default: from holdfast.toml, 7d]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    retention: Option<Duration>,
    /// The size that files below half of it are merged to: 128MiB, 1GiB [default: from holdfast.toml, 128MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    target_size: Option<u64>,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    /// Print a report as JSON
    #[arg(long)]
    json: bool,
    /// How long a table stays reserved when this process dies, for tests of recovery
    #[arg(long, hide = true, value_name = "TIME", default_value = "60s", value_parser = duration)]
    lease: Duration,
}

#[derive(Debug, Serialize)]
struct MaintainReport {
    dry_run: bool,
    /// Runs whose manifests were deleted.
    runs_deleted: u64,
    tables: Vec<TableReport>,
    /// Objects of inboxes that were deleted: their rows are in `raw`.
    inbox_objects_deleted: u64,
    inbox_bytes_deleted: u64,
    /// Tables that somebody else is maintaining.
    skipped: Vec<TableName>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct TableReport {
    #[serde(flatten)]
    done: TableMaintenance,
    seconds: f64,
}

pub(crate) async fn run(project: &Project, args: &MaintainArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let started = Instant::now();
    if args.retention.is_some_and(|retention| retention < RETENTION_MIN) {
        return Err(CliError::Argument(
            "--retention must be at least 1h: writers commit what they staged shortly before, readers read what was current"
                .to_owned(),
        ));
    }
    let declared = project.maintain_settings();
    let settings = MaintainSettings {
        target_bytes: args.target_size.unwrap_or(declared.target_bytes),
        retention: args.retention.unwrap_or(declared.retention),
        is_dry_run: args.dry_run,
        ..declared
    };
    let lake = project.open_stages_to_write().await?;
    let tables = selected(&lake, &args.table).await?;
    let kept = kept_versions(&lake, &settings).await?;
    let mut report = MaintainReport {
        dry_run: args.dry_run,
        runs_deleted: kept.deleted,
        tables: Vec::new(),
        inbox_objects_deleted: 0,
        inbox_bytes_deleted: 0,
        skipped: Vec::new(),
        seconds: 0.0,
    };
    let mut failed = None;
    for (index, table) in tables.iter().enumerate() {
        terminal.advance("maintain", index as u64, Some(tables.len() as u64), "tables");
        let table_started = Instant::now();
        match maintain(&lake, table, &settings, &kept, args.lease).await {
            Ok(Some(done)) => {
                let seconds = table_started.elapsed().as_secs_f64();
                record(&done, seconds);
                if let Some(line) = line(&done, args.dry_run, seconds) {
                    terminal.note(&line);
                }
                report.tables.push(TableReport { done, seconds });
            }
            Ok(None) => {
                terminal.note(&format!("  Skipped {table}  another process is maintaining it"));
                report.skipped.push(table.clone());
            }
            // The other tables have nothing to do with it.
            Err(error) => {
                terminal.problem(&format!("   Failed {table}  {error}"));
                failed = failed.or(Some(error));
            }
        }
    }
    if args.table.is_empty() {
        match sweep_inboxes(&lake, &project.pipeline, &project.sources()?, &settings, terminal).await {
            Ok(swept) => (report.inbox_objects_deleted, report.inbox_bytes_deleted) = (swept.objects, swept.bytes),
            Err(error) => {
                terminal.problem(&format!("   Failed inboxes  {error}"));
                failed = failed.or(Some(error));
            }
        }
    }
    report.seconds = started.elapsed().as_secs_f64();
    terminal.finish("maintain", &summary(&report));
    if args.json {
        print_json(&report)?;
    }
    failed.map_or(Ok(()), Err)
}

/// Deletes what is no longer needed in the inboxes of the pipeline's sources.
pub(crate) async fn sweep_inboxes(
    lake: &Lake,
    pipeline: &str,
    sources: &[SourceSpec],
    settings: &MaintainSettings,
    terminal: &Arc<Terminal>,
) -> Result<Swept, CliError> {
    let sweep =
        SweepSettings { retention: settings.retention, is_dry_run: settings.is_dry_run, ..SweepSettings::default() };
    let mut all = Swept::default();
    for source in sources {
        let swept = sweep_inbox(&Inbox::new(lake, pipeline, source), &sweep).await?;
        if swept.objects == 0 {
            continue;
        }
        tracing::info!(
            source = source.name.as_str(),
            monotonic_counter.holdfast_maintain_inbox_objects_deleted = swept.objects,
            monotonic_counter.holdfast_maintain_inbox_bytes_deleted = swept.bytes,
            "inbox swept"
        );
        let verb = if settings.is_dry_run { "    Would" } else { " Maintained" };
        terminal.note(&format!(
            "{verb} inbox of {}  {} objects in raw deleted ({} MiB)",
            source.name,
            grouped(swept.objects),
            grouped(swept.bytes.div_ceil(1 << 20))
        ));
        all.objects += swept.objects;
        all.bytes += swept.bytes;
    }
    Ok(all)
}

/// The tables whose names fit one of the patterns; all without one.
async fn selected(lake: &Lake, patterns: &[String]) -> Result<Vec<TableName>, CliError> {
    let mut tables = lake.tables().await?;
    // In an environment those of production are maintained where they are.
    tables.retain(|table| lake.owns(table));
    if patterns.is_empty() {
        return Ok(tables);
    }
    let mut globs = Vec::with_capacity(patterns.len());
    for pattern in patterns {
        let glob = Glob::new(pattern)
            .map_err(|error| CliError::Argument(format!("--table {pattern} is not a pattern: {}", error.kind())))?
            .compile_matcher();
        if !tables.iter().any(|table| glob.is_match(table.to_string())) {
            return Err(CliError::Argument(format!("--table {pattern} fits no table of the lake")));
        }
        globs.push(glob);
    }
    tables.retain(|table| globs.iter().any(|glob| glob.is_match(table.to_string())));
    Ok(tables)
}

/// Maintains a table under its lease. `None` when somebody else has it, or took it because this process stalled.
pub(crate) async fn maintain(
    lake: &Lake,
    table: &TableName,
    settings: &MaintainSettings,
    kept: &KeptRuns,
    duration: Duration,
) -> Result<Option<TableMaintenance>, CliError> {
    if settings.is_dry_run {
        return Box::pin(maintain_one(lake, table, settings, kept, None)).await.map(Some);
    }
    let Some(mut lease) = lake.lease(&format!("maintain/{table}"), &super::worker_name(), duration).await? else {
        return Ok(None);
    };
    let fence = lease.fence();
    let worked = lease.hold(Box::pin(maintain_one(lake, table, settings, kept, Some(fence)))).await;
    if let Err(error) = lease.release().await {
        tracing::debug!(%table, %error, "a lease was not given back: it ends by itself");
    }
    match worked? {
        Some(Ok(done)) => Ok(Some(done)),
        Some(Err(CliError::Lake(LakeError::Superseded { .. } | LakeError::LeaseOver { .. }))) | None => Ok(None),
        Some(Err(CliError::Engine(EngineError::Lake(LakeError::Superseded { .. } | LakeError::LeaseOver { .. })))) => {
            Ok(None)
        }
        Some(Err(error)) => Err(error),
    }
}

/// What stays readable: the versions of runs that are kept, and those that training sets were made from.
pub(crate) async fn kept_versions(lake: &Lake, settings: &MaintainSettings) -> Result<KeptRuns, CliError> {
    let mut kept = lake.maintain_runs(settings).await?;
    Datasets::new(lake).keep(&mut kept).await?;
    Ok(kept)
}

/// Files of kept history are merged as what they are; the rest is as for all tables.
async fn maintain_one(
    lake: &Lake,
    table: &TableName,
    settings: &MaintainSettings,
    kept: &KeptRuns,
    fence: Option<Fence>,
) -> Result<TableMaintenance, CliError> {
    let merged = match lake.table(table).await?.filter(is_history) {
        Some(_) => compact_history(lake, table, fence.clone(), settings.is_dry_run).await?,
        None => HistoryMerged::default(),
    };
    let mut done = lake.maintain(table, settings, kept, fence).await?;
    done.files_merged += merged.files;
    done.rows_merged += merged.rows;
    done.conflicts += merged.conflicts;
    if !settings.is_dry_run {
        done.files_before = (done.files_before + merged.files).saturating_sub(merged.into);
    }
    Ok(done)
}

pub(crate) fn record(done: &TableMaintenance, seconds: f64) {
    tracing::info!(
        table = %done.table,
        monotonic_counter.holdfast_maintain_files_merged = done.files_merged,
        monotonic_counter.holdfast_maintain_files_vacuumed = done.files_vacuumed,
        monotonic_counter.holdfast_maintain_bytes_vacuumed = done.bytes_vacuumed,
        monotonic_counter.holdfast_maintain_log_files_deleted = done.log_files_deleted,
        histogram.holdfast_maintain_seconds = seconds,
        "table maintained"
    );
}

/// What was done to a table, if anything.
pub(crate) fn line(done: &TableMaintenance, is_dry_run: bool, seconds: f64) -> Option<String> {
    if done.is_idle() {
        return None;
    }
    let mut parts = Vec::new();
    if done.files_merged > 0 {
        parts.push(format!("{} files became {}", grouped(done.files_before), grouped(done.files_after)));
    }
    if done.conflicts > 0 {
        parts.push(format!("{} times others were quicker", done.conflicts));
    }
    if let Some(version) = done.checkpoint {
        parts.push(format!("checkpoint of v{version}"));
    }
    if done.log_files_deleted > 0 {
        parts.push(format!("{} log files deleted", grouped(done.log_files_deleted)));
    }
    if done.files_vacuumed > 0 {
        let mib = done.bytes_vacuumed.div_ceil(1 << 20);
        parts.push(format!("{} old files deleted ({} MiB)", grouped(done.files_vacuumed), grouped(mib)));
    }
    let verb = if is_dry_run { "    Would" } else { " Maintained" };
    Some(format!("{verb} {}  {}  {seconds:.1}s", done.table, parts.join(", ")))
}

fn summary(report: &MaintainReport) -> String {
    let busy = report.tables.iter().filter(|table| !table.done.is_idle()).count();
    let verb = if report.dry_run { "Would maintain" } else { "Finished" };
    let runs = match report.runs_deleted {
        0 => String::new(),
        runs => format!(", {} old runs deleted", grouped(runs)),
    };
    format!(
        " {verb} {busy} of {} tables in {:.1}s, {} skipped{runs}",
        report.tables.len(),
        report.seconds,
        report.skipped.len()
    )
}

/// `7d`, `36h`, `90m`, `60s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];
    number_and_unit(text, &units).map(Duration::from_secs).ok_or_else(|| "write 7d, 36h, 90m or 60s".to_owned())
}

/// `128MiB`, `1GiB`, `65536`.
fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1), ("", 1)];
    number_and_unit(text, &units).filter(|bytes| *bytes > 0).ok_or_else(|| "write 128MiB, 1GiB or 65536".to_owned())
}

fn number_and_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (_, factor) = units.iter().find(|(unit, _)| *unit == text[digits..].trim())?;
    text[..digits].parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_numbers_with_a_unit() {
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(duration("36h"), Ok(Duration::from_secs(36 * 3_600)));
        assert_eq!(size("128MiB"), Ok(128 << 20));
        assert_eq!(size("65536"), Ok(65_536));
        for wrong in ["", "7", "d", "-1d", "7 weeks", "1.5h", "99999999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "0", "MiB", "12MB?", "-1", "99999999999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
