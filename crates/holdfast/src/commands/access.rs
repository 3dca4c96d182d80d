use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_access::{NewPrincipal, Users};
use holdfast_types::Progress;
use serde::Serialize;

use super::{print, print_json};
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// The users file of a project, where none is named.
const USERS_FILE: &str = "users.toml";

/// Say who may come in: users with passwords or certificates, and tokens
#[derive(Debug, clap::Args)]
pub(crate) struct AccessArgs {
    /// The users file [default: users.toml in the project]
    #[arg(long, global = true, value_name = "FILE")]
    users: Option<PathBuf>,
    #[command(subcommand)]
    command: AccessCommand,
}

#[derive(Debug, clap::Subcommand)]
enum AccessCommand {
    /// Users with a name
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Tokens for tools and services
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// List users and tokens, without their secrets
    List {
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Subcommand)]
enum UserCommand {
    /// Add a user, or give one another password, roles and attributes
    ///
    /// The password is read from standard input; on a terminal one is made and printed once.
    Add {
        #[command(flatten)]
        new: NewArgs,
        /// Let the user come in with this client certificate (PEM or DER) instead of a password
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
        /// Make a password and print it once, wherever standard input comes from
        #[arg(long, conflicts_with = "certificate")]
        make_password: bool,
    },
    /// Take a user away
    Remove {
        /// The user
        name: String,
    },
}

#[derive(Debug, clap::Subcommand)]
enum TokenCommand {
    /// Make a token and print it once; one of the same name is replaced
    Add {
        #[command(flatten)]
        new: NewArgs,
    },
    /// Take a token away
    Remove {
        /// The token's name
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct NewArgs {
    /// The name, as it is audited
    name: String,
    /// A role of the policy; several are given one by one
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// What row filters ask for, such as region=north; several values are given one by one
    #[arg(long = "attribute", value_name = "NAME=VALUE")]
    attributes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct List {
    principals: Vec<holdfast_access::Listed>,
}

pub(crate) fn run(project: &Project, args: &AccessArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let file = args.users.clone().unwrap_or_else(|| project.folder().join(USERS_FILE));
    match &args.command {
        AccessCommand::List { json } => list(&file, *json),
        AccessCommand::User { command: UserCommand::Add { new, certificate, make_password } } => {
            let mut users = Users::load_or_new(&file)?;
            let new = principal(new)?;
            warn_of_roles(project, &new, terminal)?;
            let name = new.name.clone();
            if let Some(certificate) = certificate {
                users.set_certificate(new, &der(certificate)?)?;
                users.save(&file)?;
            } else {
                let given = if *make_password { None } else { password()? };
                let made = users.set_user(new, given.as_deref())?;
                users.save(&file)?;
                if let Some(made) = made {
                    print(&format!("{made}\n"))?;
                }
            }
            terminal.note(&format!("    Added user {name} to {}", file.display()));
            Ok(())
        }
        AccessCommand::Token { command: TokenCommand::Add { new } } => {
            let mut users = Users::load_or_new(&file)?;
            let new = principal(new)?;
            warn_of_roles(project, &new, terminal)?;
            let name = new.name.clone();
            let token = users.set_token(new)?;
            users.save(&file)?;
            print(&format!("{token}\n"))?;
            terminal.note(&format!("    Added token {name} to {}; it is shown this once", file.display()));
            Ok(())
        }
        AccessCommand::User { command: UserCommand::Remove { name } } => {
            let mut users = Users::load(&file)?;
            users.remove_user(name)?;
            users.save(&file)?;
            terminal.note(&format!("  Removed user {name}"));
            Ok(())
        }
        AccessCommand::Token { command: TokenCommand::Remove { name } } => {
            let mut users = Users::load(&file)?;
            users.remove_token(name)?;
            users.save(&file)?;
            terminal.note(&format!("  Removed token {name}"));
            Ok(())
        }
    }
}

fn list(file: &Path, json: bool) -> Result<(), CliError> {
    let principals = Users::load(file)?.listed();
    if json {
        return print_json(&List { principals });
    }
    for listed in principals {
        let attributes: Vec<String> =
            listed.attributes.iter().map(|(name, values)| format!("{name}={}", values.join(","))).collect();
        print(&format!(
            "{:<6}{:<24}{}  with {}  {}\n",
            listed.kind,
            listed.name,
            listed.roles.join(","),
            listed.with.join(","),
            attributes.join(" ")
        ))?;
    }
    Ok(())
}

/// `region=north` and the like, gathered by name.
pub(crate) fn attributes(said: &[String]) -> Result<BTreeMap<String, Vec<String>>, CliError> {
    let mut attributes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for attribute in said {
        let (name, value) = attribute
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| CliError::Argument(format!("`{attribute}` is no attribute: write name=value")))?;
        attributes.entry(name.to_owned()).or_default().push(value.to_owned());
    }
    Ok(attributes)
}

fn principal(new: &NewArgs) -> Result<NewPrincipal, CliError> {
    Ok(NewPrincipal { name: new.name.clone(), roles: new.roles.clone(), attributes: attributes(&new.attributes)? })
}

/// A role that the policy does not have gives nothing: most likely it is a slip of the pen.
fn warn_of_roles(project: &Project, new: &NewPrincipal, terminal: &Terminal) -> Result<(), CliError> {
    let Some(policy) = project.policy()? else { return Ok(()) };
    let known: Vec<&str> = policy.roles().collect();
    for role in new.roles.iter().filter(|role| !known.contains(&role.as_str())) {
        terminal.problem(&format!("   Warned the policy has no role `{role}`: there are {}", known.join(", ")));
    }
    Ok(())
}

/// The password on standard input, without its line end; nothing where a person sits at it.
fn password() -> Result<Option<String>, CliError> {
    if std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut text = String::new();
    std::io::stdin()
        .take(64 << 10)
        .read_to_string(&mut text)
        .map_err(|error| CliError::Argument(format!("cannot read the password from standard input: {error}")))?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    Ok(Some(text.to_owned()))
}

/// The first certificate of a file.
fn der(file: &Path) -> Result<Vec<u8>, CliError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let failed = |source| CliError::File { what: "cannot read the certificate", path: file.to_owned(), source };
    let bytes = std::fs::read(file).map_err(failed)?;
    if !bytes.starts_with(b"-----") && !bytes.windows(11).any(|part| part == b"-----BEGIN ") {
        return Ok(bytes);
    }
    CertificateDer::from_pem_slice(&bytes)
        .map(|certificate| certificate.as_ref().to_vec())
        .map_err(|error| CliError::Argument(format!("{}: no certificate in PEM: {error}", file.display())))
}
