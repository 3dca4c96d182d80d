use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use holdfast_engine::{EngineError, Published};
use holdfast_types::{ErrorKind, TableName};

use crate::scram::Verifier;
use crate::{PgWireError, Result};

/// Who may come in, and what they see.
#[async_trait]
pub trait Gate: std::fmt::Debug + Send + Sync {
    /// Whether somebody may come in without a password. Asked before anything is listened on: such a gate opens on loopback only.
    fn is_open(&self) -> bool;

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

/// A plan that somebody asks for.
#[derive(Debug, Clone, Copy)]
pub struct AskedPlan<'a> {
    /// Who asks.
    pub user: &'a str,
    /// The run that is read.
    pub run: u64,
    /// The statement.
    pub text: &'a str,
    /// What it means.
    pub plan: &'a LogicalPlan,
    /// The state that it was planned in.
    pub state: &'a SessionState,
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

/// Users from a file, who all see everything.
#[derive(Debug)]
pub struct UserFile {
    users: BTreeMap<String, Verifier>,
}

impl UserFile {
    /// Reads lines of the form `name:SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`. Empty lines, and lines that begin
    /// with `#`, say nothing.
    ///
    /// # Errors
    /// [`PgWireError::Unreadable`]; [`PgWireError::User`] for a line that is no user, one that comes twice, or a file without users.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| PgWireError::Unreadable {
            what: "file of users",
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let mistake = |line: usize, reason: String| PgWireError::User { path: path.to_owned(), line, reason };
        let mut users = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, verifier) = line.split_once(':').ok_or_else(|| {
                mistake(index + 1, "a line is `name:SCRAM-SHA-256$…`: make one with `holdfast pg-user NAME`".to_owned())
            })?;
            check_name(name).map_err(|reason| mistake(index + 1, reason.to_owned()))?;
            let verifier =
                Verifier::parse(verifier).map_err(|reason| mistake(index + 1, format!("user {name}: {reason}")))?;
            if users.insert(name.to_owned(), verifier).is_some() {
                return Err(mistake(index + 1, format!("user {name} is there already, further up")));
            }
        }
        match users.is_empty() {
            true => Err(mistake(1, "there are no users in it: make a line with `holdfast pg-user NAME`".to_owned())),
            false => Ok(Self { users }),
        }
    }

    /// A line for the file.
    ///
    /// # Errors
    /// [`PgWireError::Password`] when name or password cannot be taken.
    pub fn line(name: &str, password: &str) -> Result<String> {
        check_name(name).map_err(PgWireError::Password)?;
        Ok(format!("{name}:{}", Verifier::of_password(password)?))
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let is_sound = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, ':' | '#');
    match !name.is_empty() && name.len() <= 63 && name.chars().all(is_sound) {
        true => Ok(()),
        false => Err("a user's name has 1 to 63 bytes, and no spaces, colons or #"),
    }
}

#[async_trait]
impl Gate for UserFile {
    fn is_open(&self) -> bool {
        false
    }

    async fn verifier(&self, user: &str) -> Result<Option<Verifier>, GateError> {
        Ok(self.users.get(user).cloned())
    }

    fn tells_sizes(&self) -> bool {
        true
    }

    async fn open(&self, _user: &str, run: &Arc<Published>) -> Result<SessionContext, GateError> {
        Ok(run.session()?)
    }
}

/// What people wrote about the tables, shared by all connections.
pub(crate) type NotesByTable = Arc<BTreeMap<TableName, Notes>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn users_are_read_and_a_wrong_line_is_told_without_what_it_says() {
        let line = UserFile::line("ana", "secret").unwrap();
        let path = Path::new("users");
        let users = UserFile::parse(path, &format!("# people\n\n{line}\n")).unwrap();
        assert!(!users.is_open());
        assert!(users.verifier("ana").await.unwrap().is_some());
        assert!(users.verifier("eve").await.unwrap().is_none());
        let error = UserFile::parse(path, &format!("{line}\nana secret\n")).unwrap_err().to_string();
        assert!(error.starts_with("users:2: ") && !error.contains("secret"), "{error}");
        assert!(UserFile::parse(path, &format!("{line}\n{line}")).unwrap_err().to_string().contains("already"));
        assert!(UserFile::parse(path, "# none\n").is_err());
        assert!(UserFile::line("a b", "secret").is_err());
    }
}
