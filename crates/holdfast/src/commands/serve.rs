use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::LakeReader;
use holdfast_serve::{ServeSettings, Token, bind, serve};
use holdfast_types::Progress;

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
}

pub(crate) async fn run(project: &Project, args: &ServeArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let token = match &args.token_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| CliError::File {
                what: "cannot read the token file",
                path: path.clone(),
                source,
            })?;
            Some(Token::parse(&text)?)
        }
        None => None,
    };
    // The port is taken before the lake is read: a wrong address is told at once.
    let listener = bind(&args.listen, token.as_ref()).await?;
    let address = listener
        .local_addr()
        .map_err(|error| CliError::Argument(format!("cannot listen on {}: {error}", args.listen)))?;
    let lake = project.open_lake().await?;
    let reader = Arc::new(LakeReader::open(lake, project.reader_settings()).await?);
    let current = reader.current();
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
    serve(reader, settings, listener, stop_signal()).await?;
    terminal.note("  Stopped");
    Ok(())
}

/// Completes on Ctrl-C and, where there are such signals, on SIGTERM; counted from the call, not from the first look.
pub(crate) fn stop_signal() -> impl Future<Output = ()> + Send {
    #[cfg(unix)]
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    #[cfg(unix)]
    let interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt());
    async {
        #[cfg(unix)]
        if let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
        let _ = tokio::signal::ctrl_c().await;
    }
}
