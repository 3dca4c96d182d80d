use std::sync::Arc;
use std::time::Instant;

use holdfast_access::{Access, AuditEntry, Principal};

use crate::answer::Answer;
use crate::telemetry::OK;
use crate::{Result, ServeError};

/// The protocols, as the audit log calls them.
pub(crate) const FLIGHT: &str = "flight";
pub(crate) const HTTP: &str = "http";
/// Of an answer's schema, where it is a training set.
const DATASET_ID: &str = "holdfast.dataset_id";

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
    /// It tells what there is, and no rows of it.
    is_list: bool,
}

impl Audited {
    pub(crate) fn new(
        access: &Arc<Access>,
        principal: &Principal,
        protocol: &'static str,
        command: &'static str,
    ) -> Self {
        let entry = access.entry(principal, protocol, command, 0);
        Self { access: Arc::clone(access), entry, command, began: Instant::now(), is_open: true, is_list: false }
    }

    /// The same of a call that tells what there is, and no rows of it.
    pub(crate) fn list(access: &Arc<Access>, principal: &Principal, command: &'static str) -> Self {
        let mut listed = Self::new(access, principal, FLIGHT, command);
        listed.becomes_list();
        listed
    }

    fn becomes_list(&mut self) {
        if !self.is_list {
            self.is_list = true;
            self.entry.action = format!("list:{}", self.command);
        }
    }

    /// Notes what the answer reads, and which training set it is.
    ///
    /// # Errors
    /// When its plan cannot be made ready to run.
    pub(crate) fn reads(&mut self, answer: &Answer) -> Result<()> {
        if self.access.audit().is_some() {
            self.entry.touched = answer.touched()?;
            if let Some(id) = answer.schema.metadata().get(DATASET_ID) {
                self.entry.action = format!("{}:{id}", self.command);
            }
            if self.entry.touched.is_of_system_tables() {
                self.becomes_list();
            }
        }
        Ok(())
    }

    /// Notes of which tables what is told is.
    pub(crate) fn tells_of(&mut self, answer: &Answer) {
        if self.access.audit().is_some() {
            self.entry.touched = answer.tables();
        }
    }

    /// Where answers wait for the audit log, returns when it is written there that this begins.
    ///
    /// # Errors
    /// [`holdfast_access::AccessError::NotAudited`].
    pub(crate) async fn begin(&mut self) -> Result<()> {
        if self.is_list {
            // It is known already, and one row says all of it.
            self.is_open = false;
            let duration = self.began.elapsed();
            return Ok(self.access.tell(AuditEntry { outcome: OK, duration, ..self.entry.clone() }).await?);
        }
        Ok(self.access.begin(&self.entry).await?)
    }

    /// A list that is answered at once.
    ///
    /// # Errors
    /// As it ended; [`holdfast_access::AccessError::NotAudited`] where it cannot be written down and must be.
    pub(crate) async fn told<T>(mut self, told: Result<T>) -> Result<T> {
        match told {
            Ok(told) => self.begin().await.map(|()| told),
            Err(error) => Err(self.refused(error)),
        }
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
        let was_open = std::mem::replace(&mut self.is_open, false);
        let duration = self.began.elapsed();
        let entry = AuditEntry { rows, outcome, duration, ..self.entry.clone() };
        match self.is_list {
            false => self.access.note(entry),
            true if was_open => self.access.tell_failed(entry),
            true => {}
        }
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
