//! `stages.lock`: what the stages make, in a file that is read in reviews.
//!
//! Of each stage its inputs, key, columns with types and origins, and a fingerprint of its plan. What is written is a function of the
//! stages alone, so that two people write the same file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use holdfast_lake::grammar::type_name;
use holdfast_types::CUSTOMER_BUCKET;
use serde::Deserialize;

use crate::diagnostic::{Diagnostic, line_and_column};
use crate::inspect::{InspectedStage, Inspection};
use crate::lineage::Origins;

/// What the stages of a folder make.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Lock {
    stages: BTreeMap<String, LockedStage>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct LockedStage {
    plan: String,
    #[serde(default)]
    key: Vec<String>,
    inputs: Vec<String>,
    #[serde(default)]
    rows: Vec<String>,
    columns: BTreeMap<String, LockedColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct LockedColumn {
    /// Its place in the table, from 1.
    at: usize,
    #[serde(rename = "type")]
    data_type: String,
    #[serde(default)]
    pii: bool,
    from: Vec<String>,
}

/// How one stage differs from what is locked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Drift {
    /// The stage.
    pub stage: String,
    /// Line by line: `-` what is gone, `+` what is new, `~` what changed.
    pub changes: Vec<String>,
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.stage)?;
        self.changes.iter().try_for_each(|change| write!(f, "\n    {change}"))
    }
}

impl Lock {
    /// What the stages make now.
    pub fn of(inspection: &Inspection) -> Self {
        let stages = inspection.stages.iter();
        Self { stages: stages.map(|stage| (stage.stage.name.to_string(), LockedStage::of(stage))).collect() }
    }

    /// Reads a lock file.
    ///
    /// # Errors
    /// What is wrong with it, with its place.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Box<Diagnostic>> {
        toml::from_str(text).map_err(|error| {
            let (line, column) = error.span().map_or((1, 1), |span| line_and_column(text, span.start));
            let mistake = Diagnostic::at("E0701", error.message(), file, text, line, column, 1);
            Box::new(mistake.with_help("write it again with `holdfast check --write-lock`"))
        })
    }

    /// What to say when there is no file.
    pub fn missing(file: &Path) -> Diagnostic {
        Diagnostic::of_file("E0701", "there is no such file", file)
            .with_help("write it with `holdfast check --write-lock`")
    }

    /// What to say when the stages are not what is locked.
    pub fn finding(file: &Path, drifts: &[Drift]) -> Diagnostic {
        let shown: Vec<String> = drifts.iter().map(|drift| format!("\n  {drift}")).collect();
        Diagnostic::of_file("E0702", format!("the stages make something else{}", shown.concat()), file)
            .with_help("if that is meant, write the file with `holdfast check --write-lock` and have it reviewed")
    }

    /// The file's text: stages sorted by name, columns in the order of their table.
    pub fn text(&self) -> String {
        let mut text = String::from(
            "# What the stages make. Written by `holdfast check --write-lock`, compared by `holdfast check --locked`; not to be edited.\n",
        );
        for (name, stage) in &self.stages {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "\n[{name:?}]\nplan = {:?}", stage.plan);
            if !stage.key.is_empty() {
                let _ = writeln!(text, "key = {}", list(&stage.key));
            }
            let _ = writeln!(text, "inputs = {}", lines(&stage.inputs));
            if !stage.rows.is_empty() {
                let _ = writeln!(text, "rows = {}", lines(&stage.rows));
            }
            let mut columns: Vec<(&String, &LockedColumn)> = stage.columns.iter().collect();
            columns.sort_by_key(|(_, column)| column.at);
            let _ = writeln!(text, "[{name:?}.columns]");
            for (name, column) in columns {
                let pii = if column.pii { ", pii = true" } else { "" };
                let _ = writeln!(
                    text,
                    "{} = {{ at = {}, type = {:?}{pii}, from = {} }}",
                    toml_key(name),
                    column.at,
                    column.data_type,
                    list(&column.from)
                );
            }
        }
        text
    }

    /// How `now` differs from this lock, stage by stage.
    pub fn drift(&self, now: &Self) -> Vec<Drift> {
        let names: BTreeSet<&String> = self.stages.keys().chain(now.stages.keys()).collect();
        let mut drifts = Vec::new();
        for name in names {
            let changes = match (self.stages.get(name), now.stages.get(name)) {
                (Some(_), None) => vec!["- stage".to_owned()],
                (None, Some(_)) => vec!["+ stage".to_owned()],
                (Some(locked), Some(now)) => locked.changes(now),
                (None, None) => Vec::new(),
            };
            if !changes.is_empty() {
                drifts.push(Drift { stage: name.clone(), changes });
            }
        }
        drifts
    }
}

impl LockedStage {
    fn of(inspected: &InspectedStage) -> Self {
        let names = |origins: &Origins| origins.iter().map(ToString::to_string).collect::<Vec<_>>();
        let fields = inspected.schema.fields().iter().filter(|field| field.name() != CUSTOMER_BUCKET);
        let columns = fields.enumerate().map(|(index, field)| {
            let column = LockedColumn {
                at: index + 1,
                data_type: type_name(field.data_type()),
                pii: field.metadata().contains_key(holdfast_types::PII_KEY),
                from: inspected.lineage.column(field.name()).map(names).unwrap_or_default(),
            };
            (field.name().clone(), column)
        });
        Self {
            plan: inspected.plan.clone(),
            key: inspected.key.clone().unwrap_or_default(),
            inputs: inspected.stage.inputs.keys().map(ToString::to_string).collect(),
            rows: names(&inspected.lineage.rows),
            columns: columns.collect(),
        }
    }

    fn changes(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        for (name, column) in &self.columns {
            match now.columns.get(name) {
                None => changes.push(format!("- column {name} {}", column.data_type)),
                Some(now) => column.changes(name, now, &mut changes),
            }
        }
        for (name, column) in now.columns.iter().filter(|(name, _)| !self.columns.contains_key(*name)) {
            changes.push(format!("+ column {name} {}", column.data_type));
        }
        if self.key != now.key {
            changes.push(format!("~ key ({}) → ({})", self.key.join(", "), now.key.join(", ")));
        }
        differing(&self.inputs, &now.inputs, "input", &mut changes);
        differing(&self.rows, &now.rows, "rows by", &mut changes);
        if changes.is_empty() && self.plan != now.plan {
            changes.push("~ how it is computed; columns, types and origins are the same".to_owned());
        }
        changes
    }
}

impl LockedColumn {
    fn changes(&self, name: &str, now: &Self, changes: &mut Vec<String>) {
        if self.data_type != now.data_type {
            changes.push(format!("~ column {name} {} → {}", self.data_type, now.data_type));
        }
        if self.pii != now.pii {
            changes.push(format!("~ column {name} {} personal data", if now.pii { "is now" } else { "is no longer" }));
        }
        if self.at != now.at {
            changes.push(format!("~ column {name} is number {} and was {}", now.at, self.at));
        }
        differing(&self.from, &now.from, &format!("column {name} from"), changes);
    }
}

fn differing(locked: &[String], now: &[String], what: &str, changes: &mut Vec<String>) {
    changes.extend(locked.iter().filter(|name| !now.contains(name)).map(|name| format!("- {what} {name}")));
    changes.extend(now.iter().filter(|name| !locked.contains(name)).map(|name| format!("+ {what} {name}")));
}

/// A column's name as a key: bare where TOML allows it.
fn toml_key(name: &str) -> String {
    let is_bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if is_bare { name.to_owned() } else { format!("{name:?}") }
}

fn list(names: &[String]) -> String {
    format!("[{}]", names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "))
}

/// One a line, so that a review shows which came and went.
fn lines(names: &[String]) -> String {
    match names {
        [] => "[]".to_owned(),
        _ => format!("[\n{}]", names.iter().map(|name| format!("    {name:?},\n")).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(columns: &[(&str, &str, &str)]) -> Lock {
        let columns = columns.iter().enumerate().map(|(index, (name, data_type, from))| {
            let column = LockedColumn {
                at: index + 1,
                data_type: (*data_type).to_owned(),
                pii: false,
                from: vec![(*from).to_owned()],
            };
            ((*name).to_owned(), column)
        });
        let stage = LockedStage {
            plan: "0".to_owned(),
            key: vec!["a".to_owned()],
            inputs: vec!["raw.x".to_owned()],
            rows: vec!["raw.x.id".to_owned()],
            columns: columns.collect(),
        };
        Lock { stages: BTreeMap::from([("core.x".to_owned(), stage)]) }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let lock = lock(&[("b", "decimal(12,2)", "raw.x.b"), ("a c", "string", "raw.x.a")]);
        assert_eq!(Lock::parse(Path::new("stages.lock"), &lock.text()).unwrap(), lock);
    }

    #[test]
    fn drift_names_the_columns_that_came_went_and_changed() {
        let before = lock(&[("a", "int64", "raw.x.a"), ("b", "string", "raw.x.b")]);
        let after = lock(&[("a", "int32", "raw.x.a2"), ("c", "string", "raw.x.c")]);
        let drift = before.drift(&after);
        assert_eq!(
            drift[0].changes,
            [
                "~ column a int64 → int32",
                "- column a from raw.x.a",
                "+ column a from raw.x.a2",
                "- column b string",
                "+ column c string",
            ]
        );
        assert!(before.drift(&before).is_empty());
    }
}
