use std::fmt;
use std::str::FromStr;

use url::{Host, Url};

use crate::error::ClusterError;

/// The port of a Ballista scheduler when none is named.
const SCHEDULER_PORT: u16 = 50_050;

/// Where a scheduler is: `df://host:port`, as Ballista's own clients write it, or `ballista://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address; IPv6 in brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// As gRPC clients want it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}:{}", self.host, self.port)
    }

    /// Whether it is on this machine.
    pub fn is_loopback(&self) -> bool {
        match Host::parse(&self.host) {
            Ok(Host::Domain(name)) => name == "localhost",
            Ok(Host::Ipv4(ip)) => ip.is_loopback(),
            Ok(Host::Ipv6(ip)) => ip.is_loopback(),
            Err(_) => false,
        }
    }
}

impl FromStr for Address {
    type Err = ClusterError;

    fn from_str(text: &str) -> Result<Self, ClusterError> {
        let invalid = || ClusterError::Address { address: text.to_owned() };
        let url = Url::parse(text).map_err(|_| invalid())?;
        let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.username().is_empty();
        match url.host_str() {
            Some(host) if matches!(url.scheme(), "df" | "ballista") && bare && !host.is_empty() => {
                Ok(Self { host: host.to_owned(), port: url.port().unwrap_or(SCHEDULER_PORT) })
            }
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "df://{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_ballista() {
        for (text, url) in [
            ("df://10.0.0.7:50050", "http://10.0.0.7:50050"),
            ("df://scheduler", "http://scheduler:50050"),
            ("df://[::1]:7/", "http://[::1]:7"),
            ("ballista://scheduler:7", "http://scheduler:7"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().url(), url);
        }
        for text in [
            "",
            "scheduler:50050",
            "http://scheduler:50050",
            "df://",
            "df://host:x",
            "df://host/lake",
            "ballista://h:1/x",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert!("df://[::1]:7".parse::<Address>().unwrap().is_loopback());
        assert!(!"df://10.0.0.7:50050".parse::<Address>().unwrap().is_loopback());
    }
}
