use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::LakeReader;
use holdfast_serve::{PutSettings, Puts, ServeError, ServeSettings, Token, bind, serve};
use holdfast_types::Progress;

use super::stop_signal;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Serve features, scores and queries over Arrow Flight
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// The address to listen on
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8815")]
    pub(crate) listen: String,
    /// A file with the token that clients must send; needed for any address but loopback
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// How often to look for a newer run, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    pub(crate) reload_interval_ms: u64,
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
}

pub(crate) async fn run(project: &Project, args: &ServeArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let put_token = args.put_token_file.as_deref().map(read_token).transpose()?;
    if args.accept_puts && token.is_some() && put_token.is_none() {
        return Err(ServeError::PutsUnprotected.into());
    }
    let sources = if args.accept_puts { project.sources()? } else { Vec::new() };
    // The port is taken before the lake is read: a wrong address is told at once.
    let listener = bind(&args.listen, token.as_ref()).await?;
    let address = listener
        .local_addr()
        .map_err(|error| CliError::Argument(format!("cannot listen on {}: {error}", args.listen)))?;
    let lake = project.open_lake().await?;
    let puts = if args.accept_puts {
        let settings = PutSettings {
            token: put_token,
            streams_max: args.put_streams_max,
            memory_bytes_max: usize::try_from(args.put_memory_mb).unwrap_or(usize::MAX).saturating_mul(1 << 20),
            ingest_interval: Duration::from_millis(args.ingest_interval_ms.max(10)),
            ..PutSettings::default()
        };
        Some(Puts::new(&lake, &project.pipeline, &sources, settings, project.ingest_settings()))
    } else {
        None
    };
    let reader = Arc::new(LakeReader::open(lake, project.reader_settings()).await?);
    let current = reader.current();
    // Before anybody is told: who reads the line may stop the server at once.
    let stop = stop_signal();
    terminal.note(&format!(
        "  Serving run {} ({} tables) on grpc://{}, Ctrl-C stops",
        current.sequence(),
        current.tables().len(),
        address
    ));
    let settings = ServeSettings {
        token,
        reload_interval: Duration::from_millis(args.reload_interval_ms.max(10)),
        ..ServeSettings::default()
    };
    serve(reader, puts, settings, listener, stop).await?;
    terminal.note("  Stopped");
    Ok(())
}

fn read_token(path: &Path) -> Result<Token, CliError> {
    let what = "cannot read the token file";
    let text =
        std::fs::read_to_string(path).map_err(|source| CliError::File { what, path: path.to_owned(), source })?;
    Ok(Token::parse(&text)?)
}
