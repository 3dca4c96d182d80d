//! Finds what was changed in the audit log.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use holdfast_engine::{LakeReader, SessionSettings};
use holdfast_lake::Lake;
use serde::Serialize;

use super::chain::{AuditKey, Row, rows_of};
use super::{app_id, table_name};
use crate::Result;

/// What a look at the whole log found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// Chains, each of one process.
    pub chains: usize,
    /// Rows that were looked at.
    pub rows: u64,
    /// Accesses that found no room to be written, by what the rows say.
    pub lost: i64,
    /// What is not as it was written; empty when all is.
    pub broken: Vec<BrokenLink>,
}

/// A place at which the log is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BrokenLink {
    /// Which chain.
    pub chain: String,
    /// Which row of it.
    pub sequence: i64,
    /// What is wrong.
    pub what: String,
}

/// Looks at every row of the audit log.
///
/// # Errors
/// What the lake answers; a table that has other columns. What was changed is in the answer.
pub async fn verify(lake: &Lake, settings: &SessionSettings, key: &AuditKey) -> Result<AuditReport> {
    let name = table_name()?;
    let Some(table) = lake.table(&name).await? else { return Ok(AuditReport::default()) };
    let published = LakeReader::newest_of(lake, settings, std::slice::from_ref(&name)).await?;
    let sql = format!("select * from {name} order by chain, sequence");
    let mut batches = published.rows("the audit log", &sql).await?;
    let mut check = Check { key, report: AuditReport::default(), ends: BTreeMap::new(), links: Vec::new(), last: None };
    // The hash of each row that a link may name: the ends alone are kept, and links are to rows at or before them.
    while let Some(batch) = batches.try_next().await? {
        for row in rows_of(&batch)? {
            check.row(row);
        }
    }
    let linked: BTreeSet<String> = check.links.iter().map(|link| link.text.clone()).collect();
    check.links_are_there(&published, &linked).await?;
    for (chain, (sequence, _)) in check.ends.clone() {
        let committed = table.position(&app_id(&chain)).await?;
        if committed.is_some_and(|committed| committed > sequence) {
            check.broken(&chain, sequence + 1, "rows at the end of the chain are gone");
        }
    }
    check.report.chains = check.ends.len();
    Ok(check.report)
}

struct Check<'a> {
    key: &'a AuditKey,
    report: AuditReport,
    /// Of each chain the last row and its hash.
    ends: BTreeMap<String, (i64, String)>,
    links: Vec<Link>,
    last: Option<Row>,
}

struct Link {
    text: String,
    by: String,
}

impl Check<'_> {
    fn row(&mut self, row: Row) {
        self.report.rows += 1;
        self.report.lost = self.report.lost.saturating_add(row.lost);
        let before = self.last.take().filter(|last| last.chain == row.chain);
        let (due, previous) =
            before.as_ref().map_or((0, String::new()), |before| (before.sequence + 1, before.hash.clone()));
        if row.right_hash(self.key) != row.hash {
            self.broken(&row.chain, row.sequence, "the row was changed, or written with another key");
        }
        if row.sequence > due {
            self.broken(&row.chain, due, "rows are gone from here on");
        } else if row.sequence < due {
            self.broken(&row.chain, row.sequence, "the row is there twice");
        } else if row.previous != previous {
            self.broken(&row.chain, row.sequence, "the row does not follow the one before it");
        }
        for link in &row.links {
            self.links.push(Link { text: link.clone(), by: row.chain.clone() });
        }
        self.ends.insert(row.chain.clone(), (row.sequence, row.hash.clone()));
        self.last = Some(row);
    }

    /// Whether each row that the beginning of a chain names is there, as it was.
    async fn links_are_there(
        &mut self,
        published: &holdfast_engine::Published,
        linked: &BTreeSet<String>,
    ) -> Result<()> {
        if linked.is_empty() {
            return Ok(());
        }
        let mut there = BTreeSet::new();
        let name = table_name()?;
        // A chain's sequence and hash are checked already: what matters is that the named row is one of them.
        let sql = format!("select * from {name}");
        let mut batches = published.rows("the audit log", &sql).await?;
        while let Some(batch) = batches.try_next().await? {
            for row in rows_of(&batch)? {
                let link = Row::link(&row.chain, row.sequence, &row.hash);
                if linked.contains(&link) {
                    there.insert(link);
                }
            }
        }
        for link in std::mem::take(&mut self.links) {
            if !there.contains(&link.text) {
                let mut parts = link.text.split('/');
                let chain = parts.next().unwrap_or_default().to_owned();
                let sequence = parts.next().and_then(|sequence| sequence.parse().ok()).unwrap_or(-1);
                self.broken(
                    &chain,
                    sequence,
                    &format!("chain {} began behind this row, and it is gone or changed", link.by),
                );
            }
        }
        Ok(())
    }

    fn broken(&mut self, chain: &str, sequence: i64, what: &str) {
        self.report.broken.push(BrokenLink { chain: chain.to_owned(), sequence, what: what.to_owned() });
    }
}

/// The last rows of chains that no chain's beginning names yet.
pub(super) async fn open_ends(lake: &Lake) -> Result<Vec<String>> {
    let name = table_name()?;
    if lake.table(&name).await?.is_none() {
        return Ok(Vec::new());
    }
    let published = LakeReader::newest_of(lake, &SessionSettings::default(), std::slice::from_ref(&name)).await?;
    let mut linked: BTreeMap<String, i64> = BTreeMap::new();
    let openings = format!("select * from {name} where sequence = 0");
    let mut batches = published.rows("the audit log", &openings).await?;
    while let Some(batch) = batches.try_next().await? {
        for link in rows_of(&batch)?.into_iter().flat_map(|row| row.links) {
            let mut parts = link.split('/');
            if let (Some(chain), Some(Ok(sequence))) = (parts.next(), parts.next().map(str::parse::<i64>)) {
                let known = linked.entry(chain.to_owned()).or_insert(sequence);
                *known = (*known).max(sequence);
            }
        }
    }
    let ends = format!(
        "select a.* from {name} a inner join (select chain, max(sequence) as sequence from {name} group by chain) e \
         on a.chain = e.chain and a.sequence = e.sequence"
    );
    let mut open = Vec::new();
    let mut batches = published.rows("the audit log", &ends).await?;
    while let Some(batch) = batches.try_next().await? {
        for row in rows_of(&batch)? {
            if linked.get(&row.chain).is_none_or(|sequence| *sequence < row.sequence) {
                open.push(Row::link(&row.chain, row.sequence, &row.hash));
            }
        }
    }
    open.sort();
    Ok(open)
}
