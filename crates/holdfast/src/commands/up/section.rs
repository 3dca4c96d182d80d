use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use holdfast_feature_store::OnlineShare;
use serde::{Deserialize, Deserializer};

use super::super::collect::CollectArgs;
use super::super::ingest::pause_of;
use super::super::serve::{AuditWhen, ConnectionArgs, ServeArgs};
use super::super::unsaid;

/// `[up]` in holdfast.toml. Paths are relative to it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct UpSection {
    /// Where the files of sources are.
    pub(super) from: Option<String>,
    /// How often they are looked for.
    #[serde(deserialize_with = "seconds")]
    pub(super) every_s: f64,
    /// Where health is told.
    pub(super) health: String,
    serve: ServeSection,
    /// Events are taken where there is this table.
    collect: Option<CollectSection>,
}

impl Default for UpSection {
    fn default() -> Self {
        Self {
            from: None,
            every_s: 5.0,
            health: "127.0.0.1:8817".to_owned(),
            serve: ServeSection::default(),
            collect: None,
        }
    }
}

/// The flags of `holdfast serve` that a company sets; the others are as there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServeSection {
    listen: Option<String>,
    http: Option<String>,
    token_file: Option<PathBuf>,
    accept_puts: bool,
    put_token_file: Option<PathBuf>,
    log_served: Option<NonZeroU64>,
    #[serde(deserialize_with = "share")]
    online_share: OnlineShare,
    pg_listen: Option<String>,
    users: Option<PathBuf>,
    audit: Option<AuditWhen>,
    tls_certificate: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_client_issuers: Option<PathBuf>,
    connections: ConnectionArgs,
}

/// And those of `holdfast collect`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CollectSection {
    listen: Option<String>,
    source: Option<String>,
    keys_file: Option<PathBuf>,
}

impl UpSection {
    /// What `holdfast serve` would be called with.
    pub(super) fn serve_args(&self, folder: &Path) -> ServeArgs {
        let section = &self.serve;
        let mut args: ServeArgs = unsaid();
        if let Some(listen) = &section.listen {
            args.listen.clone_from(listen);
        }
        args.http.clone_from(&section.http);
        args.token_file = section.token_file.as_ref().map(|file| folder.join(file));
        args.accept_puts = section.accept_puts;
        args.put_token_file = section.put_token_file.as_ref().map(|file| folder.join(file));
        args.log_served = section.log_served;
        args.online_share = section.online_share;
        args.pg_listen.clone_from(&section.pg_listen);
        let below = |file: &Option<PathBuf>| file.as_ref().map(|file| folder.join(file));
        args.users = below(&section.users);
        args.audit = section.audit;
        args.tls_certificate = below(&section.tls_certificate);
        args.tls_key = below(&section.tls_key);
        args.tls_client_issuers = below(&section.tls_client_issuers);
        args.connections = section.connections.clone();
        args
    }

    /// What `holdfast collect` would be called with.
    pub(super) fn collect_args(&self, folder: &Path) -> Option<CollectArgs> {
        let section = self.collect.as_ref()?;
        let mut args: CollectArgs = unsaid();
        if let Some(listen) = &section.listen {
            args.listen.clone_from(listen);
        }
        args.source.clone_from(&section.source);
        args.keys_file = section.keys_file.as_ref().map(|file| folder.join(file));
        Some(args)
    }
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OnlineShare, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    pause_of(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}
