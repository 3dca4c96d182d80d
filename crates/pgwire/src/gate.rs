use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use holdfast_engine::{EngineError, Published};
use holdfast_types::{ErrorKind, TableName};

use crate::scram::Verifier;

/// Who may come in, and what they see.
#[async_trait]
pub trait Gate: std::fmt::Debug + Send + Sync {
    /// Whether somebody may come in without a password. Asked before anything is listened on: such a gate opens on loopback only.
    fn is_open(&self) -> bool;

    /// A connection was opened, by somebody who has not said yet who it is. It counts until what is answered is dropped.
    ///
    /// # Errors
    /// When there is no room for it.
    fn connects(&self) -> Result<Box<dyn Counted>, GateError>;

    /// What is kept of a user's password, or `None` when there is no such user. Takes as long either way.
    ///
    /// # Errors
    /// When it cannot be known now; nobody is let in.
    async fn verifier(&self, user: &str) -> Result<Option<Verifier>, GateError>;

    /// Whether a password may be tried.
    ///
    /// # Errors
    /// When there were too many wrong ones.
    fn may_try(&self, _user: &str, _from: IpAddr) -> Result<(), GateError> {
        Ok(())
    }

    /// How a try ended.
    fn tried(&self, _user: &str, _from: IpAddr, _is_right: bool) {}

    /// Changes whenever users may see something else than before: sessions are opened anew then.
    fn version(&self) -> String {
        String::new()
    }

    /// A plan is about to run.
    ///
    /// # Errors
    /// When it may not: it is not run.
    async fn begins(&self, _asked: AskedPlan<'_>) -> Result<Box<dyn Watched>, GateError> {
        Ok(Box::new(Unwatched))
    }

    /// The user is about to be told what there is, and no rows of it.
    ///
    /// # Errors
    /// When it may not be told.
    async fn tells(&self, told: Told<'_>) -> Result<(), GateError>;

    /// Whether the user may be told how many rows and bytes a table has. Not where rows are hidden.
    fn tells_sizes(&self) -> bool {
        false
    }

    /// A fresh session in which the user asks about the run: tables and columns that are not in it do not exist for the user.
    ///
    /// # Errors
    /// When the session cannot be built, or the user may not see the run.
    async fn open(&self, user: &str, run: &Arc<Published>) -> Result<SessionContext, GateError>;
}

/// A connection that counts as open.
pub trait Counted: std::fmt::Debug + Send + Sync {
    /// It is this user's, who may come in.
    ///
    /// # Errors
    /// When the user has too many.
    fn is_of(&self, user: &str) -> Result<(), GateError>;
}

/// A plan that somebody asks for.
#[derive(Clone, Copy)]
pub struct AskedPlan<'a> {
    /// Who asks.
    pub user: &'a str,
    /// The run that is read.
    pub run: u64,
    /// The statement.
    pub statement: &'a (dyn Display + Sync),
    /// What it means, optimised: of tables those columns that are read.
    pub plan: &'a LogicalPlan,
}

impl std::fmt::Debug for AskedPlan<'_> {
    /// Without the statement, which has literals.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AskedPlan").field("user", &self.user).field("run", &self.run).finish_non_exhaustive()
    }
}

/// What somebody is about to be told.
#[derive(Clone, Copy)]
pub struct Told<'a> {
    /// Who.
    pub user: &'a str,
    /// The run that is read.
    pub run: u64,
    /// The statement whose columns are told; none of a setting.
    pub statement: Option<&'a (dyn Display + Sync)>,
}

impl std::fmt::Debug for Told<'_> {
    /// Without the statement, which has literals.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").field("user", &self.user).field("run", &self.run).finish_non_exhaustive()
    }
}

/// Follows a plan that runs. Dropped without an end, it was given up.
pub trait Watched: std::fmt::Debug + Send + Sync {
    /// How long it may take.
    fn time_limit(&self) -> Option<Duration> {
        None
    }

    /// How many rows it may give.
    fn row_limit(&self) -> Option<u64> {
        None
    }

    /// It ended, after so many rows; `outcome` is `ok` or the kind of the error.
    fn ended(&mut self, _rows: u64, _outcome: &'static str) {}
}

#[derive(Debug)]
struct Unwatched;

impl Watched for Unwatched {}

/// Why a gate does not open.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct GateError {
    /// What the caller should do.
    pub kind: ErrorKind,
    /// What failed.
    pub message: String,
}

impl From<EngineError> for GateError {
    fn from(error: EngineError) -> Self {
        Self { kind: error.kind(), message: error.to_string() }
    }
}

/// What people wrote about a table beside its comment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// Who answers for it.
    pub owner: Option<String>,
    /// The tags of the whole table.
    pub tags: Vec<String>,
}

/// What people wrote about the tables, shared by all connections.
pub(crate) type NotesByTable = Arc<BTreeMap<TableName, Notes>>;
