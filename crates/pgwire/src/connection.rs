//! One connection after its log-in: the simple and the extended protocol.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::Statement;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::encode::{CopyStyle, copy_header};
use crate::error::{Problem, state};
use crate::io::{CHUNK_BYTES, Io, Stop, Watch};
use crate::message::{Bind, Format, Frames, Request, Target, format_of};
use crate::parameter;
use crate::plan::{Column, Inferred, Planned, infer, plan};
use crate::portal::{Portal, Rows, Sink, Source, texts};
use crate::rewrite::Given;
use crate::server::Admission;
use crate::session::{REPORTED, Session};
use crate::settings::PgSettings;
use crate::statement::{Command, parse};
use crate::types::ColumnType;

/// Bytes of a copy's head in binary form: signature, flags, no extension.
const BINARY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// And its end: a row of minus one columns.
const BINARY_END: &[u8] = &(-1_i16).to_be_bytes();
/// The kind and the length of a message.
const FRAME_HEAD: usize = 5;

/// What cancels the statement that runs.
pub(crate) type CancelSlot = Arc<Mutex<CancellationToken>>;

/// A statement that was prepared.
struct Prepared {
    sql: String,
    /// Nothing of an empty statement.
    command: Option<Command>,
    said: Vec<u32>,
    parameters: Vec<ColumnType>,
    columns: Vec<Column>,
    /// Of the session when it was planned.
    epoch: u64,
}

/// Where the session is between `begin` and `commit`, as `ReadyForQuery` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    None,
    Open,
    Failed,
}

impl Transaction {
    fn code(self) -> u8 {
        match self {
            Self::None => b'I',
            Self::Open => b'T',
            Self::Failed => b'E',
        }
    }
}

pub(crate) struct Connection {
    io: Io,
    session: Session,
    settings: Arc<PgSettings>,
    admission: Arc<Admission>,
    cancel: CancelSlot,
    stopping: CancellationToken,
    aborted: CancellationToken,
    prepared: HashMap<String, Arc<Prepared>>,
    portals: HashMap<String, Portal>,
    transaction: Transaction,
    /// After an error in the extended protocol, until `Sync`.
    is_skipping: bool,
}

/// What a connection is given besides its session.
pub(crate) struct Surroundings {
    pub(crate) settings: Arc<PgSettings>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) cancel: CancelSlot,
    /// No more statements are taken.
    pub(crate) stopping: CancellationToken,
    /// Running statements end.
    pub(crate) aborted: CancellationToken,
}

/// How a statement's answer is asked for.
struct Asked<'a> {
    /// With the description of its rows before them.
    describes: bool,
    /// Zero is no limit.
    max_rows: usize,
    /// The text that places in it are told in.
    sql: &'a str,
}

impl Connection {
    pub(crate) fn new(io: Io, session: Session, around: Surroundings) -> Self {
        Self {
            io,
            session,
            settings: around.settings,
            admission: around.admission,
            cancel: around.cancel,
            stopping: around.stopping,
            aborted: around.aborted,
            prepared: HashMap::new(),
            portals: HashMap::new(),
            transaction: Transaction::None,
            is_skipping: false,
        }
    }

    /// Answers until the client leaves or the service stops.
    pub(crate) async fn run(mut self) {
        loop {
            match self.step().await {
                Ok(true) => {}
                Ok(false) | Err(Stop::Gone) => return,
                Err(Stop::Told(problem)) => {
                    self.io.output.problem("FATAL", &problem, None);
                    return self.io.close().await;
                }
            }
        }
    }

    /// Reads one message and answers it; `false` at the end.
    async fn step(&mut self) -> Result<bool, Stop> {
        let (max, limit) = (self.settings.max_message_bytes, self.settings.message_timeout);
        let most = self.settings.idle_timeout;
        let idle = self.session.shared.idle_timeout().map_or(most, |idle| idle.min(most));
        let stopping = self.stopping.clone();
        let frame = tokio::select! {
            biased;
            () = stopping.cancelled() => {
                let text = "terminating connection: the service is shutting down, connect again later";
                return Err(Problem::fatal(state::SHUTDOWN, text).into());
            }
            frame = self.io.frame(max, idle, limit) => frame?,
        };
        let is_extended = Request::is_extended(frame.kind);
        if self.is_skipping && is_extended {
            return Ok(true);
        }
        let request = if frame.is_too_long {
            let message = format!("the message is longer than {max} bytes, the limit here");
            Err(Problem::new(state::PROGRAM_LIMIT, message))
        } else {
            Request::decode(frame.kind, frame.body)
        };
        let (answered, sql) = match request {
            Ok(Request::Terminate) => return Ok(false),
            Ok(Request::Query(sql)) => {
                let answered = self.simple(&sql).await;
                (answered, sql)
            }
            Ok(request) => {
                let sql = match &request {
                    Request::Parse { sql, .. } => sql.clone(),
                    _ => String::new(),
                };
                (Box::pin(self.extended(request)).await, sql)
            }
            Err(problem) => (Err(problem.into()), String::new()),
        };
        if let Err(stop) = answered {
            let Stop::Told(problem) = stop else { return Err(stop) };
            if problem.is_fatal {
                return Err(problem.into());
            }
            self.tell(&problem, &sql);
            self.is_skipping = is_extended;
        }
        if frame.kind == b'Q' || frame.kind == b'F' {
            self.io.output.ready(self.transaction.code());
            self.io.flush().await?;
        } else if self.io.output.len() > CHUNK_BYTES {
            self.io.flush().await?;
        }
        Ok(true)
    }

    fn tell(&mut self, problem: &Problem, sql: &str) {
        tracing::debug!(code = problem.code, "a statement failed");
        self.io.output.problem("ERROR", problem, problem.place.and_then(|place| position(sql, place)));
        if self.transaction == Transaction::Open {
            self.transaction = Transaction::Failed;
        }
        // Cursors of a transaction end with it; portals of the extended protocol, too.
        if self.transaction != Transaction::Open {
            self.portals.retain(|_, portal| portal.is_held);
        }
    }

    /// The statements of one `Query` message.
    async fn simple(&mut self, sql: &str) -> Result<(), Stop> {
        let watch = self.watch();
        self.portals.remove("");
        let commands = parse(sql, &self.settings)?;
        if commands.is_empty() {
            self.io.output.empty_query();
        }
        for command in commands {
            self.check_transaction(&command)?;
            let mut portal = self.portal(command, &[], &[], &watch).await?;
            let asked = Asked { describes: true, max_rows: 0, sql };
            self.execute(&mut portal, &asked, &watch).await?;
        }
        if self.transaction == Transaction::None {
            self.portals.retain(|_, portal| portal.is_held);
        }
        Ok(())
    }

    async fn extended(&mut self, request: Request) -> Result<(), Stop> {
        match request {
            Request::Parse { name, sql, types } => self.parse(name, sql, types).await,
            Request::Bind(bind) => self.bind(bind).await,
            Request::Describe(target) => self.describe(target).await,
            Request::Execute { portal, max_rows } => {
                let missing =
                    || Problem::new(state::INVALID_CURSOR_NAME, format!("portal \"{portal}\" does not exist"));
                let mut found = self.portals.remove(&portal).ok_or_else(missing)?;
                let watch = self.watch();
                let asked = Asked { describes: false, max_rows, sql: "" };
                let answered = self.execute(&mut found, &asked, &watch).await;
                // Unless the statement ended what it was in.
                if answered.is_ok() {
                    self.portals.entry(portal).or_insert(found);
                }
                answered
            }
            Request::Close(target) => {
                match target {
                    Target::Statement(name) => drop(self.prepared.remove(&name)),
                    Target::Portal(name) => drop(self.portals.remove(&name)),
                }
                self.io.output.close_complete();
                Ok(())
            }
            Request::Sync => {
                self.is_skipping = false;
                if self.transaction == Transaction::None {
                    self.portals.retain(|_, portal| portal.is_held);
                }
                self.io.output.ready(self.transaction.code());
                self.io.flush().await
            }
            Request::Flush => self.io.flush().await,
            Request::Query(_) | Request::Terminate | Request::CopyLeftover => Ok(()),
        }
    }

    async fn parse(&mut self, name: String, sql: String, said: Vec<u32>) -> Result<(), Stop> {
        if !name.is_empty() && self.prepared.contains_key(&name) {
            let message = format!("prepared statement \"{name}\" already exists");
            return Err(Problem::new(state::DUPLICATE_STATEMENT, message).into());
        }
        self.check_room(self.prepared.len())?;
        let mut commands = parse(&sql, &self.settings)?;
        let command = commands.pop();
        if !commands.is_empty() {
            let message = "cannot insert multiple commands into a prepared statement";
            return Err(Problem::new(state::SYNTAX_ERROR, message).into());
        }
        if let Some(command) = &command {
            self.check_transaction(command)?;
        }
        let watch = self.watch();
        let prepared = self.prepare(sql, command, said, &watch).await?;
        self.prepared.insert(name, Arc::new(prepared));
        self.io.output.parse_complete();
        Ok(())
    }

    async fn prepare(
        &mut self,
        sql: String,
        command: Option<Command>,
        said: Vec<u32>,
        watch: &Watch,
    ) -> Result<Prepared, Stop> {
        let inferred = match command.as_ref().and_then(Command::query) {
            Some(query) => self.infer(query, &said, watch).await?,
            None => Inferred {
                parameters: Vec::new(),
                columns: command.as_ref().map(|command| self.columns_of(command)).unwrap_or_default(),
            },
        };
        let (parameters, columns) = (inferred.parameters, inferred.columns);
        Ok(Prepared { sql, command, said, parameters, columns, epoch: self.session.epoch })
    }

    async fn infer(&mut self, query: &Statement, said: &[u32], watch: &Watch) -> Result<Inferred, Stop> {
        let Self { io, session, .. } = self;
        io.guarded(watch, infer(&session.context, query, said)).await
    }

    /// A prepared statement as it is for the run that is read now.
    async fn current(&mut self, name: &str) -> Result<Arc<Prepared>, Stop> {
        let missing =
            || Problem::new(state::INVALID_STATEMENT_NAME, format!("prepared statement \"{name}\" does not exist"));
        let prepared = Arc::clone(self.prepared.get(name).ok_or_else(missing)?);
        if prepared.epoch == self.session.epoch {
            return Ok(prepared);
        }
        let watch = self.watch();
        let (sql, command, said) = (prepared.sql.clone(), prepared.command.clone(), prepared.said.clone());
        let prepared = Arc::new(self.prepare(sql, command, said, &watch).await?);
        self.prepared.insert(name.to_owned(), Arc::clone(&prepared));
        Ok(prepared)
    }

    async fn bind(&mut self, bind: Bind) -> Result<(), Stop> {
        let prepared = self.current(&bind.statement).await?;
        if !bind.portal.is_empty() && self.portals.contains_key(&bind.portal) {
            let message = format!("cursor \"{}\" already exists", bind.portal);
            return Err(Problem::new(state::DUPLICATE_CURSOR, message).into());
        }
        self.check_room(self.portals.len())?;
        let (given, wanted) = (bind.values.len(), prepared.parameters.len());
        if given != wanted {
            let message = format!("bind message supplies {given} parameters, but the statement requires {wanted}");
            return Err(Problem::new(state::PROTOCOL_VIOLATION, message).into());
        }
        let values = prepared
            .parameters
            .iter()
            .zip(bind.values)
            .enumerate()
            .map(|(index, (parameter, value))| {
                let format = format_of(&bind.formats, index)?;
                Ok((*parameter, parameter::decode(index + 1, *parameter, format, value)?))
            })
            .collect::<Result<Vec<Given>, Problem>>()?;
        let watch = self.watch();
        let portal = match &prepared.command {
            Some(command) => {
                self.check_transaction(command)?;
                self.portal(command.clone(), &values, &bind.result_formats, &watch).await?
            }
            None => Portal {
                command: None,
                columns: Vec::new(),
                formats: Vec::new(),
                source: Source::Nothing,
                is_held: false,
                is_cursor: false,
                rows: 0,
            },
        };
        self.portals.insert(bind.portal, portal);
        self.io.output.bind_complete();
        Ok(())
    }

    async fn describe(&mut self, target: Target) -> Result<(), Stop> {
        let columns = match target {
            Target::Statement(name) => {
                let prepared = self.current(&name).await?;
                if let Some(query) = prepared.command.as_ref().and_then(Command::query) {
                    self.session.tells(Some(query)).await?;
                }
                let types: Vec<u32> = prepared.parameters.iter().map(|parameter| parameter.oid()).collect();
                self.io.output.parameter_description(&types);
                prepared.columns.iter().map(|column| column.described(Format::Text)).collect::<Vec<_>>()
            }
            Target::Portal(name) => {
                let missing = || Problem::new(state::INVALID_CURSOR_NAME, format!("portal \"{name}\" does not exist"));
                let portal = self.portals.get(&name).ok_or_else(missing)?;
                if let Some(query) = portal.command.as_ref().and_then(Command::query) {
                    self.session.tells(Some(query)).await?;
                }
                portal.columns.iter().zip(&portal.formats).map(|(column, format)| column.described(*format)).collect()
            }
        };
        match columns.is_empty() {
            true => self.io.output.no_data(),
            false => self.io.output.row_description(&columns),
        }
        Ok(())
    }

    /// The columns of what is no query but answers with rows.
    fn columns_of(&self, command: &Command) -> Vec<Column> {
        match command {
            Command::Show(name) => {
                let spelled = REPORTED.iter().find(|reported| reported.eq_ignore_ascii_case(name));
                vec![Column::text(spelled.copied().unwrap_or(name))]
            }
            Command::ShowAll => ["name", "setting", "description"].map(Column::text).to_vec(),
            Command::Fetch { cursor, is_move: false, .. } => {
                self.portals.get(cursor).map(|portal| portal.columns.clone()).unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    /// Makes a statement ready to be executed.
    async fn portal(
        &mut self,
        command: Command,
        values: &[Given],
        result_formats: &[Format],
        watch: &Watch,
    ) -> Result<Portal, Stop> {
        let (columns, source) = match command.query() {
            Some(query) => {
                let planned = self.plan(query, values, watch).await?;
                (planned.columns.clone(), Source::Planned(Box::new(planned), self.session.context.clone()))
            }
            None => (self.columns_of(&command), Source::Nothing),
        };
        let formats = (0..columns.len()).map(|index| format_of(result_formats, index)).collect::<Result<_, _>>()?;
        Ok(Portal { command: Some(command), columns, formats, source, is_held: false, is_cursor: false, rows: 0 })
    }

    async fn plan(&mut self, query: &Statement, values: &[Given], watch: &Watch) -> Result<Planned, Stop> {
        if self.transaction == Transaction::None {
            self.session.begin_transaction().await?;
        }
        let Self { io, session, .. } = self;
        io.guarded(watch, plan(&session.context, query, values)).await
    }

    async fn execute(&mut self, portal: &mut Portal, asked: &Asked<'_>, watch: &Watch) -> Result<(), Stop> {
        let Some(command) = portal.command.clone() else {
            self.io.output.empty_query();
            return Ok(());
        };
        self.check_transaction(&command)?;
        match command {
            Command::Query(statement) => {
                if asked.describes {
                    self.describe_rows(portal);
                }
                let is_done = self.send_rows(portal, asked.max_rows, watch).await?;
                match is_done {
                    true => {
                        let rows = std::mem::take(&mut portal.rows);
                        let tag = if matches!(*statement, Statement::Explain { .. }) {
                            "EXPLAIN".to_owned()
                        } else {
                            format!("SELECT {rows}")
                        };
                        self.io.output.complete(&tag);
                    }
                    false => self.io.output.portal_suspended(),
                }
                Ok(())
            }
            Command::Show(name) => {
                self.session.tells(None).await?;
                let value = self.session.shared.get(&name).ok_or_else(|| {
                    let message = format!("unrecognized configuration parameter \"{name}\"");
                    Problem::new(state::UNDEFINED_OBJECT, message)
                })?;
                self.send_texts(portal, &[vec![value]], asked, watch).await
            }
            Command::ShowAll => {
                self.session.tells(None).await?;
                let all = self.session.shared.all();
                let rows: Vec<Vec<String>> =
                    all.into_iter().map(|(name, value)| vec![name, value, String::new()]).collect();
                self.send_texts(portal, &rows, asked, watch).await
            }
            Command::CopyOut { query, style, has_header } => self.copy_out(&query, &style, has_header, watch).await,
            Command::Declare { name, query, is_held } => self.declare(name, &query, is_held, watch).await,
            Command::Fetch { cursor, count, is_move } => {
                self.fetch(portal, &cursor, count, is_move, asked, watch).await
            }
            Command::Set { name, value } => {
                let before = self.reported();
                self.session.set(&name, value.as_deref()).await?;
                self.report(&before);
                self.done("SET")
            }
            Command::Reset(name) => {
                let before = self.reported();
                match name {
                    Some(name) => self.session.set(&name, None).await?,
                    None => self.session.reset_all(),
                }
                self.report(&before);
                self.done("RESET")
            }
            Command::SetNothing => self.done("SET"),
            Command::Begin => self.begin(asked).await,
            Command::Commit => {
                let tag = if self.transaction == Transaction::Failed { "ROLLBACK" } else { "COMMIT" };
                self.end_transaction();
                self.done(tag)
            }
            Command::Rollback => {
                self.end_transaction();
                self.done("ROLLBACK")
            }
            Command::Savepoint => self.done("SAVEPOINT"),
            Command::Release => self.done("RELEASE"),
            Command::RollbackTo => {
                if self.transaction == Transaction::Failed {
                    self.transaction = Transaction::Open;
                }
                self.done("ROLLBACK")
            }
            Command::CloseCursor(name) => {
                match name {
                    Some(name) => {
                        let missing = || no_cursor(&name);
                        self.portals.remove(&name).ok_or_else(missing)?;
                    }
                    None => self.portals.retain(|_, portal| !portal.is_cursor),
                }
                self.done("CLOSE CURSOR")
            }
            Command::DiscardAll => {
                let before = self.reported();
                self.prepared.clear();
                self.portals.clear();
                self.session.reset_all();
                self.report(&before);
                self.done("DISCARD ALL")
            }
            Command::DiscardSome(tag) | Command::Ignored(tag) => self.done(tag),
            Command::Deallocate(Some(name)) => {
                let missing = || {
                    Problem::new(state::INVALID_STATEMENT_NAME, format!("prepared statement \"{name}\" does not exist"))
                };
                self.prepared.remove(&name).ok_or_else(missing)?;
                self.done("DEALLOCATE")
            }
            Command::Deallocate(None) => {
                self.prepared.clear();
                self.done("DEALLOCATE ALL")
            }
        }
    }

    fn done(&mut self, tag: &str) -> Result<(), Stop> {
        self.io.output.complete(tag);
        Ok(())
    }

    async fn begin(&mut self, asked: &Asked<'_>) -> Result<(), Stop> {
        if self.transaction == Transaction::None {
            self.session.begin_transaction().await?;
            self.transaction = Transaction::Open;
        } else {
            let warning = Problem::new("25001", "there is already a transaction in progress");
            let place = warning.place.and_then(|place| position(asked.sql, place));
            self.io.output.problem("WARNING", &warning, place);
        }
        self.done("BEGIN")
    }

    fn end_transaction(&mut self) {
        self.transaction = Transaction::None;
        self.portals.retain(|_, portal| portal.is_held);
    }

    fn describe_rows(&mut self, portal: &Portal) {
        let columns: Vec<_> =
            portal.columns.iter().zip(&portal.formats).map(|(column, format)| column.described(*format)).collect();
        self.io.output.row_description(&columns);
    }

    /// Sends rows of a portal, all or up to a limit; whether those were all.
    async fn send_rows(&mut self, portal: &mut Portal, max_rows: usize, watch: &Watch) -> Result<bool, Stop> {
        let limit = if max_rows == 0 { u64::MAX } else { max_rows as u64 };
        let mut rows = match self.running(portal, watch).await? {
            Some(rows) => rows,
            None => return Ok(true),
        };
        let sent = self.pump(&mut rows, limit, &Sink::Rows(&portal.formats), watch).await?;
        portal.rows += sent;
        // As PostgreSQL does: a portal that gave as many rows as were asked for is suspended, though nothing may be left.
        let is_done = sent < limit;
        portal.source = if is_done { Source::Ended } else { Source::Running(rows) };
        Ok(is_done)
    }

    /// The rows of a portal, which are begun where they are not yet; nothing when they have ended.
    async fn running(&mut self, portal: &mut Portal, watch: &Watch) -> Result<Option<Rows>, Stop> {
        match std::mem::replace(&mut portal.source, Source::Ended) {
            Source::Planned(planned, context) => {
                let Some(statement) = portal.command.as_ref().and_then(Command::query) else { return Ok(None) };
                self.start(statement, &planned, &context, watch).await.map(Some)
            }
            Source::Running(rows) => Ok(Some(rows)),
            Source::Nothing | Source::Ended => Ok(None),
        }
    }

    /// Begins to run a plan, if the gate lets it through.
    async fn start(
        &mut self,
        statement: &Statement,
        planned: &Planned,
        context: &SessionContext,
        watch: &Watch,
    ) -> Result<Rows, Stop> {
        let state = context.state();
        let plan = state.optimize(&planned.plan).map_err(Problem::of_query)?;
        let watched = self.session.begins(statement, &plan).await?;
        self.io.guarded(watch, Rows::start(&plan, &state, watched)).await
    }

    /// Writes rows as they come, up to a limit; how many.
    async fn pump(&mut self, rows: &mut Rows, limit: u64, sink: &Sink<'_>, watch: &Watch) -> Result<u64, Stop> {
        let admission = Arc::clone(&self.admission);
        let _place = self.io.guarded(watch, admission.admit()).await?;
        let mut sent = 0;
        while sent < limit {
            if !rows.has_some() {
                // What is there goes out before others are waited for.
                if !rows.is_ahead() && !self.io.output.is_empty() {
                    self.io.flush_watched(watch).await?;
                }
                if !self.io.guarded(watch, rows.wait()).await? {
                    break;
                }
            }
            sent += rows.write(limit - sent, sink, &mut self.io.output)?;
            if self.io.output.len() >= CHUNK_BYTES {
                self.io.flush_watched(watch).await?;
            }
        }
        Ok(sent)
    }

    async fn send_texts(
        &mut self,
        portal: &mut Portal,
        rows: &[Vec<String>],
        asked: &Asked<'_>,
        watch: &Watch,
    ) -> Result<(), Stop> {
        if asked.describes {
            self.describe_rows(portal);
        }
        if matches!(portal.source, Source::Nothing) {
            portal.source = Source::Running(Rows::ready(texts(&portal.columns, rows)?));
        }
        match self.send_rows(portal, asked.max_rows, watch).await? {
            true => self.done("SHOW"),
            false => {
                self.io.output.portal_suspended();
                Ok(())
            }
        }
    }

    async fn copy_out(
        &mut self,
        query: &Statement,
        style: &CopyStyle,
        has_header: bool,
        watch: &Watch,
    ) -> Result<(), Stop> {
        let planned = self.plan(query, &[], watch).await?;
        let columns = planned.columns.clone();
        let context = self.session.context.clone();
        let mut rows = self.start(query, &planned, &context, watch).await?;
        let is_binary = *style == CopyStyle::Binary;
        self.io.output.copy_out(if is_binary { Format::Binary } else { Format::Text }, columns.len());
        let mut sent = 0;
        if is_binary {
            // The head comes in one message with the first row, or with the end.
            let mut first = Vec::new();
            if self.io.guarded(watch, rows.wait()).await? {
                sent = rows.write(1, &Sink::Copy(style), &mut first)?;
            }
            let row = first.get(FRAME_HEAD..).unwrap_or(BINARY_END);
            self.io.output.frame(b'd', |body| {
                body.extend_from_slice(BINARY_HEAD);
                body.extend_from_slice(row);
            });
        }
        if has_header {
            let names: Vec<String> = columns.into_iter().map(|column| column.name).collect();
            copy_header(&names, style, &mut self.io.output);
        }
        let is_headed_only = is_binary && sent == 0;
        sent += self.pump(&mut rows, u64::MAX, &Sink::Copy(style), watch).await?;
        if is_binary && !is_headed_only {
            self.io.output.frame(b'd', |body| body.extend_from_slice(BINARY_END));
        }
        self.io.output.copy_done();
        self.done(&format!("COPY {sent}"))
    }

    async fn declare(&mut self, name: String, query: &Statement, is_held: bool, watch: &Watch) -> Result<(), Stop> {
        if self.transaction == Transaction::None && !is_held {
            let message = "DECLARE CURSOR can only be used in transaction blocks";
            return Err(Problem::new("25P01", message).with_hint("begin one, or declare the cursor with hold").into());
        }
        if self.portals.contains_key(&name) {
            return Err(Problem::new(state::DUPLICATE_CURSOR, format!("cursor \"{name}\" already exists")).into());
        }
        self.check_room(self.portals.len())?;
        let command = Command::Query(Box::new(query.clone()));
        let portal = self.portal(command, &[], &[], watch).await?;
        self.portals.insert(name, Portal { is_held, is_cursor: true, ..portal });
        self.done("DECLARE CURSOR")
    }

    async fn fetch(
        &mut self,
        asking: &Portal,
        name: &str,
        count: Option<usize>,
        is_move: bool,
        asked: &Asked<'_>,
        watch: &Watch,
    ) -> Result<(), Stop> {
        let mut cursor = self.portals.remove(name).ok_or_else(|| no_cursor(name))?;
        // Asked by message, the rows are wanted in the form of the asking portal.
        if asking.formats.len() == cursor.columns.len() {
            cursor.formats.clone_from(&asking.formats);
        }
        if asked.describes && !is_move {
            self.describe_rows(&cursor);
        }
        let fetched = match count {
            Some(0) => Ok(0),
            count => self.fetch_rows(&mut cursor, count, is_move, watch).await,
        };
        // One that failed is gone.
        let fetched = fetched?;
        self.portals.insert(name.to_owned(), cursor);
        self.done(&format!("{} {fetched}", if is_move { "MOVE" } else { "FETCH" }))
    }

    async fn fetch_rows(
        &mut self,
        cursor: &mut Portal,
        count: Option<usize>,
        is_move: bool,
        watch: &Watch,
    ) -> Result<u64, Stop> {
        let limit = count.map_or(u64::MAX, |count| count as u64);
        let Some(mut rows) = self.running(cursor, watch).await? else { return Ok(0) };
        let mut fetched = 0;
        if is_move {
            while fetched < limit && self.io.guarded(watch, rows.wait()).await? {
                fetched += rows.skip(limit - fetched);
            }
        } else {
            fetched = self.pump(&mut rows, limit, &Sink::Rows(&cursor.formats), watch).await?;
        }
        cursor.source = if fetched < limit { Source::Ended } else { Source::Running(rows) };
        Ok(fetched)
    }

    /// What ends the statement that begins now.
    fn watch(&self) -> Watch {
        let cancelled = CancellationToken::new();
        *self.cancel.lock().unwrap_or_else(PoisonError::into_inner) = cancelled.clone();
        let most = self.settings.query_timeout;
        let limit = self.session.shared.statement_timeout().map_or(most, |limit| limit.min(most));
        Watch { cancelled, aborted: self.aborted.clone(), deadline: Instant::now() + limit, limit }
    }

    fn check_transaction(&self, command: &Command) -> Result<(), Problem> {
        match self.transaction == Transaction::Failed && !command.ends_transaction() {
            true => Err(Problem::new(
                state::IN_FAILED_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            )),
            false => Ok(()),
        }
    }

    fn check_room(&self, held: usize) -> Result<(), Problem> {
        let limit = self.settings.max_held_per_connection;
        match held < limit {
            true => Ok(()),
            false => Err(Problem::new(
                state::PROGRAM_LIMIT,
                format!("{held} prepared statements or cursors are held, the limit of a connection: close some"),
            )),
        }
    }

    fn reported(&self) -> Vec<Option<String>> {
        REPORTED.iter().map(|name| self.session.shared.get(name)).collect()
    }

    /// Tells the settings that changed, of those that drivers follow.
    fn report(&mut self, before: &[Option<String>]) {
        for ((name, before), after) in REPORTED.iter().zip(before).zip(self.reported()) {
            if *before != after {
                self.io.output.parameter(name, &after.unwrap_or_default());
            }
        }
    }
}

fn no_cursor(name: &str) -> Problem {
    Problem::new(state::INVALID_CURSOR_NAME, format!("cursor \"{name}\" does not exist"))
}

/// The place in the text, counted in characters from 1.
fn position(sql: &str, (line, column): (u64, u64)) -> Option<usize> {
    let (line, column) = (usize::try_from(line).ok()?.checked_sub(1)?, usize::try_from(column).ok()?.checked_sub(1)?);
    let before: usize = sql.split('\n').take(line).map(|line| line.chars().count() + 1).sum();
    let position = before + column + 1;
    (position <= sql.chars().count() + 1).then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_characters() {
        assert_eq!(position("select é,\n  x", (2, 3)), Some(13));
        assert_eq!(position("select 1", (1, 1)), Some(1));
        assert_eq!(position("", (3, 9)), None);
        assert_eq!(position("select", (0, 0)), None);
    }
}
