//! PostgreSQL's SQL in the words that the planner knows: names of system functions and types, casts to names of objects, operators
//! that are written out, `any (array)`, columns of the same name. What a query means stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, BinaryOperator, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentList, FunctionArguments, Ident, LimitClause, ObjectName, ObjectNamePart, Query, Select, SelectItem,
    SetExpr, Statement, TableFactor, Value, ValueWithSpan, VisitorMut,
};
use datafusion::sql::sqlparser::tokenizer::Span;
use holdfast_engine::walk::WalkMut;

use crate::catalog;
use crate::types::{self, ColumnType};

/// A value of a parameter, as text; none is null.
pub(crate) type Given = (ColumnType, Option<Element>);

/// A value, or the values of an array.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Element {
    One(String),
    Many(Vec<Option<String>>),
}

/// What a statement says about its parameters before it is planned.
#[derive(Debug, Default)]
pub(crate) struct Parameters {
    /// How many there are: the highest number.
    pub(crate) count: usize,
    /// The types that casts and limits give, by number from 1.
    pub(crate) types: BTreeMap<usize, ColumnType>,
    /// Those of which `= any ($n)` asks for an array of what the left side is.
    pub(crate) arrays: BTreeSet<usize>,
    /// Whether a system table is read.
    pub(crate) reads_catalog: bool,
}

/// How placeholders are written into the statement.
enum Fill<'a> {
    /// They stay, so that the planner says what they are; arrays are written as one of their elements.
    Infer,
    Values(&'a [Given]),
}

/// The statement for the planner to find out what its parameters are.
pub(crate) fn for_inference(statement: &Statement) -> (Statement, Parameters) {
    rewritten(statement, Fill::Infer)
}

/// The statement with its parameters' values.
pub(crate) fn for_execution(statement: &Statement, values: &[Given]) -> (Statement, Parameters) {
    rewritten(statement, Fill::Values(values))
}

fn rewritten(statement: &Statement, fill: Fill<'_>) -> (Statement, Parameters) {
    let mut statement = statement.clone();
    let mut rewriter = Rewriter { fill, found: Parameters::default(), common: Vec::new() };
    let _ = statement.walk_mut(&mut rewriter);
    (statement, rewriter.found)
}

/// The names that PostgreSQL gives to the columns of the answer, where the statement tells.
pub(crate) fn output_names(statement: &Statement) -> Option<Vec<String>> {
    let Statement::Query(query) = statement else { return None };
    let mut body = &query.body;
    let select = loop {
        match body.as_ref() {
            SetExpr::Select(select) => break select,
            SetExpr::Query(query) => body = &query.body,
            SetExpr::SetOperation { left, .. } => body = left,
            _ => return None,
        }
    };
    select
        .projection
        .iter()
        .map(|item| match item {
            SelectItem::UnnamedExpr(expr) => Some(name_of(expr).unwrap_or_else(|| "?column?".to_owned())),
            SelectItem::ExprWithAlias { alias, .. } => Some(folded(alias)),
            _ => None,
        })
        .collect()
}

pub(crate) fn name_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Identifier(name) => Some(folded(name)),
        Expr::CompoundIdentifier(names) => names.last().map(folded),
        Expr::Function(function) => last_part(&function.name),
        Expr::Cast { expr, data_type, .. } => name_of(expr).or_else(|| Some(type_name(data_type))),
        Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => name_of(inner),
        Expr::Case { else_result, .. } => {
            Some(else_result.as_deref().and_then(name_of).unwrap_or_else(|| "case".to_owned()))
        }
        Expr::Exists { .. } => Some("exists".to_owned()),
        Expr::Array(_) => Some("array".to_owned()),
        Expr::Extract { .. } => Some("extract".to_owned()),
        Expr::Substring { .. } => Some("substring".to_owned()),
        Expr::Trim { .. } => Some("btrim".to_owned()),
        Expr::Subquery(query) => match query.body.as_ref() {
            SetExpr::Select(select) => match select.projection.as_slice() {
                [SelectItem::UnnamedExpr(expr)] => name_of(expr),
                [SelectItem::ExprWithAlias { alias, .. }] => Some(folded(alias)),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

pub(crate) fn folded(name: &Ident) -> String {
    if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() }
}

pub(crate) fn last_part(name: &ObjectName) -> Option<String> {
    name.0.last()?.as_ident().map(folded)
}

struct Rewriter<'a> {
    fill: Fill<'a>,
    found: Parameters,
    /// Names of `with` queries: they hide system tables of the same name.
    common: Vec<String>,
}

impl VisitorMut for Rewriter<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if let Some(with) = &query.with {
            self.common.extend(with.cte_tables.iter().map(|table| folded(&table.alias.name)));
        }
        // Rows are never locked: nobody writes.
        query.locks.clear();
        if let Some(LimitClause::LimitOffset { limit, offset, .. }) = &query.limit_clause {
            let counts = limit.iter().chain(offset.iter().map(|offset| &offset.value));
            for number in counts.filter_map(placeholder) {
                self.found.types.entry(number).or_insert(ColumnType::plain(types::INT8));
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } => strip_catalog(name),
            TableFactor::Table { name, args: None, .. } => self.relation(name),
            _ => {}
        }
        if let Some(derived) = called_in_from(factor) {
            *factor = derived;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        distinct_names(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        // Before the placeholder inside is seen and replaced.
        if let Expr::Cast { expr: inner, data_type, .. } = expr
            && let Some(number) = placeholder(inner)
            && let Some(column_type) = named_type(data_type)
        {
            self.found.types.entry(number).or_insert(column_type);
        }
        if let Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } = expr
            && let Some(number) = placeholder(right)
        {
            self.found.arrays.insert(number);
            if matches!(self.fill, Fill::Infer) {
                let (left, right) = (left.clone(), right.clone());
                *expr = Expr::BinaryOp { left, op: BinaryOperator::Eq, right };
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let taken = std::mem::replace(expr, null());
        *expr = self.expression(taken);
        ControlFlow::Continue(())
    }
}

impl Rewriter<'_> {
    fn relation(&mut self, name: &mut ObjectName) {
        let parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident().map(folded)).collect();
        match parts.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [table] if catalog::is_system_table(table) && !self.common.iter().any(|common| common == table) => {
                name.0.insert(0, ObjectNamePart::Identifier(Ident::new(catalog::SCHEMA)));
                self.found.reads_catalog = true;
            }
            [.., schema, _] if *schema == catalog::SCHEMA => self.found.reads_catalog = true,
            [.., schema, table] if *schema == "information_schema" && catalog::is_information(table) => {
                let at = name.0.len() - 2;
                name.0[at] = ObjectNamePart::Identifier(Ident::new(catalog::INFORMATION_SCHEMA));
                self.found.reads_catalog = true;
            }
            _ => {}
        }
    }

    fn expression(&mut self, expr: Expr) -> Expr {
        match expr {
            Expr::Value(ValueWithSpan { value: Value::Placeholder(name), span }) => self.placeholder(name, span),
            Expr::Function(function) => bounds(&function).unwrap_or_else(|| Expr::Function(system_function(function))),
            Expr::Collate { expr, .. } => *expr,
            Expr::Identifier(name) if name.quote_style.is_none() => match folded(&name).as_str() {
                "current_schema" => call("current_schema", Vec::new()),
                "current_role" => call("current_user", Vec::new()),
                _ => Expr::Identifier(name),
            },
            Expr::Like { negated, any, expr, pattern, escape_char: Some(escape) } => match unescaped(*pattern, &escape)
            {
                Ok(pattern) => Expr::Like { negated, any, expr, pattern, escape_char: None },
                Err(pattern) => Expr::Like { negated, any, expr, pattern, escape_char: Some(escape) },
            },
            Expr::ILike { negated, any, expr, pattern, escape_char: Some(escape) } => {
                match unescaped(*pattern, &escape) {
                    Ok(pattern) => Expr::ILike { negated, any, expr, pattern, escape_char: None },
                    Err(pattern) => Expr::ILike { negated, any, expr, pattern, escape_char: Some(escape) },
                }
            }
            Expr::Cast { kind, expr, data_type, array, format } => match object_kind(&data_type) {
                Some(kind) => call(kind, vec![*expr]),
                None if matches!(known_type(data_type.clone()), DataType::Bytea) && hexadecimal(&expr).is_some() => {
                    Expr::Value(Value::HexStringLiteral(hexadecimal(&expr).unwrap_or_default()).into())
                }
                None => Expr::Cast { kind, expr, data_type: known_type(data_type), array, format },
            },
            Expr::TypedString(mut typed) => {
                typed.data_type = known_type(typed.data_type);
                Expr::TypedString(typed)
            }
            Expr::BinaryOp { left, op: BinaryOperator::PGCustomBinaryOperator(names), right } => {
                let op = names.last().and_then(|name| operator(name));
                let op = op.unwrap_or(BinaryOperator::PGCustomBinaryOperator(names));
                Expr::BinaryOp { left, op, right }
            }
            Expr::BinaryOp { left, op, right } => match functions_compared(&left, &op, &right) {
                Some(expr) => expr,
                None => Expr::BinaryOp { left, op, right },
            },
            Expr::AnyOp { left, compare_op, right, is_some } => match any_of(&left, &compare_op, &right, false) {
                Some(expr) => expr,
                None => Expr::AnyOp { left, compare_op, right, is_some },
            },
            Expr::AllOp { left, compare_op, right } => match any_of(&left, &compare_op, &right, true) {
                Some(expr) => expr,
                None => Expr::AllOp { left, compare_op, right },
            },
            other => other,
        }
    }

    fn placeholder(&mut self, name: String, span: Span) -> Expr {
        let number: Option<usize> = name.strip_prefix('$').and_then(|number| number.parse().ok());
        let Some(number) = number.filter(|number| (1..=65_535).contains(number)) else {
            return Expr::Value(ValueWithSpan { value: Value::Placeholder(name), span });
        };
        self.found.count = self.found.count.max(number);
        match self.fill {
            Fill::Values(values) if number <= values.len() => literal(&values[number - 1]),
            _ => Expr::Value(ValueWithSpan { value: Value::Placeholder(name), span }),
        }
    }
}

fn placeholder(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Nested(inner) => placeholder(inner),
        Expr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) => name.strip_prefix('$')?.parse().ok(),
        _ => None,
    }
}

/// The digits of a text that is the text of bytes.
fn hexadecimal(expr: &Expr) -> Option<String> {
    let Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) = expr else { return None };
    Some(text.strip_prefix("\\x")?.to_owned())
}

/// A value as an expression of its type.
fn literal((column_type, value): &Given) -> Expr {
    let element = ColumnType::plain(column_type.of);
    match value {
        None => cast(null(), sql_type(*column_type, None)),
        Some(Element::One(text)) => scalar(element, text),
        Some(Element::Many(values)) if values.is_empty() => cast(
            call("make_array", Vec::new()),
            DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(sql_type(element, None)), None)),
        ),
        Some(Element::Many(values)) => {
            let one = |value: &Option<String>| match value {
                Some(text) => scalar(element, text),
                None => cast(null(), sql_type(element, None)),
            };
            call("make_array", values.iter().map(one).collect())
        }
    }
}

fn scalar(column_type: ColumnType, text: &str) -> Expr {
    let of = column_type.of;
    if of == types::BYTEA {
        let hex = text.strip_prefix("\\x").unwrap_or(text).to_owned();
        return Expr::Value(Value::HexStringLiteral(hex).into());
    }
    let value = string(text);
    if column_type.of.category == 'S' || matches!(of.category, 'X' | 'Z') {
        return value;
    }
    match object_kind(&DataType::Custom(ObjectName::from(vec![Ident::new(of.name)]), Vec::new())) {
        Some(kind) => call(kind, vec![value]),
        None => cast(value, sql_type(column_type, Some(text))),
    }
}

/// The type in words that the planner knows. A decimal's precision and scale are its value's, so that nothing is rounded.
fn sql_type(column_type: ColumnType, value: Option<&str>) -> DataType {
    use datafusion::sql::sqlparser::ast::{ExactNumberInfo, TimezoneInfo};
    let of = column_type.of;
    let plain = match of {
        types::BOOL => DataType::Boolean,
        types::BYTEA => DataType::Bytea,
        types::INT2 => DataType::SmallInt(None),
        types::INT4 => DataType::Int(None),
        types::INT8 => DataType::BigInt(None),
        types::OID | types::XID => DataType::IntUnsigned(None),
        types::FLOAT4 => DataType::Real,
        types::FLOAT8 => DataType::Double(ExactNumberInfo::None),
        types::DATE => DataType::Date,
        types::TIME => DataType::Time(None, TimezoneInfo::None),
        types::TIMESTAMP => DataType::Timestamp(None, TimezoneInfo::None),
        types::TIMESTAMPTZ => DataType::Timestamp(None, TimezoneInfo::WithTimeZone),
        types::INTERVAL => DataType::Interval { fields: None, precision: None },
        types::NUMERIC => {
            let digits = value.map_or((38, 10), |text| {
                let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
                let (whole, fraction) = (whole.trim_start_matches(['-', '+']).len(), fraction.len());
                // Not a plain number, such as 1e5: wide on both sides of the point.
                if !text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+')) || whole + fraction > 38
                {
                    (38, 10)
                } else {
                    ((whole + fraction).max(1) as u64, fraction as i64)
                }
            });
            DataType::Decimal(ExactNumberInfo::PrecisionAndScale(digits.0, digits.1))
        }
        _ => DataType::Text,
    };
    if column_type.is_array { DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(plain), None)) } else { plain }
}

pub(crate) fn null() -> Expr {
    Expr::Value(Value::Null.into())
}

fn string(text: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(text.to_owned()).into())
}

pub(crate) fn boolean(value: bool) -> Expr {
    Expr::Value(Value::Boolean(value).into())
}

pub(crate) fn cast(expr: Expr, data_type: DataType) -> Expr {
    Expr::Cast { kind: CastKind::Cast, expr: Box::new(expr), data_type, array: false, format: None }
}

fn arguments(args: Vec<Expr>) -> FunctionArguments {
    FunctionArguments::List(FunctionArgumentList {
        duplicate_treatment: None,
        args: args.into_iter().map(|arg| FunctionArg::Unnamed(FunctionArgExpr::Expr(arg))).collect(),
        clauses: Vec::new(),
    })
}

pub(crate) fn call(name: &str, args: Vec<Expr>) -> Expr {
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: arguments(args),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// Bounds of arrays, which all begin at one here.
fn bounds(function: &Function) -> Option<Expr> {
    let name = last_part(&function.name)?;
    let FunctionArguments::List(list) = &function.args else { return None };
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(array)), _] = list.args.as_slice() else { return None };
    let length = cast(call("array_length", vec![array.clone()]), DataType::BigInt(None));
    match name.as_str() {
        "array_upper" => Some(length),
        "array_lower" => Some(cast(call("least", vec![number("1"), length]), DataType::BigInt(None))),
        _ => None,
    }
}

fn number(digits: &str) -> Expr {
    Expr::Value(Value::Number(digits.to_owned(), false).into())
}

/// Functions without the schema that all of them are in; those that are written like columns, as calls.
fn system_function(mut function: Function) -> Function {
    strip_catalog(&mut function.name);
    if matches!(function.args, FunctionArguments::None) {
        function.args = arguments(Vec::new());
    }
    let renamed = match last_part(&function.name).unwrap_or_default().as_str() {
        "user" | "current_role" | "session_user" => Some("current_user"),
        "current_catalog" => Some("current_database"),
        _ => None,
    };
    if let Some(name) = renamed {
        function.name = ObjectName::from(vec![Ident::new(name)]);
    }
    function
}

/// A function that is read like a table, in the form of a query, where the planner takes it only so.
fn called_in_from(factor: &TableFactor) -> Option<TableFactor> {
    let TableFactor::Table { name, alias, args: Some(args), .. } = factor else { return None };
    let function = last_part(name)?;
    let given: Vec<Expr> = args
        .args
        .iter()
        .map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
            _ => None,
        })
        .collect::<Option<_>>()?;
    let is_literal = |expr: &Expr| matches!(expr, Expr::Value(_) | Expr::UnaryOp { .. });
    let rows = match function.as_str() {
        // Tables of the system that are called.
        "pg_get_keywords" if given.is_empty() => {
            let mut relation = factor.clone();
            if let TableFactor::Table { name, args, .. } = &mut relation {
                *args = None;
                *name = ObjectName::from(vec![Ident::new(catalog::SCHEMA), Ident::new(function)]);
            }
            return Some(relation);
        }
        "generate_series" if !given.iter().all(is_literal) => call("unnest", vec![call("generate_series", given)]),
        "string_to_array" | "parse_ident" | "current_schemas" => call(&function, given),
        _ => return None,
    };
    let mut alias = alias.clone();
    let table = alias.as_ref().map_or_else(|| Ident::new(function.as_str()), |alias| alias.name.clone());
    let column =
        alias.as_mut().and_then(|alias| alias.columns.pop()).map_or_else(|| table.clone(), |column| column.name);
    let statement = crate::statement::parse_one(&format!("select {rows} as {column}")).ok()?;
    let Statement::Query(subquery) = *statement else { return None };
    let sql = format!("select * from (select 1) as {table}");
    // An alias in the parser's own form, whatever else it holds.
    let named = crate::statement::parse_one(&sql).ok()?;
    let Statement::Query(named) = *named else { return None };
    let SetExpr::Select(select) = *named.body else { return None };
    match select.from.into_iter().next()?.relation {
        TableFactor::Derived { lateral, alias, sample, .. } => {
            Some(TableFactor::Derived { lateral, subquery, alias, sample })
        }
        _ => None,
    }
}

fn strip_catalog(name: &mut ObjectName) {
    let is_system = name.0.first().and_then(|part| part.as_ident()).map(folded);
    if name.0.len() == 2 && matches!(is_system.as_deref(), Some("pg_catalog" | "information_schema")) {
        name.0.remove(0);
    }
}

/// The name of a type in lower case without the schema.
fn type_name(data_type: &DataType) -> String {
    let name = data_type.to_string().to_lowercase().replace('"', "");
    name.strip_prefix("pg_catalog.").or(name.strip_prefix("information_schema.")).unwrap_or(&name).to_owned()
}

/// The function that a cast to the name of an object is: of a name its number, of a number its name.
fn object_kind(data_type: &DataType) -> Option<&'static str> {
    Some(match type_name(data_type).as_str() {
        "regclass" => "regclass",
        "regtype" => "regtype",
        "regproc" | "regprocedure" => "regproc",
        "regnamespace" => "regnamespace",
        "regrole" => "regrole",
        _ => return None,
    })
}

/// A type in words that the planner knows.
fn known_type(data_type: DataType) -> DataType {
    if let DataType::Array(ArrayElemTypeDef::SquareBracket(inner, _)) = data_type {
        return DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(known_type(*inner)), None));
    }
    match named_type(&data_type) {
        // The planner knows these as they are, with their precision.
        Some(found) if found.of != types::NUMERIC && !matches!(found.of, types::TIMESTAMP | types::TIMESTAMPTZ) => {
            sql_type(found, None)
        }
        _ => data_type,
    }
}

/// The type that a name means, without its precision.
fn named_type(data_type: &DataType) -> Option<ColumnType> {
    let name = type_name(data_type);
    let (name, is_array) = match name.strip_suffix("[]") {
        Some(element) => (element.to_owned(), true),
        None => (name, false),
    };
    let bare = name.split('(').next().unwrap_or_default().trim();
    let bare = bare.strip_prefix("pg_catalog.").unwrap_or(bare);
    let of = match bare {
        "bool" | "boolean" => types::BOOL,
        "smallint" | "int2" => types::INT2,
        "int" | "integer" | "int4" => types::INT4,
        "bigint" | "int8" => types::INT8,
        "oid" | "cid" | "xid" => types::OID,
        "real" | "float4" => types::FLOAT4,
        "double precision" | "double" | "float8" | "float" => types::FLOAT8,
        "numeric" | "decimal" | "dec" => types::NUMERIC,
        "date" => types::DATE,
        "time" | "time without time zone" => types::TIME,
        "timestamp" | "timestamp without time zone" => types::TIMESTAMP,
        "timestamptz" | "timestamp with time zone" => types::TIMESTAMPTZ,
        "interval" => types::INTERVAL,
        "bytea" => types::BYTEA,
        "text" | "varchar" | "character varying" | "char" | "character" | "bpchar" | "name" | "cstring" | "unknown"
        | "uuid" | "json" | "jsonb" | "xml" | "citext" | "inet" | "int2vector" | "oidvector" | "aclitem"
        | "pg_node_tree" | "sql_identifier" | "character_data" | "yes_or_no" => types::TEXT,
        other => {
            return ColumnType::named(other).map(|found| ColumnType { is_array: is_array || found.is_array, ..found });
        }
    };
    Some(ColumnType { of, is_array })
}

fn operator(name: &str) -> Option<BinaryOperator> {
    Some(match name {
        "~" => BinaryOperator::PGRegexMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "~~*" => BinaryOperator::PGILikeMatch,
        "!~~*" => BinaryOperator::PGNotILikeMatch,
        "=" => BinaryOperator::Eq,
        "<>" | "!=" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        "<=" => BinaryOperator::LtEq,
        ">" => BinaryOperator::Gt,
        ">=" => BinaryOperator::GtEq,
        "+" => BinaryOperator::Plus,
        "-" => BinaryOperator::Minus,
        "*" => BinaryOperator::Multiply,
        "/" => BinaryOperator::Divide,
        "||" => BinaryOperator::StringConcat,
        _ => return None,
    })
}

/// A pattern whose escape is written as the planner knows it, a backslash; the pattern as it was where the escape is none.
fn unescaped(pattern: Expr, escape: &ValueWithSpan) -> Result<Box<Expr>, Box<Expr>> {
    let Value::SingleQuotedString(escape) = &escape.value else { return Err(Box::new(pattern)) };
    Ok(Box::new(match escape.as_str() {
        "\\" => pattern,
        // A backslash is a letter like any other then.
        "" => call("replace", vec![pattern, string("\\"), string("\\\\")]),
        escape => {
            let plain = call("replace", vec![pattern, string("\\"), string("\\\\")]);
            call("replace", vec![plain, string(escape), string("\\")])
        }
    }))
}

/// A comparison of a column that names a function, such as `typreceive`, with a number: functions have names here and no numbers.
fn functions_compared(left: &Expr, op: &BinaryOperator, right: &Expr) -> Option<Expr> {
    let column = |expr: &Expr| match expr {
        Expr::Identifier(name) => Some(folded(name)),
        Expr::CompoundIdentifier(names) => names.last().map(folded),
        _ => None,
    };
    let names_function = |expr: &Expr| column(expr).is_some_and(|name| catalog::names_function(&name));
    let is_zero = |expr: &Expr| matches!(expr, Expr::Value(ValueWithSpan { value: Value::Number(number, _), .. }) if *number == "0");
    let is_number = |expr: &Expr| column(expr).is_some_and(|name| name == "oid");
    let compared = |left: &Expr, right: Expr| {
        Some(Expr::BinaryOp { left: Box::new(left.clone()), op: op.clone(), right: Box::new(right) })
    };
    match (left, right) {
        (left, right) if names_function(left) && is_zero(right) => compared(left, string("-")),
        (left, right) if is_zero(left) && names_function(right) => compared(right, string("-")),
        (left, right)
            if *op == BinaryOperator::Eq
                && (names_function(left) && is_number(right) || is_number(left) && names_function(right)) =>
        {
            Some(boolean(false))
        }
        _ => None,
    }
}

/// `left op any (right)`, or `all`, of an array, in other words where there are some.
fn any_of(left: &Expr, op: &BinaryOperator, right: &Expr, is_all: bool) -> Option<Expr> {
    let mut right = right;
    while let Expr::Nested(inner) = right {
        right = inner;
    }
    let is_equality = matches!((op, is_all), (BinaryOperator::Eq, false) | (BinaryOperator::NotEq, true));
    if let Expr::Subquery(subquery) = right {
        let (expr, subquery) = (Box::new(left.clone()), subquery.clone());
        return is_equality.then_some(Expr::InSubquery { expr, subquery, negated: is_all });
    }
    match elements(right) {
        Some(list) if list.is_empty() => Some(boolean(is_all)),
        Some(list) if is_equality => Some(Expr::InList { expr: Box::new(left.clone()), list, negated: is_all }),
        Some(list) => {
            let joined = if is_all { BinaryOperator::And } else { BinaryOperator::Or };
            let one =
                |right: Expr| Expr::BinaryOp { left: Box::new(left.clone()), op: op.clone(), right: Box::new(right) };
            let all = list.into_iter().map(one).reduce(|left, right| Expr::BinaryOp {
                left: Box::new(left),
                op: joined.clone(),
                right: Box::new(right),
            })?;
            Some(Expr::Nested(Box::new(all)))
        }
        None => None,
    }
}

/// The elements of an array that is written out, in any of the ways there are.
fn elements(expr: &Expr) -> Option<Vec<Expr>> {
    match expr {
        Expr::Array(array) => Some(array.elem.clone()),
        Expr::Cast { expr, data_type: DataType::Array(ArrayElemTypeDef::SquareBracket(of, _)), .. } => {
            let list = elements(expr)?;
            Some(list.into_iter().map(|element| cast(element, of.as_ref().clone())).collect())
        }
        Expr::Function(function) if last_part(&function.name).as_deref() == Some("make_array") => {
            let FunctionArguments::List(list) = &function.args else { return None };
            list.args
                .iter()
                .map(|arg| match arg {
                    FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
                    _ => None,
                })
                .collect()
        }
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) => {
            let values = crate::parameter::array_elements(text)?;
            Some(values.into_iter().map(|value| value.map_or_else(null, |text| string(&text))).collect())
        }
        _ => None,
    }
}

/// What stands between a name that PostgreSQL gives to a column and a number that makes it the planner's alone.
pub(crate) const APART: char = '\u{1}';

/// PostgreSQL lets columns of an answer share a name; the planner does not.
fn distinct_names(select: &mut Select) {
    let is_wild = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
    // A column that is named beside a wildcard is likely to be one of its.
    let has_wildcard = select.projection.iter().any(is_wild);
    let apart = |name: &str, index: usize| Ident::with_quote('"', format!("{name}{APART}{}", index + 1));
    let mut seen = BTreeSet::new();
    for (index, item) in select.projection.iter_mut().enumerate() {
        match item {
            SelectItem::UnnamedExpr(expr) => {
                let is_column = matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
                if !seen.insert(expr.to_string()) || (has_wildcard && is_column) {
                    let alias = apart(&name_of(expr).unwrap_or_else(|| "?column?".to_owned()), index);
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                }
            }
            SelectItem::ExprWithAlias { alias, .. } if !seen.insert(folded(alias)) => {
                *alias = apart(&alias.value, index);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::parse_one;

    fn executed(sql: &str) -> String {
        for_execution(&parse_one(sql).unwrap(), &[]).0.to_string()
    }

    #[test]
    fn system_names_are_written_in_the_planners_words() {
        for (sql, expected) in [
            ("select pg_catalog.version()", "SELECT version()"),
            ("select current_user, user", "SELECT current_user(), current_user() AS \"current_user\u{1}2\""),
            ("select relname from pg_class", "SELECT relname FROM pg_catalog.pg_class"),
            ("select 'a.b'::regclass::oid", "SELECT regclass('a.b')::INT UNSIGNED"),
            ("select x::pg_catalog.text", "SELECT x::TEXT"),
            ("select a OPERATOR(pg_catalog.~) '^b$' COLLATE pg_catalog.default", "SELECT a ~ '^b$'"),
            (
                "select a = any('{1,\"x y\",NULL}'::text[])",
                "SELECT a IN (CAST('1' AS TEXT), CAST('x y' AS TEXT), CAST(NULL AS TEXT))",
            ),
            ("select a = any(array[1,2])", "SELECT a IN (1, 2)"),
            ("select a <> all(b)", "SELECT a <> ALL(b)"),
            ("select a like any(array['x','y'])", "SELECT a LIKE ANY (ARRAY['x', 'y'])"),
            ("select 1, 1 as x, 2 as x", "SELECT 1, 1 AS x, 2 AS \"x\u{1}3\""),
            ("select * from information_schema.tables", "SELECT * FROM pg_information.tables"),
            (
                "select i from generate_series(1, array_upper(a, 1)) as s(i)",
                "SELECT i FROM (SELECT unnest(generate_series(1, CAST(array_length(a) AS BIGINT))) AS i) AS s",
            ),
            ("select * from pg_catalog.pg_get_keywords()", "SELECT * FROM pg_catalog.pg_get_keywords"),
            (
                "with pg_class as (select 1) select * from pg_class",
                "WITH pg_class AS (SELECT 1) SELECT * FROM pg_class",
            ),
            ("select a from t for update", "SELECT a FROM t"),
        ] {
            assert_eq!(executed(sql), expected, "{sql}");
        }
    }

    #[test]
    fn parameters_are_counted_typed_and_filled_in() {
        let statement = parse_one("select a from t where b = any($2) and c = $1::int8 limit $3").unwrap();
        let (inferred, found) = for_inference(&statement);
        assert_eq!(inferred.to_string(), "SELECT a FROM t WHERE b = $2 AND c = $1::BIGINT LIMIT $3");
        assert_eq!((found.count, found.arrays.contains(&2)), (3, true));
        assert_eq!(found.types[&1], ColumnType::plain(types::INT8));
        let one = |of, text: &str| (ColumnType::plain(of), Some(Element::One(text.to_owned())));
        let many = Element::Many(vec![Some("x'; drop".to_owned()), None]);
        let values = [
            one(types::INT8, "7"),
            (ColumnType { of: types::TEXT, is_array: true }, Some(many)),
            one(types::INT8, "10"),
        ];
        assert_eq!(
            for_execution(&statement, &values).0.to_string(),
            "SELECT a FROM t WHERE b IN ('x''; drop', CAST(NULL AS TEXT)) AND c = CAST('7' AS BIGINT)::BIGINT LIMIT CAST('10' AS BIGINT)"
        );
        let amount = parse_one("select $1").unwrap();
        let filled = |value: Given| for_execution(&amount, &[value]).0.to_string();
        assert_eq!(filled(one(types::NUMERIC, "-10.005")), "SELECT CAST('-10.005' AS DECIMAL(5,3))");
        assert_eq!(filled(one(types::BYTEA, "\\x00ff")), "SELECT X'00ff'");
    }

    #[test]
    fn columns_are_named_as_postgresql_names_them() {
        let names = |sql: &str| output_names(&parse_one(sql).unwrap());
        let expected = ["a", "b", "count", "?column?", "x", "case", "int4", "Q"].map(str::to_owned).to_vec();
        let sql = "select A, t.b, count(*), 1 + 1, max(1) as X, case when a then 1 end, '1'::int4, c as \"Q\" from t";
        assert_eq!(names(sql), Some(expected));
        assert_eq!(names("select * from t"), None);
    }
}
