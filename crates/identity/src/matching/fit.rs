//! Learning a model from the records that are there, without examples.

use std::collections::{HashMap, HashSet};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use holdfast_engine::SessionSettings;
use holdfast_lake::Lake;
use holdfast_linkage::{LinkageError, LinkageModel, Threads};

use super::config::Matching;
use super::model::{Commons, Fitted, Model, next_number};
use super::roster::{Extent, Roster};
use crate::Result;
use crate::error::IdentityError;
use crate::evidence::IdentitySource;
use crate::identifier::IdentifierTokens;
use crate::tables::{self, query};

/// Fewer different records do not tell how records of one person differ.
pub(super) const RECORDS_MIN: usize = 500;

/// Values that fewer records have are all as rare.
const TERM_RECORDS_MIN: u32 = 3;
/// Values that are listed of an attribute, the most common first.
const TERMS_MAX: usize = 50_000;

/// The bar is raised in components with more than so many times the identifiers that all but one speaker in a thousand came with, or the records that one person is expected to have.
const GUARD_TIMES: i64 = 2;
const GUARD_CAP_MIN: i64 = 12;

/// Learns a model from all records and stores it; `None` when they are too few, or none are worth comparing.
pub(super) async fn fit(
    (lake, settings): (&Lake, &SessionSettings),
    tokens: &IdentifierTokens,
    matching: &Matching,
    sources: &[IdentitySource],
) -> Result<Option<i64>> {
    let mut roster = Roster::new(matching);
    for (number, source) in (0..).zip(sources) {
        let whole = Extent { batch: source.newest_batch, replay: source.newest_replay };
        let mut none = Roster::new(matching);
        let nothing = Extent { batch: 0, replay: 0 };
        Roster::read((lake, settings), tokens, (number, source), (nothing, whole), (&mut roster, &mut none)).await?;
    }
    if roster.len() < RECORDS_MIN {
        tracing::info!(records = roster.len(), needed = RECORDS_MIN, "too few records to learn how they differ");
        return Ok(None);
    }
    // What is learnt does not depend on the order in which records came.
    roster.sort();
    let spec = matching.spec().map_err(refused)?;
    let records = roster.records(&spec).map_err(refused)?;
    let (weights, report) = match LinkageModel::fit(&records, &spec, Threads::all()) {
        Ok(fitted) => fitted,
        Err(LinkageError::Fit(reason)) => {
            tracing::info!(reason, "nothing to learn from");
            return Ok(None);
        }
        Err(error) => return Err(refused(error)),
    };
    let mut common = Commons { tokens: tokens.clone(), terms: HashMap::new(), keys: HashSet::new() };
    for term in weights.terms(&records, TERM_RECORDS_MIN - 1, TERMS_MAX).map_err(refused)? {
        let hash = tokens.value_hash(&term.column, &term.value);
        let (listed, others) = common.terms.entry(term.column).or_default();
        // The rarest comes last: values that are not listed weigh as it does.
        *others = term.bits;
        if term.records >= TERM_RECORDS_MIN {
            listed.insert(hash, term.bits);
        }
    }
    for (rule, key) in weights.common_keys(&records, Threads::all()).map_err(refused)? {
        common.keys.insert((rule, tokens.value_hash(&rule.to_string(), &key)));
    }
    let learnt_from = roster.len() as u64;
    // What a record has others of its person, as the model itself expects.
    #[expect(clippy::cast_precision_loss, reason = "a number of records fits")]
    let others = weights.match_probability * learnt_from.saturating_sub(1) as f64;
    let model = Model { number: next_number(lake).await?, learnt_from, weights, common };
    let fitted = Fitted {
        number: model.number,
        records: roster.len(),
        pairs: report.candidate_pairs,
        expected_matches: report.expected_matches,
        guard_cap: suggested_cap(lake, settings, others).await?,
        fitted_at: lake.clock().now().timestamp_micros(),
    };
    model.write(lake, &matching.fingerprint(), fitted).await?;
    tracing::info!(
        model = fitted.number,
        records = fitted.records,
        pairs = fitted.pairs,
        expected_matches = fitted.expected_matches,
        "learnt how records of one person differ"
    );
    Ok(Some(model.number))
}

/// The size that customers hardly ever pass: twice what all but one identifier in a thousand came together with, and twice as many records as a person is expected to have.
async fn suggested_cap(lake: &Lake, settings: &SessionSettings, others: f64) -> Result<u32> {
    let spec = tables::edges()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a float beyond the range becomes its end"
    )]
    let expected = (GUARD_TIMES as f64 * (1.0 + others)).ceil() as i64;
    let least_size = expected.max(GUARD_CAP_MIN);
    let least = u32::try_from(least_size).unwrap_or(u32::MAX);
    if lake.table(&spec.name).await?.is_none() {
        return Ok(least);
    }
    let sql = "select partners, count(*) as identifiers from (\
               select left_token, cast(count(distinct right_token) + 1 as bigint) as partners from identity.edges \
               group by left_token) as speakers group by partners order by partners";
    let mut sizes: Vec<(i64, i64)> = Vec::new();
    for rows in query(lake, settings, &spec.name, sql).await? {
        let number = |column: usize| rows.column(column).as_primitive::<Int64Type>();
        sizes.extend((0..number(0).len()).map(|row| (number(0).value(row), number(1).value(row))));
    }
    let all: i64 = sizes.iter().map(|(_, count)| count).sum();
    let mut passed = 0;
    for (size, count) in sizes {
        passed += count;
        if passed * 1000 >= all * 999 {
            return Ok(u32::try_from((GUARD_TIMES * size).max(least_size)).unwrap_or(u32::MAX));
        }
    }
    Ok(least)
}

pub(super) fn refused(error: LinkageError) -> IdentityError {
    IdentityError::Damaged(format!("comparing records: {error}"))
}
