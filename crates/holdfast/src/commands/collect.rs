use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_collect::{Access, CollectSettings, WriteKey, WriteKeys, bind, collect};
use holdfast_ingest::{FileFormat, Inbox, SourceSpec};
use holdfast_lake::Lake;
use holdfast_types::Progress;
use tokio::net::TcpListener;

use super::print;
use super::stop_signal;
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Take events that programs push over HTTP: acknowledged when durable, in raw a moment later
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CollectArgs {
    /// The address to listen on
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8816")]
    pub(crate) listen: String,
    /// A TOML file with write keys and their sources; needed for any address but loopback
    #[arg(long, value_name = "FILE", conflicts_with = "source")]
    pub(crate) keys_file: Option<PathBuf>,
    /// The source that everything goes to, when there is no keys file
    #[arg(long, value_name = "NAME")]
    pub(crate) source: Option<String>,
    /// Print a new write key of a source and its line for the keys file, and do nothing else
    #[arg(long, value_name = "SOURCE")]
    new_key: Option<String>,
    /// The longest request body, in KiB
    #[arg(long, value_name = "KB", default_value_t = 4_096)]
    request_kb_max: usize,
    /// The longest message, in KiB
    #[arg(long, value_name = "KB", default_value_t = 1_024)]
    message_kb_max: usize,
    /// What all unanswered requests may hold in memory, in MiB; beyond it clients get 429
    #[arg(long, value_name = "MB", default_value_t = 64)]
    queue_mb_max: usize,
    /// How long requests are gathered before they are written together, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100)]
    gather_ms: u64,
    /// How often new messages are brought into raw, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1_000)]
    ingest_interval_ms: u64,
    /// How many message ids of a source are remembered to know a message that comes again
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000)]
    remember_ids: usize,
}

pub(crate) async fn run(project: &Project, args: &CollectArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    if let Some(name) = &args.new_key {
        find(project, &project.sources()?, name)?;
        return print_new_key(name);
    }
    // The port is taken before the lake is made: a wrong address is told at once.
    let gate = Gate::open(project, args).await?;
    let lake = project.create_lake().await?;
    let note = format!("  Collecting {} on http://{}, Ctrl-C stops", gate.names(), gate.address);
    let ready = || {
        // Before anybody is told: who reads the line may stop the server at once.
        let stop = stop_signal();
        terminal.note(&note);
        stop
    };
    gate.collect(project, args, &lake, ready).await?;
    terminal.note("  Stopped");
    Ok(())
}

/// A port on which events are going to be taken, and for which sources.
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
    access: Access,
    sources: Vec<SourceSpec>,
}

impl Gate {
    /// Reads the keys and takes the port.
    ///
    /// # Errors
    /// Keys, sources or an address that are wrong, or would let anybody in.
    pub(crate) async fn open(project: &Project, args: &CollectArgs) -> Result<Self, CliError> {
        let all = project.sources()?;
        let access = access(args)?;
        let named: Vec<&str> = match &access {
            Access::Open { source } => vec![source],
            Access::Keys(keys) => keys.sources().into_iter().collect(),
        };
        let sources =
            named.into_iter().map(|name| find(project, &all, name).cloned()).collect::<Result<Vec<_>, _>>()?;
        let listener = bind(&args.listen, &access).await?;
        let address = listener
            .local_addr()
            .map_err(|error| CliError::Argument(format!("cannot listen on {}: {error}", args.listen)))?;
        Ok(Self { address, listener, access, sources })
    }

    /// The sources that take events.
    pub(crate) fn names(&self) -> String {
        let names: Vec<&str> = self.sources.iter().map(|source| source.name.as_str()).collect();
        names.join(", ")
    }

    /// Takes events until what `ready` returned completes.
    pub(crate) async fn collect<Stop: Future<Output = ()> + Send>(
        self,
        project: &Project,
        args: &CollectArgs,
        lake: &Lake,
        ready: impl FnOnce() -> Stop + Send,
    ) -> Result<(), CliError> {
        let inboxes = self.sources.iter().map(|source| Inbox::new(lake, &project.pipeline, source)).collect();
        let settings = CollectSettings {
            request_bytes_max: args.request_kb_max.saturating_mul(1 << 10),
            message_bytes_max: args.message_kb_max.saturating_mul(1 << 10),
            queue_bytes_max: args.queue_mb_max.saturating_mul(1 << 20),
            gather: Duration::from_millis(args.gather_ms),
            ingest_interval: Duration::from_millis(args.ingest_interval_ms.max(10)),
            remembered_ids: args.remember_ids,
            ..CollectSettings::default()
        };
        let settings = (settings, project.ingest_settings());
        Ok(Box::pin(collect(inboxes, self.access, settings, Arc::new(SystemClock), self.listener, ready)).await?)
    }
}

fn access(args: &CollectArgs) -> Result<Access, CliError> {
    match (&args.keys_file, &args.source) {
        (Some(path), _) => {
            let text = std::fs::read_to_string(path).map_err(|source| CliError::File {
                what: "cannot read the keys file",
                path: path.clone(),
                source,
            })?;
            Ok(Access::Keys(WriteKeys::parse(&path.display().to_string(), &text)?))
        }
        (None, Some(source)) => Ok(Access::Open { source: source.clone() }),
        (None, None) => Err(CliError::Argument(
            "name the source that events go to with --source, or give --keys-file, in which every key has its source"
                .to_owned(),
        )),
    }
}

/// A source that JSON messages can be pushed to.
fn find<'a>(project: &Project, sources: &'a [SourceSpec], name: &str) -> Result<&'a SourceSpec, CliError> {
    let found = sources.iter().find(|source| source.name == name).ok_or_else(|| {
        let known: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        CliError::Argument(format!(
            "pipeline {} has no source `{name}`: there are {}",
            project.pipeline,
            known.join(", ")
        ))
    })?;
    if found.format == FileFormat::Ndjson {
        return Ok(found);
    }
    Err(CliError::Argument(format!(
        "messages are JSON, and the contract of source {name} is for another format: push to a source with \
         format = \"ndjson\", or write a contract for one"
    )))
}

fn print_new_key(source: &str) -> Result<(), CliError> {
    // A version 4 UUID carries 122 random bits; two of them fill the 32 bytes.
    let mut secret = [0_u8; 32];
    secret[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    secret[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    let key = WriteKey::new(&secret, source);
    print(&format!(
        "# For the program that pushes; it is not kept here:\n# {}\n# For the keys file, below [keys]:\n{}\n",
        key.key, key.line
    ))
}
