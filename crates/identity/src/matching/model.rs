//! Models in the lake: `identity.models` and `identity.match_terms`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, StringArray};
use arrow::datatypes::{Float64Type, Int64Type};
use holdfast_engine::{SessionSettings, TableRows, write_table};
use holdfast_lake::{CommitOutcome, Lake, Position};
use holdfast_linkage::{Common, LinkageModel};

use crate::Result;
use crate::error::IdentityError;
use crate::identifier::IdentifierTokens;
use crate::tables::{self, batch, moments, query};

/// A model and what was common when it was learnt.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) number: i64,
    /// Different records.
    pub(super) learnt_from: u64,
    pub(super) weights: LinkageModel,
    pub(super) common: Commons,
}

/// How a model is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fitted {
    pub(super) number: i64,
    pub(super) records: usize,
    pub(super) pairs: u64,
    pub(super) expected_matches: f64,
    pub(super) guard_cap: u32,
    pub(super) fitted_at: i64,
}

/// How common values and keys were, by keyed hashes.
#[derive(Debug)]
pub(super) struct Commons {
    pub(super) tokens: IdentifierTokens,
    /// Of each attribute its listed values, and what all others weigh.
    pub(super) terms: HashMap<String, (HashMap<i64, f64>, f64)>,
    pub(super) keys: HashSet<(usize, i64)>,
}

impl Common for Commons {
    fn term_bits(&self, column: &str, value: &str) -> f64 {
        let Some((listed, others)) = self.terms.get(column) else { return 0.0 };
        listed.get(&self.tokens.value_hash(column, value)).copied().unwrap_or(*others)
    }

    fn is_common(&self, rule: usize, key: &str) -> bool {
        self.keys.contains(&(rule, self.tokens.value_hash(&rule.to_string(), key)))
    }

    fn has_common_keys(&self) -> bool {
        !self.keys.is_empty()
    }
}

/// The number of the newest model, when it is for today's rules; 0: none.
pub(super) async fn newest_model(lake: &Lake, settings: &SessionSettings, tokens: &IdentifierTokens) -> Result<i64> {
    let Some(matching) = &tokens.rules().matching else { return Ok(0) };
    let spec = tables::models()?;
    if lake.table(&spec.name).await?.is_none() {
        return Ok(0);
    }
    let sql = "select model, fitted_for from identity.models order by model desc limit 1";
    let rows = query(lake, settings, &spec.name, sql).await?;
    let Some(rows) = rows.iter().find(|rows| rows.num_rows() > 0) else { return Ok(0) };
    let is_todays = rows.column(1).as_string::<i32>().value(0) == matching.fingerprint();
    Ok(if is_todays { rows.column(0).as_primitive::<Int64Type>().value(0) } else { 0 })
}

/// The number that the next model gets. One that died before it was there may have left its terms: its number is not given again.
pub(super) async fn next_number(lake: &Lake) -> Result<i64> {
    let mut newest = 0;
    for (spec, app_id) in [(tables::models()?, MODELS_APP), (tables::match_terms()?, TERMS_APP)] {
        if let Some(table) = lake.table(&spec.name).await? {
            newest = newest.max(table.position(app_id).await?.unwrap_or(0));
        }
    }
    Ok(newest + 1)
}

/// How many identifiers a customer may have under a model before the bar is raised.
pub(crate) async fn guard_of(lake: &Lake, settings: &SessionSettings, number: i64) -> Result<Option<u32>> {
    let spec = tables::models()?;
    if number == 0 || lake.table(&spec.name).await?.is_none() {
        return Ok(None);
    }
    let sql = format!("select guard_cap from identity.models where model = {number}");
    let rows = query(lake, settings, &spec.name, &sql).await?;
    let cap =
        rows.iter().find(|rows| rows.num_rows() > 0).map(|rows| rows.column(0).as_primitive::<Int64Type>().value(0));
    Ok(cap.and_then(|cap| u32::try_from(cap).ok()))
}

const MODELS_APP: &str = "identity/models";
const TERMS_APP: &str = "identity/match_terms";

impl Model {
    /// Reads a model.
    pub(super) async fn read(
        lake: &Lake,
        settings: &SessionSettings,
        tokens: &IdentifierTokens,
        number: i64,
    ) -> Result<Self> {
        let damaged = |what: String| IdentityError::Damaged(format!("identity.models: model {number}: {what}"));
        let sql = format!("select settings, records from identity.models where model = {number}");
        let rows = query(lake, settings, &tables::models()?.name, &sql).await?;
        let rows = rows.iter().find(|rows| rows.num_rows() > 0).ok_or_else(|| damaged("is not there".to_owned()))?;
        let learnt_from = u64::try_from(rows.column(1).as_primitive::<Int64Type>().value(0)).unwrap_or(0);
        let weights = LinkageModel::from_toml(rows.column(0).as_string::<i32>().value(0))
            .map_err(|error| damaged(error.to_string()))?;
        let mut common = Commons { tokens: tokens.clone(), terms: HashMap::new(), keys: HashSet::new() };
        let sql = format!("select attribute, token, bits from identity.match_terms where model = {number}");
        for rows in query(lake, settings, &tables::match_terms()?.name, &sql).await? {
            let token = rows.column(1).as_primitive::<Int64Type>();
            let bits = rows.column(2).as_primitive::<Float64Type>();
            for row in 0..rows.num_rows() {
                let attribute = rows.column(0).as_string::<i32>().value(row);
                match (token.is_valid(row), bits.is_valid(row)) {
                    (true, true) => {
                        let known = common.terms.entry(attribute.to_owned()).or_default();
                        known.0.insert(token.value(row), bits.value(row));
                    }
                    (false, true) => common.terms.entry(attribute.to_owned()).or_default().1 = bits.value(row),
                    (true, false) => {
                        let rule = attribute.parse().map_err(|_| damaged("has a key of no rule".to_owned()))?;
                        common.keys.insert((rule, token.value(row)));
                    }
                    (false, false) => {}
                }
            }
        }
        Ok(Self { number, learnt_from, weights, common })
    }

    /// Stores a model that was learnt just now: what was common first, the model last.
    pub(super) async fn write(&self, lake: &Lake, fitted_for: &str, fitted: Fitted) -> Result<()> {
        type Row<'a> = (String, Option<i64>, Option<f64>);
        let mut rows: Vec<Row<'_>> = Vec::new();
        for (attribute, (listed, others)) in &self.common.terms {
            rows.push((attribute.clone(), None, Some(*others)));
            rows.extend(listed.iter().map(|(token, bits)| (attribute.clone(), Some(*token), Some(*bits))));
        }
        rows.extend(self.common.keys.iter().map(|(rule, token)| (rule.to_string(), Some(*token), None)));
        rows.sort_unstable_by(|one, two| (&one.0, one.1).cmp(&(&two.0, two.1)));
        let number = self.number;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(std::iter::repeat_n(number, rows.len()))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.0))),
            Arc::new(rows.iter().map(|row| row.1).collect::<Int64Array>()),
            Arc::new(rows.iter().map(|row| row.2).collect::<Float64Array>()),
        ];
        let nothing = serde_json::Map::new;
        let spec = tables::match_terms()?;
        let position = Position { app_id: TERMS_APP.to_owned(), version: number };
        let rows = batch(&spec, columns)?;
        let written = write_table(lake, &spec, TableRows::Added(vec![rows]), position, nothing()).await?;
        if !matches!(written, CommitOutcome::Applied { .. }) {
            return Err(IdentityError::Concurrent);
        }

        let text = self.weights.to_toml().map_err(|error| IdentityError::Damaged(error.to_string()))?;
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let numbers = |number: i64| -> ArrayRef { Arc::new(Int64Array::from(vec![number])) };
        let columns: Vec<ArrayRef> = vec![
            numbers(number),
            moments(std::iter::once(Some(fitted.fitted_at))),
            Arc::new(StringArray::from(vec![fitted_for])),
            numbers(count(fitted.records as u64)),
            numbers(count(fitted.pairs)),
            Arc::new(Float64Array::from(vec![fitted.expected_matches])),
            numbers(i64::from(fitted.guard_cap)),
            Arc::new(StringArray::from(vec![text])),
        ];
        let spec = tables::models()?;
        let position = Position { app_id: MODELS_APP.to_owned(), version: number };
        match write_table(lake, &spec, TableRows::Added(vec![batch(&spec, columns)?]), position, nothing()).await? {
            CommitOutcome::Applied { .. } => Ok(()),
            CommitOutcome::AlreadyApplied { .. } | CommitOutcome::Conflicted { .. } => Err(IdentityError::Concurrent),
        }
    }
}
