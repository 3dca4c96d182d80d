//! What follows from all sources: identity, and from there the stages. For commands that ingest and for scheduled runs.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use holdfast_identity::{IdentifierTokens, IdentitySource, ResolveReport, Resolver, newest_decision};
use holdfast_ingest::{SourceSpec, newest_replay};
use holdfast_lake::Lake;
use holdfast_types::Progress;

use super::grouped;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::{Project, raw_table};

/// How many tables are looked at at once.
const LOOKS: usize = 8;

/// How far each source has come in raw, and which decision of people is the newest: what has not changed since is no news.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Arrived {
    sources: Vec<IdentitySource>,
    decision: i64,
}

impl Arrived {
    /// As it is now. Costs a GET a source, as long as nothing comes.
    pub(crate) async fn look(project: &Project, lake: &Lake) -> Result<Self, CliError> {
        Ok(Self { sources: identity_sources(project, lake).await?, decision: newest_decision(lake).await? })
    }

    /// Whether anything has come at all.
    pub(crate) fn is_nothing(&self) -> bool {
        self.sources.iter().all(|source| source.newest_batch == 0)
    }

    /// Resolves identity over what has arrived.
    pub(crate) async fn resolve(
        &self,
        project: &Project,
        lake: &Lake,
        resolver: &mut Resolver,
        terminal: &Arc<Terminal>,
    ) -> Result<ResolveReport, CliError> {
        resolve_sources(project, lake, resolver, &self.sources, terminal).await
    }
}

/// The sources of the pipeline for identity, with how far each has come in raw, whoever brought it there.
async fn identity_sources(project: &Project, lake: &Lake) -> Result<Vec<IdentitySource>, CliError> {
    let sources = project.sources()?;
    let looked: Vec<_> = sources.into_iter().map(|source| identity_source(project, lake, source)).collect();
    futures::stream::iter(looked).buffered(LOOKS).try_collect().await
}

async fn identity_source(project: &Project, lake: &Lake, source: SourceSpec) -> Result<IdentitySource, CliError> {
    let table = raw_table(&source)?;
    let app_id = format!("raw/{}/{}", project.pipeline, source.name);
    let (newest_batch, newest_replay) = match lake.table(&table).await? {
        Some(raw) => {
            (raw.position(&app_id).await?.unwrap_or(0), newest_replay(&raw, &project.pipeline, &source.name).await?)
        }
        None => (0, 0),
    };
    Ok(IdentitySource {
        name: source.name,
        table,
        newest_batch,
        newest_replay,
        event_time: source.event_time,
        identifiers: source
            .identifiers
            .into_iter()
            .map(|identifier| (identifier.identifier_type, identifier.value))
            .collect(),
    })
}

/// Resolves identity over all sources of the pipeline, whichever were read just now.
pub(crate) async fn resolve_identity(
    project: &Project,
    lake: &Lake,
    tokens: &IdentifierTokens,
    terminal: &Arc<Terminal>,
) -> Result<ResolveReport, CliError> {
    let mut resolver = Resolver::new(tokens.clone());
    resolve_sources(project, lake, &mut resolver, &identity_sources(project, lake).await?, terminal).await
}

/// As [`resolve_identity`], with a model of how records of one person differ that is learnt from all that are there now.
pub(crate) async fn learn_anew(
    project: &Project,
    lake: &Lake,
    tokens: &IdentifierTokens,
    terminal: &Arc<Terminal>,
) -> Result<ResolveReport, CliError> {
    let mut resolver = Resolver::new(tokens.clone()).learning_anew();
    resolve_sources(project, lake, &mut resolver, &identity_sources(project, lake).await?, terminal).await
}

async fn resolve_sources(
    project: &Project,
    lake: &Lake,
    resolver: &mut Resolver,
    identified: &[IdentitySource],
    terminal: &Arc<Terminal>,
) -> Result<ResolveReport, CliError> {
    let report = resolver.resolve(lake, &project.session_settings(lake).await?, identified, terminal.as_ref()).await?;
    let line = if report.resolved {
        format!(
            " Resolved {} customers from {} identifiers ({} shared), {} new, {} merged, {} split",
            grouped(report.customers),
            grouped(report.identifiers),
            grouped(report.shared_identifiers),
            grouped(report.minted),
            grouped(report.merged),
            grouped(report.split)
        )
    } else {
        "    Fresh identity".to_owned()
    };
    terminal.finish("identity", &line);
    if report.records_without_identifier > 0 {
        let records = grouped(report.records_without_identifier);
        terminal
            .note(&format!("          {records} new records carry no identifier: they are kept, and no customer's"));
    }
    if let Some(outgrown) = report.outgrown {
        let (learnt_from, records) = (grouped(outgrown.learnt_from), grouped(outgrown.records));
        terminal.note(&format!(
            "          records are compared by what was learnt from {learnt_from}, and there are {records} now: `holdfast identity learn` learns it anew"
        ));
    }
    Ok(report)
}
