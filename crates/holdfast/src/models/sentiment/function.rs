//! `sentiment(text)` and `sentiment(text, language)` in SQL: what the champion of the model of texts reads in a text.
//!
//! ```sql
//! select r.review_id, sentiment(r.text, r.language)['score'] as score
//! from core.reviews r
//! ```

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Builder, Int32Builder, StringArray, StringBuilder, StructArray, new_null_array,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use holdfast_engine::{RowFunctions, SubjectVersion};

use super::SENTIMENT;
use super::stored::LoadedTexts;

/// Who reads texts in a session.
#[derive(Debug, Clone)]
pub(crate) enum Reader {
    Champion(Arc<LoadedTexts>),
    /// Nobody yet: what texts say is not known. So stages can be made before there is a model.
    Nobody,
    /// Nobody answers: why, and what to do.
    Silent(String),
}

impl Reader {
    /// Adds the function to those of a session.
    pub(crate) fn add_to(self, functions: &mut RowFunctions) {
        functions.versions.insert(SENTIMENT.to_owned(), self.version());
        let function = Arc::new(ScalarUDF::from(SentimentOf::new(Arc::new(self))));
        functions.of_values.push((function, SENTIMENT.to_owned()));
    }

    fn version(&self) -> SubjectVersion {
        match self {
            Self::Champion(champion) => {
                let version = &champion.version;
                SubjectVersion {
                    told: format!("model {SENTIMENT}: version {}", version.version),
                    exact: format!("{} {}", version.version, version.artefact_hash),
                }
            }
            Self::Nobody | Self::Silent(_) => {
                SubjectVersion { told: format!("model {SENTIMENT}: nobody"), exact: "nobody".to_owned() }
            }
        }
    }
}

#[derive(Debug)]
struct SentimentOf {
    reader: Arc<Reader>,
    signature: Signature,
}

impl SentimentOf {
    fn new(reader: Arc<Reader>) -> Self {
        let arguments = vec![TypeSignature::String(1), TypeSignature::String(2)];
        Self { reader, signature: Signature::one_of(arguments, Volatility::Immutable) }
    }
}

/// Sessions over the same reader have the same function.
impl PartialEq for SentimentOf {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.reader, &other.reader)
    }
}

impl Eq for SentimentOf {}

impl Hash for SentimentOf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.reader).hash(state);
    }
}

impl ScalarUDFImpl for SentimentOf {
    fn name(&self) -> &'static str {
        SENTIMENT
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Struct(fields()))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let text = |place: usize| -> Result<Option<StringArray>> {
            let Some(argument) = arguments.args.get(place) else { return Ok(None) };
            let array = arrow::compute::cast(&argument.to_array(rows)?, &DataType::Utf8)?;
            Ok(Some(array.as_string::<i32>().clone()))
        };
        let Some(texts) = text(0)? else { return exec_err!("{SENTIMENT} reads a text") };
        let languages = text(1)?;
        match self.reader.as_ref() {
            Reader::Champion(champion) => Ok(ColumnarValue::Array(said(champion, &texts, languages.as_ref())?)),
            Reader::Silent(why) if texts.null_count() < texts.len() => exec_err!("{why}"),
            Reader::Nobody | Reader::Silent(_) => {
                Ok(ColumnarValue::Array(new_null_array(&DataType::Struct(fields()), texts.len())))
            }
        }
    }
}

fn fields() -> Fields {
    let field = |name, kind| Field::new(name, kind, true);
    Fields::from(vec![
        field("score", DataType::Float64),
        field("confidence", DataType::Float64),
        field("tone", DataType::Utf8),
        field("language", DataType::Utf8),
        field("version", DataType::Int32),
    ])
}

/// What the champion reads in texts; null for a text that is null. A language that is given is the answer's; else it is told by script.
fn said(champion: &LoadedTexts, texts: &StringArray, languages: Option<&StringArray>) -> Result<ArrayRef> {
    let (mut scores, mut confidences) = (Float64Builder::new(), Float64Builder::new());
    let (mut tones, mut written, mut versions) = (StringBuilder::new(), StringBuilder::new(), Int32Builder::new());
    for (row, text) in texts.iter().enumerate() {
        let Some(text) = text else {
            scores.append_null();
            confidences.append_null();
            tones.append_null();
            written.append_null();
            versions.append_null();
            continue;
        };
        let said = champion.model.read(text);
        let given = languages.filter(|languages| languages.is_valid(row)).map(|languages| languages.value(row).trim());
        scores.append_value(said.score);
        confidences.append_value(said.confidence);
        tones.append_value(said.tone.as_str());
        match given.filter(|given| !given.is_empty()) {
            Some(given) => written.append_value(given.to_lowercase()),
            None => written.append_value(said.language.as_str()),
        }
        versions.append_value(champion.version.version);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(scores.finish()),
        Arc::new(confidences.finish()),
        Arc::new(tones.finish()),
        Arc::new(written.finish()),
        Arc::new(versions.finish()),
    ];
    let known = NullBuffer::from_iter(texts.iter().map(|text| text.is_some()));
    Ok(Arc::new(StructArray::try_new(fields(), columns, Some(known))?))
}
