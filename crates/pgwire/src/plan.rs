//! From a statement to a plan and the columns of its answer.

use arrow::datatypes::{DataType, Field};
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as PlannerStatement;
use datafusion::sql::sqlparser::ast::Statement;
use holdfast_engine::plan_statement_read_only;

use crate::error::{Problem, state};
use crate::message::{Described, Format};
use crate::rewrite::{APART, Given, Parameters, for_execution, for_inference, output_names};
use crate::simplify::simplified;
use crate::types::{self, ColumnType};

/// A column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) column_type: ColumnType,
}

impl Column {
    pub(crate) fn text(name: &str) -> Self {
        Self { name: name.to_owned(), column_type: ColumnType::plain(types::TEXT) }
    }

    pub(crate) fn described(&self, format: Format) -> Described {
        self.column_type.described(&self.name, format)
    }
}

/// A plan, and what its rows are.
pub(crate) struct Planned {
    pub(crate) plan: LogicalPlan,
    pub(crate) columns: Vec<Column>,
}

/// What a statement is before its parameters have values.
pub(crate) struct Inferred {
    pub(crate) parameters: Vec<ColumnType>,
    pub(crate) columns: Vec<Column>,
}

/// Plans a statement whose parameters have these values.
pub(crate) async fn plan(
    context: &SessionContext,
    statement: &Statement,
    values: &[Given],
) -> Result<Planned, Problem> {
    let (rewritten, found) = for_execution(statement, values);
    if found.count > values.len() {
        return Err(Problem::new(state::UNDEFINED_PARAMETER, format!("there is no parameter ${}", found.count)));
    }
    let plan = Box::pin(planned(context, rewritten, &found)).await?;
    Ok(Planned { columns: columns_of(&plan, statement), plan })
}

/// Finds out what the parameters of a statement are; `said` are the numbers of the types that the client gives, zero for none.
pub(crate) async fn infer(context: &SessionContext, statement: &Statement, said: &[u32]) -> Result<Inferred, Problem> {
    let (rewritten, found) = for_inference(statement);
    let count = found.count.max(said.len());
    if count == 0 {
        let plan = Box::pin(planned(context, rewritten, &found)).await?;
        return Ok(Inferred { parameters: Vec::new(), columns: columns_of(&plan, statement) });
    }
    let mut known: Vec<Option<ColumnType>> = (0..count)
        .map(|index| {
            let said = said.get(index).copied().unwrap_or(0);
            ColumnType::numbered(said)
                .filter(|said| said.of != types::UNKNOWN)
                .or(found.types.get(&(index + 1)).copied())
        })
        .collect();
    // Where a type is missing, the planner says what fits. It may not be able to.
    if known.iter().any(Option::is_none)
        && let Ok(plan) = Box::pin(planned(context, rewritten, &found)).await
        && let Ok(inferred) = plan.get_parameter_types()
    {
        for (index, known) in known.iter_mut().enumerate().filter(|(_, known)| known.is_none()) {
            let data_type = inferred.get(&format!("${}", index + 1)).cloned().flatten();
            *known = data_type.filter(|data_type| *data_type != DataType::Null).map(|data_type| {
                let found_type = ColumnType::of(&Field::new("", data_type, true));
                let is_array = found_type.is_array || found.arrays.contains(&(index + 1));
                ColumnType { is_array, ..found_type }
            });
        }
    }
    let parameters: Vec<ColumnType> = known
        .into_iter()
        .enumerate()
        .map(|(index, known)| {
            let is_array = found.arrays.contains(&(index + 1));
            known.unwrap_or(ColumnType { of: types::TEXT, is_array })
        })
        .collect();
    // Planned as it will be, with nothing for every value.
    let values: Vec<Given> = parameters.iter().map(|parameter| (*parameter, None)).collect();
    let planned = plan(context, statement, &values).await?;
    Ok(Inferred { parameters, columns: planned.columns })
}

async fn planned(context: &SessionContext, statement: Statement, found: &Parameters) -> Result<LogicalPlan, Problem> {
    let wrap = |statement| PlannerStatement::Statement(Box::new(statement));
    if !found.reads_catalog {
        let planned = plan_statement_read_only(context, wrap(statement)).await;
        return planned.map_err(|error| Problem::of_engine(&error));
    }
    // What tools ask of system tables is tried as it is and then without what is empty anyway.
    let first = match plan_statement_read_only(context, wrap(statement.clone())).await {
        Ok(plan) => match context.state().create_physical_plan(&plan).await {
            Ok(_) => return Ok(plan),
            Err(error) => Problem::of_query(error),
        },
        Err(error) => Problem::of_engine(&error),
    };
    match plan_statement_read_only(context, wrap(simplified(&statement))).await {
        Ok(plan) => Ok(plan),
        Err(error) => {
            tracing::debug!(%error, "a query of system tables cannot be planned in its simple form either");
            Err(first)
        }
    }
}

fn columns_of(plan: &LogicalPlan, statement: &Statement) -> Vec<Column> {
    let fields = plan.schema().as_arrow().fields();
    let names = output_names(statement).filter(|names| names.len() == fields.len());
    fields
        .iter()
        .enumerate()
        .map(|(index, field)| Column {
            name: names.as_ref().map_or_else(|| shown(field.name()), |names| names[index].clone()),
            column_type: ColumnType::of(field),
        })
        .collect()
}

/// A column's name without what tells it apart from others of the same name.
fn shown(name: &str) -> String {
    name.split(APART).next().unwrap_or_default().to_owned()
}
