use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use holdfast_engine::{ColumnName, EngineError, InspectedStage, Inspection, Lineage, to_the_source};
use holdfast_types::{Clock, TableName};
use serde::Serialize;

use super::{print, print_json};
use crate::clock::SystemClock;
use crate::error::CliError;
use crate::project::Project;

/// Show what stages read and who reads them, or where a column comes from; touches no data
#[derive(Debug, clap::Args)]
pub(crate) struct LineageArgs {
    /// The stage [default: all of them]
    stage: Option<String>,
    /// A column of the stage: where its values come from
    #[arg(long, value_name = "COLUMN", requires = "stage")]
    column: Option<String>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// The tables around each table.
struct Graph {
    reads: BTreeMap<TableName, Vec<TableName>>,
    read_by: BTreeMap<TableName, Vec<TableName>>,
}

#[derive(Debug, Serialize)]
struct StageReport {
    stage: TableName,
    reads: Vec<TableName>,
    read_by: Vec<TableName>,
    columns: BTreeMap<String, Vec<ColumnName>>,
    rows: Vec<ColumnName>,
}

#[derive(Debug, Serialize)]
struct ColumnReport {
    column: ColumnName,
    from: Vec<ColumnName>,
    sources: Vec<ColumnName>,
    rows: Vec<ColumnName>,
}

pub(crate) async fn run(project: &Project, args: &LineageArgs) -> Result<(), CliError> {
    let draft = project.draft()?;
    let inspection = draft.inspect(&project.planning_settings()?, SystemClock.now())?.without_mistakes()?;
    let stages = draft.into_project()?;
    let graph = Graph::of(&inspection);
    let Some(name) = &args.stage else {
        let reports: Vec<StageReport> = inspection.stages.iter().map(|stage| graph.report(stage)).collect();
        return if args.json { print_json(&reports) } else { print(&overview(&reports)) };
    };
    let selected = stages.select(&holdfast_engine::Selection::Patterns(vec![name.clone()]))?;
    let found = selected.iter().filter_map(|name| inspection.stage(name)).next();
    let stage = found.ok_or_else(|| EngineError::NoStage { name: name.clone(), hint: String::new() })?;
    let Some(column) = &args.column else {
        return if args.json { print_json(&graph.report(stage)) } else { print(&graph.tree(&stage.stage.name)) };
    };
    let lineages = inspection.lineages();
    let Some(origins) = stage.lineage.column(column) else {
        let names: Vec<&str> = stage.lineage.columns.iter().map(|(name, _)| name.as_str()).collect();
        return Err(CliError::Argument(format!(
            "{} has no column `{column}`: there are {}",
            stage.stage.name,
            names.join(", ")
        )));
    };
    let top = ColumnName { table: stage.stage.name.clone(), column: column.clone() };
    if args.json {
        return print_json(&ColumnReport {
            from: origins.iter().cloned().collect(),
            sources: to_the_source(&lineages, &top).into_iter().collect(),
            rows: stage.lineage.rows.iter().cloned().collect(),
            column: top,
        });
    }
    print(&column_tree(&lineages, &top, stage))
}

impl Graph {
    fn of(inspection: &Inspection) -> Self {
        let mut graph = Self { reads: BTreeMap::new(), read_by: BTreeMap::new() };
        for stage in &inspection.stages {
            let name = &stage.stage.name;
            graph.reads.insert(name.clone(), stage.stage.inputs.keys().cloned().collect());
            for input in stage.stage.inputs.keys() {
                graph.read_by.entry(input.clone()).or_default().push(name.clone());
            }
        }
        graph.read_by.values_mut().for_each(|names| names.sort());
        graph
    }

    fn report(&self, stage: &InspectedStage) -> StageReport {
        let name = &stage.stage.name;
        StageReport {
            stage: name.clone(),
            reads: self.reads.get(name).cloned().unwrap_or_default(),
            read_by: self.read_by.get(name).cloned().unwrap_or_default(),
            columns: stage
                .lineage
                .columns
                .iter()
                .map(|(name, origins)| (name.clone(), origins.iter().cloned().collect()))
                .collect(),
            rows: stage.lineage.rows.iter().cloned().collect(),
        }
    }

    fn tree(&self, name: &TableName) -> String {
        let mut text = format!("{name}\n\nreads\n");
        branches(&mut text, name, "", &mut BTreeSet::new(), &|name| self.reads.get(name).cloned().unwrap_or_default());
        text.push_str("\nis read by\n");
        let before = text.len();
        branches(&mut text, name, "", &mut BTreeSet::new(), &|name| {
            self.read_by.get(name).cloned().unwrap_or_default()
        });
        if text.len() == before {
            text.push_str("└── nobody\n");
        }
        text
    }
}

/// Writes what is below `node`, each below it. What was written before is named and not repeated.
fn branches<Node: Clone + Ord + std::fmt::Display>(
    text: &mut String,
    node: &Node,
    indent: &str,
    seen: &mut BTreeSet<Node>,
    below: &dyn Fn(&Node) -> Vec<Node>,
) {
    let nodes = below(node);
    for (index, node) in nodes.iter().enumerate() {
        let is_last = index + 1 == nodes.len();
        let is_new = seen.insert(node.clone());
        let again = if is_new || below(node).is_empty() { "" } else { " …" };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{indent}{} {node}{again}", if is_last { "└──" } else { "├──" });
        if is_new {
            branches(text, node, &format!("{indent}{}", if is_last { "    " } else { "│   " }), seen, below);
        }
    }
}

fn overview(reports: &[StageReport]) -> String {
    let width = reports.iter().map(|report| report.stage.to_string().len()).max().unwrap_or(0);
    let mut text = String::new();
    for report in reports {
        let inputs: Vec<String> = report.reads.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "{:width$}  reads {}", report.stage.to_string(), inputs.join(", "));
    }
    text
}

fn column_tree(lineages: &BTreeMap<TableName, &Lineage>, top: &ColumnName, stage: &InspectedStage) -> String {
    let mut text = format!("{top}\n\nits values come from\n");
    let below = |column: &ColumnName| -> Vec<ColumnName> {
        let lineage = lineages.get(&column.table);
        lineage.and_then(|lineage| lineage.column(&column.column)).into_iter().flatten().cloned().collect()
    };
    if below(top).is_empty() {
        text.push_str("└── no column: it is a constant, a count of rows or the clock\n");
    }
    branches(&mut text, top, "", &mut BTreeSet::new(), &below);
    let _ = writeln!(text, "\nits rows are decided by");
    let rows: Vec<&ColumnName> = stage.lineage.rows.iter().collect();
    for (index, column) in rows.iter().enumerate() {
        let _ = writeln!(text, "{} {column}", if index + 1 == rows.len() { "└──" } else { "├──" });
    }
    if rows.is_empty() {
        text.push_str("└── nothing: every row of its inputs is there\n");
    }
    text
}
