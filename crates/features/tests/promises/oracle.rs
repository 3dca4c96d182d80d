//! The contract as it is written: for every row of the spine all rows of the history are looked at.

use crate::world::{Asked, Row};

/// What the contract says about one row of the spine: the status, the value, the event time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) status: &'static str,
    pub(crate) value: Option<i64>,
    pub(crate) event: Option<i64>,
}

/// `history` is in the order in which it came: by version, and within a version by row.
pub(crate) fn expected(history: &[Row], key: Option<i64>, moment: i64, asked: &Asked) -> Expected {
    let nothing = Expected { status: "NOT_FOUND", value: None, event: None };
    let Some(key) = key else { return nothing };
    let mut best: Option<(i64, i64, i64, usize)> = None;
    for (ordinal, row) in history.iter().enumerate() {
        let in_time = if asked.strict { row.event < moment } else { row.event <= moment };
        let known = !asked.known_only || row.known <= moment;
        let in_version = asked.as_of_version.is_none_or(|version| row.version <= version);
        if row.key == key && in_time && known && in_version {
            best = best.max(Some((row.event, row.known, row.version, ordinal)));
        }
    }
    let Some((event, _, _, ordinal)) = best else { return nothing };
    let row = &history[ordinal];
    if row.deleted {
        return nothing;
    }
    if asked.ttl.is_some_and(|ttl| event < moment - ttl) {
        return Expected { status: "OUTSIDE_MAX_AGE", value: None, event: Some(event) };
    }
    let status = if row.value.is_some() { "PRESENT" } else { "NULL_VALUE" };
    Expected { status, value: row.value, event: Some(event) }
}
