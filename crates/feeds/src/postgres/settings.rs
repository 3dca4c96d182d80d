use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use url::Url;

use super::error::PostgresError;
use super::wire::quote_identifier;

const PORT_DEFAULT: u16 = 5432;
/// How often an idle source tells the server how far it is, so that the server need not keep its log.
const CONFIRM_IDLE_DEFAULT_SECONDS: u64 = 30;
/// Longer names are cut by the server.
const NAME_LENGTH_MAX: usize = 63;

/// The keys of `[feed]` in a contract with `kind = "postgres"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PostgresKeys {
    /// `postgres://user@host:port/dbname?sslmode=verify-full`, in place of the four below. Without a password.
    pub(crate) url: Option<String>,
    /// A name, an address, or the folder of a Unix socket.
    pub(crate) host: Option<String>,
    /// 5432 when left out.
    pub(crate) port: Option<u16>,
    /// The database.
    pub(crate) dbname: Option<String>,
    /// The role.
    pub(crate) user: Option<String>,
    /// The environment variable that holds the role's password.
    pub(crate) password_env: Option<String>,
    /// How the connection is protected; `verify-full` when left out.
    pub(crate) sslmode: Option<SslMode>,
    /// A file with the certificates to trust, PEM, in place of the system's.
    pub(crate) sslrootcert: Option<PathBuf>,
    /// The tables, `schema.table`: those of a source have the same columns, as far as the contract names them.
    pub(crate) tables: Vec<String>,
    /// The replication slot; `holdfast_<source>` when left out.
    pub(crate) slot: Option<String>,
    /// The publication; the slot's name when left out.
    pub(crate) publication: Option<String>,
    /// Whether the tables may be copied anew when the slot is gone.
    #[serde(default)]
    pub(crate) resnapshot: bool,
    /// How `json` and `jsonb` become fields.
    #[serde(default)]
    pub(crate) json: JsonAs,
    /// How often an idle source confirms its position to the server, in seconds; 30 when left out.
    pub(crate) confirm_idle_every: Option<u64>,
}

/// How a connection is protected, as libpq names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SslMode {
    /// Not at all: for a Unix socket, this machine, a network that is trusted.
    Disable,
    /// Encrypted; whoever answers is believed to be the server.
    Require,
    /// Encrypted, with a certificate for the host's name from somebody who is trusted.
    VerifyFull,
}

/// How a JSON column becomes a field of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JsonAs {
    /// As a JSON value: for columns of type `struct<…>`, `list<…>` and so on.
    #[default]
    Value,
    /// As text that holds the document: for columns of type `string`.
    Text,
}

/// A source's server, tables and slot, checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) server: Server,
    pub(crate) tables: Vec<QualifiedName>,
    pub(crate) slot: String,
    pub(crate) publication: String,
    pub(crate) resnapshot: bool,
    pub(crate) json: JsonAs,
    pub(crate) confirm_idle_every: Duration,
}

/// Where a server is and who we are there.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) dbname: String,
    pub(crate) user: String,
    pub(crate) password: Option<String>,
    /// The environment variable that the password is taken from, for messages.
    pub(crate) password_env: Option<String>,
    pub(crate) sslmode: SslMode,
    pub(crate) sslrootcert: Option<PathBuf>,
}

impl Server {
    /// What messages call it.
    pub(crate) fn shown(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("postgres {host}:{}/{}", self.port, self.dbname)
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("at", &self.shown()).field("user", &self.user).finish_non_exhaustive()
    }
}

/// A table's name with its schema, as they are written in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct QualifiedName {
    pub(crate) schema: String,
    pub(crate) table: String,
}

impl QualifiedName {
    /// For SQL.
    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.table))
    }
}

impl std::fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

impl PostgresKeys {
    /// The settings of a source. `secret` answers what an environment variable holds.
    ///
    /// # Errors
    /// [`PostgresError::Setting`] for the first key that cannot be used.
    pub(crate) fn check(
        &self,
        source: &str,
        secret: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Settings, PostgresError> {
        let tables = self.tables()?;
        let slot = self.slot.clone().unwrap_or_else(|| format!("holdfast_{source}"));
        let slot_name = slot.len() <= NAME_LENGTH_MAX
            && !slot.is_empty()
            && slot.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if !slot_name {
            return Err(setting("slot", "a slot's name has 1 to 63 of the characters a-z, 0-9 and _"));
        }
        let publication = self.publication.clone().unwrap_or_else(|| slot.clone());
        if publication.is_empty() || publication.len() > NAME_LENGTH_MAX {
            return Err(setting("publication", "a publication's name has 1 to 63 bytes"));
        }
        let confirm_idle_every = self.confirm_idle_every.unwrap_or(CONFIRM_IDLE_DEFAULT_SECONDS);
        if !(1..=3_600).contains(&confirm_idle_every) {
            return Err(setting("confirm_idle_every", "between 1 and 3600 seconds"));
        }
        Ok(Settings {
            server: self.server(secret)?,
            tables,
            slot,
            publication,
            resnapshot: self.resnapshot,
            json: self.json,
            confirm_idle_every: Duration::from_secs(confirm_idle_every),
        })
    }

    fn tables(&self) -> Result<Vec<QualifiedName>, PostgresError> {
        let mut tables = Vec::with_capacity(self.tables.len());
        for name in &self.tables {
            let (schema, table) = name.split_once('.').unwrap_or(("public", name));
            if schema.is_empty() || table.is_empty() {
                return Err(setting("tables", format!("`{name}` is no table: write schema.table")));
            }
            let table = QualifiedName { schema: schema.to_owned(), table: table.to_owned() };
            if tables.contains(&table) {
                return Err(setting("tables", format!("{table} is named twice")));
            }
            tables.push(table);
        }
        if tables.is_empty() {
            Err(setting("tables", "name at least one table: [\"public.orders\"]"))
        } else {
            Ok(tables)
        }
    }

    fn server(&self, secret: &dyn Fn(&str) -> Option<String>) -> Result<Server, PostgresError> {
        let mut server = match &self.url {
            Some(url) => {
                if self.host.is_some() || self.port.is_some() || self.dbname.is_some() || self.user.is_some() {
                    return Err(setting("url", "give either url, or host, port, dbname and user"));
                }
                self.server_of_url(url)?
            }
            None => Server {
                host: required("host", self.host.as_ref())?,
                port: self.port.unwrap_or(PORT_DEFAULT),
                dbname: required("dbname", self.dbname.as_ref())?,
                user: required("user", self.user.as_ref())?,
                password: None,
                password_env: None,
                sslmode: SslMode::VerifyFull,
                sslrootcert: None,
            },
        };
        if let Some(sslmode) = self.sslmode {
            server.sslmode = sslmode;
        }
        if self.sslrootcert.is_some() {
            server.sslrootcert.clone_from(&self.sslrootcert);
        }
        if server.host.starts_with('/') && server.sslmode != SslMode::Disable {
            return Err(setting("sslmode", "a Unix socket has no TLS: write sslmode = \"disable\""));
        }
        if let Some(name) = &self.password_env {
            let password = secret(name).filter(|password| !password.is_empty());
            let missing = || setting("password_env", format!("the environment variable {name} is not set"));
            server.password = Some(password.ok_or_else(missing)?);
            server.password_env = Some(name.clone());
        }
        Ok(server)
    }

    fn server_of_url(&self, url: &str) -> Result<Server, PostgresError> {
        const FORM: &str = "write postgres://user@host:port/dbname";
        // The text is not repeated: it may hold a password.
        let parsed = Url::parse(url).map_err(|error| setting("url", format!("{error}: {FORM}")))?;
        if !matches!(parsed.scheme(), "postgres" | "postgresql") {
            return Err(setting("url", FORM));
        }
        if parsed.password().is_some() {
            return Err(setting(
                "url",
                "has a password in it: take it out and name an environment variable in password_env",
            ));
        }
        let decode = |text: &str| percent_decode_str(text).decode_utf8().map(|text| text.into_owned());
        let part = |text: &str| decode(text).map_err(|_| setting("url", format!("not UTF-8: {FORM}")));
        let host = part(parsed.host_str().unwrap_or_default())?;
        let server = Server {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: parsed.port().unwrap_or(PORT_DEFAULT),
            dbname: part(parsed.path().trim_start_matches('/'))?,
            user: part(parsed.username())?,
            password: None,
            password_env: None,
            sslmode: SslMode::VerifyFull,
            sslrootcert: None,
        };
        if server.host.is_empty() || server.dbname.is_empty() || server.user.is_empty() {
            return Err(setting("url", FORM));
        }
        self.with_query(server, &parsed)
    }

    fn with_query(&self, mut server: Server, url: &Url) -> Result<Server, PostgresError> {
        for (key, value) in url.query_pairs() {
            match key.as_ref() {
                "sslmode" => {
                    server.sslmode = match value.as_ref() {
                        "disable" => SslMode::Disable,
                        "require" => SslMode::Require,
                        "verify-full" => SslMode::VerifyFull,
                        _ => return Err(setting("url", "sslmode is one of disable, require and verify-full")),
                    };
                }
                "sslrootcert" => server.sslrootcert = Some(PathBuf::from(value.as_ref())),
                _ => return Err(setting("url", "knows the parameters sslmode and sslrootcert only")),
            }
        }
        Ok(server)
    }
}

fn setting(key: &'static str, reason: impl Into<String>) -> PostgresError {
    PostgresError::Setting { key, reason: reason.into() }
}

fn required(key: &'static str, value: Option<&String>) -> Result<String, PostgresError> {
    let missing = || setting(key, "is missing: give host, dbname and user, or url");
    value.filter(|value| !value.is_empty()).cloned().ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> PostgresKeys {
        toml::from_str(text).unwrap()
    }

    fn check(text: &str) -> Result<Settings, PostgresError> {
        keys(text).check("orders", &|name| (name == "PG_PASSWORD").then(|| "secret".to_owned()))
    }

    #[test]
    fn a_url_and_its_parts_say_the_same() {
        let by_url = check(
            "url = 'postgres://re%40der@db.example:5433/shop?sslmode=require'\ntables = ['orders']\npassword_env = 'PG_PASSWORD'",
        )
        .unwrap();
        let by_parts = check(
            "host = 'db.example'\nport = 5433\ndbname = 'shop'\nuser = 're@der'\nsslmode = 'require'\ntables = ['public.orders']\npassword_env = 'PG_PASSWORD'",
        )
        .unwrap();
        for settings in [&by_url, &by_parts] {
            let server = &settings.server;
            assert_eq!((server.host.as_str(), server.port, server.dbname.as_str()), ("db.example", 5433, "shop"));
            assert_eq!((server.user.as_str(), server.sslmode), ("re@der", SslMode::Require));
            assert_eq!(server.password.as_deref(), Some("secret"));
            assert_eq!(settings.tables[0].to_string(), "public.orders");
            assert_eq!((settings.slot.as_str(), settings.publication.as_str()), ("holdfast_orders", "holdfast_orders"));
            assert!(!format!("{settings:?}").contains("secret"), "a password is never shown");
        }
    }

    #[test]
    fn what_cannot_be_used_is_told_with_its_key_and_never_with_a_password() {
        for (text, key, remedy) in [
            ("url = 'postgres://u:hunter2@h/d'\ntables = ['t']", "url", "password_env"),
            ("url = 'postgres://u@h/d'\nport = 1\ntables = ['t']", "url", "either"),
            ("url = 'mysql://u@h/d'\ntables = ['t']", "url", "postgres://"),
            ("url = 'postgres://u@h/d?sslmode=prefer'\ntables = ['t']", "url", "verify-full"),
            ("host = 'h'\nuser = 'u'\ntables = ['t']", "dbname", "is missing"),
            ("url = 'postgres://u@h/d'\ntables = []", "tables", "at least one"),
            ("url = 'postgres://u@h/d'\ntables = ['t', 'public.t']", "tables", "twice"),
            ("url = 'postgres://u@h/d'\ntables = ['t']\nslot = 'No'", "slot", "a-z"),
            ("url = 'postgres://u@h/d'\ntables = ['t']\npassword_env = 'NONE'", "password_env", "NONE is not set"),
            ("host = '/run'\ndbname = 'd'\nuser = 'u'\ntables = ['t']", "sslmode", "disable"),
            ("url = 'postgres://u@h/d'\ntables = ['t']\nconfirm_idle_every = 0", "confirm_idle_every", "seconds"),
        ] {
            let message = check(text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{key}: ")) && message.contains(remedy), "{text}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        assert!(toml::from_str::<PostgresKeys>("tables = ['t']\npassword = 'x'").is_err(), "an unknown key");
    }

    #[test]
    fn names_are_quoted() {
        let name = QualifiedName { schema: "a\"b".to_owned(), table: "Orders 1".to_owned() };
        assert_eq!(name.quoted(), "\"a\"\"b\".\"Orders 1\"");
    }
}
