//! On-demand features behind stored ones: the same expressions for the rows of a spine and for keys that are looked up.
//!
//! What expressions read is joined, or looked up, like any feature, under full names; [`OnDemandOutput`] then works the expressions out and gives the columns that were asked for, in
//! their order.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use holdfast_engine::{OnDemandExpressions, OnDemandVersion, Registry, ServiceFeature, ViewVersion};
use holdfast_features::{
    Status, event_timestamp_column, feature_column, status_column, status_column_of, status_type, status_words,
};
use serde::{Deserialize, Serialize};

use crate::historical::ValueStatus;
use crate::{FeatureStoreError, Result};

/// Features of one view that an answer shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShownPart {
    /// The view.
    pub view: String,
    /// Its version.
    pub version: u32,
    /// Whether its features are worked out when they are asked for.
    pub on_demand: bool,
    /// The features, in order.
    pub features: Vec<String>,
}

/// What is asked for, where on-demand features are among it.
#[derive(Debug, Clone)]
pub struct OnDemand {
    /// What the answer shows, in order.
    pub parts: Vec<ShownPart>,
    /// The on-demand views among the parts, in their order.
    pub versions: Vec<OnDemandVersion>,
}

/// Features that were found by what was asked for: all of one view.
#[derive(Debug)]
pub(crate) enum Found {
    Stored(ViewVersion, Vec<String>),
    OnDemand(OnDemandVersion, Vec<String>),
}

/// The stored features that are read, by version of a view, and what is shown where that is not the same.
pub(crate) type Gathered = (Vec<(ViewVersion, Vec<String>)>, Option<OnDemand>);

/// Puts together what was found, each version of a view once. `view_of` gives the views that expressions read.
pub(crate) fn gathered(
    found: Vec<Found>,
    mut view_of: impl FnMut(&ServiceFeature) -> Result<ViewVersion>,
) -> Result<Gathered> {
    let mut wanted: Vec<(ViewVersion, Vec<String>)> = Vec::new();
    let (mut parts, mut versions): (Vec<ShownPart>, Vec<OnDemandVersion>) = (Vec::new(), Vec::new());
    let mut read = |view: &ViewVersion, feature: &str| {
        let is_same = |(known, _): &&mut (ViewVersion, Vec<String>)| {
            known.view.name == view.view.name && known.version == view.version
        };
        match wanted.iter_mut().find(is_same) {
            Some((_, features)) if features.iter().any(|known| known == feature) => {}
            Some((_, features)) => features.push(feature.to_owned()),
            None => wanted.push((view.clone(), vec![feature.to_owned()])),
        }
    };
    let mut show = |view: &str, version: u32, on_demand: bool, feature: String| {
        let is_same =
            |part: &&mut ShownPart| part.view == view && part.version == version && part.on_demand == on_demand;
        match parts.iter_mut().find(is_same) {
            Some(part) if part.features.contains(&feature) => {}
            Some(part) => part.features.push(feature),
            None => parts.push(ShownPart { view: view.to_owned(), version, on_demand, features: vec![feature] }),
        }
    };
    for one in found {
        match one {
            Found::Stored(view, features) => {
                for feature in features {
                    read(&view, &feature);
                    show(&view.view.name, view.version, false, feature);
                }
            }
            Found::OnDemand(version, features) => {
                for feature in features {
                    show(&version.view.name, version.version, true, feature);
                }
                for input in &version.view.inputs {
                    read(&view_of(input)?, &input.feature);
                }
                let is_same =
                    |known: &OnDemandVersion| known.view.name == version.view.name && known.version == version.version;
                if !versions.iter().any(is_same) {
                    versions.push(version);
                }
            }
        }
    }
    let on_demand = (!versions.is_empty()).then_some(OnDemand { parts, versions });
    Ok((wanted, on_demand))
}

/// The features that are meant of an on-demand view.
pub(crate) fn features_of(version: &OnDemandVersion, feature: Option<&str>) -> Result<Vec<String>> {
    let known = || version.view.features.iter().map(|feature| feature.name.clone());
    match feature {
        None => Ok(known().collect()),
        Some(feature) if version.view.feature(feature).is_some() => Ok(vec![feature.to_owned()]),
        Some(feature) => {
            let near =
                holdfast_engine::most_similar(feature, version.view.features.iter().map(|one| one.name.as_str()));
            let hint = match near {
                Some(near) => format!("did you mean `{}:{near}`?", version.view.name),
                None => format!("it has {}", known().collect::<Vec<_>>().join(", ")),
            };
            Err(FeatureStoreError::NotFound(format!(
                "the on-demand view `{}` has no feature `{feature}`: {hint}",
                version.view.name
            )))
        }
    }
}

impl ShownPart {
    /// Its features with the version of their view.
    pub(crate) fn references(&self) -> impl Iterator<Item = String> {
        self.features.iter().map(|feature| format!("{}@v{}:{feature}", self.view, self.version))
    }
}

impl OnDemand {
    /// As it was recorded; none where nothing is worked out.
    ///
    /// # Errors
    /// What the registry answers.
    pub(crate) async fn of(registry: &Registry, parts: &[ShownPart]) -> Result<Option<Self>> {
        let mut versions = Vec::new();
        for part in parts.iter().filter(|part| part.on_demand) {
            versions.push(registry.on_demand(&part.view, Some(part.version)).await?);
        }
        Ok((!versions.is_empty()).then(|| Self { parts: parts.to_vec(), versions }))
    }

    /// What is shown of a stored view.
    pub(crate) fn shown(&self, view: &str, version: u32) -> Option<&Vec<String>> {
        let is_it = |part: &&ShownPart| !part.on_demand && part.view == view && part.version == version;
        self.parts.iter().find(is_it).map(|part| &part.features)
    }

    /// What expressions read of a stored view.
    pub(crate) fn inputs(&self, view: &str, version: u32) -> impl Iterator<Item = &String> {
        let inputs = self.versions.iter().flat_map(|version| &version.view.inputs);
        inputs.filter(move |input| input.view == view && input.version == version).map(|input| &input.feature)
    }

    /// The values of a request that are needed, each once.
    ///
    /// # Errors
    /// Two views that want one name to be of different types; a type that this version does not know.
    pub(crate) fn request(&self) -> Result<Vec<FieldRef>> {
        let mut request: Vec<FieldRef> = Vec::new();
        for version in &self.versions {
            for value in &version.view.request {
                let data_type = holdfast_lake::grammar::parse_type(&value.type_name);
                let data_type = data_type.map_err(|error| FeatureStoreError::Request(error.message))?;
                match request.iter().find(|known| known.name() == &value.name) {
                    Some(known) if *known.data_type() == data_type => {}
                    Some(known) => {
                        return Err(FeatureStoreError::Request(format!(
                            "the request value `{}` is {} for one on-demand view and {data_type} for `{}`: ask for one at a time",
                            value.name,
                            known.data_type(),
                            version.view.name
                        )));
                    }
                    None => request.push(Arc::new(Field::new(&value.name, data_type, true))),
                }
            }
        }
        Ok(request)
    }

    /// The first view that needs a value of the request.
    pub(crate) fn needing(&self, value: &str) -> String {
        let needs = |version: &&OnDemandVersion| version.view.request.iter().any(|known| known.name == value);
        self.versions.iter().find(needs).map_or_else(String::new, |version| version.view.name.clone())
    }

    /// What columns call an on-demand view: its name, with its version where two versions of one are asked for.
    pub(crate) fn label(&self, part: &ShownPart) -> String {
        let is_other = |other: &&ShownPart| other.on_demand && other.view == part.view;
        match self.parts.iter().filter(is_other).count() {
            0 | 1 => part.view.clone(),
            _ => format!("{}_v{}", part.view, part.version),
        }
    }
}

/// Which columns an answer has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutputOptions {
    pub(crate) full_names: bool,
    pub(crate) status: ValueStatus,
    pub(crate) event_timestamps: bool,
}

/// From rows with all that is read to rows with what was asked for.
#[derive(Debug)]
pub(crate) struct OnDemandOutput {
    schema: SchemaRef,
    columns: Vec<Source>,
    views: Vec<Worked>,
    words: ArrayRef,
}

/// Where a column of the answer is from.
#[derive(Debug)]
enum Source {
    /// A column of the rows.
    Read(usize),
    /// A feature of an on-demand view: which view, and which of the features that are worked out.
    Worked(usize, usize),
    /// Whether that has a value.
    Status(usize, usize),
}

/// An on-demand view whose features are worked out.
#[derive(Debug)]
struct Worked {
    name: String,
    expressions: OnDemandExpressions,
    /// The features that are asked for, by their place in the view.
    places: Vec<usize>,
    /// Where the values of the request stand.
    request: Vec<usize>,
    /// Where what it reads stands.
    inputs: Vec<usize>,
}

impl OnDemandOutput {
    /// For rows of these columns: first `lead` columns that are given back as they are, values of the request among them; then of each view that is read its features under full names.
    /// `label_of` says what a version of a stored view is called there.
    ///
    /// # Errors
    /// A value of the request that is not among the columns; two columns of one name; expressions that do not take what is read.
    pub(crate) fn new(
        read: &Schema,
        lead: usize,
        asked: &OnDemand,
        label_of: impl Fn(&str, u32) -> Option<String>,
        options: OutputOptions,
    ) -> Result<Self> {
        let place = |name: &str| {
            let place = read.fields()[lead..].iter().position(|field| field.name() == name).map(|at| at + lead);
            place.ok_or_else(|| {
                FeatureStoreError::NotFound(format!("there is no column {name} to work features out of"))
            })
        };
        let label = |view: &str, version: u32| {
            label_of(view, version).ok_or_else(|| FeatureStoreError::NotFound(format!("{view}@v{version} is not read")))
        };
        let mut fields: Vec<FieldRef> = read.fields()[..lead].to_vec();
        let mut columns: Vec<Source> = (0..lead).map(Source::Read).collect();
        let mut views: Vec<Worked> = Vec::new();
        for part in &asked.parts {
            let named = |label: &str, feature: &str| feature_column(label, feature, options.full_names);
            let status_of = |column: &str| Arc::new(Field::new(status_column_of(column), status_type(), false));
            if !part.on_demand {
                let label = label(&part.view, part.version)?;
                for feature in &part.features {
                    let at = place(&feature_column(&label, feature, true))?;
                    let column = named(&label, feature);
                    fields.push(Arc::new(read.field(at).clone().with_name(&column)));
                    columns.push(Source::Read(at));
                    if options.status == ValueStatus::Value {
                        columns.push(Source::Read(place(&status_column_of(&feature_column(&label, feature, true)))?));
                        fields.push(status_of(&column));
                    }
                }
                let own = [
                    (options.status != ValueStatus::None).then(|| status_column_of(&label)),
                    options.event_timestamps.then(|| event_timestamp_column(&label)),
                ];
                for name in own.into_iter().flatten() {
                    let at = place(&name)?;
                    fields.push(Arc::clone(&read.fields()[at]));
                    columns.push(Source::Read(at));
                }
                continue;
            }
            let version = asked
                .versions
                .iter()
                .find(|version| version.view.name == part.view && version.version == part.version)
                .ok_or_else(|| FeatureStoreError::NotFound(format!("{}@v{} is not there", part.view, part.version)))?;
            let inputs = version
                .view
                .inputs
                .iter()
                .map(|input| place(&feature_column(&label(&input.view, input.version)?, &input.feature, true)));
            let inputs: Vec<usize> = inputs.collect::<Result<_>>()?;
            let types: Vec<DataType> = inputs.iter().map(|at| read.field(*at).data_type().clone()).collect();
            let expressions = OnDemandExpressions::new(&version.view, &types)?;
            let request = expressions.request().iter().map(|value| {
                let at = read.fields()[..lead].iter().position(|field| field.name() == value.name());
                at.ok_or_else(|| no_value(value, &part.view))
            });
            let request: Vec<usize> = request.collect::<Result<_>>()?;
            let types: Vec<FieldRef> = expressions.features().cloned().collect();
            let mut places = Vec::with_capacity(part.features.len());
            for feature in &part.features {
                let at = types.iter().position(|field| field.name() == feature);
                let at = at.ok_or_else(|| FeatureStoreError::NotFound(format!("{} has no {feature}", part.view)))?;
                let column = named(&asked.label(part), feature);
                fields.push(Arc::new(types[at].as_ref().clone().with_name(&column)));
                columns.push(Source::Worked(views.len(), places.len()));
                if options.status == ValueStatus::Value {
                    fields.push(status_of(&column));
                    columns.push(Source::Status(views.len(), places.len()));
                }
                places.push(at);
            }
            views.push(Worked { name: part.view.clone(), expressions, places, request, inputs });
        }
        for (at, field) in fields.iter().enumerate() {
            if fields[..at].iter().any(|known| known.name() == field.name()) {
                return Err(FeatureStoreError::Request(format!(
                    "two columns of the answer are called {}: ask for full names, or rename one",
                    field.name()
                )));
            }
        }
        Ok(Self {
            schema: Arc::new(Schema::new_with_metadata(fields, read.metadata().clone())),
            columns,
            views,
            words: status_words(),
        })
    }

    /// The columns of the answer.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The rows with what was asked for. `moments` is the moment of each, in microseconds and UTC.
    ///
    /// # Errors
    /// A value of the request that is not of its type; a row that an expression has no value for.
    pub(crate) fn of(&self, read: &RecordBatch, moments: &ArrayRef) -> Result<RecordBatch> {
        let worked = self.views.iter().map(|view| {
            let request = view.request.iter().zip(view.expressions.request());
            let request: Vec<ArrayRef> =
                request.map(|(at, value)| of_type(read.column(*at), value, &view.name)).collect::<Result<_>>()?;
            let inputs = view.inputs.iter().map(|at| Arc::clone(read.column(*at)));
            Ok(view.expressions.evaluate(&view.places, Arc::clone(moments), request, inputs)?)
        });
        let worked: Vec<Vec<ArrayRef>> = worked.collect::<Result<_>>()?;
        let column = |source: &Source| match source {
            Source::Read(at) => Ok(Arc::clone(read.column(*at))),
            Source::Worked(view, feature) => Ok(Arc::clone(&worked[*view][*feature])),
            Source::Status(view, feature) => self.statuses(&worked[*view][*feature]),
        };
        let columns = self.columns.iter().map(column).collect::<Result<Vec<_>>>()?;
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    fn statuses(&self, values: &ArrayRef) -> Result<ArrayRef> {
        let of = |row| if values.is_null(row) { Status::NullValue } else { Status::Present };
        Ok(status_column((0..values.len()).map(|row| Some(of(row).code())).collect(), &self.words)?)
    }
}

/// A value of the request in the type that is declared for it.
pub(crate) fn of_type(column: &ArrayRef, value: &Field, view: &str) -> Result<ArrayRef> {
    if column.data_type() == value.data_type() {
        return Ok(Arc::clone(column));
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    // What arrow says of a cast that fails quotes the value.
    cast_with_options(column, value.data_type(), &options).map_err(|_| {
        FeatureStoreError::Request(format!(
            "the request value `{}` of `{view}` is {}, and some of it cannot be read as {}",
            value.name(),
            column.data_type(),
            value.data_type()
        ))
    })
}

pub(crate) fn no_value(value: &Field, view: &str) -> FeatureStoreError {
    FeatureStoreError::Request(format!(
        "`{view}` needs the request value `{}` ({}): give it as a column of that name beside the keys",
        value.name(),
        value.data_type()
    ))
}
