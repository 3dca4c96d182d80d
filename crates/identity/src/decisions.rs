//! What people have decided: kept for good, in the order it was decided.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use holdfast_engine::{SessionSettings, TableRows, write_table};
use holdfast_lake::{CommitOutcome, Lake, Position};
use serde::Serialize;

use crate::Result;
use crate::error::IdentityError;
use crate::tables::{self, batch, moments, query};

/// The position of the table: the number of its newest decision.
const APP: &str = "identity/decisions";

/// An identifier as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Identifier {
    /// Such as phone.
    pub identifier_type: String,
    /// The keyed hash of its value.
    pub token: String,
}

impl std::fmt::Display for Identifier {
    /// Enough of the token to find it again by, as in `phone 3f2a9c01…`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}…", self.identifier_type, self.token.get(..8).unwrap_or(&self.token))
    }
}

/// What can be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// Two identifiers are one customer's, whatever the rules say.
    Link,
    /// Two identifiers are never one customer's.
    Unlink,
    /// An identifier joins nobody.
    Block,
    /// An earlier decision holds no more.
    Withdraw,
}

impl DecisionKind {
    const ALL: [Self; 4] = [Self::Link, Self::Unlink, Self::Block, Self::Withdraw];

    /// As it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Unlink => "unlink",
            Self::Block => "block",
            Self::Withdraw => "withdraw",
        }
    }
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Counts from 1.
    pub decision_id: i64,
    /// What was decided.
    pub kind: DecisionKind,
    /// The identifier it is about.
    pub left: Identifier,
    /// The other one of a pair.
    pub right: Option<Identifier>,
    /// The customer that `left` had then.
    pub left_customer_id: Option<String>,
    /// The customer that `right` had then.
    pub right_customer_id: Option<String>,
    /// The decision that is taken back.
    pub withdraws: Option<i64>,
    /// Who.
    pub decided_by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub decided_at: DateTime<Utc>,
}

impl Decision {
    /// Whether it is about these two, in any order.
    pub(crate) fn is_about(&self, one: &str, two: &str) -> bool {
        let (left, right) = (self.left.token.as_str(), self.right.as_ref().map(|right| right.token.as_str()));
        (left, right) == (one, Some(two)) || (left, right) == (two, Some(one))
    }
}

/// Those that hold: neither taken back, nor a taking back.
pub(crate) fn in_force(all: &[Decision]) -> impl Iterator<Item = &Decision> {
    let withdrawn: HashSet<i64> = all.iter().filter_map(|decision| decision.withdraws).collect();
    let holds = move |decision: &&Decision| {
        decision.kind != DecisionKind::Withdraw && !withdrawn.contains(&decision.decision_id)
    };
    all.iter().filter(holds)
}

/// The number of the newest decision; 0 before the first.
///
/// # Errors
/// What the lake answers.
pub async fn newest_decision(lake: &Lake) -> Result<i64> {
    match lake.table(&tables::decisions()?.name).await? {
        Some(table) => Ok(table.position(APP).await?.unwrap_or(0)),
        None => Ok(0),
    }
}

/// All decisions, in order.
///
/// # Errors
/// What engine and lake answer; [`IdentityError::Damaged`].
pub async fn decisions(lake: &Lake, settings: &SessionSettings) -> Result<Vec<Decision>> {
    let spec = tables::decisions()?;
    if lake.table(&spec.name).await?.is_none() {
        return Ok(Vec::new());
    }
    let sql = "select decision_id, kind, left_type, left_token, right_type, right_token, left_customer_id, \
               right_customer_id, withdraws, decided_by, reason, decided_at from identity.decisions order by decision_id";
    let mut found = Vec::new();
    for rows in query(lake, settings, &spec.name, sql).await? {
        let id = rows.column(0).as_primitive::<Int64Type>();
        let text = |index: usize| rows.column(index).as_string::<i32>();
        let withdraws = rows.column(8).as_primitive::<Int64Type>();
        let at = rows.column(11).as_primitive::<TimestampMicrosecondType>();
        for row in 0..rows.num_rows() {
            let own = |index: usize| text(index).is_valid(row).then(|| text(index).value(row).to_owned());
            let damaged = || IdentityError::Damaged(format!("identity.decisions: decision {}", id.value(row)));
            let identifier = |identifier_type: usize, token: usize| {
                own(identifier_type)
                    .zip(own(token))
                    .map(|(identifier_type, token)| Identifier { identifier_type, token })
            };
            let kind = DecisionKind::ALL.into_iter().find(|kind| kind.as_str() == text(1).value(row));
            found.push(Decision {
                decision_id: id.value(row),
                kind: kind.ok_or_else(damaged)?,
                left: identifier(2, 3).ok_or_else(damaged)?,
                right: identifier(4, 5),
                left_customer_id: own(6),
                right_customer_id: own(7),
                withdraws: withdraws.is_valid(row).then(|| withdraws.value(row)),
                decided_by: own(9).unwrap_or_default(),
                reason: own(10).unwrap_or_default(),
                decided_at: DateTime::from_timestamp_micros(at.value(row)).ok_or_else(damaged)?,
            });
        }
    }
    Ok(found)
}

/// Stores a decision under its number, unless another one came first.
pub(crate) async fn record(lake: &Lake, decision: &Decision) -> Result<()> {
    let one = |text: Option<&str>| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
    let right = decision.right.as_ref();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![decision.decision_id])),
        one(Some(decision.kind.as_str())),
        one(Some(&decision.left.identifier_type)),
        one(Some(&decision.left.token)),
        one(right.map(|right| right.identifier_type.as_str())),
        one(right.map(|right| right.token.as_str())),
        one(decision.left_customer_id.as_deref()),
        one(decision.right_customer_id.as_deref()),
        Arc::new(Int64Array::from(vec![decision.withdraws])),
        one(Some(&decision.decided_by)),
        one(Some(&decision.reason)),
        moments(std::iter::once(Some(decision.decided_at.timestamp_micros()))),
    ];
    let spec = tables::decisions()?;
    let rows = batch(&spec, columns)?;
    let position = Position { app_id: APP.to_owned(), version: decision.decision_id };
    match write_table(lake, &spec, TableRows::Added(vec![rows]), position, serde_json::Map::new()).await? {
        CommitOutcome::Applied { .. } => Ok(()),
        CommitOutcome::AlreadyApplied { .. } | CommitOutcome::Conflicted { .. } => {
            Err(IdentityError::DecidedMeanwhile(decision.decision_id))
        }
    }
}
