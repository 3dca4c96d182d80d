//! On-demand features: SQL expressions over stored features and values that come with a request, worked out when somebody asks. `on_demand_features.toml` of a pipeline has a section for each
//! view of them.
//!
//! ```toml
//! [basket]
//! request = { amount = "float64" }
//!
//! [basket.features]
//! amount_to_usual = "request.amount / nullif(spend.average_order, 0)"
//! ```
//!
//! A training row and an answer from memory go through the same [`OnDemandExpressions`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, TableReference};
use datafusion::execution::SessionState;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, Volatility};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::PhysicalExpr;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Ident};
use holdfast_lake::grammar::parse_type;
use serde::{Deserialize, Serialize};
use toml::de::DeValue;

use super::reference::FeatureReference;
use super::registry::{OnDemandVersion, Registry, ServiceFeature, ViewVersion};
use super::service::ServiceSpec;
use super::view::{FeatureView, hash};
use crate::Result;
use crate::diagnostic::{Diagnostic, most_similar};
use crate::error::{EngineError, describe};
use crate::session::{SessionSettings, session_with};
use crate::toml_file::{self, TomlFile, TomlItem as Item, TomlPlace as Place, is_name};
use crate::walk::Walk;

const KEYS: [&str; 4] = ["description", "owner", "request", "features"];
/// What expressions call the values of a request.
const REQUEST: &str = "request";
/// What expressions call the moment that is asked for.
const MOMENT: &str = "event_timestamp";

/// A view of on-demand features as its file says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDemandSpec {
    /// What references call it.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// The values that come with a request.
    pub request: Vec<RequestValue>,
    /// Each feature with its expression.
    pub features: Vec<(String, String)>,
    pub(crate) place: Place,
    /// Where each expression stands.
    pub(crate) places: Vec<Place>,
}

/// The on-demand views of a pipeline.
#[derive(Debug, Clone)]
pub(crate) struct OnDemandFile {
    file: PathBuf,
    text: String,
    pub(crate) views: Vec<OnDemandSpec>,
}

/// A value that comes with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestValue {
    /// Its name: that of the column in a spine, and beside the keys of a look-up.
    pub name: String,
    /// Its type, as contracts of sources write it.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// A feature that is worked out when it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDemandFeature {
    /// Its name.
    pub name: String,
    /// The expression.
    pub sql: String,
    /// Its type, as Arrow names it.
    pub data_type: String,
}

/// A view of on-demand features, with the versions of the views that it reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDemandView {
    /// What references call it.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// The values that come with a request.
    pub request: Vec<RequestValue>,
    /// Its features, in their order.
    pub features: Vec<OnDemandFeature>,
    /// The stored features that it reads.
    pub inputs: Vec<ServiceFeature>,
}

impl OnDemandFile {
    /// The views in a file; none where there is no such file.
    pub(crate) fn read(file: &Path, mistakes: &mut Vec<Diagnostic>) -> Result<Option<Self>> {
        let Some(text) = toml_file::read(file)? else { return Ok(None) };
        let views = TomlFile { file, text: &text, code: "E0606", mistakes }.on_demand_views();
        Ok(Some(Self { file: file.to_owned(), text, views }))
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    fn mistake(&self, message: impl Into<String>, (line, column, width): Place) -> Diagnostic {
        Diagnostic::at("E0606", message, &self.file, &self.text, line, column, width)
    }

    /// What is wrong with its views beside the stored ones, each with the columns of its table. `unplanned` are views whose columns nobody knows.
    pub(crate) fn check(
        &self,
        stored: &BTreeMap<String, (FeatureView, SchemaRef)>,
        unplanned: &[String],
    ) -> Vec<Diagnostic> {
        let mut mistakes = Vec::new();
        for spec in &self.views {
            if let Some((other, _)) = stored.get(&spec.name) {
                let message = format!("`{}` is the feature view that {} makes", spec.name, other.table);
                mistakes.push(self.mistake(message, spec.place).with_help("give the on-demand view another name"));
                continue;
            }
            for ((name, sql), place) in spec.features.iter().zip(&spec.places) {
                if let Err((message, help)) = check_expression(spec, name, sql, stored, unplanned) {
                    let mistake = self.mistake(format!("{}:{name}: {message}", spec.name), *place);
                    mistakes.push(match help {
                        Some(help) => mistake.with_help(help),
                        None => mistake,
                    });
                }
            }
        }
        mistakes
    }
}

/// A mistake in an expression, with what to do.
type Wrong = (String, Option<String>);

fn check_expression(
    spec: &OnDemandSpec,
    name: &str,
    sql: &str,
    stored: &BTreeMap<String, (FeatureView, SchemaRef)>,
    unplanned: &[String],
) -> std::result::Result<(), Wrong> {
    let names = names_in(sql, &spec.request).map_err(|error| (error, None))?;
    let mut inputs = Vec::with_capacity(names.len());
    for (view, feature) in names {
        if unplanned.contains(&view) {
            return Ok(());
        }
        let Some((found, schema)) = stored.get(&view) else {
            let help = match most_similar(&view, stored.keys().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}.{feature}`?"),
                None => format!("write view.feature, {REQUEST}.value or {MOMENT}"),
            };
            return Err((format!("there is no feature view `{view}`"), Some(help)));
        };
        if found.is_label() {
            let help = "a model would be trained on the answer".to_owned();
            return Err((format!("`{view}.{feature}` is a label"), Some(help)));
        }
        if found.feature(&feature).is_none() {
            let known = found.features.iter().map(|feature| feature.name.as_str());
            let help = match most_similar(&feature, known.clone()) {
                Some(near) => format!("did you mean `{view}.{near}`?"),
                None => format!("it has {}", known.collect::<Vec<_>>().join(", ")),
            };
            return Err((format!("the feature view `{view}` has no feature `{feature}`"), Some(help)));
        }
        let data_type = schema.field_with_name(&feature).map(|field| field.data_type().clone());
        inputs.push(((view, feature), data_type.unwrap_or(DataType::Null)));
    }
    planned(&spec.request, &inputs, &[(name.to_owned(), sql.to_owned())]).map(|_| ()).map_err(|error| (error, None))
}

/// The stored features that an expression names, as view and feature.
fn names_in(sql: &str, request: &[RequestValue]) -> std::result::Result<BTreeSet<(String, String)>, String> {
    let state = state()?;
    let dialect = state.config_options().sql_parser.dialect;
    let parsed = state.sql_to_expr(sql, &dialect).map_err(|error| describe(&error))?;
    let mut names = BTreeSet::new();
    let word = |ident: &Ident| match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    };
    let mut wrong = None;
    let _ = parsed.each_expression(|expr| {
        wrong = Some(match expr {
            SqlExpr::Identifier(ident) if word(ident) == MOMENT => return ControlFlow::Continue(()),
            SqlExpr::Identifier(ident) => {
                format!("`{}` is of nothing: write view.feature, {REQUEST}.value or {MOMENT}", ident.value)
            }
            SqlExpr::CompoundIdentifier(parts) => match parts.as_slice() {
                [of, name] if word(of) == REQUEST => {
                    let name = word(name);
                    let known = request.iter().map(|value| value.name.as_str());
                    if known.clone().any(|known| known == name) {
                        return ControlFlow::Continue(());
                    }
                    let hint = match most_similar(&name, known) {
                        Some(near) => format!("did you mean `{REQUEST}.{near}`?"),
                        None => format!("add it: request = {{ {name} = \"float64\" }}"),
                    };
                    format!("`{REQUEST}.{name}` is not among the values of the request: {hint}")
                }
                [view, feature] => {
                    names.insert((word(view), word(feature)));
                    return ControlFlow::Continue(());
                }
                _ => format!("`{expr}` is no feature: write view.feature"),
            },
            SqlExpr::Subquery(_) | SqlExpr::Exists { .. } | SqlExpr::InSubquery { .. } => {
                "an on-demand feature reads no tables: put what it needs into a feature view".to_owned()
            }
            _ => return ControlFlow::Continue(()),
        });
        ControlFlow::Break(())
    });
    wrong.map_or(Ok(names), Err)
}

impl OnDemandView {
    /// What a file says, with the versions of views that count now. The error is why it cannot be had yet.
    pub(crate) fn of(spec: &OnDemandSpec, newest: &BTreeMap<String, ViewVersion>) -> std::result::Result<Self, String> {
        let mut inputs: Vec<ServiceFeature> = Vec::new();
        let mut typed = Vec::new();
        for (_, sql) in &spec.features {
            for (view, feature) in names_in(sql, &spec.request)? {
                let Some(version) = newest.get(&view) else {
                    return Err(format!("no run has made the view `{view}` yet"));
                };
                let Some(found) = version.view.feature(&feature) else {
                    return Err(format!("{view}@v{} has no feature `{feature}`", version.version));
                };
                let input = ServiceFeature { view: view.clone(), version: version.version, feature: feature.clone() };
                if !inputs.contains(&input) {
                    inputs.push(input);
                    let data_type = DataType::from_str(&found.data_type)
                        .map_err(|_| format!("`{view}.{feature}` is {}, which no expression reads", found.data_type))?;
                    typed.push(((view, feature), data_type));
                }
            }
        }
        let (_, expressions) = planned(&spec.request, &typed, &spec.features)?;
        let features = spec.features.iter().zip(&expressions).map(|((name, sql), (_, field))| OnDemandFeature {
            name: name.clone(),
            sql: sql.clone(),
            data_type: field.data_type().to_string(),
        });
        Ok(Self {
            name: spec.name.clone(),
            description: spec.description.clone(),
            owner: spec.owner.clone(),
            request: spec.request.clone(),
            features: features.collect(),
            inputs,
        })
    }

    /// Changes with all that decides its values.
    pub fn hash(&self) -> String {
        let request = self.request.iter().map(|value| format!("request {} {}", value.name, value.type_name));
        let features =
            self.features.iter().map(|feature| format!("{} {} {}", feature.name, feature.data_type, feature.sql));
        let inputs = self.inputs.iter().map(|input| format!("{}@v{}:{}", input.view, input.version, input.feature));
        hash(&request.chain(features).chain(inputs).collect::<Vec<_>>())
    }

    /// One of its features.
    pub fn feature(&self, name: &str) -> Option<&OnDemandFeature> {
        self.features.iter().find(|feature| feature.name == name)
    }
}

/// The expressions of an on-demand view, ready to be worked out.
#[derive(Debug)]
pub struct OnDemandExpressions {
    request: Vec<FieldRef>,
    schema: SchemaRef,
    expressions: Vec<(Arc<dyn PhysicalExpr>, FieldRef)>,
}

impl OnDemandExpressions {
    /// Those of a view for inputs of these types, in the order of [`OnDemandView::inputs`].
    ///
    /// # Errors
    /// Inputs of types that the expressions do not take; a function that this version has not.
    pub fn new(view: &OnDemandView, inputs: &[DataType]) -> Result<Self> {
        let typed: Vec<_> = view
            .inputs
            .iter()
            .zip(inputs)
            .map(|(input, data_type)| ((input.view.clone(), input.feature.clone()), data_type.clone()))
            .collect();
        let expressions: Vec<_> =
            view.features.iter().map(|feature| (feature.name.clone(), feature.sql.clone())).collect();
        let failed =
            |reason| EngineError::NoFeature(format!("the on-demand view `{}` cannot be used: {reason}", view.name));
        let (schema, expressions) = planned(&view.request, &typed, &expressions).map_err(failed)?;
        let request = schema.fields()[1..=view.request.len()].to_vec();
        Ok(Self { request, schema, expressions })
    }

    /// The values of a request that they need, with their types.
    pub fn request(&self) -> &[FieldRef] {
        &self.request
    }

    /// The features, with their types.
    pub fn features(&self) -> impl Iterator<Item = &FieldRef> {
        self.expressions.iter().map(|(_, field)| field)
    }

    /// Works features out, those at these places. `moments` is in microseconds and UTC, `request` as of [`OnDemandExpressions::request`], `inputs` as the view's.
    ///
    /// # Errors
    /// An expression that some row has no value for, such as a division of integers by zero; columns of another length or type.
    pub fn evaluate(
        &self,
        places: &[usize],
        moments: ArrayRef,
        request: impl IntoIterator<Item = ArrayRef>,
        inputs: impl IntoIterator<Item = ArrayRef>,
    ) -> Result<Vec<ArrayRef>> {
        let columns: Vec<ArrayRef> = std::iter::once(moments).chain(request).chain(inputs).collect();
        let failed = EngineError::execution("working out on-demand features");
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns).map_err(|error| failed(error.into()))?;
        let one = |place: &usize| {
            let (expression, field) = &self.expressions[*place];
            let failed = EngineError::execution(format!("working out the on-demand feature {}", field.name()));
            let value = expression.evaluate(&rows).and_then(|value| value.into_array(rows.num_rows()));
            let value = value.map_err(failed)?;
            let failed = EngineError::execution(format!("working out the on-demand feature {}", field.name()));
            if value.data_type() == field.data_type() {
                return Ok(value);
            }
            cast(&value, field.data_type()).map_err(|error| failed(error.into()))
        };
        places.iter().map(one).collect()
    }
}

type Planned = (SchemaRef, Vec<(Arc<dyn PhysicalExpr>, FieldRef)>);

/// Plans expressions over the moment, the values of the request and the inputs, in this order. The error is in words.
fn planned(
    request: &[RequestValue],
    inputs: &[((String, String), DataType)],
    expressions: &[(String, String)],
) -> std::result::Result<Planned, String> {
    let moment = DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")));
    let mut fields: Vec<(Option<TableReference>, FieldRef)> = vec![(None, Arc::new(Field::new(MOMENT, moment, true)))];
    for value in request {
        let data_type = parse_type(&value.type_name).map_err(|error| error.message)?;
        fields.push((Some(TableReference::bare(REQUEST)), Arc::new(Field::new(&value.name, data_type, true))));
    }
    for ((view, feature), data_type) in inputs {
        let field = Field::new(feature, data_type.clone(), true);
        fields.push((Some(TableReference::bare(view.as_str())), Arc::new(field)));
    }
    let schema = Arc::new(Schema::new(fields.iter().map(|(_, field)| Arc::clone(field)).collect::<Vec<_>>()));
    let names = DFSchema::new_with_metadata(fields, Default::default()).map_err(|error| describe(&error))?;
    let state = state()?;
    // Some functions, `coalesce` among them, are only ever run as what they are simplified to.
    let context = SimplifyContext::builder()
        .with_schema(Arc::new(names.clone()))
        .with_config_options(Arc::clone(state.config_options()))
        .build();
    let simplifier = ExprSimplifier::new(context);
    let mut planned = Vec::with_capacity(expressions.len());
    for (name, sql) in expressions {
        let expr = state.create_logical_expr(sql, &names).map_err(|error| describe(&error))?;
        only_of_its_row(&expr)?;
        let expr = simplifier.coerce(expr, &names).and_then(|expr| simplifier.simplify(expr));
        let expr = expr.map_err(|error| describe(&error))?;
        let physical = state.create_physical_expr(expr, &names).map_err(|error| describe(&error))?;
        let data_type = match physical.data_type(&schema).map_err(|error| describe(&error))? {
            // As history has them.
            DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
            DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
            DataType::Null => return Err("it is always null: cast it to a type".to_owned()),
            other => other,
        };
        planned.push((physical, Arc::new(Field::new(name, data_type, true))));
    }
    Ok((schema, planned))
}

/// An on-demand feature is a function of its row alone: the same then, now, and when it is compared.
fn only_of_its_row(expr: &Expr) -> std::result::Result<(), String> {
    let mut wrong = None;
    let _ = expr.apply(|part| {
        wrong = match part {
            Expr::AggregateFunction(_) | Expr::WindowFunction(_) => {
                Some(format!("`{part}` is over several rows: put it into a feature view"))
            }
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => Some(format!(
                "`{}` is another value each time: `{MOMENT}` is the moment that is asked for",
                call.func.name()
            )),
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        Ok(TreeNodeRecursion::Stop)
    });
    wrong.map_or(Ok(()), Err)
}

/// A session that has the functions that any lake has, and no tables.
fn state() -> std::result::Result<SessionState, String> {
    let context = session_with(&SessionSettings::default(), &Arc::new(RuntimeEnv::default()), 1, [])
        .map_err(|error| error.to_string())?;
    // It depends on the lake.
    context.deregister_udf(holdfast_types::CUSTOMER_BUCKET);
    Ok(context.state())
}

impl TomlFile<'_> {
    fn on_demand_views(&mut self) -> Vec<OnDemandSpec> {
        let Some(table) = self.table() else { return Vec::new() };
        let views = table.get_ref().iter();
        let mut views: Vec<OnDemandSpec> =
            views.filter_map(|(name, value)| self.on_demand_view(name.get_ref(), name.span(), value)).collect();
        views.sort_by_key(|view| view.place);
        views
    }

    fn on_demand_view(&mut self, name: &str, span: std::ops::Range<usize>, value: &Item<'_>) -> Option<OnDemandSpec> {
        let Some(said) = value.get_ref().as_table() else {
            let help = "an on-demand view is a section: [name], and below it [name.features]".to_owned();
            self.mistake(&format!("`{name}` is no on-demand view"), span, Some(help));
            return None;
        };
        if !is_name(name) || name == REQUEST {
            let help = "an on-demand view has lowercase letters, digits and underscores".to_owned();
            self.mistake(&format!("`{name}` is no name of an on-demand view"), span, Some(help));
            return None;
        }
        let place = self.place(span.clone());
        self.check_keys(said, &KEYS, "an on-demand view has");
        let description = said.get("description").and_then(|value| self.text_of(value)).unwrap_or_default();
        let owner = said.get("owner").and_then(|value| self.text_of(value));
        let request = said.get("request").map(|value| self.texts_by_name(value)).unwrap_or_default();
        let mut values = Vec::with_capacity(request.len());
        for (name, type_name, span) in request {
            match parse_type(&type_name) {
                Ok(_) => values.push(RequestValue { name, type_name }),
                Err(error) => self.mistake(&error.message, span, None),
            }
        }
        let features = match said.get("features") {
            Some(value) => self.texts_by_name(value),
            None => Vec::new(),
        };
        if features.is_empty() {
            let help = format!("add [{name}.features] with lines such as ratio = \"view.feature / request.value\"");
            self.mistake(&format!("the on-demand view `{name}` has no features"), span, Some(help));
            return None;
        }
        let places = features.iter().map(|(_, _, span)| self.place(span.clone())).collect();
        let features = features.into_iter().map(|(name, sql, _)| (name, sql)).collect();
        Some(OnDemandSpec { name: name.to_owned(), description, owner, request: values, features, place, places })
    }

    /// Names with texts, in the order of the file; where each text stands.
    fn texts_by_name(&mut self, value: &Item<'_>) -> Vec<(String, String, std::ops::Range<usize>)> {
        let DeValue::Table(table) = value.get_ref() else {
            let help = Some("write { name = \"text\" }, or a section of its own".to_owned());
            self.mistake("names with texts are expected here", value.span(), help);
            return Vec::new();
        };
        let mut found = Vec::new();
        for (name, value) in table.iter() {
            if !is_name(name.get_ref()) {
                let help = Some("a name has lowercase letters, digits and underscores".to_owned());
                self.mistake(&format!("`{}` is no name", name.get_ref()), name.span(), help);
                continue;
            }
            if let Some(text) = self.text_of(value) {
                found.push((name.get_ref().to_string(), text, value.span()));
            }
        }
        found.sort_by_key(|(_, _, span)| span.start);
        found
    }
}

/// Which of a service's references are on-demand ones, with the versions that count now.
pub(crate) async fn on_demand_features(
    reference: &FeatureReference,
    newest: &BTreeMap<String, OnDemandVersion>,
    registry: &Registry,
) -> Result<Option<std::result::Result<Vec<ServiceFeature>, String>>> {
    let FeatureReference { view: name, version, feature } = reference;
    let Some(known) = newest.get(name) else { return Ok(None) };
    let old;
    let found = match version {
        None => known,
        Some(_) => match registry.on_demand(name, *version).await {
            Ok(found) => {
                old = found;
                &old
            }
            Err(error) => return Ok(Some(Err(error.to_string()))),
        },
    };
    let wanted: Vec<&str> = match feature {
        Some(feature) => vec![feature.as_str()],
        None => found.view.features.iter().map(|feature| feature.name.as_str()).collect(),
    };
    if let Some(feature) = wanted.iter().find(|feature| found.view.feature(feature).is_none()) {
        return Ok(Some(Err(format!("{name}@v{} has no feature `{feature}`", found.version))));
    }
    let one =
        |feature: &&str| ServiceFeature { view: name.clone(), version: found.version, feature: (*feature).to_owned() };
    Ok(Some(Ok(wanted.iter().map(one).collect())))
}

/// What is wrong with a service's reference to an on-demand view; `None` where it is to none.
pub(crate) fn check_reference(
    service: &ServiceSpec,
    reference: &FeatureReference,
    file: Option<&OnDemandFile>,
) -> Option<std::result::Result<(), Wrong>> {
    let spec = file?.views.iter().find(|spec| spec.name == reference.view)?;
    let (Some(feature), None) = (&reference.feature, reference.version) else { return Some(Ok(())) };
    let known = spec.features.iter().map(|(name, _)| name.as_str());
    if known.clone().any(|name| name == feature) {
        return Some(Ok(()));
    }
    let help = match most_similar(feature, known.clone()) {
        Some(near) => format!("did you mean `{}:{near}`?", spec.name),
        None => format!("it has {}", known.collect::<Vec<_>>().join(", ")),
    };
    let message = format!("service `{}`: the on-demand view `{}` has no feature `{feature}`", service.name, spec.name);
    Some(Err((message, Some(help))))
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::{Float64Type, Int64Type};

    use super::*;

    fn view(features: &[(&str, &str)]) -> OnDemandView {
        let request = [("amount", "float64"), ("channel", "string")];
        OnDemandView {
            name: "basket".to_owned(),
            description: String::new(),
            owner: None,
            request: request
                .map(|(name, of)| RequestValue { name: name.to_owned(), type_name: of.to_owned() })
                .to_vec(),
            features: features
                .iter()
                .map(|(name, sql)| OnDemandFeature {
                    name: (*name).to_owned(),
                    sql: (*sql).to_owned(),
                    data_type: String::new(),
                })
                .collect(),
            inputs: ["usual", "orders"]
                .map(|feature| ServiceFeature { view: "spend".to_owned(), version: 1, feature: feature.to_owned() })
                .to_vec(),
        }
    }

    #[test]
    fn a_feature_is_worked_out_of_stored_ones_the_request_and_the_moment() {
        let view = view(&[
            ("ratio", "request.amount / nullif(spend.usual, 0)"),
            ("more", "spend.orders + 1"),
            ("place", "upper(request.channel)"),
            ("hour", "cast(date_part('hour', event_timestamp) as bigint)"),
        ]);
        let expressions = OnDemandExpressions::new(&view, &[DataType::Float64, DataType::Int64]).unwrap();
        let moments = TimestampMicrosecondArray::from(vec![0, 7_200_000_000, 0]).with_timezone("UTC");
        let request: [ArrayRef; 2] = [
            Arc::new(Float64Array::from(vec![Some(10.0), Some(3.0), None])),
            Arc::new(StringArray::from(vec![Some("web"), None, Some("Shop")])),
        ];
        let inputs: [ArrayRef; 2] = [
            Arc::new(Float64Array::from(vec![Some(5.0), Some(0.0), Some(1.0)])),
            Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])),
        ];
        let found = expressions.evaluate(&[0, 1, 2, 3], Arc::new(moments), request, inputs).unwrap();
        assert_eq!(found[0].as_primitive::<Float64Type>(), &Float64Array::from(vec![Some(2.0), None, None]));
        assert_eq!(found[1].as_primitive::<Int64Type>(), &Int64Array::from(vec![Some(2), None, Some(4)]));
        assert_eq!(found[2].as_string::<i32>(), &StringArray::from(vec![Some("WEB"), None, Some("SHOP")]));
        assert_eq!(found[3].as_primitive::<Int64Type>(), &Int64Array::from(vec![0, 2, 0]));
    }

    #[test]
    fn what_is_no_function_of_its_row_is_refused() {
        let request = [RequestValue { name: "amount".to_owned(), type_name: "float64".to_owned() }];
        for (sql, told) in [
            ("amount", "`amount` is of nothing"),
            ("request.amont", "did you mean `request.amount`?"),
            ("(select 1)", "reads no tables"),
            ("a.b.c", "is no feature"),
            ("a. +", "xpected"),
        ] {
            let error = names_in(sql, &request).unwrap_err();
            assert!(error.contains(told), "{sql}: {error}");
        }
        for (sql, told) in [
            ("sum(request.amount)", "is over several rows"),
            ("now() - event_timestamp", "is the moment that is asked for"),
            ("random()", "is another value each time"),
            ("customer_bucket(request.amount)", "customer_bucket"),
            ("nosuch(request.amount)", "nosuch"),
            ("null", "always null"),
        ] {
            let error = planned(&request, &[], &[("f".to_owned(), sql.to_owned())]).unwrap_err();
            assert!(error.contains(told), "{sql}: {error}");
        }
    }

    #[test]
    fn a_version_changes_with_its_expressions_and_the_versions_that_it_reads() {
        let before = view(&[("ratio", "request.amount / spend.usual")]);
        let said = OnDemandView { description: "other words".to_owned(), ..before.clone() };
        assert_eq!(before.hash(), said.hash());
        let mut newer = before.clone();
        newer.inputs[0].version = 2;
        let other = view(&[("ratio", "request.amount / spend.orders")]);
        assert_eq!(BTreeSet::from([before.hash(), newer.hash(), other.hash()]).len(), 3);
    }
}
