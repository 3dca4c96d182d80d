use arrow::datatypes::{DataType, Field, SchemaRef};
use holdfast_types::{COMMENT_KEY, CUSTOMER_BUCKET, CUSTOMER_ID, PII_KEY, TableName};
use serde::{Deserialize, Serialize};

use crate::stage::Stage;

/// The column that says when a row became true, where a stage names no other.
const EVENT_TIMESTAMP: &str = "event_timestamp";

/// Schemas whose tables say what became of customers later: their views are labels.
pub(crate) const LABELS: [&str; 2] = ["label", "labels"];
/// The tag of a column that is one: it is no feature.
pub(crate) const LABEL_TAG: &str = "label";

/// A stage as a feature view: whose features it has, since when each row is true, and which columns are features.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureView {
    /// What references call it.
    pub name: String,
    /// The stage's table.
    pub table: TableName,
    /// The columns that name whose features a row has. One row for each.
    pub entity: Vec<String>,
    /// The column that says when a row became true; where there is none, it is when a run made it.
    pub event_timestamp: Option<String>,
    /// How old a row may be to be seen, in seconds.
    pub ttl_s: Option<i64>,
    /// Whether it is served from memory.
    pub online: bool,
    /// Its features, in the table's order.
    pub features: Vec<Feature>,
    /// The query, without comments and layout.
    pub sql: String,
    /// What the stage says of itself.
    pub description: String,
    /// Who answers for it.
    pub owner: Option<String>,
    /// Tags of the stage as a whole.
    pub tags: Vec<String>,
}

/// A feature: a column of a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// Its name.
    pub name: String,
    /// Its type, as Arrow writes it.
    pub data_type: String,
    /// What it means.
    pub comment: Option<String>,
    /// Whether it is personal data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_personal: bool,
}

impl FeatureView {
    /// The view that a stage makes, if it is one. `schema` has the columns of its table.
    pub fn of(stage: &Stage, schema: &SchemaRef) -> Option<Self> {
        let said = stage.directives.feature.as_ref()?;
        let entity = said.entity.clone().unwrap_or_else(|| vec![CUSTOMER_ID.to_owned()]);
        let is_moment = |name: &str| schema.field_with_name(name).is_ok_and(|field| is_timestamp(field.data_type()));
        let event_timestamp =
            said.event_timestamp.clone().or_else(|| is_moment(EVENT_TIMESTAMP).then(|| EVENT_TIMESTAMP.to_owned()));
        let is_label_view = LABELS.contains(&stage.name.schema());
        let is_feature = |field: &&arrow::datatypes::FieldRef| {
            !entity.contains(field.name())
                && event_timestamp.as_ref() != Some(field.name())
                && field.name() != CUSTOMER_BUCKET
                && (is_label_view || !field.metadata().contains_key(LABEL_TAG))
        };
        Some(Self {
            name: said.view.clone().unwrap_or_else(|| stage.name.table().to_owned()),
            table: stage.name.clone(),
            event_timestamp: event_timestamp.clone(),
            ttl_s: said.ttl.map(|ttl| ttl.num_seconds()),
            online: said.online,
            features: schema.fields().iter().filter(is_feature).map(|field| Feature::of(field)).collect(),
            entity: entity.clone(),
            sql: stage.statement.to_string(),
            description: stage.directives.description.clone(),
            owner: stage.directives.owner.clone(),
            tags: {
                let tags = stage.directives.tags.iter();
                tags.filter(|(_, columns)| columns.is_empty()).map(|(tag, _)| tag.clone()).collect()
            },
        })
    }

    /// Changes with what decides the values of its features, and with nothing else.
    pub fn data_hash(&self) -> String {
        let mut parts = vec![self.table.to_string(), self.sql.clone(), self.entity.join(",")];
        parts.push(self.event_timestamp.clone().unwrap_or_default());
        parts.extend(self.features.iter().flat_map(|feature| [feature.name.clone(), feature.data_type.clone()]));
        hash(&parts)
    }

    /// Changes with all that decides what is read of it. What is said of it for people is no part of that.
    pub fn hash(&self) -> String {
        let ttl = self.ttl_s.map(|ttl| ttl.to_string()).unwrap_or_default();
        hash(&[self.data_hash(), ttl, self.online.to_string()])
    }

    /// Whether it says what became of customers later.
    pub fn is_label(&self) -> bool {
        LABELS.contains(&self.table.schema())
    }

    /// One of its features.
    pub fn feature(&self, name: &str) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == name)
    }
}

impl Feature {
    fn of(field: &Field) -> Self {
        Self {
            name: field.name().clone(),
            data_type: field.data_type().to_string(),
            comment: field.metadata().get(COMMENT_KEY).cloned(),
            is_personal: field.metadata().contains_key(PII_KEY),
        }
    }
}

pub(crate) fn is_timestamp(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(..))
}

/// A hash of texts that changes with where each begins.
pub(crate) fn hash(parts: &[impl AsRef<str>]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        let part = part.as_ref();
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex().chars().take(32).collect()
}
