//! What one connection has set, and the run that it reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::Statement;
use holdfast_engine::{LakeReader, Published, WhichRun, written_moment};

use crate::catalog;
use crate::error::{Problem, state};
use crate::gate::{AskedPlan, Gate, NotesByTable, Told, Watched};

/// The version of PostgreSQL whose system tables and behaviour clients may expect.
pub(crate) const SERVER_VERSION: &str = "15.0";
const SERVER_VERSION_NUM: &str = "150000";

/// Which run is read: by its place, its name, or these words.
pub(crate) const RUN: &str = "holdfast.run";
/// The moment of whose data the newest run is read.
pub(crate) const AS_OF: &str = "holdfast.as_of";
/// Of `holdfast.run`: the newest run now, and then no other.
const LATEST: &str = "latest";
/// Of `holdfast.run`: the newest run at every transaction.
const FOLLOW: &str = "follow";
const DEFAULT_SCHEMA: &str = "core";

/// What `version()` says.
pub(crate) fn version() -> String {
    format!("PostgreSQL {SERVER_VERSION} (Holdfast {})", env!("CARGO_PKG_VERSION"))
}

/// Settings that every session has. Those after the empty line are known so that clients may set them; nothing depends on them here.
const DEFAULTS: &[(&str, &str)] = &[
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO, MDY"),
    ("default_transaction_read_only", "on"),
    ("idle_session_timeout", "0"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("is_superuser", "off"),
    ("search_path", DEFAULT_SCHEMA),
    ("server_encoding", "UTF8"),
    ("server_version", SERVER_VERSION),
    ("server_version_num", SERVER_VERSION_NUM),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("timezone", "UTC"),
    ("transaction_isolation", "repeatable read"),
    ("transaction_read_only", "on"),
    (AS_OF, ""),
    (RUN, ""),
    //
    ("array_nulls", "on"),
    ("backslash_quote", "safe_encoding"),
    ("client_min_messages", "notice"),
    ("default_table_access_method", "heap"),
    ("default_tablespace", ""),
    ("default_transaction_deferrable", "off"),
    ("default_transaction_isolation", "repeatable read"),
    ("enable_seqscan", "on"),
    ("escape_string_warning", "on"),
    ("extra_float_digits", "1"),
    ("geqo", "on"),
    ("idle_in_transaction_session_timeout", "0"),
    ("jit", "off"),
    ("lc_collate", "C.UTF-8"),
    ("lc_ctype", "C.UTF-8"),
    ("lc_messages", "C.UTF-8"),
    ("lc_monetary", "C.UTF-8"),
    ("lc_numeric", "C.UTF-8"),
    ("lc_time", "C.UTF-8"),
    ("lock_timeout", "0"),
    ("max_identifier_length", "63"),
    ("max_index_keys", "32"),
    ("max_parallel_workers_per_gather", "2"),
    ("password_encryption", "scram-sha-256"),
    ("quote_all_identifiers", "off"),
    ("row_security", "on"),
    ("session_authorization", ""),
    ("synchronize_seqscans", "on"),
    ("tcp_keepalives_idle", "0"),
    ("transaction_deferrable", "off"),
    ("work_mem", "4MB"),
    ("xmloption", "content"),
];

/// Told to clients when the session begins and when they change, spelled as drivers look for them.
pub(crate) const REPORTED: &[&str] = &[
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "server_encoding",
    "server_version",
    "session_authorization",
    "standard_conforming_strings",
    "TimeZone",
];

/// What the session's functions and its connection share.
#[derive(Debug)]
pub(crate) struct Shared {
    user: String,
    pid: i32,
    began: DateTime<Utc>,
    values: Mutex<BTreeMap<String, String>>,
}

impl Shared {
    pub(crate) fn new(user: String, pid: i32, began: DateTime<Utc>) -> Self {
        let values = DEFAULTS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let shared = Self { user, pid, began, values: Mutex::new(values) };
        shared.values().insert("session_authorization".to_owned(), shared.user.clone());
        shared
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// When the service began, in microseconds of 1970.
    pub(crate) fn began_microseconds(&self) -> i64 {
        self.began.timestamp_micros()
    }

    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.values().get(&name.to_lowercase()).cloned()
    }

    pub(crate) fn all(&self) -> BTreeMap<String, String> {
        self.values().clone()
    }

    /// The schemas in which tables without one are looked for.
    pub(crate) fn search_path(&self) -> Vec<String> {
        let path = self.get("search_path").unwrap_or_default();
        let mut schemas: Vec<String> = path
            .split(',')
            .map(|schema| schema.trim().trim_matches('"').to_owned())
            .filter(|schema| !matches!(schema.as_str(), "" | "$user" | "public" | catalog::SCHEMA))
            .collect();
        if schemas.is_empty() {
            schemas.push(DEFAULT_SCHEMA.to_owned());
        }
        schemas
    }

    /// The session's own limit of a statement; none is none.
    pub(crate) fn statement_timeout(&self) -> Option<Duration> {
        self.timeout("statement_timeout")
    }

    /// The session's own limit of silence; none is none.
    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        self.timeout("idle_session_timeout")
    }

    fn timeout(&self, name: &str) -> Option<Duration> {
        let milliseconds = milliseconds(&self.get(name)?)?;
        (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
    }

    /// Sets what needs no look at the lake.
    pub(crate) fn set_plain(&self, name: &str, value: &str) -> Result<(), Problem> {
        let name = name.to_lowercase();
        let refused = |allowed: &str| {
            Err(Problem::new(
                state::INVALID_PARAMETER_VALUE,
                format!("invalid value for parameter \"{name}\": \"{value}\" (it may be {allowed})"),
            ))
        };
        let lower = value.to_lowercase();
        let kept = match name.as_str() {
            RUN | AS_OF => {
                return Err(Problem::new(
                    state::INVALID_PARAMETER_VALUE,
                    format!("{name} is set with `set {name} = …`, in a statement of its own"),
                ));
            }
            // Some drivers put it in quotation marks in their start-up message.
            "client_encoding" => match lower.replace(['-', '_', '\''], "").as_str() {
                "utf8" | "unicode" | "sqlascii" => "UTF8",
                _ => return refused("UTF8"),
            },
            "datestyle" if lower.starts_with("iso") => "ISO, MDY",
            "datestyle" => return refused("ISO"),
            // Moments are told in UTC whatever a client says: they are the same moments.
            "timezone" => "UTC",
            "bytea_output" if lower != "hex" => return refused("hex"),
            "intervalstyle" if lower != "postgres" => return refused("postgres"),
            "standard_conforming_strings" if !matches!(lower.as_str(), "on" | "true" | "1" | "yes") => {
                return refused("on");
            }
            "standard_conforming_strings" | "default_transaction_read_only" | "transaction_read_only" => "on",
            "statement_timeout" | "idle_session_timeout" if milliseconds(&lower).is_none() => {
                return refused("a number of milliseconds, or a text such as '5s' or '2min'");
            }
            "server_version"
            | "server_version_num"
            | "server_encoding"
            | "is_superuser"
            | "session_authorization"
            | "integer_datetimes"
            | "in_hot_standby"
            | "max_identifier_length"
            | "max_index_keys"
            | "lc_collate"
            | "lc_ctype" => {
                return Err(Problem::new("55P02", format!("parameter \"{name}\" cannot be changed")));
            }
            known if DEFAULTS.iter().any(|(default, _)| *default == known) || known.contains('.') => value,
            _ => {
                let message = format!("unrecognized configuration parameter \"{name}\"");
                return Err(Problem::new(state::UNDEFINED_OBJECT, message));
            }
        };
        let kept: String = kept.chars().take(1_000).collect();
        let mut values = self.values();
        // Names of one's own are taken, but not without end.
        if values.len() < 500 || values.contains_key(&name) {
            values.insert(name, kept);
        }
        Ok(())
    }

    /// The value of a setting when nobody sets it.
    pub(crate) fn default_of(name: &str) -> Option<&'static str> {
        DEFAULTS.iter().find(|(default, _)| *default == name).map(|(_, value)| *value)
    }

    /// Everything as it was at the beginning but for what the run is.
    pub(crate) fn reset_all(&self) {
        let mut values = self.values();
        let kept = [RUN, AS_OF, "session_authorization"].map(|name| (name.to_owned(), values.get(name).cloned()));
        *values = DEFAULTS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        for (name, value) in kept {
            values.insert(name, value.unwrap_or_default());
        }
    }

    fn note(&self, name: &str, value: String) {
        self.values().insert(name.to_owned(), value);
    }

    fn values(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // A panic in between leaves a setting as it was.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A duration as PostgreSQL writes it, in milliseconds.
fn milliseconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim() {
        "" | "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// A session over one run.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) context: SessionContext,
    /// Changes with the run: plans of another epoch read another run.
    pub(crate) epoch: u64,
    run: Arc<Published>,
    follows: bool,
    reader: Arc<LakeReader>,
    gate: Arc<dyn Gate>,
    /// Of the gate, when the context was opened.
    gate_version: String,
    notes: NotesByTable,
}

impl Session {
    /// Opens the newest run.
    pub(crate) async fn open(
        shared: Arc<Shared>,
        reader: Arc<LakeReader>,
        gate: Arc<dyn Gate>,
        notes: NotesByTable,
    ) -> Result<Self, Problem> {
        if let Err(error) = reader.refresh().await {
            tracing::warn!(%error, "cannot look for a newer run, serving the one at hand");
        }
        let run = reader.current();
        let gate_version = gate.version();
        let context = context_of(&shared, &run, gate.as_ref(), &notes).await?;
        let session = Self { shared, context, epoch: 0, run, follows: false, reader, gate, gate_version, notes };
        session.tell_run();
        Ok(session)
    }

    /// Sets a setting, which may mean to read another run.
    pub(crate) async fn set(&mut self, name: &str, value: Option<&str>) -> Result<(), Problem> {
        let name = name.to_lowercase();
        match name.as_str() {
            RUN => self.set_run(value.unwrap_or(LATEST)).await,
            AS_OF => match value {
                Some(text) if !text.is_empty() => {
                    let moment = written_moment(text).ok_or_else(|| {
                        Problem::new(
                            state::INVALID_PARAMETER_VALUE,
                            format!("holdfast.as_of: `{text}` is no moment: write it as 2026-01-31 or 2026-01-31 12:00:00+00"),
                        )
                    })?;
                    self.read(&WhichRun::AsOf(moment)).await
                }
                _ => self.set_run(LATEST).await,
            },
            _ => {
                let default = Shared::default_of(&name).unwrap_or_default();
                self.shared.set_plain(&name, value.unwrap_or(default))?;
                if name == "search_path" {
                    search_in(&self.context, &self.shared);
                }
                Ok(())
            }
        }
    }

    /// Everything as it was at the beginning; the run stays.
    pub(crate) fn reset_all(&mut self) {
        self.shared.reset_all();
        search_in(&self.context, &self.shared);
    }

    /// A plan is about to run.
    pub(crate) async fn begins(&self, statement: &Statement, plan: &LogicalPlan) -> Result<Box<dyn Watched>, Problem> {
        let asked = AskedPlan { user: self.shared.user(), run: self.run.sequence(), statement, plan };
        self.gate.begins(asked).await.map_err(|error| Problem::of_gate(&error))
    }

    /// The columns of a statement are about to be told, or without one a setting.
    pub(crate) async fn tells(&self, statement: Option<&Statement>) -> Result<(), Problem> {
        let statement = statement.map(|statement| statement as &(dyn std::fmt::Display + Sync));
        let told = Told { user: self.shared.user(), run: self.run.sequence(), statement };
        self.gate.tells(told).await.map_err(|error| Problem::of_gate(&error))
    }

    /// At the beginning of a transaction: a session that follows takes the newest run, and whoever may see something else by now sees that.
    pub(crate) async fn begin_transaction(&mut self) -> Result<(), Problem> {
        let version = self.gate.version();
        if version != self.gate_version {
            self.context = context_of(&self.shared, &self.run, self.gate.as_ref(), &self.notes).await?;
            self.gate_version = version;
            self.epoch += 1;
        }
        match self.follows {
            true => self.switch(self.reader.current()).await,
            false => Ok(()),
        }
    }

    async fn set_run(&mut self, value: &str) -> Result<(), Problem> {
        match value.trim() {
            LATEST | FOLLOW | "" => {
                self.reader.refresh().await.map_err(|error| Problem::of_engine(&error))?;
                self.switch(self.reader.current()).await?;
                self.follows = value == FOLLOW;
                self.tell_run();
                Ok(())
            }
            text => {
                let which = match text.parse() {
                    Ok(sequence) => WhichRun::Sequence(sequence),
                    Err(_) => WhichRun::Id(text.to_owned()),
                };
                self.read(&which).await
            }
        }
    }

    async fn read(&mut self, which: &WhichRun) -> Result<(), Problem> {
        // A run newer than any known here may have been published just now.
        let found = self.reader.published(which).await.map_err(|error| Problem::of_engine(&error))?;
        let run = found.ok_or_else(|| {
            Problem::new(state::INVALID_PARAMETER_VALUE, which.missing())
                .with_hint("set holdfast.run to 'latest', to the number of a run or to its name")
        })?;
        self.switch(run).await?;
        self.follows = false;
        self.tell_run();
        Ok(())
    }

    async fn switch(&mut self, run: Arc<Published>) -> Result<(), Problem> {
        if Arc::ptr_eq(&run, &self.run) {
            return Ok(());
        }
        self.context = context_of(&self.shared, &run, self.gate.as_ref(), &self.notes).await?;
        self.run = run;
        self.epoch += 1;
        self.tell_run();
        Ok(())
    }

    fn tell_run(&self) {
        let run = if self.follows { FOLLOW.to_owned() } else { self.run.sequence().to_string() };
        self.shared.note(RUN, run);
        self.shared.note(AS_OF, self.run.as_of().to_rfc3339());
    }
}

async fn context_of(
    shared: &Arc<Shared>,
    run: &Arc<Published>,
    gate: &dyn Gate,
    notes: &NotesByTable,
) -> Result<SessionContext, Problem> {
    let context = gate.open(shared.user(), run).await.map_err(|error| Problem::of_gate(&error))?;
    // Moments without a zone are of UTC, and the present is told with it; functions learn of it by the statement alone.
    context.sql("set datafusion.execution.time_zone = 'UTC'").await.map_err(Problem::of_query)?;
    catalog::install(&context, run, shared, notes, gate.tells_sizes()).await.map_err(Problem::of_query)?;
    search_in(&context, shared);
    Ok(context)
}

/// Tables without a schema are those of the first schema of the search path that there is.
fn search_in(context: &SessionContext, shared: &Shared) {
    let path = shared.search_path();
    let names = context.catalog(catalog::DATABASE).map(|catalog| catalog.schema_names()).unwrap_or_default();
    let first = path.iter().find(|schema| names.contains(schema)).cloned();
    let schema = first.unwrap_or_else(|| DEFAULT_SCHEMA.to_owned());
    context.state_ref().write().config_mut().options_mut().catalog.default_schema = schema;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        Shared::new("ana".to_owned(), 7, DateTime::UNIX_EPOCH)
    }

    #[test]
    fn settings_are_kept_as_postgresql_keeps_them_and_others_are_refused() {
        let shared = shared();
        for (name, value, kept) in [
            ("client_encoding", "'utf-8'", "UTF8"),
            ("DateStyle", "iso", "ISO, MDY"),
            ("TimeZone", "Asia/Shanghai", "UTC"),
            ("extra_float_digits", "3", "3"),
            ("my.own", "x", "x"),
        ] {
            shared.set_plain(name, value).unwrap();
            assert_eq!(shared.get(name).as_deref(), Some(kept), "{name}");
        }
        for (name, value) in
            [("client_encoding", "LATIN1"), ("datestyle", "German"), ("server_version", "9"), ("nonsense", "1")]
        {
            assert!(shared.set_plain(name, value).is_err(), "{name}");
        }
        shared.reset_all();
        assert_eq!(shared.get("extra_float_digits").as_deref(), Some("1"));
        assert_eq!(shared.get("session_authorization").as_deref(), Some("ana"));
    }

    #[test]
    fn timeouts_are_read_as_people_write_them() {
        let shared = shared();
        assert_eq!(shared.statement_timeout(), None);
        for (text, milliseconds) in [("1500", 1_500), ("2s", 2_000), ("1 min", 60_000)] {
            shared.set_plain("statement_timeout", text).unwrap();
            assert_eq!(shared.statement_timeout(), Some(Duration::from_millis(milliseconds)));
        }
        assert!(shared.set_plain("statement_timeout", "soon").is_err());
    }

    #[test]
    fn the_search_path_is_never_empty() {
        let shared = shared();
        shared.set_plain("search_path", "\"$user\", public").unwrap();
        assert_eq!(shared.search_path(), ["core"]);
        shared.set_plain("search_path", "features, \"risk\"").unwrap();
        assert_eq!(shared.search_path(), ["features", "risk"]);
    }
}
