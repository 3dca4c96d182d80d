//! What changed between the contract that a table was made under and the one that lies beside its stage now, and whether the table may
//! follow.

use std::collections::HashMap;

use holdfast_lake::Table;
use holdfast_lake::grammar::type_name;
use serde::{Deserialize, Serialize};

use crate::contract::Contract;
use crate::diagnostic::Diagnostic;

/// Properties of a table that say under which contract it was made.
const VERSION: &str = "holdfast.contract.version";
const HASH: &str = "holdfast.contract.hash";
const TERMS: &str = "holdfast.contract.terms";

/// What a contract promises, without its wording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terms {
    key: Vec<String>,
    event_time: Option<String>,
    identifiers: Vec<String>,
    columns: Vec<ColumnTerms>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ColumnTerms {
    name: String,
    #[serde(rename = "type")]
    type_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pii: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    values: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    otherwise: Option<String>,
}

/// How a table comes from the contract it was made under to the present one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContractChange {
    /// The version it was made under.
    pub(crate) from: u32,
    /// The version now.
    pub(crate) to: u32,
    /// What differs, for people.
    pub(crate) differences: Vec<String>,
}

/// One difference. What takes something away from those who read or write the table has to be meant.
struct Difference {
    text: String,
    is_breaking: bool,
}

impl Terms {
    pub(crate) fn of(contract: &Contract) -> Self {
        let columns = contract
            .columns
            .iter()
            .map(|column| ColumnTerms {
                name: column.name.clone(),
                type_name: type_name(&column.data_type),
                unit: column.unit.clone(),
                required: column.is_required,
                pii: column.is_pii,
                values: column.values.clone(),
                otherwise: (!column.values.is_empty()).then(|| column.otherwise.as_str().to_owned()),
            })
            .collect();
        Self {
            key: contract.key.clone(),
            event_time: contract.event_time.clone(),
            identifiers: contract.identifiers.clone(),
            columns,
        }
    }

    /// The same for the same terms, whatever their wording.
    pub(crate) fn hash(&self) -> String {
        blake3::hash(self.to_json().as_bytes()).to_hex()[..16].to_owned()
    }

    fn to_json(&self) -> String {
        // Texts, lists of texts and flags: there is nothing that could fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    fn column(&self, name: &str) -> Option<&ColumnTerms> {
        self.columns.iter().find(|column| column.name == name)
    }

    fn differences(&self, new: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut differs = |text: String, is_breaking: bool| found.push(Difference { text, is_breaking });
        for old in &self.columns {
            match new.column(&old.name) {
                None => differs(format!("`{}` is gone", old.name), true),
                Some(new) => old.differences(new, &mut differs),
            }
        }
        for column in new.columns.iter().filter(|column| self.column(&column.name).is_none()) {
            differs(format!("`{}` {} is new", column.name, column.type_name), false);
        }
        if self.key != new.key {
            differs(format!("the key was {} and is {}", self.key.join(", "), new.key.join(", ")), true);
        }
        if self.event_time != new.event_time {
            let shown = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
            differs(format!("event_time was {} and is {}", shown(&self.event_time), shown(&new.event_time)), true);
        }
        if self.identifiers != new.identifiers {
            let is_breaking = self.identifiers.iter().any(|name| !new.identifiers.contains(name));
            let (was, is) = (self.identifiers.join(", "), new.identifiers.join(", "));
            differs(format!("the identifiers were {was} and are {is}"), is_breaking);
        }
        if found.is_empty() && self != new {
            found.push(Difference { text: "the columns stand in another order".to_owned(), is_breaking: false });
        }
        found
    }
}

impl ColumnTerms {
    fn differences(&self, new: &Self, differs: &mut impl FnMut(String, bool)) {
        let name = &self.name;
        if self.type_name != new.type_name {
            differs(format!("`{name}` was {} and is {}", self.type_name, new.type_name), true);
        }
        if self.unit != new.unit {
            let shown = |unit: &Option<String>| unit.clone().unwrap_or_else(|| "without a unit".to_owned());
            differs(format!("`{name}` was in {} and is in {}", shown(&self.unit), shown(&new.unit)), true);
        }
        match (self.required, new.required) {
            (false, true) => differs(format!("`{name}` has to be there now"), true),
            (true, false) => differs(format!("`{name}` may be missing now"), false),
            _ => {}
        }
        match (self.pii, new.pii) {
            (false, true) => differs(format!("`{name}` is personal data now"), false),
            (true, false) => differs(format!("`{name}` is no personal data any more"), true),
            _ => {}
        }
        if self.values != new.values {
            // No list means any value.
            let narrows = !new.values.is_empty()
                && (self.values.is_empty() || self.values.iter().any(|value| !new.values.contains(value)));
            let shown = |values: &[String]| if values.is_empty() { "anything".to_owned() } else { values.join(", ") };
            let (was, is) = (shown(&self.values), shown(&new.values));
            differs(format!("`{name}` could be {was} and can be {is}"), narrows);
        }
        if let (Some(was), Some(is)) = (&self.otherwise, &new.otherwise)
            && was != is
        {
            let rank = |severity: &String| match severity.as_str() {
                "warn" => 0,
                "quarantine" => 1,
                _ => 2,
            };
            differs(format!("other values of `{name}`: {was} became {is}"), rank(is) > rank(was));
        }
    }
}

/// What the table of a contract notes about it.
pub(crate) fn properties(contract: &Contract) -> HashMap<String, String> {
    let terms = Terms::of(contract);
    HashMap::from([
        (VERSION.to_owned(), contract.version.to_string()),
        (HASH.to_owned(), terms.hash()),
        (TERMS.to_owned(), terms.to_json()),
    ])
}

/// How the table may come to the present contract; `None` when it is there, or was made under none.
///
/// # Errors
/// A mistake in the contract: another content under the same version, an earlier version, or no way to bring the table along.
pub(crate) fn change(contract: &Contract, table: &Table) -> Result<Option<ContractChange>, Box<Diagnostic>> {
    let made_under = table.property(VERSION).and_then(|version| version.parse::<u32>().ok());
    let terms = table.property(TERMS).and_then(|terms| serde_json::from_str::<Terms>(terms).ok());
    let (Some(from), Some(old)) = (made_under, terms) else { return Ok(None) };
    judge(contract, &table.name().to_string(), from, &old)
}

fn judge(contract: &Contract, table: &str, from: u32, old: &Terms) -> Result<Option<ContractChange>, Box<Diagnostic>> {
    let to = contract.version;
    let differences = old.differences(&Terms::of(contract));
    let mistake =
        |code, message: String, help: String| Err(Box::new(contract.at_version(code, message).with_help(help)));
    if to < from {
        return mistake(
            "E0523",
            format!("{table} was made under version {from} of its contract"),
            "the files here are older than the lake: use the newer ones".to_owned(),
        );
    }
    if differences.is_empty() {
        return Ok((to > from).then(|| ContractChange { from, to, differences: Vec::new() }));
    }
    let breaking: Vec<&str> = differences
        .iter()
        .filter(|difference| difference.is_breaking)
        .map(|difference| difference.text.as_str())
        .collect();
    let path = format!("`[migration]` with `from = {from}` and `how = \"rebuild\"`");
    if to == from {
        let texts: Vec<&str> = differences.iter().map(|difference| difference.text.as_str()).collect();
        let message = format!("{table} was made under another version {from} of its contract: {}", texts.join("; "));
        let way = if breaking.is_empty() { String::new() } else { format!(", and add {path}") };
        return mistake("E0521", message, format!("write `version = {}`{way}", from + 1));
    }
    let is_covered = contract.migration.is_some_and(|migration| migration.from <= from);
    if !breaking.is_empty() && !is_covered {
        let message = format!("{table} is at version {from}, and no way from there is given: {}", breaking.join("; "));
        return mistake("E0522", message, format!("add {path}: the table is made anew from its inputs"));
    }
    let differences = differences.into_iter().map(|difference| difference.text).collect();
    Ok(Some(ContractChange { from, to, differences }))
}

impl ContractChange {
    /// What will happen, in a line.
    pub(crate) fn told(&self, table: &str) -> String {
        let what = if self.differences.is_empty() {
            "nothing but its wording".to_owned()
        } else {
            self.differences.join("; ")
        };
        format!(
            " Migrates {table}  contract {} → {}: {what}; it is made anew from its inputs, versions before keep their columns",
            self.from, self.to
        )
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const ORDERS: &str = "version = 1\ngrain = \"an order\"\nkey = [\"order_id\"]\nevent_time = \"at\"\n\n[columns]\norder_id = { type = \"string\", meaning = \"The key\" }\nat = { type = \"timestamp\", meaning = \"When\" }\nstatus = { type = \"string\", values = [\"paid\", \"lost\"], meaning = \"State\" }\namount = { type = \"decimal(12,2)\", unit = \"CNY\", meaning = \"Paid\" }\nname = { type = \"string\", pii = true, meaning = \"Who\" }\n";
    const MIGRATION: &str = "[migration]\nfrom = 1\nhow = \"rebuild\"\n\n[columns]";

    fn contract(text: &str) -> Contract {
        Contract::parse(Path::new("sql/core/orders.contract.toml"), text).unwrap()
    }

    fn judged(text: &str) -> Result<Option<ContractChange>, (&'static str, String, String)> {
        let old = Terms::of(&contract(ORDERS));
        judge(&contract(text), "core.orders", 1, &old)
            .map_err(|mistake| (mistake.code, mistake.message.clone(), mistake.help.clone().unwrap_or_default()))
    }

    #[test]
    fn wording_is_free_and_everything_else_needs_a_new_version() {
        assert_eq!(judged(ORDERS).unwrap(), None);
        assert_eq!(
            judged(&ORDERS.replace("\"Paid\"", "\"What was paid\"").replace("an order", "one order")).unwrap(),
            None
        );
        for (from, to, told) in [
            ("decimal(12,2)", "decimal(18,2)", "`amount` was decimal(12,2) and is decimal(18,2)"),
            ("\"CNY\"", "\"USD\"", "`amount` was in CNY and is in USD"),
            ("\"paid\", \"lost\"", "\"paid\"", "`status` could be paid, lost and can be paid"),
            (", pii = true", "", "`name` is no personal data any more"),
            ("name = { type = \"string\", pii = true, meaning = \"Who\" }\n", "", "`name` is gone"),
            ("[\"order_id\"]", "[\"order_id\", \"at\"]", "the key was order_id and is order_id, at"),
            ("event_time = \"at\"\n", "", "event_time was at and is none"),
            ("values =", "required = true, values =", "`status` has to be there now"),
            ("\"lost\"],", "\"lost\"], otherwise = \"fail\",", "other values of `status`: quarantine became fail"),
        ] {
            assert!(ORDERS.contains(from), "{from}");
            let changed = ORDERS.replacen(from, to, 1);
            let (code, message, help) = judged(&changed).unwrap_err();
            assert!(code == "E0521" && message.contains(told), "{message}");
            assert!(help.contains("`version = 2`") && help.contains("`from = 1`"), "{help}");

            let raised = changed.replace("version = 1", "version = 2");
            let (code, message, help) = judged(&raised).unwrap_err();
            assert!(code == "E0522" && message.contains(told) && help.contains("made anew"), "{message} {help}");

            let change = judged(&raised.replace("[columns]", MIGRATION)).unwrap().unwrap();
            assert!(change.differences.iter().any(|difference| difference.contains(told)), "{change:?}");
        }
    }

    #[test]
    fn what_only_adds_applies_by_itself_under_a_new_version() {
        for (from, to, told) in [
            ("\"lost\"]", "\"lost\", \"found\"]", "`status` could be paid, lost and can be paid, lost, found"),
            ("name =", "channel = { type = \"string\", meaning = \"Where\" }\nname =", "`channel` string is new"),
            ("unit = \"CNY\"", "unit = \"CNY\", pii = true", "`amount` is personal data now"),
            ("key =", "identifiers = [\"phone\"]\nkey =", "the identifiers were  and are phone"),
        ] {
            let changed = ORDERS.replacen(from, to, 1);
            let (code, _, help) = judged(&changed).unwrap_err();
            assert!(code == "E0521" && !help.contains("migration"), "{help}");
            let change = judged(&changed.replace("version = 1", "version = 2")).unwrap().unwrap();
            assert_eq!((change.from, change.to, change.differences), (1, 2, vec![told.to_owned()]));
        }
    }

    #[test]
    fn an_older_contract_does_not_go_over_a_newer_table() {
        let old = Terms::of(&contract(ORDERS));
        let mistake = judge(&contract(ORDERS), "core.orders", 3, &old).unwrap_err();
        assert_eq!(mistake.code, "E0523");
        // A way from version 2 does not lead from version 1.
        let retyped = ORDERS.replace("decimal(12,2)", "decimal(18,2)").replace("version = 1", "version = 3");
        let retyped = retyped.replace("[columns]", &MIGRATION.replace("from = 1", "from = 2"));
        assert_eq!(judged(&retyped).unwrap_err().0, "E0522");
    }

    #[test]
    fn terms_are_read_back_as_they_were_written() {
        let terms = Terms::of(&contract(ORDERS));
        assert_eq!(serde_json::from_str::<Terms>(&terms.to_json()).unwrap(), terms);
        assert_ne!(terms.hash(), Terms::of(&contract(&ORDERS.replace("CNY", "USD"))).hash());
    }
}
