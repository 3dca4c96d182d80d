use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_access::{Access, AccessSettings, Audit, ConnectionLimits};
use holdfast_engine::{LakeReader, Stage};
use holdfast_feature_store::OnlineShare;
use holdfast_lake::Lake;
use holdfast_pgwire::{Notes, PgSettings, TlsIdentity};
use holdfast_serve::{PutSettings, Puts, ServeError, ServeSettings, Tls, Token, bind_as, serve_with_http};
use holdfast_types::{Progress, TableName};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{stop_signal, unsaid};
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::models::predict::Champions;
use crate::pg_gate::AccessGate;
use crate::progress::Terminal;
use crate::project::{Project, read_text};

/// Serve features, scores and queries over Arrow Flight, and over the PostgreSQL protocol
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServeArgs {
    /// The address to listen on
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8815")]
    pub(crate) listen: String,
    /// Also answer POST /get-online-features over HTTP, as Feast's server does, on this address
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) http: Option<String>,
    /// A file with the token that clients must send; needed for any address but loopback
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The users file: who may come in with a name, and the roles of the policy that they have
    #[arg(long, value_name = "FILE")]
    pub(crate) users: Option<PathBuf>,
    /// Whether accesses are written to audit.accesses; required answers nobody whose access cannot be written [default: on with a policy or users]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub(crate) audit: Option<AuditWhen>,
    /// The certificate of the service, in PEM, with those of its issuers behind it; with it nobody comes in without TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// The certificate's key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Whose certificates clients may come in with, in PEM; users have them by `holdfast access user add --certificate`
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub(crate) tls_client_issuers: Option<PathBuf>,
    /// How often to look for a newer run, and for changes of the policy and the users, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    pub(crate) reload_interval_ms: u64,
    /// Keep every Nth answer of online features in the lake, for `holdfast features consistency`
    #[arg(long, value_name = "N")]
    pub(crate) log_served: Option<NonZeroU64>,
    /// Hold a share of the buckets of online views in memory, 1/3 for the first of three nodes; keys of others are refused
    #[arg(long, value_name = "NODE/NODES", default_value_t = OnlineShare::ALL)]
    pub(crate) online_share: OnlineShare,
    /// Let clients put record batches into the pipeline's sources
    #[arg(long)]
    pub(crate) accept_puts: bool,
    /// A file with the token that clients must send to put; needed where reading needs one, and another
    #[arg(long, value_name = "FILE", requires = "accept_puts")]
    pub(crate) put_token_file: Option<PathBuf>,
    /// What the batches that are being stored may hold in memory, in MiB; beyond it clients are told to come back
    #[arg(long, value_name = "MB", default_value_t = 384, requires = "accept_puts", value_parser = clap::value_parser!(u32).range(384..=65_536))]
    pub(crate) put_memory_mb: u32,
    /// How many streams may be put at the same time; one more is told to come back
    #[arg(long, value_name = "COUNT", default_value_t = 16, requires = "accept_puts")]
    pub(crate) put_streams_max: usize,
    /// How often what was put is brought into raw, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1_000, requires = "accept_puts")]
    pub(crate) ingest_interval_ms: u64,
    /// Speak the PostgreSQL protocol, too, on this address, such as 127.0.0.1:5432
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) pg_listen: Option<String>,
    #[command(flatten)]
    pub(crate) connections: ConnectionArgs,
}

/// How many connections may be open, over all protocols together, and for how long.
#[derive(Debug, Clone, clap::Args, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConnectionArgs {
    /// How many connections may be open, over all protocols; one more is told to come back
    #[arg(long, value_name = "COUNT", default_value_t = 1_000)]
    #[serde(rename = "max")]
    pub(crate) connections_max: usize,
    /// How many connections of one user or token may be open, where the policy says nothing else of its roles
    #[arg(long, value_name = "COUNT", default_value_t = 250)]
    #[serde(rename = "of_user_max")]
    pub(crate) connections_of_user_max: usize,
    /// How many connections may be open that have not said yet whose they are
    #[arg(long, value_name = "COUNT", default_value_t = 250)]
    #[serde(rename = "unknown_max")]
    pub(crate) connections_unknown_max: usize,
    /// How long a connection may take to say whose it is, in seconds
    #[arg(long, value_name = "S", default_value_t = 20.0)]
    pub(crate) log_in_timeout_s: f64,
    /// How long a connection may ask nothing before it is closed, in seconds
    #[arg(long, value_name = "S", default_value_t = 3_600.0)]
    pub(crate) idle_timeout_s: f64,
}

impl Default for ConnectionArgs {
    fn default() -> Self {
        unsaid()
    }
}

impl ConnectionArgs {
    fn limits(&self) -> ConnectionLimits {
        ConnectionLimits {
            open: self.connections_max,
            of_principal: self.connections_of_user_max,
            unknown: self.connections_unknown_max,
        }
    }

    /// Of the log-in, and of idleness.
    fn timeouts(&self) -> Result<(Duration, Duration), CliError> {
        let of = |name: &str, seconds: f64| {
            let wrong = || CliError::Argument(format!("{name} is {seconds}, and may be 0.1 to 86400 seconds"));
            Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
        };
        Ok((of("log_in_timeout_s", self.log_in_timeout_s)?, of("idle_timeout_s", self.idle_timeout_s)?))
    }
}

/// When accesses are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AuditWhen {
    /// Never.
    Off,
    /// Behind the answers.
    On,
    /// Before the answers.
    Required,
}

pub(crate) async fn run(project: &Project, args: &ServeArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    // The port is taken before the lake is read: a wrong address is told at once.
    let door = Door::open(args).await?;
    let address = door.address;
    let lake = project.open_lake().await?;
    let reader = Arc::new(LakeReader::open(lake.clone(), project.asking_settings(&lake)).await?);
    let current = reader.current();
    let http = door.http.as_ref().and_then(|listener| listener.local_addr().ok());
    let access = open_access(project, args, &lake).await?;
    // Before anybody is told: who reads the line may stop the server at once.
    let stop = stop_signal();
    let postgres = door.postgres().map_or_else(String::new, |address| format!(" and postgresql://{address}/holdfast"));
    terminal.note(&format!(
        "  Serving run {} ({} tables) on grpc://{address}{}{postgres}, Ctrl-C stops",
        current.sequence(),
        current.tables().len(),
        http.map_or_else(String::new, |http| format!(" and http://{http}")),
    ));
    let progress: Arc<dyn Progress> = Arc::clone(terminal) as _;
    let settings = ServeSettings { access: Some(access), progress, ..ServeSettings::default() };
    door.serve(project, args, (&lake, reader), settings, stop).await?;
    terminal.note("  Stopped");
    Ok(())
}

/// A port on which the service is going to listen, and who may come in.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
    http: Option<TcpListener>,
    token: Option<Token>,
    put_token: Option<Token>,
    postgres: Option<PgDoor>,
}

impl Door {
    /// Reads the tokens and takes the port.
    ///
    /// # Errors
    /// A token or an address that is wrong, or would let anybody in.
    pub(crate) async fn open(args: &ServeArgs) -> Result<Self, CliError> {
        let token = args.token_file.as_deref().map(read_token).transpose()?;
        let put_token = args.put_token_file.as_deref().map(read_token).transpose()?;
        let is_protected = token.is_some() || args.users.is_some();
        if args.accept_puts && is_protected && put_token.is_none() {
            return Err(ServeError::PutsUnprotected.into());
        }
        let listener = bind_as(&args.listen, is_protected).await?;
        let address = listener
            .local_addr()
            .map_err(|error| CliError::Argument(format!("cannot listen on {}: {error}", args.listen)))?;
        let http = match &args.http {
            Some(address) => Some(bind_as(address, is_protected).await?),
            None => None,
        };
        let postgres = match &args.pg_listen {
            Some(listen) => Some(PgDoor::open(listen, args).await?),
            None => None,
        };
        Ok(Self { address, listener, http, token, put_token, postgres })
    }

    /// Where the PostgreSQL protocol is spoken, if it is.
    pub(crate) fn postgres(&self) -> Option<SocketAddr> {
        self.postgres.as_ref().map(|door| door.address)
    }

    /// Serves what `reader` reads until `stop`.
    pub(crate) async fn serve(
        self,
        project: &Project,
        args: &ServeArgs,
        (lake, reader): (&Lake, Arc<LakeReader>),
        settings: ServeSettings,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), CliError> {
        let puts = if args.accept_puts {
            let settings = PutSettings {
                token: self.put_token,
                streams_max: args.put_streams_max,
                memory_bytes_max: usize::try_from(args.put_memory_mb).unwrap_or(usize::MAX).saturating_mul(1 << 20),
                ingest_interval: Duration::from_millis(args.ingest_interval_ms.max(10)),
                ..PutSettings::default()
            };
            Some(Puts::new(lake, &project.pipeline, &project.sources()?, settings, project.ingest_settings()))
        } else {
            None
        };
        let access = match settings.access {
            Some(access) => access,
            None => open_access(project, args, lake).await?,
        };
        let (log_in_timeout, idle_timeout) = args.connections.timeouts()?;
        let settings = ServeSettings {
            log_in_timeout,
            idle_timeout,
            token: self.token,
            log_served: args.log_served,
            online_share: args.online_share,
            access: Some(Arc::clone(&access)),
            models: Some(Arc::new(Champions::new(project, lake))),
            tls: open_tls(args)?,
            reload_interval: Duration::from_millis(args.reload_interval_ms.max(10)),
            ..settings
        };
        let Some(postgres) = self.postgres else {
            return Ok(serve_with_http(reader, puts, settings, (self.listener, self.http), stop).await?);
        };
        let wire_settings = PgSettings {
            startup_timeout: log_in_timeout,
            idle_timeout,
            drain_timeout: settings.drain_timeout,
            ..PgSettings::default()
        };
        let stopped = CancellationToken::new();
        // If one of the two fails, the other ends, too.
        let ending = stopped.clone();
        let flight = async {
            let stop = async {
                tokio::select! {
                    () = stop => {}
                    () = ending.cancelled() => {}
                }
                ending.cancel();
            };
            let ended = serve_with_http(Arc::clone(&reader), puts, settings, (self.listener, self.http), stop).await;
            stopped.cancel();
            ended.map_err(CliError::from)
        };
        let wire = async {
            let ended = postgres.serve(project, Arc::clone(&reader), access, wire_settings, stopped.cancelled()).await;
            stopped.cancel();
            ended
        };
        let (flight, wire) = tokio::join!(Box::pin(flight), Box::pin(wire));
        flight.and(wire)
    }
}

/// A port on which the PostgreSQL protocol is going to be spoken, and who may come in.
struct PgDoor {
    address: SocketAddr,
    listener: TcpListener,
    tls: Option<TlsIdentity>,
}

impl PgDoor {
    async fn open(listen: &str, args: &ServeArgs) -> Result<Self, CliError> {
        let tls = match (&args.tls_certificate, &args.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsIdentity::read(certificate, key)?),
            _ => None,
        };
        let listener = holdfast_pgwire::bind(listen, args.users.is_none()).await?;
        let address =
            listener.local_addr().map_err(|error| CliError::Argument(format!("cannot listen on {listen}: {error}")))?;
        Ok(Self { address, listener, tls })
    }

    async fn serve(
        self,
        project: &Project,
        reader: Arc<LakeReader>,
        access: Arc<Access>,
        settings: PgSettings,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), CliError> {
        let gate = Arc::new(AccessGate::new(access, Arc::clone(&reader)));
        let notes = notes(project);
        Ok(holdfast_pgwire::serve(reader, gate, self.tls, notes, settings, self.listener, stop).await?)
    }
}

/// Owners and tags of stages. The service works without: a project whose stages cannot be read is told of elsewhere.
fn notes(project: &Project) -> BTreeMap<TableName, Notes> {
    let draft = match project.draft() {
        Ok(draft) => draft,
        Err(error) => {
            tracing::warn!(%error, "owners and tags of tables are not known");
            return BTreeMap::new();
        }
    };
    let note = |stage: &Stage| {
        let of_table = stage.directives.tags.iter().filter(|(_, columns)| columns.is_empty());
        let tags = of_table.map(|(tag, _)| tag.clone()).collect();
        (stage.name.clone(), Notes { owner: stage.directives.owner.clone(), tags })
    };
    draft.stages().iter().map(note).collect()
}

/// Who may come in and what they see, as the command line and the pipeline's policy have it.
pub(crate) async fn open_access(project: &Project, args: &ServeArgs, lake: &Lake) -> Result<Arc<Access>, CliError> {
    let policy = project.policy_file()?;
    let has_policy = policy.exists();
    let default = if has_policy || args.users.is_some() { AuditWhen::On } else { AuditWhen::Off };
    let audit = match args.audit.unwrap_or(default) {
        AuditWhen::Off => None,
        when => {
            let key = project.audit_key(lake).await?;
            Some(Audit::start(project.open_lake_to_audit().await?, key, when == AuditWhen::Required))
        }
    };
    let mask_key = if has_policy { Some(project.mask_key(lake).await?) } else { None };
    let settings = AccessSettings {
        policy: Some(policy),
        users: args.users.clone(),
        mask_key,
        connections: args.connections.limits(),
    };
    Ok(Arc::new(Access::open(settings, Arc::new(SystemClock), audit)?))
}

fn open_tls(args: &ServeArgs) -> Result<Option<Tls>, CliError> {
    let (Some(certificate), Some(key)) = (&args.tls_certificate, &args.tls_key) else { return Ok(None) };
    Ok(Some(Tls {
        certificate: read_text(certificate)?,
        key: read_text(key)?,
        client_issuers: args.tls_client_issuers.as_deref().map(read_text).transpose()?,
    }))
}

fn read_token(path: &Path) -> Result<Token, CliError> {
    let what = "cannot read the token file";
    let text =
        std::fs::read_to_string(path).map_err(|source| CliError::File { what, path: path.to_owned(), source })?;
    Ok(Token::parse(&text)?)
}
