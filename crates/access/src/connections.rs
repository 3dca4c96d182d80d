//! How many connections are open, over all protocols of a process: in all, of each principal, and of those who have not said yet who they are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{AccessError, Result};

/// When somebody who found no room should look again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

const CONNECTIONS_MAX: usize = 100_000;

/// How many connections may be open at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// In all. 1 to 100,000.
    pub open: usize,
    /// Of one principal that is known by name and whose roles say nothing else. 1 to 100,000.
    pub of_principal: usize,
    /// Of all who have not said yet who they are. 1 to 100,000.
    pub unknown: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { open: 1_000, of_principal: 250, unknown: 250 }
    }
}

/// There is no room for a connection now; there may be later.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct ConnectionsFull(String);

impl ConnectionLimits {
    /// Checks every limit.
    ///
    /// # Errors
    /// [`AccessError::Invalid`], naming the first one that is out of its bounds.
    pub(crate) fn check(&self) -> Result<()> {
        for (what, limit) in
            [("in all", self.open), ("of a principal", self.of_principal), ("of the unknown", self.unknown)]
        {
            if !(1..=CONNECTIONS_MAX).contains(&limit) {
                let text = format!("the limit of connections {what} is {limit}, and may be 1 to {CONNECTIONS_MAX}");
                return Err(AccessError::Invalid(text));
            }
        }
        Ok(())
    }
}

/// Counts what is open.
#[derive(Debug)]
pub(crate) struct Connections {
    pub(crate) limits: ConnectionLimits,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    open: usize,
    unknown: usize,
    of: HashMap<String, usize>,
}

/// A connection that counts as open until this is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    all: Arc<Connections>,
    whose: Mutex<Whose>,
}

#[derive(Debug)]
enum Whose {
    /// Nobody has said yet.
    Unknown,
    /// Of somebody who counts by name.
    Principal(String),
    /// Of whoever comes from this machine, or has the token that all share.
    Anybody,
}

impl Connections {
    pub(crate) fn new(limits: ConnectionLimits) -> Self {
        Self { limits, counts: Mutex::default() }
    }

    /// Counts one more connection, of which nothing is known.
    ///
    /// # Errors
    /// [`ConnectionsFull`] when there is no room; then it does not count.
    pub(crate) fn open(self: &Arc<Self>) -> Result<OpenConnection, ConnectionsFull> {
        let mut counts = self.counts();
        let ConnectionLimits { open, unknown, .. } = self.limits;
        if counts.open >= open {
            return Err(ConnectionsFull(format!("{open} connections are open, which is the limit of the service")));
        }
        if counts.unknown >= unknown {
            let what = format!("{unknown} connections have not said yet whose they are, which is the limit");
            return Err(ConnectionsFull(what));
        }
        counts.open += 1;
        counts.unknown += 1;
        Ok(OpenConnection { all: Arc::clone(self), whose: Mutex::new(Whose::Unknown) })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Every change is whole under the lock.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenConnection {
    /// Whether it has been said whose it is.
    pub(crate) fn is_known(&self) -> bool {
        !matches!(*self.whose(), Whose::Unknown)
    }

    fn whose(&self) -> MutexGuard<'_, Whose> {
        self.whose.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whose it is: of the first who says so, whoever speaks over it later. `name` is what it counts under, with how many may.
    ///
    /// # Errors
    /// [`ConnectionsFull`] when the principal has too many; then nothing is known of it still.
    pub(crate) fn is_of(&self, name: Option<(String, usize)>) -> Result<(), ConnectionsFull> {
        let mut whose = self.whose();
        if !matches!(*whose, Whose::Unknown) {
            return Ok(());
        }
        let mut counts = self.all.counts();
        match name {
            None => *whose = Whose::Anybody,
            Some((name, most)) => {
                let open = counts.of.entry(name.clone()).or_default();
                if *open >= most {
                    let what = format!("{most} of your connections are open, which is the limit of a principal");
                    return Err(ConnectionsFull(what));
                }
                *open += 1;
                *whose = Whose::Principal(name);
            }
        }
        counts.unknown -= 1;
        Ok(())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let mut counts = self.all.counts();
        counts.open -= 1;
        match self.whose.get_mut().unwrap_or_else(PoisonError::into_inner) {
            Whose::Unknown => counts.unknown -= 1,
            Whose::Anybody => {}
            Whose::Principal(name) => {
                if let Some(open) = counts.of.get_mut(name) {
                    *open -= 1;
                    if *open == 0 {
                        counts.of.remove(name);
                    }
                }
            }
        }
    }
}

impl From<ConnectionsFull> for AccessError {
    fn from(ConnectionsFull(what): ConnectionsFull) -> Self {
        Self::Busy { what, retry_after: RETRY_AFTER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_holds_and_what_is_closed_makes_room() {
        let all = Arc::new(Connections::new(ConnectionLimits { open: 4, of_principal: 2, unknown: 2 }));
        let ana = || Some(("ana".to_owned(), 2));
        let (first, second) = (all.open().unwrap(), all.open().unwrap());
        assert!(all.open().unwrap_err().to_string().contains("2 connections have not said yet"));
        first.is_of(ana()).unwrap();
        second.is_of(ana()).unwrap();
        let third = all.open().unwrap();
        assert!(third.is_of(ana()).unwrap_err().to_string().contains("2 of your connections"));
        // It is nobody's still, and may become another's.
        third.is_of(Some(("bo".to_owned(), 2))).unwrap();
        third.is_of(ana()).unwrap();
        let fourth = all.open().unwrap();
        assert!(all.open().unwrap_err().to_string().contains("4 connections are open"));
        drop(first);
        fourth.is_of(ana()).unwrap();
        drop((second, third, fourth));
        let counts = all.counts();
        assert_eq!((counts.open, counts.unknown, counts.of.len()), (0, 0, 0));
    }
}
