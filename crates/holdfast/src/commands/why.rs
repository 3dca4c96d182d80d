use std::fmt::Write;

use holdfast_engine::{ColumnName, Why, WhyOptions};
use holdfast_types::TableName;
use serde_json::Value;

use super::{grouped, print, print_json};
use crate::error::CliError;
use crate::project::Project;

/// Show the rows that a customer's value was made from, step by step down to the raw tables; changes nothing
#[derive(Debug, clap::Args)]
pub(crate) struct WhyArgs {
    /// The customer's id
    customer: String,
    /// The value: a column of a stage, as profile.spend.spend_90d
    #[arg(value_name = "STAGE.COLUMN")]
    column: String,
    /// Show personal data as it is
    #[arg(long)]
    show_pii: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(project: &Project, args: &WhyArgs) -> Result<(), CliError> {
    let column = column(&args.column)?;
    let stages = project.stages()?;
    let lake = project.open_lake().await?;
    let settings = project.session_settings(&lake).await?;
    let runner = project.runner(lake, stages, settings).await?;
    let options = WhyOptions { customer_id: args.customer.clone(), column, show_pii: args.show_pii };
    let why = runner.why(&options).await?;
    if args.json {
        return print_json(&why);
    }
    print(&page(&why))
}

fn column(text: &str) -> Result<ColumnName, CliError> {
    let parts = text.rsplit_once('.').and_then(|(table, column)| Some((table.parse::<TableName>().ok()?, column)));
    match parts {
        Some((table, column)) if !column.is_empty() => Ok(ColumnName { table, column: column.to_owned() }),
        _ => Err(CliError::Argument(format!(
            "`{text}` is no column of a stage: write <schema>.<table>.<column>, such as profile.spend.spend_90d"
        ))),
    }
}

fn page(why: &Why) -> String {
    let mut text = String::new();
    for step in &why.steps {
        let made = step.made.as_ref().map(|made| format!(", for {made}")).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} v{}{made}: {}", step.table, step.version, step.columns.join(", "));
        for row in &step.rows {
            let _ = writeln!(text, "    {}", Value::Object(row.clone()));
        }
        match step.row_count.checked_sub(step.rows.len()) {
            Some(more) if more > 0 => {
                let _ = writeln!(text, "    and {} rows more", grouped(more as u64));
            }
            _ if step.row_count == 0 && step.remark.is_none() => text.push_str("    no row\n"),
            _ => {}
        }
        if let Some(remark) = &step.remark {
            let _ = writeln!(text, "    ({remark})");
        }
    }
    text
}
