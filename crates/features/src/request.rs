//! What is asked for, and the columns of the answer.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};

use crate::history::{EVENT_TIMESTAMP, History, HistorySchema};
use crate::merge::Rules;
use crate::moment::{Zoneless, check_type, timestamp_type};
use crate::status::status_type;
use crate::write::fits;
use crate::{FeatureError, Result};

/// A view, and what is wanted of it.
#[derive(Debug, Clone)]
pub struct FeatureView {
    /// Its columns and buckets.
    pub schema: HistorySchema,
    /// Its files.
    pub history: History,
    /// How old a row may be: `T - ttl` itself is young enough. `None`: as old as it likes.
    pub ttl: Option<Duration>,
    /// Which features, in the order of the answer.
    pub features: Vec<String>,
    /// The spine's columns that hold the keys, in the keys' order.
    pub join_keys: Vec<String>,
    /// Rows that later versions brought are not seen, even where files were merged since. `None`: all rows.
    pub as_of_version: Option<i64>,
}

impl FeatureView {
    /// All features, for keys that the spine calls by the view's names.
    pub fn all(schema: HistorySchema, history: History) -> Self {
        let names = |fields: &[FieldRef]| fields.iter().map(|field| field.name().clone()).collect();
        let (features, join_keys) = (names(schema.features()), names(schema.keys()));
        Self { schema, history, ttl: None, features, join_keys, as_of_version: None }
    }
}

/// Which status columns there are beside the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatusColumns {
    /// None: a null does not say why.
    None,
    /// `<view>__status`, one a view. A value that is null where its view is `PRESENT` is a null of the feature's own.
    #[default]
    View,
    /// `<view>__status`, and `<column>__status` for each feature, which says `NULL_VALUE` as well.
    Value,
}

/// How the views are joined, and what it may take.
#[derive(Debug, Clone)]
pub struct Options {
    /// The spine's column with the moment of each row, T.
    pub timestamp: String,
    /// `event_timestamp < T` instead of `<= T`.
    pub strict: bool,
    /// `known_at <= T`: what arrived later was not known. Without it a value is seen from its event time on, which is more than anybody had then.
    pub known_only: bool,
    /// Columns are called `<view>__<feature>` instead of `<feature>`.
    pub full_names: bool,
    /// Which status columns there are.
    pub status: StatusColumns,
    /// Whether there is `<view>__event_timestamp`: when the row that counts happened, null where none was found. Microseconds in UTC.
    pub event_timestamps: bool,
    /// What a timestamp without a zone is.
    pub zoneless: Zoneless,
    /// How many buckets are worked on side by side. Each holds one row group of one file.
    pub workers: NonZeroUsize,
    /// About how much memory a part of the spine with its answer may take, in bytes. A spine that needs more is answered in parts, and each part reads the
    /// history that it touches.
    pub memory_bytes: usize,
    /// Rows of a batch of the answer at most.
    pub batch_rows: NonZeroUsize,
}

impl Options {
    /// The contract's defaults, for moments in the column `timestamp`.
    pub fn new(timestamp: impl Into<String>) -> Self {
        Self {
            timestamp: timestamp.into(),
            strict: false,
            known_only: true,
            full_names: false,
            status: StatusColumns::default(),
            event_timestamps: false,
            zoneless: Zoneless::default(),
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            memory_bytes: 512 << 20,
            batch_rows: NonZeroUsize::MIN.saturating_add(65_535),
        }
    }
}

/// A request that can be answered for this spine.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) schema: SchemaRef,
    /// The place of the moments among the spine's columns.
    pub(crate) timestamp: usize,
    pub(crate) views: Vec<CheckedView>,
}

#[derive(Debug)]
pub(crate) struct CheckedView {
    pub(crate) schema: HistorySchema,
    pub(crate) history: History,
    pub(crate) rules: Rules,
    pub(crate) features: Vec<FieldRef>,
    /// The places of the keys among the spine's columns.
    pub(crate) keys: Vec<usize>,
}

pub(crate) fn check(spine: &SchemaRef, views: Vec<FeatureView>, options: &Options) -> Result<Checked> {
    let place = |name: &str| match spine.index_of(name) {
        Ok(at) => Ok(at),
        Err(_) => Err(FeatureError::MissingColumn { place: "the spine".to_owned(), column: name.to_owned() }),
    };
    let timestamp = place(&options.timestamp)?;
    check_type("the spine", &options.timestamp, spine.field(timestamp).data_type(), options.zoneless)?;
    let mut columns = Columns::default();
    for field in spine.fields() {
        columns.add("the spine".to_owned(), Arc::clone(field), "rename one of them in the spine")?;
    }
    let mut checked = Vec::with_capacity(views.len());
    for view in views {
        let name = view.schema.view().to_owned();
        if view.join_keys.len() != view.schema.keys().len() {
            let (given, expected) = (view.join_keys.len(), view.schema.keys().len());
            return Err(FeatureError::Request(format!("view {name} has {expected} key columns, {given} are joined")));
        }
        let mut keys = Vec::with_capacity(view.join_keys.len());
        for (join_key, key) in view.join_keys.iter().zip(view.schema.keys()) {
            let at = place(join_key)?;
            let found = spine.field(at).data_type();
            if !fits(found, key.data_type()) {
                return Err(FeatureError::ColumnType {
                    place: format!("the spine, joined with {name}"),
                    column: join_key.clone(),
                    found: found.clone(),
                    expected: key.data_type().to_string(),
                });
            }
            keys.push(at);
        }
        let features =
            view.features.iter().map(|feature| find_feature(&view.schema, feature)).collect::<Result<Vec<_>>>()?;
        if let Some(version) = view.as_of_version {
            check_version(&view, version)?;
        }
        let ttl = match view.ttl {
            // A ttl of more than 292,000 years is none.
            Some(ttl) => i64::try_from(ttl.as_micros()).ok(),
            None => None,
        };
        let rules =
            Rules { strict: options.strict, known_only: options.known_only, ttl, as_of_version: view.as_of_version };
        columns.add_view(&name, &features, options)?;
        checked.push(CheckedView { schema: view.schema, history: view.history, rules, features, keys });
    }
    Ok(Checked { schema: Arc::new(Schema::new(columns.fields)), timestamp, views: checked })
}

fn check_version(view: &FeatureView, version: i64) -> Result<()> {
    let first = view.history.all_files().map(|file| *file.versions.start()).min();
    let last = view.history.all_files().map(|file| *file.versions.end()).max();
    match (first, last) {
        (Some(first), Some(last)) if version < first => {
            Err(FeatureError::VersionGone { view: view.schema.view().to_owned(), version, versions: first..=last })
        }
        _ => Ok(()),
    }
}

fn find_feature(schema: &HistorySchema, name: &str) -> Result<FieldRef> {
    if let Some(field) = schema.features().iter().find(|field| field.name() == name) {
        return Ok(Arc::clone(field));
    }
    let known: Vec<String> = schema.features().iter().map(|field| field.name().clone()).collect();
    let close = known.iter().map(|other| (strsim::damerau_levenshtein(name, other), other)).min();
    let suggestion = match close {
        Some((distance, other)) if distance <= 1 + name.chars().count() / 4 => format!(": did you mean {other}?"),
        _ => String::new(),
    };
    Err(FeatureError::UnknownFeature { view: schema.view().to_owned(), feature: name.to_owned(), suggestion, known })
}

/// The columns of the answer so far, and where each comes from.
#[derive(Default)]
struct Columns {
    fields: Vec<FieldRef>,
    sources: HashMap<String, String>,
}

impl Columns {
    fn add(&mut self, source: String, field: FieldRef, remedy: &'static str) -> Result<()> {
        if let Some(first) = self.sources.insert(field.name().clone(), source.clone()) {
            return Err(FeatureError::Collision { column: field.name().clone(), first, second: source, remedy });
        }
        self.fields.push(field);
        Ok(())
    }

    /// Values, then statuses and the event time, in the order in which [`crate::answer`] gives them.
    fn add_view(&mut self, view: &str, features: &[FieldRef], options: &Options) -> Result<()> {
        const FULL: &str = "ask for full names, or rename one";
        const RENAME: &str = "rename a view or a feature";
        let remedy = if options.full_names { RENAME } else { FULL };
        for feature in features {
            let source = format!("{view}:{}", feature.name());
            let column = feature_column(view, feature.name(), options.full_names);
            // A column's metadata (comments, personal data) goes with it.
            self.add(source.clone(), Arc::new(feature.as_ref().clone().with_name(&column)), remedy)?;
            if options.status == StatusColumns::Value {
                let field = Field::new(status_column_of(&column), status_type(), false);
                self.add(format!("the status of {source}"), Arc::new(field), remedy)?;
            }
        }
        if options.status != StatusColumns::None {
            let field = Field::new(status_column_of(view), status_type(), false);
            self.add(format!("the status of view {view}"), Arc::new(field), RENAME)?;
        }
        if options.event_timestamps {
            let field = Field::new(event_timestamp_column(view), timestamp_type(), true);
            self.add(format!("the event timestamp of view {view}"), Arc::new(field), RENAME)?;
        }
        Ok(())
    }
}

/// What an answer calls a feature: under its full name, or by itself.
pub fn feature_column(view: &str, feature: &str, full: bool) -> String {
    if full { format!("{view}__{feature}") } else { feature.to_owned() }
}

/// What it calls the status of a view or of a feature's column.
pub fn status_column_of(name: &str) -> String {
    format!("{name}__status")
}

/// What it calls the event timestamp of a view.
pub fn event_timestamp_column(view: &str) -> String {
    format!("{view}__{EVENT_TIMESTAMP}")
}
