use std::sync::Arc;
use std::time::Instant;

use holdfast_access::{Access, AuditEntry, Principal};

use crate::answer::Answer;
use crate::{Result, ServeError};

/// The protocols, as the audit log calls them.
pub(crate) const FLIGHT: &str = "flight";
pub(crate) const HTTP: &str = "http";

/// An access that is written down when it has ended, however it ends.
#[derive(Debug)]
pub(crate) struct Audited {
    access: Arc<Access>,
    /// What is known of it.
    pub(crate) entry: AuditEntry,
    /// The kind of question.
    pub(crate) command: &'static str,
    began: Instant,
    is_open: bool,
}

impl Audited {
    pub(crate) fn new(
        access: &Arc<Access>,
        principal: &Principal,
        protocol: &'static str,
        command: &'static str,
    ) -> Self {
        let entry = access.entry(principal, protocol, command, 0);
        Self { access: Arc::clone(access), entry, command, began: Instant::now(), is_open: true }
    }

    /// Notes what the answer reads.
    ///
    /// # Errors
    /// When its plan cannot be made ready to run.
    pub(crate) fn reads(&mut self, answer: &Answer) -> Result<()> {
        if self.access.audit().is_some() {
            self.entry.touched = answer.touched()?;
        }
        Ok(())
    }

    /// Where answers wait for the audit log, returns when it is written there that this begins.
    ///
    /// # Errors
    /// [`holdfast_access::AccessError::NotAudited`].
    pub(crate) async fn begin(&self) -> Result<()> {
        Ok(self.access.begin(&self.entry).await?)
    }

    /// It was not answered.
    pub(crate) fn refused(mut self, error: ServeError) -> ServeError {
        self.write(0, error.kind().as_str());
        error
    }

    /// It was answered, to the end or not.
    pub(crate) fn ended(mut self, rows: u64, outcome: &'static str) {
        self.write(rows, outcome);
    }

    fn write(&mut self, rows: u64, outcome: &'static str) {
        self.is_open = false;
        let duration = self.began.elapsed();
        self.access.note(AuditEntry { rows, outcome, duration, ..self.entry.clone() });
    }
}

/// A call that is dropped before it has an answer: the client went away, or its time was over.
impl Drop for Audited {
    fn drop(&mut self) {
        if self.is_open {
            self.write(0, "cancelled");
        }
    }
}
