//! Who comes in, and what of a run they see.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use arrow::array::ArrayRef;
use arrow::datatypes::{FieldRef, Fields, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionContext;
use holdfast_engine::{Published, PublishedTable};
use holdfast_types::{Clock, TableName};

use crate::audit::{Audit, AuditEntry, Told};
use crate::connections::{ConnectionLimits, Connections, ConnectionsFull, OpenConnection};
use crate::guarded::{GuardedTable, seen};
use crate::jwt::Issuer;
use crate::limits::{Running, Usage};
use crate::masks::MaskKey;
use crate::password::{ScramVerifier, is_password, parse_hash, random};
use crate::policy::{ColumnAccess, Limits, Mask, Policy, Rows, TableAccess};
use crate::session::Sessions;
use crate::tries::Tries;
use crate::users::Users;
use crate::{AccessError, Authentication, Principal, Result};

/// Runs as somebody sees them that are kept, over all principals.
const VIEWS_KEPT: usize = 512;
/// Passwords that are checked at once: each takes 19 MiB and a core.
const PASSWORDS_AT_ONCE: usize = 2;
/// Of those who are not let in, so many a second are written down.
const REFUSALS_NOTED_PER_S: u32 = 20;
const REFUSED_PASSWORD: AccessError = AccessError::Refused("the user name or the password is wrong");
const REFUSED_TOKEN: AccessError = AccessError::Refused("the token is not known here, or is over");

/// Where access is decided from.
#[derive(Debug, Clone, Default)]
pub struct AccessSettings {
    /// `policy.toml`. Without one, or where there is no such file, everybody who may come in sees everything.
    pub policy: Option<PathBuf>,
    /// The users file.
    pub users: Option<PathBuf>,
    /// The secret of hashes that the policy masks with; columns with that mask are null without it.
    pub mask_key: Option<MaskKey>,
    /// How many connections may be open.
    pub connections: ConnectionLimits,
}

/// Decides who may come in, and what they see. Shared by all protocols of a process.
pub struct Access {
    settings: AccessSettings,
    clock: Arc<dyn Clock>,
    state: RwLock<Arc<State>>,
    sessions: Sessions,
    tries: Tries,
    usage: Usage,
    connections: Arc<Connections>,
    hashing: tokio::sync::Semaphore,
    /// A hash of a password that nobody has, so that a name that nobody has takes as long.
    nobody: String,
    nobody_secret: [u8; 32],
    views: Mutex<HashMap<ViewKey, Arc<Published>>>,
    bases: Mutex<Vec<(u64, Arc<SessionContext>)>>,
    tags: Mutex<Arc<Tags>>,
    audit: Option<Audit>,
    told: Told,
    /// Since when those who were not let in are counted, and how many they are.
    refusals: Mutex<(Instant, u32)>,
}

/// What the files say.
#[derive(Debug)]
struct State {
    policy: Option<Arc<Policy>>,
    users: Option<Arc<Users>>,
    issuers: Vec<Arc<Issuer>>,
    changed: [Option<SystemTime>; 2],
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ViewKey {
    principal: Principal,
    policy: String,
    run: u64,
    /// The run whose tags hold, too.
    tags: u64,
}

/// The columns of the newest run that is known, with their tags. A run of before is seen by them as well as by its own: what was found to be personal data later is not
/// shown as it was before.
#[derive(Debug, Default)]
struct Tags {
    run: u64,
    tables: HashMap<TableName, SchemaRef>,
}

impl Tags {
    fn with(&self, name: &TableName, schema: &SchemaRef) -> SchemaRef {
        let Some(newest) = self.tables.get(name).filter(|newest| !Arc::ptr_eq(newest, schema)) else {
            return Arc::clone(schema);
        };
        let tagged = |field: &FieldRef| {
            let Ok(newest) = newest.field_with_name(field.name()) else { return Arc::clone(field) };
            let mut metadata = field.metadata().clone();
            for (tag, value) in newest.metadata() {
                let known = metadata.entry(tag.clone()).or_insert_with(|| value.clone());
                if known.as_str() == "false" {
                    known.clone_from(value);
                }
            }
            Arc::new(field.as_ref().clone().with_metadata(metadata))
        };
        let fields: Fields = schema.fields().iter().map(tagged).collect();
        Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Access {
    /// Reads the policy and the users.
    ///
    /// # Errors
    /// All that is wrong in the files, with its place.
    pub fn open(settings: AccessSettings, clock: Arc<dyn Clock>, audit: Option<Audit>) -> Result<Self> {
        settings.connections.check()?;
        let state = State::read(&settings, None)?;
        Ok(Self {
            state: RwLock::new(Arc::new(state)),
            clock,
            sessions: Sessions::new()?,
            tries: Tries::default(),
            usage: Usage::default(),
            connections: Arc::new(Connections::new(settings.connections)),
            hashing: tokio::sync::Semaphore::new(PASSWORDS_AT_ONCE),
            nobody: crate::password::hash_password(&crate::password::made_secret()?)?,
            nobody_secret: random()?,
            views: Mutex::default(),
            bases: Mutex::default(),
            tags: Mutex::default(),
            audit,
            told: Told::default(),
            refusals: Mutex::new((Instant::now(), 0)),
            settings,
        })
    }

    /// Nobody is known by name, everybody who comes in sees everything, nothing is written down.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn unrestricted(clock: Arc<dyn Clock>) -> Result<Self> {
        Self::open(AccessSettings::default(), clock, None)
    }

    /// As a policy has it that is at hand; nobody is known by name.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn by_policy(policy: Arc<Policy>, clock: Arc<dyn Clock>, key: MaskKey) -> Result<Self> {
        let access = Self::open(AccessSettings { mask_key: Some(key), ..AccessSettings::default() }, clock, None)?;
        let state = State { policy: Some(policy), users: None, issuers: Vec::new(), changed: [None, None] };
        *access.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        Ok(access)
    }

    /// Reads the files again if they changed; answers whether they had. A file with a mistake in it changes nothing.
    ///
    /// # Errors
    /// As of [`Access::open`].
    pub fn reload(&self) -> Result<bool> {
        let before = self.state();
        if before.changed == changed(&self.settings) {
            return Ok(false);
        }
        let state = State::read(&self.settings, Some(&before))?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        self.views.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(true)
    }

    /// Whether people and tools are known by name.
    pub fn has_users(&self) -> bool {
        self.settings.users.is_some()
    }

    /// The policy, if there is one.
    pub fn policy(&self) -> Option<Arc<Policy>> {
        self.state().policy.clone()
    }

    /// The audit log, if there is one.
    pub fn audit(&self) -> Option<&Audit> {
        self.audit.as_ref()
    }

    /// The moment that it is.
    pub fn now(&self) -> chrono::DateTime<chrono::Utc> {
        self.clock.now()
    }

    /// Who comes from this machine where nothing is asked for.
    pub fn loopback(&self) -> Principal {
        let state = self.state();
        Principal::loopback(state.policy.as_ref().map_or(&[], |policy| policy.loopback.as_slice()))
    }

    /// Who has the token that all share.
    pub fn shared_token(&self) -> Principal {
        let state = self.state();
        Principal::shared_token(state.policy.as_ref().map_or(&[], |policy| policy.shared_token.as_slice()))
    }

    /// Who has a bearer token: one of the users file, one that was given for a password, or one of an issuer.
    ///
    /// # Errors
    /// [`AccessError::Refused`]; [`AccessError::NoKeys`] when an issuer's keys cannot be had.
    pub async fn by_token(&self, token: &str) -> Result<Principal> {
        let state = self.state();
        let users = state.users.as_ref().ok_or(REFUSED_TOKEN)?;
        if Sessions::is_one(token) {
            let hash_of = |user: &str| users.password_hash(user).map(str::to_owned);
            let user = self.sessions.user(token, self.clock.now(), hash_of).ok_or(REFUSED_TOKEN)?;
            return users.principal(&user, Authentication::Password).ok_or(REFUSED_TOKEN);
        }
        if let Some(principal) = users.by_token(token) {
            return Ok(principal);
        }
        for issuer in &state.issuers {
            if issuer.may_be_of(token) {
                return issuer.principal(token, self.clock.now()).await;
            }
        }
        Err(REFUSED_TOKEN)
    }

    /// Who has a client certificate, in DER, that TLS has accepted.
    pub fn by_certificate(&self, der: &[u8]) -> Option<Principal> {
        self.state().users.as_ref()?.by_certificate(der)
    }

    /// Who has the password. A wrong one takes as long as a wrong name.
    ///
    /// # Errors
    /// [`AccessError::Refused`]; [`AccessError::TooManyTries`] after several wrong ones.
    pub async fn by_password(&self, user: &str, password: &str, from: Option<IpAddr>) -> Result<Principal> {
        self.tries.may_try(user, from, Instant::now())?;
        let users = self.state().users.clone().ok_or(REFUSED_PASSWORD)?;
        let known = users.password_hash(user).map(str::to_owned);
        let hash = known.clone().unwrap_or_else(|| self.nobody.clone());
        let password = password.to_owned();
        let place = self.hashing.acquire().await.map_err(|_| REFUSED_PASSWORD)?;
        let checked =
            tokio::task::spawn_blocking(move || parse_hash(&hash).is_some_and(|hash| is_password(&password, &hash)));
        let is_right = checked.await.unwrap_or(false);
        drop(place);
        match users.principal(user, Authentication::Password).filter(|_| is_right && known.is_some()) {
            Some(principal) => {
                self.tries.succeeded(user, from);
                Ok(principal)
            }
            None => {
                self.tries.failed(user, from, Instant::now());
                Err(REFUSED_PASSWORD)
            }
        }
    }

    /// A bearer token for a user whose password was right.
    pub fn session_token(&self, principal: &Principal) -> Option<String> {
        let state = self.state();
        let hash = state.users.as_ref()?.password_hash(&principal.name)?;
        Some(self.sessions.issue(&principal.name, hash, self.clock.now()))
    }

    /// What SCRAM checks a user's password against; `None` when there is no such user, or it has none. Who asks must go on all the same,
    /// so that names cannot be tried.
    pub fn scram_verifier(&self, user: &str) -> Option<ScramVerifier> {
        self.state().users.as_ref()?.scram(user)
    }

    /// Whether a password may be tried by a protocol that checks it itself, such as SCRAM; tell how it ended with [`Access::tried`].
    ///
    /// # Errors
    /// [`AccessError::TooManyTries`].
    pub fn may_try(&self, user: &str, from: Option<IpAddr>) -> Result<()> {
        self.tries.may_try(user, from, Instant::now())
    }

    /// How a try ended.
    pub fn tried(&self, user: &str, from: Option<IpAddr>, is_right: bool) {
        if is_right { self.tries.succeeded(user, from) } else { self.tries.failed(user, from, Instant::now()) }
    }

    /// A user whose password a protocol has checked itself.
    pub fn user(&self, name: &str) -> Option<Principal> {
        self.state().users.as_ref()?.principal(name, Authentication::Password)
    }

    /// A session of a user, whose password the caller has checked, over what of the run it sees.
    ///
    /// # Errors
    /// [`AccessError::Refused`] when there is no such user; when the session cannot be built.
    pub fn session(&self, user: &str, run: &Published) -> Result<SessionContext> {
        let principal = self.user(user).ok_or(REFUSED_PASSWORD)?;
        match self.restricted(&principal, run)? {
            Some(view) => Ok(view.session()?),
            None => Ok(run.session()?),
        }
    }

    /// The run as the principal sees it: tables, columns and rows that it does not see are not there, for whoever asks the answer.
    ///
    /// # Errors
    /// When a session cannot be built, which is a mistake of ours.
    pub fn view(&self, principal: &Principal, run: &Arc<Published>) -> Result<Arc<Published>> {
        Ok(self.restricted(principal, run)?.unwrap_or_else(|| Arc::clone(run)))
    }

    /// Takes note of a run: the tags of the newest hold for those before it.
    pub fn knows(&self, run: &Published) {
        self.tags(run);
    }

    fn tags(&self, run: &Published) -> Arc<Tags> {
        // Only whole ones are put there.
        let mut known = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        if known.run < run.sequence() {
            let tables = run.tables().iter().map(|table| (table.name.clone(), Arc::clone(&table.schema))).collect();
            *known = Arc::new(Tags { run: run.sequence(), tables });
        }
        Arc::clone(&known)
    }

    /// The same; `None` where there is no policy, and everybody sees the run as it is.
    fn restricted(&self, principal: &Principal, run: &Published) -> Result<Option<Arc<Published>>> {
        let Some(policy) = self.policy() else { return Ok(None) };
        let tags = self.tags(run);
        let (principal_key, version) = (principal.clone(), policy.version.clone());
        let key = ViewKey { principal: principal_key, policy: version, run: run.sequence(), tags: tags.run };
        if let Some(known) = self.views.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Some(Arc::clone(known)));
        }
        let base = self.base(run)?;
        let mut tables: Vec<(PublishedTable, Arc<dyn TableProvider>)> = Vec::new();
        for table in run.tables() {
            let Some(provider) = run.provider(&table.name) else { continue };
            let tagged = tags.with(&table.name, &table.schema);
            let Some(access) = policy.access(principal, &table.name, &tagged) else { continue };
            tables.push(self.guarded(table, provider, access, &base));
        }
        let runtime = self.runtime(principal, &policy, run)?;
        let view = Arc::new(run.as_seen(tables, runtime));
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if views.len() >= VIEWS_KEPT {
            // Of older runs first; else all are as good as another.
            views.retain(|known, _| known.run >= run.sequence());
            if views.len() >= VIEWS_KEPT {
                views.clear();
            }
        }
        views.insert(key, Arc::clone(&view));
        Ok(Some(view))
    }

    /// How the principal sees a table; `None` when it does not see it. Everything, where there is no policy.
    pub fn table(&self, principal: &Principal, table: &PublishedTable) -> Option<TableAccess> {
        match self.policy() {
            Some(policy) => policy.access(principal, &table.name, &table.schema),
            None => Some(TableAccess {
                rows: Rows::All,
                columns: table
                    .schema
                    .fields()
                    .iter()
                    .map(|field| ColumnAccess { name: field.name().clone(), masks: vec![(Mask::Show, Vec::new())] })
                    .collect(),
                hidden: 0,
            }),
        }
    }

    /// What a mask makes of values, for answers that come from no plan. A column with several masks has none of them.
    ///
    /// # Errors
    /// When the values cannot be worked on, which is a mistake of ours.
    pub fn masked(&self, mask: &Mask, values: &ArrayRef) -> Result<ArrayRef> {
        let mask = match mask.fitting(values.data_type()) {
            Mask::Hash if self.settings.mask_key.is_none() => Mask::Null,
            fitting => fitting,
        };
        let key = self.settings.mask_key.unwrap_or_else(|| MaskKey::derive(&self.nobody_secret));
        crate::masks::masked(&mask, values, &key).map_err(|source| {
            holdfast_engine::EngineError::Execution { what: "masking".to_owned(), source: Box::new(source) }.into()
        })
    }

    /// What the principal may use.
    pub fn limits(&self, principal: &Principal) -> Limits {
        self.policy().map(|policy| policy.limits(principal)).unwrap_or_default()
    }

    /// Counts a question of the principal's, until what is answered is dropped.
    ///
    /// # Errors
    /// [`AccessError::Busy`] when one of its limits is reached.
    pub fn admit(&self, principal: &Principal) -> Result<(Running, Limits)> {
        let limits = self.limits(principal);
        Ok((self.usage.admit(&usage_name(principal), &limits, Instant::now())?, limits))
    }

    /// Counts one more connection to the process, of which nothing is known yet.
    ///
    /// # Errors
    /// [`ConnectionsFull`] when there is no room for it.
    pub fn connects(&self) -> Result<OpenConnection, ConnectionsFull> {
        self.connections.open()
    }

    /// Notes whose a connection is. Who is not known by name does not count as a principal.
    ///
    /// # Errors
    /// [`ConnectionsFull`] when the principal has as many as it may.
    pub fn connects_as(&self, principal: &Principal, connection: &OpenConnection) -> Result<(), ConnectionsFull> {
        // Of each call but the first over it.
        if connection.is_known() {
            return Ok(());
        }
        let counted = match principal.by {
            Authentication::Loopback | Authentication::SharedToken => None,
            _ => {
                let most = self.limits(principal).connections.unwrap_or(self.connections.limits.of_principal);
                Some((usage_name(principal), most))
            }
        };
        connection.is_of(counted)
    }

    /// An entry for the audit log, with what is known at the beginning.
    pub fn entry(&self, principal: &Principal, protocol: &'static str, action: &str, run: u64) -> AuditEntry {
        let policy_version = self.policy().map(|policy| policy.version.clone()).unwrap_or_default();
        AuditEntry { policy_version, run, ..AuditEntry::of(principal, protocol, action) }
    }

    /// Writes down how an access ended.
    pub fn note(&self, entry: AuditEntry) {
        if let Some(audit) = &self.audit {
            audit.note(entry, self.clock.now());
        }
    }

    /// An entry of somebody who is told what there is, such as `tables`, and no rows of it; give it to [`Access::tell`] with how that ended.
    pub fn list_entry(&self, principal: &Principal, protocol: &'static str, what: &str, run: u64) -> AuditEntry {
        self.entry(principal, protocol, &format!("list:{what}"), run)
    }

    /// Writes down a list before it is sent; the same is written once a minute. Where answers wait for the audit log, returns when it is there.
    ///
    /// # Errors
    /// [`AccessError::NotAudited`].
    pub async fn tell(&self, entry: AuditEntry) -> Result<()> {
        let Some((audit, entry, same)) = self.untold(entry) else { return Ok(()) };
        if audit.is_required() {
            audit.begin(entry, self.clock.now()).await?;
        } else {
            audit.note(entry, self.clock.now());
        }
        self.told.note(same, Instant::now());
        Ok(())
    }

    /// The same of a list that is not sent: nobody waits for it.
    pub fn tell_failed(&self, entry: AuditEntry) {
        if let Some((audit, entry, same)) = self.untold(entry) {
            audit.note(entry, self.clock.now());
            self.told.note(same, Instant::now());
        }
    }

    /// The entry, and what is the same in all like it, unless it was written a moment ago.
    fn untold(&self, entry: AuditEntry) -> Option<(&Audit, AuditEntry, AuditEntry)> {
        let audit = self.audit.as_ref()?;
        let same = AuditEntry { rows: 0, duration: Duration::ZERO, ..entry.clone() };
        (!self.told.is_known(&same, Instant::now())).then_some((audit, entry, same))
    }

    /// Writes down that somebody was not let in. Of many in a second some alone: who floods the door must not fill the log.
    pub fn note_refusal(&self, protocol: &'static str) {
        {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            if refusals.0.elapsed() >= Duration::from_secs(1) {
                *refusals = (Instant::now(), 0);
            }
            refusals.1 += 1;
            if refusals.1 > REFUSALS_NOTED_PER_S {
                return;
            }
        }
        let nobody = Principal { name: String::new(), ..Principal::shared_token(&[]) };
        let entry = self.entry(&nobody, protocol, "authenticate", 0);
        self.note(AuditEntry { outcome: "refused", authentication: "", ..entry });
    }

    /// Writes down that an access begins, where answers wait for that.
    ///
    /// # Errors
    /// [`AccessError::NotAudited`].
    pub async fn begin(&self, entry: &AuditEntry) -> Result<()> {
        match &self.audit {
            Some(audit) if audit.is_required() => audit.begin(entry.clone(), self.clock.now()).await,
            _ => Ok(()),
        }
    }

    fn state(&self) -> Arc<State> {
        // A poisoned lock still holds a whole state: writers only ever swap the pointer.
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A session over the run as it is, for what is below the policy.
    fn base(&self, run: &Published) -> Result<Arc<SessionContext>> {
        let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, base)) = bases.iter().find(|(sequence, _)| *sequence == run.sequence()) {
            return Ok(Arc::clone(base));
        }
        let base = Arc::new(run.session()?);
        bases.push((run.sequence(), Arc::clone(&base)));
        // Views hold theirs by themselves.
        if bases.len() > 4 {
            bases.remove(0);
        }
        Ok(base)
    }

    fn guarded(
        &self,
        table: &PublishedTable,
        provider: &Arc<dyn TableProvider>,
        access: TableAccess,
        base: &Arc<SessionContext>,
    ) -> (PublishedTable, Arc<dyn TableProvider>) {
        let is_whole = access.hidden == 0
            && matches!(access.rows, Rows::All)
            && access.columns.iter().all(|column| column.only_mask() == Some(&Mask::Show));
        if is_whole {
            return (table.clone(), Arc::clone(provider));
        }
        let schema = seen(&table.schema, &access.columns);
        // How many rows there are is told of nothing that somebody does not see whole.
        let rows = table.rows.filter(|_| matches!(access.rows, Rows::All));
        let shown = PublishedTable { rows, schema, ..table.clone() };
        let key = self.settings.mask_key;
        let access = match key {
            Some(_) => access,
            None => without_hashes(access),
        };
        let key = key.unwrap_or_else(|| MaskKey::derive(&self.nobody_secret));
        let guarded = GuardedTable::new(table.name.clone(), &table.schema, access, key, Arc::clone(base));
        (shown, Arc::new(guarded))
    }

    /// The run's memory, or the principal's share of it.
    fn runtime(&self, principal: &Principal, policy: &Policy, run: &Published) -> Result<Arc<RuntimeEnv>> {
        let whole = run.runtime();
        let Some(bytes) = policy.limits(principal).memory_bytes else { return Ok(Arc::clone(whole)) };
        let share = self.usage.share(&usage_name(principal), bytes, &whole.memory_pool);
        let built = RuntimeEnvBuilder::from_runtime_env(whole).with_memory_pool(Arc::new(share)).build_arc();
        built.map_err(|source| {
            holdfast_engine::EngineError::Execution {
                what: "preparing the memory of a principal".to_owned(),
                source: Box::new(source),
            }
            .into()
        })
    }
}

/// Under what a principal's use is counted: a token and a user may have one name.
fn usage_name(principal: &Principal) -> String {
    match principal.by {
        Authentication::Password | Authentication::Certificate => format!("user/{}", principal.name),
        by => format!("{}/{}", by.as_str(), principal.name),
    }
}

/// Null for each hash: without a secret it could be tried out.
fn without_hashes(mut access: TableAccess) -> TableAccess {
    for (mask, _) in access.columns.iter_mut().flat_map(|column| &mut column.masks) {
        if *mask == Mask::Hash {
            *mask = Mask::Null;
        }
    }
    access
}

impl State {
    fn read(settings: &AccessSettings, before: Option<&Self>) -> Result<Self> {
        // Looked at first: what changes meanwhile is read again.
        let changed = changed(settings);
        let policy = match &settings.policy {
            Some(file) => Policy::load(file)?.map(Arc::new),
            None => None,
        };
        // A policy that goes away must not open everything.
        if let (None, Some(before)) = (&policy, before)
            && before.policy.is_some()
        {
            return Err(AccessError::Invalid(
                "the policy file is gone: the policy that was read stays in force".to_owned(),
            ));
        }
        let users = settings.users.as_deref().map(Users::load).transpose()?.map(Arc::new);
        let folder = settings.users.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
        let specs = users.iter().flat_map(|users| users.issuers.values());
        let issuers = specs.map(|spec| Ok(Arc::new(Issuer::new(spec.clone(), folder)?))).collect::<Result<Vec<_>>>()?;
        Ok(Self { policy, users, issuers, changed })
    }
}

/// When the files were written last.
fn changed(settings: &AccessSettings) -> [Option<SystemTime>; 2] {
    let of = |file: &Option<PathBuf>| std::fs::metadata(file.as_ref()?).ok()?.modified().ok();
    [of(&settings.policy), of(&settings.users)]
}

/// The longest that the end of a process waits for the audit log.
pub const AUDIT_CLOSES_WITHIN: Duration = Duration::from_secs(10);
