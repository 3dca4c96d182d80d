//! Functions of whole rows: `predict('churn', f)`, where `f` is a table of the `from`, or a struct.
//!
//! The first argument, a literal, names the *subject* that is asked. Functions of values, such as `sentiment(text)`, ask one subject that the call does not name. What a subject says may change from run
//! to run without a change of the query; so it has a version, which is part of the fingerprint of each stage that asks it.
//!
//! DataFusion knows no row of a table as a value. Before planning [`wrap`] puts a name that stands for one into a dictionary with a key of our own, and [`RowPlanner`], which is shown the columns in
//! scope, makes a struct of all columns of that table. The function leaves out of it what it does not read, in its `simplify`. So plans hold nothing that DataFusion does not know, and increments, lineage and
//! projections need not be taught.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::{
    Column, DFSchema, Diagnostic, Location, Result, Span, TableReference, field_not_found, plan_err,
};
use datafusion::error::DataFusionError;
use datafusion::functions::core::named_struct;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawDictionaryExpr};
use datafusion::logical_expr::{Expr, ScalarUDF, lit};
use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    DictionaryField, Expr as SqlExpr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectNamePart,
    Select, SelectItem, Value, Visitor, VisitorMut,
};

use crate::reader::Published;
use crate::walk::{Walk, WalkMut};

/// The keys of the dictionary that stands for a row: its name, and where in the query that is. Not ones that somebody writes.
const ROW: &str = "\u{1}row";
const PLACE: &str = "\u{1}place";

/// Functions that ask subjects.
#[derive(Debug, Clone, Default)]
pub struct RowFunctions {
    /// Those whose first argument names a subject and whose second is a row.
    pub functions: Vec<Arc<ScalarUDF>>,
    /// Those of values, each with the subject that it asks.
    pub of_values: Vec<(Arc<ScalarUDF>, String)>,
    /// Of each subject that can be asked, who answers.
    pub versions: BTreeMap<String, SubjectVersion>,
}

/// Who answers for a subject.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubjectVersion {
    /// In words, for people: `model churn: version 2`.
    pub told: String,
    /// Changes when it would say something else of the same row.
    pub exact: String,
}

/// Brings the sessions of a published run the functions that belong to what the run holds.
#[async_trait]
pub trait RunFunctions: fmt::Debug + Send + Sync {
    /// Those of a run. A subject that cannot answer says why when it is asked: readers get their run in any case.
    async fn of(&self, run: &Published) -> RowFunctions;
}

impl RowFunctions {
    /// The subjects that a statement asks.
    pub(crate) fn asked_by(&self, statement: &Statement) -> BTreeSet<String> {
        let Statement::Statement(sql) = statement else { return BTreeSet::new() };
        let of_values = self.of_values.iter().map(|(function, subject)| (function.name(), subject.as_str())).collect();
        let mut asked = Asked { names: self.names(), of_values, subjects: BTreeSet::new() };
        let _ = sql.walk(&mut asked);
        asked.subjects
    }

    /// All of the functions.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<ScalarUDF>> {
        self.functions.iter().chain(self.of_values.iter().map(|(function, _)| function))
    }

    /// Who answers a statement, in words, by subject.
    pub(crate) fn told(&self, statement: &Statement) -> BTreeMap<String, String> {
        let told = |subject: String| {
            let told = self.versions.get(&subject).map_or_else(String::new, |version| version.told.clone());
            (subject, told)
        };
        self.asked_by(statement).into_iter().map(told).collect()
    }

    /// What a statement's subjects would say, as text that changes with it; empty where it asks none.
    pub(crate) fn asked_versions(&self, statement: &Statement) -> String {
        let version = |subject: &String| self.versions.get(subject).map_or("", |version| version.exact.as_str());
        self.asked_by(statement).iter().map(|subject| format!("/{subject}={}", version(subject))).collect()
    }

    /// A session in which rows of tables may stand as arguments.
    pub(crate) fn configure(&self, config: SessionConfig) -> SessionConfig {
        if self.functions.is_empty() { config } else { config.with_extension(Arc::new(self.names())) }
    }

    fn names(&self) -> Names {
        Names(self.functions.iter().map(|function| function.name().to_owned()).collect())
    }
}

/// The names of the functions, where planning finds them.
#[derive(Debug)]
struct Names(BTreeSet<String>);

impl Names {
    /// The arguments of a call of one of them.
    fn arguments<'a>(&self, function: &'a Function) -> Option<&'a [FunctionArg]> {
        let [ObjectNamePart::Identifier(name)] = function.name.0.as_slice() else { return None };
        match &function.args {
            FunctionArguments::List(list) if self.0.contains(&normal(name)) => Some(&list.args),
            _ => None,
        }
    }
}

struct Asked<'a> {
    names: Names,
    of_values: BTreeMap<&'a str, &'a str>,
    subjects: BTreeSet<String>,
}

impl Visitor for Asked<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &SqlExpr) -> ControlFlow<()> {
        if let SqlExpr::Function(function) = expr
            && let Some([FunctionArg::Unnamed(FunctionArgExpr::Expr(SqlExpr::Value(subject))), ..]) =
                self.names.arguments(function)
            && let Value::SingleQuotedString(subject) = &subject.value
        {
            self.subjects.insert(subject.clone());
        }
        if let SqlExpr::Function(function) = expr
            && let [ObjectNamePart::Identifier(name)] = function.name.0.as_slice()
            && let Some(subject) = self.of_values.get(normal(name).as_str())
        {
            self.subjects.insert((*subject).to_owned());
        }
        ControlFlow::Continue(())
    }
}

/// Puts each name that is the last argument of a row function where [`RowPlanner`] sees it. A call that a `select` gives no name gets the function's: else the column would be called by all that is in the row.
pub(crate) fn wrap(statement: &mut Statement, config: &SessionConfig) {
    let Some(names) = config.get_extension::<Names>() else { return };
    match statement {
        Statement::Statement(sql) => {
            let _ = sql.walk_mut(&mut Wrapper(&names));
        }
        Statement::Explain(explain) => wrap(&mut explain.statement, config),
        _ => {}
    }
}

struct Wrapper<'a>(&'a Names);

impl VisitorMut for Wrapper<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expr) = item
                && let SqlExpr::Function(function) = &*expr
                && self.0.arguments(function).is_some()
                && let [ObjectNamePart::Identifier(name)] = function.name.0.as_slice()
            {
                *item = SelectItem::ExprWithAlias { alias: name.clone(), expr: expr.clone() };
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut SqlExpr) -> ControlFlow<()> {
        if let SqlExpr::Function(function) = expr
            && self.0.arguments(function).is_some()
            && let FunctionArguments::List(list) = &mut function.args
            && let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(row))) = list.args.last_mut()
            && let SqlExpr::Identifier(name) = &*row
        {
            let field = |key, text| DictionaryField {
                key: Ident::new(key),
                value: Box::new(SqlExpr::Value(Value::SingleQuotedString(text).into())),
            };
            let (start, end) = (name.span.start, name.span.end);
            let place = format!("{} {} {} {}", start.line, start.column, end.line, end.column);
            *row = SqlExpr::Dictionary(vec![field(ROW, normal(name)), field(PLACE, place)]);
        }
        ControlFlow::Continue(())
    }
}

/// A name as the planner reads it.
fn normal(name: &Ident) -> String {
    if name.quote_style.is_some() { name.value.clone() } else { name.value.to_ascii_lowercase() }
}

/// Makes a struct of a table's row, where [`wrap`] found its name.
#[derive(Debug)]
pub(crate) struct RowPlanner;

impl ExprPlanner for RowPlanner {
    fn plan_dictionary_literal(
        &self,
        expr: RawDictionaryExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawDictionaryExpr>> {
        match (expr.keys.as_slice(), expr.values.as_slice()) {
            ([key, _], [name, place]) if text(key) == Some(ROW) => {
                let row = row(text(name).unwrap_or_default(), schema);
                let row = row.map_err(|error| with_place(error, span_of(text(place).unwrap_or_default())));
                Ok(PlannerResult::Planned(row?))
            }
            _ => Ok(PlannerResult::Original(expr)),
        }
    }
}

fn text(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        _ => None,
    }
}

/// Where a name is, as [`Wrapper`] wrote it; nothing where the parser did not know.
fn span_of(place: &str) -> Option<Span> {
    let numbers: Vec<u64> = place.split(' ').filter_map(|number| number.parse().ok()).collect();
    match numbers.as_slice() {
        [line, column, end_line, end_column] if *line > 0 => Some(Span {
            start: Location { line: *line, column: *column },
            end: Location { line: *end_line, column: *end_column },
        }),
        _ => None,
    }
}

/// The error with its place, as mistakes in names of columns have it.
fn with_place(error: DataFusionError, span: Option<Span>) -> DataFusionError {
    let message = error.message().into_owned();
    error.with_diagnostic(Diagnostic::new_error(message, span))
}

/// What a name stands for: a column, which comes first, else the row of a table.
fn row(name: &str, schema: &DFSchema) -> Result<Expr> {
    if schema.has_column_with_unqualified_name(name) {
        let (table, field) = schema.qualified_field_with_unqualified_name(name)?;
        return Ok(Expr::Column(Column::new(table.cloned(), field.name())));
    }
    let of_table = |table: &TableReference| table.table() == name;
    let fields: Vec<_> = schema.iter().filter(|(table, _)| table.is_some_and(of_table)).collect();
    let Some((first, _)) = fields.first() else {
        return Err(field_not_found(None::<TableReference>, name, schema));
    };
    if fields.iter().any(|(table, _)| table != first) {
        return plan_err!("more than one table is called `{name}`: give them names with `as`");
    }
    let pairs = fields.iter().flat_map(|(table, field)| {
        [lit(field.name().as_str()), Expr::Column(Column::new(table.cloned(), field.name()))]
    });
    Ok(Expr::ScalarFunction(ScalarFunction::new_udf(named_struct(), pairs.collect())))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::AsArray;
    use datafusion::arrow::datatypes::{DataType, Int64Type};
    use datafusion::common::ScalarValue;
    use datafusion::execution::runtime_env::RuntimeEnv;
    use datafusion::logical_expr::{
        ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility, create_udf,
    };
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::session::{SessionSettings, plan_read_only, session_with};

    /// A session with `width('subject', row)`, which answers how many fields the row has.
    fn context() -> (SessionContext, RowFunctions) {
        let width = Width(Signature::any(2, Volatility::Immutable));
        let functions = RowFunctions {
            functions: vec![Arc::new(ScalarUDF::from(width))],
            of_values: vec![(Arc::new(said()), "b".to_owned())],
            versions: [("a".to_owned(), exactly("1")), ("b".to_owned(), exactly("7"))].into(),
        };
        let plain = create_udf(
            "plain",
            vec![DataType::Int64],
            DataType::Int64,
            Volatility::Immutable,
            Arc::new(|arguments: &[ColumnarValue]| Ok(arguments[0].clone())),
        );
        let settings = SessionSettings {
            functions: vec![Arc::new(plain)],
            row_functions: functions.clone(),
            ..SessionSettings::default()
        };
        (session_with(&settings, &Arc::new(RuntimeEnv::default()), 4, []).unwrap(), functions)
    }

    fn exactly(version: &str) -> SubjectVersion {
        SubjectVersion { told: format!("version {version}"), exact: version.to_owned() }
    }

    /// A function of a value.
    fn said() -> ScalarUDF {
        let said = |arguments: &[ColumnarValue]| Ok(arguments[0].clone());
        create_udf("said", vec![DataType::Int64], DataType::Int64, Volatility::Immutable, Arc::new(said))
    }

    #[derive(Debug, PartialEq, Eq, Hash)]
    struct Width(Signature);

    impl ScalarUDFImpl for Width {
        fn name(&self) -> &'static str {
            "width"
        }

        fn signature(&self) -> &Signature {
            &self.0
        }

        fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
            Ok(DataType::Int64)
        }

        fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
            let width = match arguments.arg_fields[1].data_type() {
                DataType::Struct(fields) => fields.len(),
                _ => 0,
            };
            Ok(ColumnarValue::Scalar(ScalarValue::Int64(i64::try_from(width).ok())))
        }
    }

    async fn answer(sql: &str) -> std::result::Result<(String, i64), String> {
        let (context, _) = context();
        let plan = plan_read_only(&context, sql).await.map_err(|error| error.to_string())?;
        let frame = context.execute_logical_plan(plan).await.map_err(|error| error.to_string())?;
        let batches = frame.collect().await.map_err(|error| error.to_string())?;
        let column = batches[0].column(0).as_primitive::<Int64Type>().value(0);
        Ok((batches[0].schema().field(0).name().clone(), column))
    }

    #[tokio::test]
    async fn a_table_of_the_from_stands_for_its_row_and_a_struct_for_itself() {
        let cte = "with f as (select 1 as x, 2 as y, 3 as z) select";
        for (sql, width) in [
            (format!("{cte} width('a', f) from f"), 3),
            (format!("{cte} width('a', F) from f"), 3),
            (format!("{cte} width('a', g) from f as g"), 3),
            (format!("{cte} width('a', h) from f inner join (select 1 as x) h on h.x = f.x"), 1),
            (format!("{cte} width('a', named_struct('x', x, 'y', y)) from f"), 2),
            // A column comes before a table of the same name.
            (format!("{cte} width('a', r) from (select struct(x) as r from f) r"), 1),
            (format!("{cte} max(width('a', f)) as width from f"), 3),
        ] {
            assert_eq!(answer(&sql).await, Ok(("width".to_owned(), width)), "{sql}");
        }
        let wrong = answer(&format!("{cte} width('a', g) from f")).await.unwrap_err();
        assert!(wrong.starts_with("line 1, column 61: No field named g"), "{wrong}");
        // A function of values takes columns as they are.
        assert_eq!(answer(&format!("{cte} said(z) as said from f")).await, Ok(("said".to_owned(), 3)));
        // Of other functions names are columns, as ever.
        let wrong = answer(&format!("{cte} plain(f) from f")).await.unwrap_err();
        assert!(wrong.contains("column 'f' not found"), "{wrong}");
    }

    #[test]
    fn a_statement_tells_whom_it_asks_and_changes_with_what_they_say() {
        let (context, functions) = context();
        let state = context.state();
        let parsed = |sql: &str| state.sql_to_statement(sql, &state.config_options().sql_parser.dialect).unwrap();
        let asks = parsed("select width('b', f) from f where exists (select 1 from g where width('a', g) > 1)");
        assert_eq!(functions.asked_by(&asks), ["a".to_owned(), "b".to_owned()].into());
        assert_eq!(functions.asked_versions(&asks), "/a=1/b=7");
        let other = RowFunctions { versions: [("b".to_owned(), exactly("8"))].into(), ..functions.clone() };
        assert_eq!(other.asked_versions(&asks), "/a=/b=8");
        assert_eq!(functions.asked_versions(&parsed("select other('b', f) from f")), "");
        let by_value = parsed("select f.x from f where SAID(f.x) > 1");
        assert_eq!(functions.asked_versions(&by_value), "/b=7");
        assert_eq!(functions.told(&by_value), [("b".to_owned(), "version 7".to_owned())].into());
    }
}
