use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_access::trial::{Schemas, mistakes, run_case};
use holdfast_access::{AccessError, Authentication, Policy, Principal, Rows, TableAccess, Users};
use holdfast_engine::{Diagnostic, Diagnostics, LakeReader, PublishedTable};
use holdfast_types::{Clock, Progress, TableName};
use serde_json::json;

use super::access::attributes;
use super::test::empty_lake;
use super::{print, print_json};
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::Project;

/// Look at policy.toml: who sees what, and whether that is what was meant
#[derive(Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, clap::Subcommand)]
enum PolicyCommand {
    /// Check the policy against the tables of the pipeline; touches no lake
    Check,
    /// Say what a user sees of a published table, and by which rules
    Explain {
        /// A user or token of the users file; any name with --role
        user: String,
        /// The table
        table: TableName,
        /// The users file [default: users.toml in the project]
        #[arg(long, value_name = "FILE", conflicts_with = "roles")]
        users: Option<PathBuf>,
        /// A role, in place of those in the users file; several are given one by one
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
        /// What row filters ask for, with --role
        #[arg(long = "attribute", value_name = "NAME=VALUE", requires = "roles")]
        attributes: Vec<String>,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run the cases in the policy; touches no lake
    Test,
}

pub(crate) async fn run(project: &Project, args: &PolicyArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let Some(policy) = project.policy()? else {
        let file = project.pipeline_folder()?.join("policy.toml");
        let message = format!("there is no {}: everybody who may come in sees everything", file.display());
        return Err(CliError::Argument(message));
    };
    match &args.command {
        PolicyCommand::Check => check(project, &policy, terminal).await,
        PolicyCommand::Test => test(project, policy, terminal).await,
        PolicyCommand::Explain { user, table, users, roles, attributes: said, json } => {
            let principal = if roles.is_empty() {
                let file = users.clone().unwrap_or_else(|| project.folder().join("users.toml"));
                Users::load(&file)?.named(user).ok_or_else(|| AccessError::NoPrincipal {
                    what: "user or token",
                    name: user.clone(),
                    hint: format!(" in {}: add one, or say --role", file.display()),
                })?
            } else {
                let attributes = attributes(said)?;
                Principal { name: user.clone(), roles: roles.clone(), attributes, by: Authentication::Password }
            };
            explain(project, &policy, &principal, table, *json).await
        }
    }
}

/// What is wrong with the policy over the tables that the pipeline makes.
pub(crate) async fn findings(project: &Project, policy: &Policy) -> Result<Vec<Diagnostic>, CliError> {
    let lake = empty_lake().await?;
    Ok(mistakes(policy, &lake, &project.planning_settings()?, &schemas(project)?).await?)
}

async fn check(project: &Project, policy: &Policy, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let found = findings(project, policy).await?;
    if !found.is_empty() {
        return Err(AccessError::Mistakes(Diagnostics(found)).into());
    }
    let roles: Vec<&str> = policy.roles().collect();
    terminal.note(&format!("  Checked {} roles: {}", roles.len(), roles.join(", ")));
    Ok(())
}

async fn test(project: &Project, policy: Policy, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let lake = empty_lake().await?;
    let (settings, schemas) = (project.case_settings()?, schemas(project)?);
    let policy = Arc::new(policy);
    let mut failed = 0;
    for case in &policy.cases {
        let difference = run_case(&policy, case, &lake, &settings, &schemas, Arc::new(SystemClock)).await?;
        if let Some(difference) = difference {
            failed += 1;
            terminal.note(&format!("   Failed case {}\n{difference}", case.name));
        }
    }
    let total = policy.cases.len();
    terminal.note(&format!("   Tested {} of {total} cases passed", total - failed));
    if failed == 0 { Ok(()) } else { Err(CliError::CasesFailed { failed, total }) }
}

async fn explain(
    project: &Project,
    policy: &Policy,
    principal: &Principal,
    name: &TableName,
    as_json: bool,
) -> Result<(), CliError> {
    let lake = project.open_lake().await?;
    let run = LakeReader::open(lake, project.reader_settings()).await?.current();
    let table: &PublishedTable = run.table(name).ok_or_else(|| {
        CliError::Argument(format!("the newest run has no table {name}: `holdfast status` lists them"))
    })?;
    let access = policy.access(principal, name, &table.schema);
    if as_json {
        return print_json(&described(principal, name, access.as_ref()));
    }
    let who = format!("{} ({})", principal.name, principal.roles.join(", "));
    let Some(access) = access else {
        return print(&format!("{who} does not see {name}: none of the roles names it\n"));
    };
    let mut text = format!("{who} sees of {name}\n\n  rows     {}\n", rows(&access.rows).join("\n           or "));
    for field in table.schema.fields() {
        let column = access.columns.iter().find(|column| column.name == *field.name());
        let tag = if field.metadata().contains_key(holdfast_types::PII_KEY) { "pii" } else { "" };
        text.push_str(&format!("  {:<28}{tag:<5}{}\n", field.name(), masks(column, &access.rows)));
    }
    print(&text)
}

fn rows(rows: &Rows) -> Vec<String> {
    match rows {
        Rows::All => vec!["all".to_owned()],
        Rows::Matching(filters) if filters.is_empty() => {
            vec!["none: the user has no value for what the filters ask".to_owned()]
        }
        Rows::Matching(filters) => filters.iter().map(|filter| filter.sql().to_owned()).collect(),
    }
}

fn masks(column: Option<&holdfast_access::ColumnAccess>, rows: &Rows) -> String {
    let Some(column) = column else { return "denied".to_owned() };
    let filters: &[_] = match rows {
        Rows::Matching(filters) => filters,
        Rows::All => &[],
    };
    let of = |(mask, places): &(holdfast_access::Mask, Vec<usize>)| {
        let where_: Vec<&str> = places.iter().filter_map(|place| Some(filters.get(*place)?.sql())).collect();
        if where_.is_empty() { mask.to_string() } else { format!("{mask} where {}", where_.join(" or ")) }
    };
    column.masks.iter().map(of).collect::<Vec<_>>().join("; else ")
}

fn described(principal: &Principal, name: &TableName, access: Option<&TableAccess>) -> serde_json::Value {
    let columns = access.map(|access| {
        let of = |column: &holdfast_access::ColumnAccess| (column.name.clone(), masks(Some(column), &access.rows));
        access.columns.iter().map(of).collect::<BTreeMap<_, _>>()
    });
    json!({
        "user": principal.name,
        "roles": principal.roles,
        "table": name.to_string(),
        "visible": access.is_some(),
        "rows": access.map(|access| rows(&access.rows)),
        "columns": columns,
        "denied_columns": access.map(|access| access.hidden),
    })
}

/// The columns of every table of the pipeline.
fn schemas(project: &Project) -> Result<Schemas, CliError> {
    let stages = project.stages()?;
    let inspection = project.draft()?.inspect(&project.planning_settings()?, SystemClock.now())?.without_mistakes()?;
    let declared = stages.declared().iter().map(|(name, schema)| (name.clone(), Arc::clone(schema)));
    let made = inspection.stages.iter().map(|stage| (stage.stage.name.clone(), Arc::clone(&stage.schema)));
    Ok(declared.chain(made).collect())
}
