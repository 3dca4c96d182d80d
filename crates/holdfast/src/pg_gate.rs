//! Who comes in over the PostgreSQL protocol, and what they see: as over Flight, by the same users, policy and audit log.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use datafusion::prelude::SessionContext;
use holdfast_access::{
    Access, AccessError, AuditEntry, ConnectionsFull, Limits, OpenConnection, Principal, Running, SeenRuns, query_hash,
    touched,
};
use holdfast_engine::{LakeReader, Published};
use holdfast_pgwire::{AskedPlan, Counted, Gate, GateError, Told, Verifier, Watched};
use holdfast_types::ErrorKind;

/// The protocol, as the audit log calls it.
const PROTOCOL: &str = "postgresql";
const ACTION: &str = "statement";
const SETTING: &str = "setting";
const OK: &str = "ok";

/// Users, policy and audit log of the service.
#[derive(Debug)]
pub(crate) struct AccessGate {
    access: Arc<Access>,
    reader: Arc<LakeReader>,
}

impl AccessGate {
    pub(crate) fn new(access: Arc<Access>, reader: Arc<LakeReader>) -> Self {
        Self { access, reader }
    }

    fn principal(&self, user: &str) -> Result<Principal, GateError> {
        principal(&self.access, user)
    }
}

/// A user whose password was right; on loopback, where there are no users, whoever it is.
fn principal(access: &Access, user: &str) -> Result<Principal, GateError> {
    if !access.has_users() {
        return Ok(access.loopback());
    }
    let gone = || GateError { kind: ErrorKind::InvalidInput, message: format!("there is no user {user} any more") };
    access.user(user).ok_or_else(gone)
}

/// A connection, counted with those of the other protocols.
#[derive(Debug)]
struct Connected {
    access: Arc<Access>,
    connection: OpenConnection,
}

impl Counted for Connected {
    fn is_of(&self, user: &str) -> Result<(), GateError> {
        let principal = principal(&self.access, user)?;
        self.access.connects_as(&principal, &self.connection).map_err(full)
    }
}

fn full(full: ConnectionsFull) -> GateError {
    GateError { kind: ErrorKind::Retry, message: full.to_string() }
}

fn closed(error: AccessError) -> GateError {
    GateError { kind: error.kind(), message: error.to_string() }
}

#[async_trait]
impl Gate for AccessGate {
    fn is_open(&self) -> bool {
        !self.access.has_users()
    }

    fn connects(&self) -> Result<Box<dyn Counted>, GateError> {
        let connection = self.access.connects().map_err(full)?;
        Ok(Box::new(Connected { access: Arc::clone(&self.access), connection }))
    }

    async fn verifier(&self, user: &str) -> Result<Option<Verifier>, GateError> {
        let verifier = self.access.scram_verifier(user);
        Ok(verifier.map(|known| Verifier {
            iterations: known.iterations,
            salt: known.salt,
            stored_key: known.stored_key,
            server_key: known.server_key,
        }))
    }

    fn may_try(&self, user: &str, from: IpAddr) -> Result<(), GateError> {
        self.access.may_try(user, Some(from)).map_err(closed)
    }

    fn tried(&self, user: &str, from: IpAddr, is_right: bool) {
        self.access.tried(user, Some(from), is_right);
        if !is_right {
            self.access.note_refusal(PROTOCOL);
        }
    }

    fn version(&self) -> String {
        self.access.policy().map(|policy| policy.version.clone()).unwrap_or_default()
    }

    fn tells_sizes(&self) -> bool {
        self.access.policy().is_none()
    }

    async fn open(&self, user: &str, run: &Arc<Published>) -> Result<SessionContext, GateError> {
        let principal = Arc::new(self.principal(user)?);
        self.access.knows(&self.reader.current());
        let view = self.access.view(&principal, run).map_err(closed)?;
        let earlier = SeenRuns::new(Arc::clone(&self.reader), Arc::clone(&self.access), principal);
        Ok(view.session_with(Arc::new(earlier))?)
    }

    async fn begins(&self, asked: AskedPlan<'_>) -> Result<Box<dyn Watched>, GateError> {
        let principal = self.principal(asked.user)?;
        let entry = self.access.entry(&principal, PROTOCOL, ACTION, asked.run);
        let mut watching = Watching {
            access: Arc::clone(&self.access),
            entry,
            began: Instant::now(),
            admitted: None,
            is_open: true,
            is_list: false,
        };
        if self.access.audit().is_some() {
            watching.entry.query_hash = Some(query_hash(&asked.statement.to_string()));
            watching.entry.touched = touched(asked.plan);
            // Tools ask for system tables all the time.
            if watching.entry.touched.is_of_system_tables() {
                let list = self.access.list_entry(&principal, PROTOCOL, ACTION, asked.run);
                watching.entry.action = list.action;
                watching.is_list = true;
            }
        }
        let begun = match self.access.admit(&principal) {
            Ok(admitted) => {
                watching.admitted = Some(admitted);
                watching.begins().await
            }
            Err(error) => Err(error),
        };
        match begun {
            Ok(()) => Ok(Box::new(watching)),
            Err(error) => {
                watching.ended(0, error.kind().as_str());
                Err(closed(error))
            }
        }
    }

    async fn tells(&self, told: Told<'_>) -> Result<(), GateError> {
        if self.access.audit().is_none() {
            return Ok(());
        }
        let principal = self.principal(told.user)?;
        let what = if told.statement.is_some() { ACTION } else { SETTING };
        let mut entry = self.access.list_entry(&principal, PROTOCOL, what, told.run);
        entry.query_hash = told.statement.map(|statement| query_hash(&statement.to_string()));
        entry.outcome = OK;
        self.access.tell(entry).await.map_err(closed)
    }
}

/// A query that runs, and is written down when it has ended.
struct Watching {
    access: Arc<Access>,
    entry: AuditEntry,
    began: Instant,
    /// It counts as running until this is gone.
    admitted: Option<(Running, Limits)>,
    is_open: bool,
    /// It reads system tables alone.
    is_list: bool,
}

impl Watching {
    async fn begins(&mut self) -> Result<(), AccessError> {
        if !self.is_list {
            return self.access.begin(&self.entry).await;
        }
        // One row says all of it.
        self.is_open = false;
        let duration = self.began.elapsed();
        self.access.tell(AuditEntry { outcome: OK, duration, ..self.entry.clone() }).await
    }
}

impl std::fmt::Debug for Watching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watching").field("entry", &self.entry).finish_non_exhaustive()
    }
}

impl Watched for Watching {
    fn time_limit(&self) -> Option<Duration> {
        self.admitted.as_ref().and_then(|(_, limits)| limits.deadline)
    }

    fn row_limit(&self) -> Option<u64> {
        self.admitted.as_ref().and_then(|(_, limits)| limits.rows)
    }

    fn ended(&mut self, rows: u64, outcome: &'static str) {
        if std::mem::replace(&mut self.is_open, false) {
            let duration = self.began.elapsed();
            let entry = AuditEntry { rows, outcome, duration, ..self.entry.clone() };
            if self.is_list { self.access.tell_failed(entry) } else { self.access.note(entry) }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.ended(0, "cancelled");
    }
}
