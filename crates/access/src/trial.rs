//! A policy tried before anybody is asked to trust it: against the columns that tables have, and by the cases in its file.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{SetExpr, Statement as SqlStatement};
use futures::TryStreamExt;
use holdfast_engine::{
    Diagnostic, LakeReader, POLICY_CODE, Published, PublishedTable, SessionSettings, differing_rows, given_rows,
    most_similar,
};
use holdfast_lake::Lake;
use holdfast_types::{Clock, TableName};

use crate::masks::MaskKey;
use crate::policy::{
    BoundFilter, Policy, PolicyCase, PolicyExpectation, RowRule, TablePattern, Which, attributes_of, matches,
};
use crate::{Access, AccessError, Authentication, Principal, Result};

/// The tables that a policy is tried on.
pub type Schemas = BTreeMap<TableName, SchemaRef>;

/// What does not fit the tables: names of tables and columns that there are not, conditions that cannot be planned.
///
/// # Errors
/// When a session cannot be built.
pub async fn mistakes(
    policy: &Policy,
    lake: &Lake,
    settings: &SessionSettings,
    schemas: &Schemas,
) -> Result<Vec<Diagnostic>> {
    let run = imagined(lake, settings, schemas, &BTreeMap::new())?;
    let session = run.session()?;
    let state = session.state();
    let mut mistakes = Vec::new();
    let of_file = |message: String| Diagnostic::of_file(POLICY_CODE, message, &policy.file);
    for (role_name, role) in &policy.roles {
        for pattern in &role.tables {
            if let Some(message) = unknown(pattern, schemas) {
                mistakes.push(of_file(format!("role `{role_name}`: {message}")));
            }
        }
        let seen: Vec<(&TableName, &SchemaRef)> =
            schemas.iter().filter(|(name, schema)| matches(&role.tables, name, schema)).collect();
        for rule in &role.rows {
            for (name, _) in seen.iter().filter(|(name, schema)| matches(&rule.tables, name, schema)) {
                if let Some(message) = unplannable(rule, name, &state).await {
                    mistakes.push(of_file(format!("{}: of {name}: {message}", rule.place)));
                }
            }
        }
        for rule in &role.columns {
            let Which::Named(columns) = &rule.which else { continue };
            let of_rule: Vec<&SchemaRef> = seen
                .iter()
                .filter(|(name, schema)| matches(&rule.tables, name, schema))
                .map(|(_, schema)| *schema)
                .collect();
            let known: BTreeSet<&str> =
                of_rule.iter().flat_map(|schema| schema.fields().iter().map(|field| field.name().as_str())).collect();
            for column in columns.iter().filter(|column| !known.contains(column.as_str())) {
                let message = format!("role `{role_name}`: no table of the rule has a column `{column}`");
                mistakes.push(of_file(message).with_suggestion(column, known.iter().copied()));
            }
        }
    }
    Ok(mistakes)
}

/// Runs a case; answers how what came differs from what is expected, and nothing when it does not.
///
/// # Errors
/// When a session cannot be built, or the rows of the case cannot be read.
pub async fn run_case(
    policy: &Arc<Policy>,
    case: &PolicyCase,
    lake: &Lake,
    settings: &SessionSettings,
    schemas: &Schemas,
    clock: Arc<dyn Clock>,
) -> Result<Option<String>> {
    let run = Arc::new(imagined(lake, settings, schemas, &case.given)?);
    let access = Access::by_policy(Arc::clone(policy), clock, MaskKey::derive(b"cases"))?;
    let view = access.view(&case.principal, &run)?;
    let answer = async {
        let session = view.session()?;
        let plan = holdfast_engine::plan_read_only(&session, &case.query).await?;
        let schema = Arc::clone(plan.schema().inner());
        let rows = view.rows("the case", &case.query).await?;
        let rows: Vec<RecordBatch> = rows.try_collect().await?;
        Ok::<_, AccessError>((schema, rows))
    };
    match (answer.await, &case.expected) {
        (Ok((schema, rows)), PolicyExpectation::Rows(expected)) => differing_rows(expected, &schema, &rows)
            .map_err(|message| AccessError::Invalid(format!("case {}: {message}", case.name))),
        (Ok((_, rows)), PolicyExpectation::Refused(_)) => {
            let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
            Ok(Some(format!("- an error\n+ {count} rows")))
        }
        (Err(error), PolicyExpectation::Refused(expected)) => {
            let error = error.to_string();
            Ok((!error.contains(expected)).then(|| format!("- an error with `{expected}`\n+ {error}")))
        }
        (Err(error), PolicyExpectation::Rows(_)) => Ok(Some(format!("- rows\n+ {error}"))),
    }
}

/// A run with these tables and the rows that are given.
fn imagined(
    lake: &Lake,
    settings: &SessionSettings,
    schemas: &Schemas,
    given: &BTreeMap<TableName, String>,
) -> Result<Published> {
    if let Some(name) = given.keys().find(|name| !schemas.contains_key(name)) {
        let near = most_similar(
            &name.to_string(),
            schemas.keys().map(ToString::to_string).collect::<Vec<_>>().iter().map(String::as_str),
        )
        .map_or_else(String::new, |near| format!(": did you mean `{near}`?"));
        return Err(AccessError::Invalid(format!("rows are given of {name}, and there is no such table{near}")));
    }
    let mut tables: Vec<(PublishedTable, Arc<dyn TableProvider>)> = Vec::with_capacity(schemas.len());
    for (name, schema) in schemas {
        let rows = given_rows(given.get(name).map_or("", String::as_str), schema)
            .map_err(|message| AccessError::Invalid(format!("{name}: {message}")))?;
        let table = PublishedTable {
            name: name.clone(),
            version: 0,
            rows: Some(rows.num_rows() as u64),
            bytes: 0,
            schema: Arc::clone(schema),
            comment: None,
        };
        let provider = MemTable::try_new(Arc::clone(schema), vec![vec![rows]]).map_err(|source| {
            holdfast_engine::EngineError::Execution { what: format!("the rows of {name}"), source: Box::new(source) }
        })?;
        tables.push((table, Arc::new(provider)));
    }
    Ok(LakeReader::imagined(lake, settings, tables)?)
}

/// Why the tables of a pattern are not there.
fn unknown(pattern: &TablePattern, schemas: &Schemas) -> Option<String> {
    match pattern {
        TablePattern::All | TablePattern::Tag(_) => None,
        TablePattern::Not(inner) => unknown(inner, schemas),
        TablePattern::Schema(schema) => {
            let is_there = schema == crate::audit::SCHEMA || schemas.keys().any(|name| name.schema() == schema);
            (!is_there).then(|| format!("there is no table in the schema `{schema}`"))
        }
        TablePattern::Table(table) => {
            if schemas.contains_key(table) || table.schema() == crate::audit::SCHEMA {
                return None;
            }
            let known: Vec<String> = schemas.keys().map(ToString::to_string).collect();
            let near = most_similar(&table.to_string(), known.iter().map(String::as_str));
            let near = near.map_or_else(String::new, |near| format!(": did you mean `{near}`?"));
            Some(format!("there is no table {table}{near}"))
        }
    }
}

/// Why a condition cannot be planned over a table.
async fn unplannable(rule: &RowRule, name: &TableName, state: &datafusion::execution::SessionState) -> Option<String> {
    let attributes = attributes_of(&rule.condition).into_iter().map(|name| (name, vec!["x".to_owned()])).collect();
    let somebody = Principal { name: "somebody".to_owned(), roles: Vec::new(), attributes, by: Authentication::Token };
    let filter = BoundFilter::of(std::iter::once(rule), &somebody)?;
    let dialect = state.config_options().sql_parser.dialect;
    let sql = format!("select 1 from {}.{}", name.schema(), name.table());
    let mut statement = state.sql_to_statement(&sql, &dialect).ok()?;
    if let Statement::Statement(inner) = &mut statement
        && let SqlStatement::Query(query) = inner.as_mut()
        && let SetExpr::Select(select) = query.body.as_mut()
    {
        select.selection = Some(filter.condition());
    }
    let planned = match state.statement_to_plan(statement).await {
        Ok(plan) => state.optimize(&plan).map(|_| ()),
        Err(error) => Err(error),
    };
    planned.err().map(|error| error.find_root().strip_backtrace())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use holdfast_lake::{LakeSettings, StoreOptions};
    use holdfast_types::FixedClock;

    use super::*;

    const POLICY: &str = r#"
[roles.analyst]
tables = ["core.customers"]
[[roles.analyst.rows]]
where = "region in (attribute('region'))"
[[roles.analyst.columns]]
tag = "pii"
mask = "partial"
keep_last = 2

[roles.agent]
tables = ["core.*"]
[[roles.agent.rows]]
tables = ["core.customers"]
where = "agent = principal()"
[[roles.agent.columns]]
tag = "pii"
mask = "show"
"#;

    const CUSTOMERS: &str = "
        id | region | agent | phone       | age
        1  | north  | ana   | 13812340001 | 20
        2  | south  | ben   | 13812340002 | 21
        3  | north  | ben   | 13812340003 | 30
    ";

    fn schemas() -> Schemas {
        let pii = [("pii".to_owned(), "true".to_owned())];
        let customers = Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("region", DataType::Utf8, true),
            Field::new("agent", DataType::Utf8, true),
            Field::new("phone", DataType::Utf8, true).with_metadata(pii.into()),
            Field::new("age", DataType::Int64, true),
        ]);
        let orders = Schema::new(vec![Field::new("id", DataType::Int64, true)]);
        let tables = [("core.customers", customers), ("core.orders", orders)];
        tables.into_iter().map(|(name, schema)| (name.parse().unwrap(), Arc::new(schema))).collect()
    }

    async fn lake() -> Lake {
        let clock = Arc::new(FixedClock(chrono::DateTime::UNIX_EPOCH));
        let here = std::path::Path::new(".");
        let settings = LakeSettings::default();
        Lake::create_or_open("memory:///trial", here, &StoreOptions::new(), settings, clock).await.unwrap()
    }

    fn case(name: &str, roles: &[&str], query: &str, expected: PolicyExpectation) -> PolicyCase {
        PolicyCase {
            name: format!("{name}: {query}"),
            principal: Principal {
                name: name.to_owned(),
                roles: roles.iter().map(|role| (*role).to_owned()).collect(),
                attributes: BTreeMap::from([("region".to_owned(), vec!["north".to_owned()])]),
                by: Authentication::Token,
            },
            query: query.to_owned(),
            given: BTreeMap::from([("core.customers".parse().unwrap(), CUSTOMERS.to_owned())]),
            expected,
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_principals_plan_sees_its_rows_and_masks_and_no_error_tells_of_others() {
        let lake = lake().await;
        let policy = Arc::new(Policy::parse(std::path::Path::new("policy.toml"), POLICY).unwrap());
        let rows = |text: &str| PolicyExpectation::Rows(text.to_owned());
        let refused = |text: &str| PolicyExpectation::Refused(text.to_owned());
        let analyst = ["analyst"];
        for case in [
            case("ana", &analyst, "select id, phone from core.customers", rows("id|phone\n1|***01\n3|***03")),
            case("ana", &analyst, "select count(*) as n from core.customers", rows("n\n2")),
            case("ana", &analyst, "select id from core.customers where phone = '13812340001'", rows("id\n")),
            case("ana", &analyst, "select id from core.customers where age > 20 and region <> 'x'", rows("id\n3")),
            case("ana", &analyst, "select max(age) as age from core.customers", rows("age\n30")),
            // The age of 21 is that of a row that is not seen.
            case("ana", &analyst, "select id from core.customers where 1 / (age - 21) < 5", rows("id\n1\n3")),
            case(
                "ana",
                &analyst,
                "select cast(phone as bigint) as n from core.customers",
                refused("Cannot cast string '…'"),
            ),
            case("ana", &analyst, "select * from core.orders", refused("core.orders")),
            // Each role shows its own rows in its own way; rows of neither are not seen.
            case(
                "ben",
                &["agent"],
                "select id, phone from core.customers",
                rows("id|phone\n2|13812340002\n3|13812340003"),
            ),
            case(
                "ana",
                &["agent", "analyst"],
                "select id, phone from core.customers",
                rows("id|phone\n1|13812340001\n3|***03"),
            ),
            case(
                "ana",
                &["agent", "analyst"],
                "select id from core.customers where phone = '13812340003'",
                rows("id\n"),
            ),
            case("ana", &["agent"], "select count(*) as n from core.orders", rows("n\n0")),
            case("ana", &[], "select 1 as n from core.customers", refused("core.customers")),
        ] {
            let settings = SessionSettings::default();
            let difference =
                run_case(&policy, &case, &lake, &settings, &schemas(), Arc::clone(lake.clock())).await.unwrap();
            assert_eq!(difference, None, "{}\n{}", case.name, difference.clone().unwrap_or_default());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn plans_tell_nothing_of_what_is_below_the_policy() {
        let lake = lake().await;
        let policy = Arc::new(Policy::parse(std::path::Path::new("policy.toml"), POLICY).unwrap());
        let given = BTreeMap::from([("core.customers".parse().unwrap(), CUSTOMERS.to_owned())]);
        let run = Arc::new(imagined(&lake, &SessionSettings::default(), &schemas(), &given).unwrap());
        let access = Access::by_policy(policy, Arc::clone(lake.clock()), MaskKey::derive(b"secret")).unwrap();
        let principal = case("ana", &["analyst"], "", PolicyExpectation::Rows(String::new())).principal;
        let view = access.view(&principal, &run).unwrap();
        assert_eq!(view.tables().len(), 1);
        assert_eq!(view.tables()[0].rows, None);
        for query in [
            "explain analyze select count(*) from core.customers",
            "explain verbose select * from core.customers where phone = 'x' and age > 3",
        ] {
            let rows: Vec<RecordBatch> = view.rows("plan", query).await.unwrap().try_collect().await.unwrap();
            let said = arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string();
            assert!(said.contains("PolicyExec: table=core.customers"), "{said}");
            assert!(!said.contains("north") && !said.contains("1381234") && !said.contains("output_rows=3"), "{said}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_does_not_fit_the_tables_is_told() {
        let lake = lake().await;
        for (text, expected) in [
            ("[roles.a]\ntables = [\"core.order\"]\n", "did you mean `core.orders`?"),
            ("[roles.a]\ntables = [\"cor.*\"]\n", "no table in the schema `cor`"),
            ("[roles.a]\ntables = [\"core.*\"]\n[[roles.a.rows]]\nwhere = \"agent = 'x'\"\n", "of core.orders"),
            (
                "[roles.a]\ntables = [\"core.*\"]\n[[roles.a.columns]]\ncolumns = [\"phon\"]\nmask = \"null\"\n",
                "`phone`",
            ),
        ] {
            let policy = Policy::parse(std::path::Path::new("policy.toml"), text).unwrap();
            let found = mistakes(&policy, &lake, &SessionSettings::default(), &schemas()).await.unwrap();
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].to_string().contains(expected), "{}", found[0]);
        }
        let fits = Policy::parse(std::path::Path::new("policy.toml"), POLICY).unwrap();
        assert_eq!(mistakes(&fits, &lake, &SessionSettings::default(), &schemas()).await.unwrap().len(), 0);
    }
}
