use std::time::Duration;

use crate::random::Random;

/// What is asked of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// The bytes of an object, or some of them.
    Get,
    /// What is known of an object.
    Head,
    /// A write to a name, whatever is there.
    Put,
    /// A write on the condition that nothing is there.
    PutCreate,
    /// A write on the condition that a certain version is there.
    PutUpdate,
    /// The beginning of an upload in parts.
    UploadStart,
    /// A part of an upload.
    UploadPart,
    /// The end of an upload: the object appears.
    UploadComplete,
    /// An upload is given up.
    UploadAbort,
    /// The names below a prefix.
    List,
    /// An object is deleted.
    Delete,
    /// An object is copied or renamed.
    Copy,
}

impl Operation {
    /// Those that write an object whole.
    pub const PUTS: [Self; 3] = [Self::Put, Self::PutCreate, Self::PutUpdate];

    /// Those that change nothing.
    pub const fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::List)
    }
}

/// Which calls meet a fault: all of them, as soon as they come, unless more is said.
#[derive(Debug, Clone)]
pub struct Rule<F> {
    operations: Vec<Operation>,
    path_contains: String,
    pub(crate) fault: F,
    pub(crate) delay: Duration,
    percent: u64,
    skip: u64,
    /// `None`: for ever.
    left: Option<u32>,
}

impl<F> Rule<F> {
    /// A rule for calls of these kinds, or of all kinds when none is named.
    pub fn on(operations: &[Operation], fault: impl Into<F>) -> Self {
        Self {
            operations: operations.to_vec(),
            path_contains: String::new(),
            fault: fault.into(),
            delay: Duration::ZERO,
            percent: 100,
            skip: 0,
            left: None,
        }
    }

    /// Only calls about paths that contain `text`.
    #[must_use]
    pub fn path(self, text: &str) -> Self {
        Self { path_contains: text.to_owned(), ..self }
    }

    /// Only the first so many.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { left: Some(times), ..self }
    }

    /// Not the first so many.
    #[must_use]
    pub fn after(self, calls: u64) -> Self {
        Self { skip: calls, ..self }
    }

    /// Only so many of a hundred, drawn with the store's seed: a store that throttles.
    #[must_use]
    pub fn percent(self, percent: u64) -> Self {
        Self { percent, ..self }
    }

    /// So much later.
    #[must_use]
    pub fn delayed(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// How many faults are still to come, when their number is limited.
    pub(crate) fn left(&self) -> Option<u32> {
        self.left
    }

    pub(crate) fn strikes(&mut self, operation: Operation, location: &str, random: &mut Random) -> bool {
        let fits = (self.operations.is_empty() || self.operations.contains(&operation))
            && location.contains(&self.path_contains);
        if !fits || self.left == Some(0) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if !random.chance(self.percent) {
            return false;
        }
        self.left = self.left.map(|left| left - 1);
        true
    }
}
