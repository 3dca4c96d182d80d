/// The numbered promises. One definition serves production checks, tests and messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Promise {
    /// An acknowledged record is durable; kill -9 at any instant loses none.
    Ing1,
    /// A record is in `raw` once, however often it is sent or the worker dies.
    Ing2,
    /// Read = stored + quarantined, for every file and batch; nothing is dropped in silence.
    Ing3,
    /// Identity built step by step equals identity built from scratch.
    Idn1,
    /// A `customer_id` is never reused; on a merge the older survives; every change has its cause.
    Idn2,
    /// A stage maintained incrementally equals the same `SELECT` run in full.
    Stg1,
    /// Rows that fail an expectation marked `fail` never get a table version.
    Stg2,
    /// A run with nothing new commits nothing.
    Stg3,
    /// All tables of a run can be read as of that run, together.
    Stg4,
    /// A training row sees nothing that was not known at its timestamp.
    Pit1,
    /// One output row for each spine row, in its order.
    Pit2,
    /// The online value equals the offline value at the same moment.
    Pit3,
    /// A training set's id gives the same bytes back later.
    Pit4,
    /// Every protocol gives a principal the same rows and the same masks.
    Pol1,
}

impl Promise {
    /// The identifier used in names, documents and messages, such as `ING-1`.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Ing1 => "ING-1",
            Self::Ing2 => "ING-2",
            Self::Ing3 => "ING-3",
            Self::Idn1 => "IDN-1",
            Self::Idn2 => "IDN-2",
            Self::Stg1 => "STG-1",
            Self::Stg2 => "STG-2",
            Self::Stg3 => "STG-3",
            Self::Stg4 => "STG-4",
            Self::Pit1 => "PIT-1",
            Self::Pit2 => "PIT-2",
            Self::Pit3 => "PIT-3",
            Self::Pit4 => "PIT-4",
            Self::Pol1 => "POL-1",
        }
    }

    /// What is promised, in a sentence.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ing1 => "an acknowledged record is durable",
            Self::Ing2 => "a record is stored once, however often it is sent",
            Self::Ing3 => "records read equal records stored plus records quarantined",
            Self::Idn1 => "identity built step by step equals identity built from scratch",
            Self::Idn2 => "a customer id is never reused and the older survives a merge",
            Self::Stg1 => "a stage maintained incrementally equals the same SELECT run in full",
            Self::Stg2 => "rows that fail an expectation marked fail never get a table version",
            Self::Stg3 => "a run with nothing new commits nothing",
            Self::Stg4 => "all tables of a run can be read as of that run, together",
            Self::Pit1 => "a training row sees nothing that was not known at its timestamp",
            Self::Pit2 => "one output row for each spine row, in its order",
            Self::Pit3 => "the online value equals the offline value at the same moment",
            Self::Pit4 => "a training set's id gives the same bytes back later",
            Self::Pol1 => "every protocol gives a principal the same rows and the same masks",
        }
    }

    /// Checks the promise in production code.
    ///
    /// # Errors
    /// [`BrokenPromise`], with `detail` naming what was seen, when `holds` is false.
    pub fn check(self, holds: bool, detail: impl FnOnce() -> String) -> Result<(), BrokenPromise> {
        if holds { Ok(()) } else { Err(BrokenPromise { promise: self, detail: detail() }) }
    }
}

/// A promise that did not hold. Always our own mistake, and always fatal for what was under way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("promise {} broken ({}): {detail}", promise.id(), promise.text())]
pub struct BrokenPromise {
    /// Which promise.
    pub promise: Promise,
    /// What was seen instead.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_promise_names_itself() {
        let error = Promise::Ing3.check(false, || "3 read, 2 stored".to_owned()).unwrap_err();
        assert!(error.to_string().starts_with("promise ING-3 broken"));
        assert!(Promise::Ing3.check(true, String::new).is_ok());
    }
}
