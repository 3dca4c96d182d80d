use std::path::PathBuf;

use chrono::{DateTime, Utc};
use holdfast_synth::{GenerateOptions, GenerateSummary, generate};
use holdfast_types::Progress;

use super::{grouped, print_json};
use crate::error::CliError;
use crate::progress::Terminal;

/// Generate twelve kinds of source of a made-up shop, and the truth apart
#[derive(Debug, clap::Args)]
pub(crate) struct GenerateArgs {
    /// The folder to write into: sources below it, the truth in truth/
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// How many customers
    #[arg(long, default_value_t = 10_000)]
    pub(crate) customers: u64,
    /// How many days, up to --end
    #[arg(long, default_value_t = 365)]
    pub(crate) days: u32,
    /// The same seed gives the same bytes
    #[arg(long, default_value_t = 7)]
    pub(crate) seed: u64,
    /// The moment at which everything ends
    #[arg(long, value_name = "TIME", value_parser = super::moment, default_value_t = GenerateOptions::default_end())]
    pub(crate) end: DateTime<Utc>,
    /// The share of rows that are dirty
    #[arg(long, value_name = "SHARE", default_value_t = GenerateOptions::DEFAULT_DIRTY_SHARE)]
    pub(crate) dirty_share: f64,
    /// Print a summary as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl GenerateArgs {
    pub(crate) fn options(&self) -> GenerateOptions {
        GenerateOptions {
            out: self.out.clone(),
            customers: self.customers,
            days: self.days,
            seed: self.seed,
            end: self.end,
            dirty_share: self.dirty_share,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
        }
    }
}

pub(crate) async fn run(args: &GenerateArgs, terminal: &std::sync::Arc<Terminal>) -> Result<(), CliError> {
    let summary = generate_sources(args.options(), terminal).await?;
    if args.json {
        let sources: serde_json::Map<String, serde_json::Value> = summary
            .sources
            .iter()
            .map(|source| {
                let counts =
                    serde_json::json!({ "rows": source.rows, "bytes": source.bytes, "dirty_rows": source.dirty_rows });
                (source.source.to_string(), counts)
            })
            .collect();
        print_json(&serde_json::json!({
            "already_present": summary.already_present,
            "customers": summary.customers,
            "churned_customers": summary.churned_customers,
            "files": summary.files,
            "rows": summary.rows(),
            "sources": sources,
        }))?;
    }
    Ok(())
}

/// Generates on threads of its own and tells how far it is.
pub(crate) async fn generate_sources(
    options: GenerateOptions,
    terminal: &std::sync::Arc<Terminal>,
) -> Result<GenerateSummary, CliError> {
    let out = options.out.clone();
    let shared = std::sync::Arc::clone(terminal);
    let work = tokio::task::spawn_blocking(move || {
        generate(&options, &|progress| {
            shared.advance("generate", progress.customers_done, Some(progress.customers_total), "customers");
        })
    });
    let summary = work.await.map_err(|error| CliError::Argument(format!("generation stopped: {error}")))??;
    let line = if summary.already_present {
        format!("    Fresh sources in {} ({} rows)", out.display(), grouped(summary.rows()))
    } else {
        format!(
            "Generated {} rows in {} files for {} customers in {}",
            grouped(summary.rows()),
            grouped(summary.files),
            grouped(summary.customers),
            out.display()
        )
    };
    terminal.finish("generate", &line);
    Ok(summary)
}
