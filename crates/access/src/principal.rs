use std::collections::BTreeMap;

/// Somebody who came in: a person, a tool or a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    /// The name, as audited.
    pub name: String,
    /// The roles of the policy that it has. Roles that the policy does not know give nothing.
    pub roles: Vec<String>,
    /// What row filters ask with `attribute('…')`.
    pub attributes: BTreeMap<String, Vec<String>>,
    /// How it came in.
    pub by: Authentication,
}

/// How somebody came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Authentication {
    /// From this machine, where nothing is asked for.
    Loopback,
    /// With the one token that everybody shares.
    SharedToken,
    /// With a token of its own.
    Token,
    /// With a password.
    Password,
    /// With a token of an issuer.
    Jwt,
    /// With a client certificate.
    Certificate,
    /// At a command line, with the files of the lake: the system says who.
    Shell,
}

impl Authentication {
    /// A word for the audit log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::SharedToken => "shared_token",
            Self::Token => "token",
            Self::Password => "password",
            Self::Jwt => "jwt",
            Self::Certificate => "certificate",
            Self::Shell => "shell",
        }
    }
}

impl Principal {
    /// Who comes from this machine where nothing is asked for.
    pub fn loopback(roles: &[String]) -> Self {
        Self {
            name: "local".to_owned(),
            roles: roles.to_vec(),
            attributes: BTreeMap::new(),
            by: Authentication::Loopback,
        }
    }

    /// A user of this machine at a command line.
    pub fn shell(name: &str) -> Self {
        Self { name: name.to_owned(), by: Authentication::Shell, ..Self::loopback(&[]) }
    }

    /// Who has the shared token.
    pub fn shared_token(roles: &[String]) -> Self {
        Self { name: "token".to_owned(), by: Authentication::SharedToken, ..Self::loopback(roles) }
    }
}
