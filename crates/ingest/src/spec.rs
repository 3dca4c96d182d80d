use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use globset::GlobBuilder;
use holdfast_types::{COMMENT_KEY, PII_KEY, TableName};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::Result;
use crate::error::IngestError;
use crate::grammar::{parse_type, suggest, type_name};
use crate::origin::{FeedSpec, FileGlob, Origin, place_in};
use crate::quality::QualityRules;
use crate::unknown::{UNKNOWN, unknown_column};
use crate::value::Zone;

/// The file that a raw row came from, relative to the folder that was ingested.
pub(crate) const SOURCE_FILE: &str = "_source_file";
/// The 1-based line of the row in its file; for Parquet the 1-based row.
pub(crate) const SOURCE_LINE: &str = "_source_line";
/// The batch that brought the row.
pub(crate) const BATCH: &str = "_batch";
/// When the row was read, UTC.
pub(crate) const INGESTED_AT: &str = "_ingested_at";
/// The replay that moved the row from quarantine to raw.
pub(crate) const REPLAY: &str = "_replay";

const RESERVED: [&str; 6] = [UNKNOWN, SOURCE_FILE, SOURCE_LINE, BATCH, INGESTED_AT, REPLAY];
const SOURCE_KEYS: [&str; 20] = [
    "kind",
    "description",
    "path",
    "feed",
    "format",
    "timezone",
    "event_time",
    "delimiter",
    "header",
    "compression",
    "encoding",
    "quoted_newlines",
    "null_values",
    "max_quarantine_share",
    "key",
    "quality",
    "discovery",
    "look_back",
    "columns",
    "identifiers",
];
const QUALITY_KEYS: [&str; 7] = [
    "max_null_share",
    "max_duplicate_share",
    "max_late_share",
    "max_refused_share",
    "late_after",
    "freshness_max",
    "volume",
];
const COLUMN_KEYS: [&str; 5] = ["type", "from", "pii", "comment", "epoch"];
const IDENTIFIER_KEYS: [&str; 2] = ["type", "value"];
const QUARANTINE_SHARE_DEFAULT: f64 = 0.2;
const LOOK_BACK_DEFAULT: usize = 1_000;
/// Characters that Delta readers do not accept in a column's name.
const NAME_FORBIDS: &[char] = &[' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '=', '`'];

/// The contract of one source: where its records come from, what they look like and what its rows hold.
#[derive(Debug, Clone)]
pub struct SourceSpec {
    /// The stem of the contract's file, and of the tables `raw.<name>` and `quarantine.<name>`.
    pub name: String,
    /// What kind of system it is, such as `crm` or `orders`.
    pub kind: String,
    /// One line about it.
    pub description: Option<String>,
    /// Where its records come from, beside its inbox.
    pub origin: Origin,
    /// How the files are written.
    pub format: FileFormat,
    /// The zone of timestamps that have no offset, as written; `None` is UTC.
    pub timezone: Option<String>,
    /// The column that says when the thing happened.
    pub event_time: Option<String>,
    /// The columns, in the order of the contract.
    pub columns: Vec<ColumnSpec>,
    /// What in a record points at a person.
    pub identifiers: Vec<IdentifierSpec>,
    /// What separates the fields of a CSV record.
    pub delimiter: u8,
    /// Whether a CSV file begins with the names of its columns.
    pub header: bool,
    /// How every file is compressed; `None` goes by the suffix: `.gz`, `.zst`.
    pub compression: Option<Compression>,
    /// The encoding of the text when it is not UTF-8: a name of the WHATWG Encoding Standard, such as `gb18030`.
    pub encoding: Option<&'static encoding_rs::Encoding>,
    /// Whether a quoted CSV field may hold line ends.
    pub quoted_newlines: bool,
    /// Texts that stand for no value, beside the empty CSV field.
    pub null_values: Vec<String>,
    /// The share of refused rows above which a file as a whole is refused.
    pub max_quarantine_share: f64,
    /// The columns that together tell one thing from another. A row with a key that came before is a duplicate, or a newer state.
    pub key: Vec<String>,
    /// What batches are held against.
    pub quality: QualityRules,
    /// The contract's file, as messages name it.
    pub(crate) file: String,
    /// What the names of its files say about when they came.
    pub discovery: Discovery,
    /// Whether a column that a Parquet file does not have is null there. Batches that were put fitted the contract of their
    /// day, which may have gained columns since.
    pub(crate) absent_is_null: bool,
    /// Changes with every change of the contract.
    pub(crate) fingerprint: String,
    pub(crate) zone: Zone,
}

/// How files are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// One record a line, fields separated by a character.
    Csv,
    /// One JSON object a line.
    Ndjson,
    /// Apache Parquet.
    Parquet,
}

/// What the names of files say about when they came: how a watched source is looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discovery {
    /// Nothing: all files are listed every time.
    Any,
    /// A file that comes later has a later name, in the order of text. Those behind the newest are listed, and a window before it.
    Growing {
        /// How many names the window has: for files that come out of order.
        look_back: usize,
    },
}

/// How a text file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more Zstandard frames.
    Zstd,
}

/// One column of a contract.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnSpec {
    /// Its name in `raw`.
    pub name: String,
    /// The header, field or Parquet column it is read from.
    pub source_name: String,
    /// Its type: one that Delta knows, timestamps as UTC microseconds.
    pub data_type: DataType,
    /// Whether it holds personal data.
    pub pii: bool,
    /// One line about it.
    pub comment: Option<String>,
    /// For timestamps that are written as a number: what it counts since 1970.
    pub epoch: Option<EpochUnit>,
    /// Line and column of its type in the contract.
    pub(crate) place: (usize, usize),
}

/// What a number that stands for a moment counts since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochUnit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
}

impl EpochUnit {
    pub(crate) fn digits_to_micros(self) -> i8 {
        match self {
            Self::Seconds => 6,
            Self::Milliseconds => 3,
            Self::Microseconds => 0,
        }
    }
}

/// One thing in a record that points at a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentifierSpec {
    /// Which type of identifier, as identity's rules name it.
    pub identifier_type: String,
    /// A SQL expression over the source's columns.
    pub value: String,
}

impl SourceSpec {
    /// Reads one contract. `file` is its name in messages; its stem is the source's name.
    ///
    /// # Errors
    /// [`IngestError::Contract`] with the place of the first mistake.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        Contract { file, text }.source()
    }

    /// The columns of `raw.<name>`: those of the contract, all nullable, then what a row had beside them, and where it came from.
    pub fn raw_schema(&self) -> SchemaRef {
        let declared = self.columns.iter().map(|column| {
            let mut metadata = HashMap::new();
            if let Some(comment) = &column.comment {
                metadata.insert(COMMENT_KEY.to_owned(), comment.clone());
            }
            if column.pii {
                metadata.insert(PII_KEY.to_owned(), "true".to_owned());
            }
            Field::new(&column.name, column.data_type.clone(), true).with_metadata(metadata)
        });
        let replay =
            note_field(REPLAY, DataType::Int64, "Replay that moved the row out of quarantine; null for others");
        Arc::new(Schema::new(
            declared.chain([unknown_column()]).chain(lineage_fields()).chain([replay]).collect::<Vec<_>>(),
        ))
    }

    /// Whether the columns that `raw` has already have the types of the contract: a column keeps its type for ever.
    pub(crate) fn check_types(&self, raw: &Schema) -> Result<()> {
        for column in &self.columns {
            let Ok(field) = raw.field_with_name(&column.name) else { continue };
            if field.data_type().equals_datatype(&column.data_type) {
                continue;
            }
            let (line, place) = column.place;
            let (name, source_name) = (&column.name, &column.source_name);
            let (old, new) = (type_name(field.data_type()), type_name(&column.data_type));
            return Err(IngestError::Contract {
                file: self.file.clone(),
                line,
                column: place,
                message: format!(
                    "`{name}` is {old} in raw.{} and {new} here, and a column keeps its type: write {old:?} again, or give what comes \
                     from now on a name of its own, `{name}_2 = {{ type = {new:?}, from = {source_name:?} }}`, in the place of this line",
                    self.name
                ),
            });
        }
        Ok(())
    }

    /// How the text file at `path` is compressed.
    pub(crate) fn compression_of(&self, path: &str) -> Compression {
        self.compression.unwrap_or_else(|| match path.rsplit_once('.') {
            Some((_, suffix)) if suffix.eq_ignore_ascii_case("gz") => Compression::Gzip,
            Some((_, suffix)) if suffix.eq_ignore_ascii_case("zst") => Compression::Zstd,
            _ => Compression::None,
        })
    }
}

/// Where a row of `raw` or `quarantine` came from.
pub(crate) fn lineage_fields() -> Vec<Field> {
    vec![
        note_field(SOURCE_FILE, DataType::Utf8, "File the row was read from, relative to the ingested folder"),
        note_field(SOURCE_LINE, DataType::Int64, "Line of the row in its file, from 1; for Parquet the row"),
        note_field(BATCH, DataType::Int64, "Batch that brought the row: see metric.ingest_batches"),
        note_field(INGESTED_AT, timestamp_type(), "When the row was read"),
    ]
}

fn note_field(name: &str, data_type: DataType, comment: &str) -> Field {
    Field::new(name, data_type, true).with_metadata(HashMap::from([(COMMENT_KEY.to_owned(), comment.to_owned())]))
}

pub(crate) fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))
}

/// Reads every `*.toml` of a folder, sorted by name.
///
/// # Errors
/// [`IngestError::Io`] when the folder or a file cannot be read or holds no contract, [`IngestError::Contract`] with
/// file, line and column of the first mistake.
pub fn load_sources(folder: &Path) -> Result<Vec<SourceSpec>> {
    let shown = folder.display();
    let io = |what: String| move |source| IngestError::Io { what, source };
    let entries = std::fs::read_dir(folder).map_err(io(format!("cannot read the folder of sources {shown}")))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(io(format!("cannot read the folder of sources {shown}")))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(IngestError::Io {
            what: format!("no source in {shown}: write one TOML file for each source"),
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        });
    }
    files.sort();
    files
        .iter()
        .map(|path| {
            let text =
                std::fs::read_to_string(path).map_err(io(format!("cannot read the contract {}", path.display())))?;
            SourceSpec::parse(&path.display().to_string(), &text)
        })
        .collect()
}

struct Contract<'a> {
    file: &'a str,
    text: &'a str,
}

type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;
type Value<'a> = Spanned<DeValue<'a>>;

impl Contract<'_> {
    fn source(&self) -> Result<SourceSpec> {
        let name = Path::new(self.file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        TableName::new("raw", &name)
            .map_err(|error| self.error(0, format!("the file's name becomes the name of a table, and {error}")))?;
        let table = DeTable::parse(self.text)
            .map_err(|error| self.error(error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
        let table = table.get_ref();
        self.known_keys(table, &SOURCE_KEYS, "a source")?;

        let origin = self.origin(table)?;
        let format = match (&origin, table.get("format")) {
            // A feed's records are written down by us.
            (Origin::Feed(_), None) => FileFormat::Ndjson,
            (Origin::Files(_), None) => return Err(self.error(0, "the key `format` is missing".to_owned())),
            (_, Some(format_at)) => match self.string(format_at)? {
                "csv" => FileFormat::Csv,
                "ndjson" => FileFormat::Ndjson,
                "parquet" => FileFormat::Parquet,
                other => return Err(self.unknown_word(format_at, "format", other, &["csv", "ndjson", "parquet"])),
            },
        };
        if let Origin::Feed(_) = &origin {
            let files_only = |key: &str| match key {
                "format" => format != FileFormat::Ndjson,
                key => ["compression", "encoding"].contains(&key),
            };
            if let Some((key, _)) = table.iter().find(|(key, _)| files_only(key.get_ref().as_ref())) {
                let message =
                    format!("`{}` is for files; the records of a feed are JSON objects: leave it out", key.get_ref());
                return Err(self.error(key.span().start, message));
            }
        }
        let timezone = self.optional(table, "timezone", Self::string)?.map(str::to_owned);
        let zone = match table.get("timezone") {
            None => Zone::UTC,
            Some(value) => Zone::parse(self.string(value)?).ok_or_else(|| {
                self.error_at(
                    value,
                    "unknown time zone; write an offset such as +08:00, or a name such as Europe/London".to_owned(),
                )
            })?,
        };
        let columns = self.columns(table, format)?;
        let event_time = self.optional(table, "event_time", Self::string)?.map(str::to_owned);
        if let (Some(event_time), Some(value)) = (&event_time, table.get("event_time")) {
            self.check_event_time(event_time, value, &columns)?;
        }
        let key = self.optional(table, "key", |contract, value| contract.key(value, &columns))?.unwrap_or_default();
        let quality = match table.get("quality") {
            Some(value) => self.quality(value, &columns, !key.is_empty(), event_time.is_some())?,
            None => QualityRules::default(),
        };
        let csv_only = ["delimiter", "header", "quoted_newlines"];
        if format != FileFormat::Csv
            && let Some((key, _)) = table.iter().find(|(key, _)| csv_only.contains(&key.get_ref().as_ref()))
        {
            return Err(self.error(key.span().start, format!("`{}` is for format = \"csv\" only", key.get_ref())));
        }
        let discovery = self.discovery(table)?;
        Ok(SourceSpec {
            name,
            kind: self.string(self.required(table, "kind", 0)?)?.to_owned(),
            description: self.optional(table, "description", Self::string)?.map(str::to_owned),
            origin,
            format,
            timezone,
            event_time,
            columns,
            identifiers: self.identifiers(table)?,
            delimiter: self.optional(table, "delimiter", Self::delimiter)?.unwrap_or(b','),
            header: self.optional(table, "header", Self::boolean)?.unwrap_or(true),
            compression: self.optional(table, "compression", Self::compression)?,
            encoding: self.optional(table, "encoding", Self::encoding)?.flatten(),
            quoted_newlines: self.optional(table, "quoted_newlines", Self::boolean)?.unwrap_or(false),
            null_values: self.optional(table, "null_values", Self::strings)?.unwrap_or_default(),
            max_quarantine_share: self
                .optional(table, "max_quarantine_share", Self::share)?
                .unwrap_or(QUARANTINE_SHARE_DEFAULT),
            key,
            quality,
            file: self.file.to_owned(),
            discovery,
            absent_is_null: false,
            fingerprint: blake3::hash(self.text.as_bytes()).to_hex()[..16].to_owned(),
            zone,
        })
    }

    /// Exactly one of `path` and `[feed]`.
    fn origin(&self, table: &DeTable<'_>) -> Result<Origin> {
        let path_at = match (table.get("path"), table.get_key_value("feed")) {
            (Some(path_at), None) => path_at,
            (None, Some((_, value))) => {
                let feed = self.table(value)?;
                let kind = self.string(self.required(feed, "kind", value.span().start)?)?;
                return Ok(Origin::Feed(FeedSpec::new(kind, self.file, self.text)));
            }
            (Some(_), Some((key, _))) => {
                return Err(self.error(
                    key.span().start,
                    "a source has either `path`, for files, or a section [feed]: leave one of them out".to_owned(),
                ));
            }
            (None, None) => {
                let message = "the key `path` is missing: where its files are; or, for a source that is read from another \
                               system, a section [feed]";
                return Err(self.error(0, message.to_owned()));
            }
        };
        let path = self.string(path_at)?.to_owned();
        if path.starts_with('/') || path.contains("://") || path.split('/').any(|part| part == "..") {
            return Err(self.error_at(
                path_at,
                "path is a glob relative to the ingested folder: no leading `/`, no `..`, no scheme".to_owned(),
            ));
        }
        let matcher = GlobBuilder::new(&path)
            .literal_separator(true)
            .build()
            .map_err(|error| self.error_at(path_at, format!("not a glob: {}", error.kind())))?
            .compile_matcher();
        Ok(Origin::Files(FileGlob { path, matcher }))
    }

    fn discovery(&self, table: &DeTable<'_>) -> Result<Discovery> {
        let look_back = self.optional(table, "look_back", Self::window)?;
        match table.get("discovery").map(|at| self.string(at).map(|word| (at, word))).transpose()? {
            Some((_, "growing")) => Ok(Discovery::Growing { look_back: look_back.unwrap_or(LOOK_BACK_DEFAULT) }),
            Some((_, "any")) | None => match table.get("look_back") {
                Some(at) => Err(self.error_at(at, "`look_back` is for discovery = \"growing\" only".to_owned())),
                None => Ok(Discovery::Any),
            },
            Some((at, other)) => Err(self.unknown_word(at, "discovery", other, &["any", "growing"])),
        }
    }

    fn window(&self, value: &Value<'_>) -> Result<usize> {
        let names = value.get_ref().as_integer().and_then(|number| number.as_str().parse().ok());
        names
            .filter(|names| (1..=1_000_000).contains(names))
            .ok_or_else(|| self.error_at(value, "`look_back` is a number of names, from 1 to 1000000".to_owned()))
    }

    fn columns(&self, table: &DeTable<'_>, format: FileFormat) -> Result<Vec<ColumnSpec>> {
        let value = self.required(table, "columns", 0)?;
        let declared = self.table(value)?;
        // The table sorts its keys by name; their places in the text give back the order of the contract.
        let mut entries: Vec<(&Key<'_>, &Value<'_>)> = declared.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        if entries.is_empty() {
            return Err(self.error_at(value, "a source has at least one column".to_owned()));
        }
        let mut columns: Vec<ColumnSpec> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let column = self.column(key, value, format)?;
            if let Some(other) = columns.iter().find(|other| other.name.eq_ignore_ascii_case(&column.name)) {
                return Err(self.error(
                    key.span().start,
                    format!(
                        "`{}` and `{}` differ in case only, which many readers of tables do not see",
                        column.name, other.name
                    ),
                ));
            }
            if let Some(other) = columns.iter().find(|other| other.source_name == column.source_name) {
                return Err(self.error(
                    key.span().start,
                    format!("`{}` is read from `{}`, as is `{}`", column.name, column.source_name, other.name),
                ));
            }
            columns.push(column);
        }
        Ok(columns)
    }

    fn column(&self, key: &Key<'_>, value: &Value<'_>, format: FileFormat) -> Result<ColumnSpec> {
        let name = key.get_ref().to_string();
        let at_key = |message: String| self.error(key.span().start, message);
        if name.is_empty() || name.contains(NAME_FORBIDS) {
            return Err(at_key(format!(
                "`{name}` cannot name a column of a Delta table; choose a plain name and write from = {name:?}"
            )));
        }
        if RESERVED.contains(&name.as_str()) {
            return Err(at_key(format!("`{name}` is a column that ingestion adds by itself; choose another name")));
        }
        let (type_at, options) = match value.get_ref() {
            DeValue::Table(options) => {
                self.known_keys(options, &COLUMN_KEYS, "a column")?;
                (self.required(options, "type", key.span().start)?, Some(options))
            }
            _ => (value, None),
        };
        let spelled = self.string(type_at)?;
        let data_type = parse_type(spelled).map_err(|error| {
            // One byte further: the opening quote.
            self.error(type_at.span().start + 1 + error.offset, error.message)
        })?;
        if format == FileFormat::Csv && matches!(data_type, DataType::List(_) | DataType::Struct(_)) {
            return Err(self.error_at(type_at, "a CSV field cannot hold a list or a struct".to_owned()));
        }
        let mut column = ColumnSpec {
            source_name: name.clone(),
            name,
            data_type,
            pii: false,
            comment: None,
            epoch: None,
            place: place_in(self.text, type_at.span().start),
        };
        if let Some(options) = options {
            if let Some(from) = self.optional(options, "from", Self::string)? {
                column.source_name = from.to_owned();
            }
            column.pii = self.optional(options, "pii", Self::boolean)?.unwrap_or(false);
            column.comment = self.optional(options, "comment", Self::string)?.map(str::to_owned);
            column.epoch = self.optional(options, "epoch", Self::epoch)?;
            if let (Some(_), Some(at)) = (column.epoch, options.get("epoch"))
                && !matches!(column.data_type, DataType::Timestamp(_, _))
            {
                return Err(self.error_at(at, "`epoch` is for columns of type timestamp".to_owned()));
            }
        }
        Ok(column)
    }

    fn identifiers(&self, table: &DeTable<'_>) -> Result<Vec<IdentifierSpec>> {
        let Some(value) = table.get("identifiers") else { return Ok(Vec::new()) };
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.error_at(value, "write each identifier as a section [[identifiers]]".to_owned()));
        };
        items
            .iter()
            .map(|item| {
                let fields = self.table(item)?;
                self.known_keys(fields, &IDENTIFIER_KEYS, "an identifier")?;
                let at = item.span().start;
                Ok(IdentifierSpec {
                    identifier_type: self.string(self.required(fields, "type", at)?)?.to_owned(),
                    value: self.string(self.required(fields, "value", at)?)?.to_owned(),
                })
            })
            .collect()
    }

    fn key(&self, value: &Value<'_>, columns: &[ColumnSpec]) -> Result<Vec<String>> {
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.wrong_type(value, "a list of columns, such as [\"order_id\"],"));
        };
        let mut key: Vec<String> = Vec::new();
        for item in items {
            let name = self.known_column(item, columns)?;
            if key.iter().any(|other| other == name) {
                return Err(self.error_at(item, format!("`{name}` stands in the key twice")));
            }
            key.push(name.to_owned());
        }
        if key.is_empty() { Err(self.error_at(value, "a key has at least one column".to_owned())) } else { Ok(key) }
    }

    fn known_column<'t>(&self, value: &'t Value<'_>, columns: &[ColumnSpec]) -> Result<&'t str> {
        let name = self.string(value)?;
        if columns.iter().any(|column| column.name == name) {
            return Ok(name);
        }
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        Err(self.unknown_word(value, "column", name, &names))
    }

    fn quality(
        &self,
        value: &Value<'_>,
        columns: &[ColumnSpec],
        has_key: bool,
        has_event_time: bool,
    ) -> Result<QualityRules> {
        let table = self.table(value)?;
        self.known_keys(table, &QUALITY_KEYS, "[quality]")?;
        let defaults = QualityRules::default();
        let mut max_null_share = BTreeMap::new();
        if let Some(value) = table.get("max_null_share") {
            let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            let shares = self.table(value)?;
            self.known_keys(shares, &names, "the contract")?;
            for (name, share) in shares.iter() {
                max_null_share.insert(name.get_ref().to_string(), self.share(share)?);
            }
        }
        let needs = |key: &str, is_there: bool, needed: &str| match table.get(key) {
            Some(value) if !is_there => Err(self.error_at(value, format!("`{key}` needs {needed}"))),
            _ => Ok(()),
        };
        needs("max_duplicate_share", has_key, "a key: name its columns, such as key = [\"order_id\"]")?;
        needs("max_late_share", has_event_time, "event_time, the column that says when it happened")?;
        Ok(QualityRules {
            max_null_share,
            max_duplicate_share: self.optional(table, "max_duplicate_share", Self::share)?,
            max_late_share: self.optional(table, "max_late_share", Self::share)?,
            max_refused_share: self
                .optional(table, "max_refused_share", Self::share)?
                .unwrap_or(defaults.max_refused_share),
            late_after: self.optional(table, "late_after", Self::duration)?.unwrap_or(defaults.late_after),
            freshness_max: self.optional(table, "freshness_max", Self::duration)?,
            volume: self.optional(table, "volume", Self::volume)?.unwrap_or(defaults.volume),
        })
    }

    /// `7d`, `36h`, `90m`, `60s`.
    fn duration(&self, value: &Value<'_>) -> Result<Duration> {
        let text = self.string(value)?;
        let units = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)];
        let read = units.iter().find_map(|(unit, seconds)| {
            text.strip_suffix(*unit)?.parse::<u32>().ok().map(|count| Duration::from_secs(u64::from(count) * seconds))
        });
        read.ok_or_else(|| self.error_at(value, "a time is a number and a unit: 7d, 36h, 90m or 60s".to_owned()))
    }

    /// The least and the most, as parts of what is usual.
    fn volume(&self, value: &Value<'_>) -> Result<(f64, f64)> {
        let wrong = || {
            self.error_at(value, "volume is the least and the most, as parts of what is usual: [0.5, 2.0]".to_owned())
        };
        let DeValue::Array(items) = value.get_ref() else { return Err(wrong()) };
        let number = |item: &Value<'_>| match item.get_ref() {
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Integer(number) => number.as_str().parse::<f64>().ok(),
            _ => None,
        };
        let numbers: Option<Vec<f64>> = items.iter().map(number).collect();
        match numbers.as_deref() {
            Some([least, most]) if (0.0..=1.0).contains(least) && (1.0..).contains(most) => Ok((*least, *most)),
            _ => Err(wrong()),
        }
    }

    fn check_event_time(&self, event_time: &str, value: &Value<'_>, columns: &[ColumnSpec]) -> Result<()> {
        match columns.iter().find(|column| column.name == event_time) {
            Some(column) if matches!(column.data_type, DataType::Timestamp(_, _) | DataType::Date32) => Ok(()),
            Some(_) => Err(self.error_at(value, format!("`{event_time}` is not a timestamp or date"))),
            None => self.known_column(value, columns).map(|_| ()),
        }
    }

    fn known_keys(&self, table: &DeTable<'_>, known: &[&str], what: &str) -> Result<()> {
        for (key, _) in table.iter() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let hint = match suggest(name, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("{what} has {}", known.join(", ")),
                };
                return Err(self.error(key.span().start, format!("unknown key `{name}`; {hint}")));
            }
        }
        Ok(())
    }

    fn required<'t, 'i>(&self, table: &'t DeTable<'i>, key: &str, at: usize) -> Result<&'t Value<'i>> {
        table.get(key).ok_or_else(|| self.error(at, format!("the key `{key}` is missing")))
    }

    fn optional<'t, T>(
        &self,
        table: &'t DeTable<'_>,
        key: &str,
        read: impl FnOnce(&Self, &'t Value<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        table.get(key).map(|value| read(self, value)).transpose()
    }

    fn string<'t>(&self, value: &'t Value<'_>) -> Result<&'t str> {
        value.get_ref().as_str().ok_or_else(|| self.wrong_type(value, "a text in quotes"))
    }

    fn strings(&self, value: &Value<'_>) -> Result<Vec<String>> {
        let DeValue::Array(items) = value.get_ref() else { return Err(self.wrong_type(value, "a list of texts")) };
        items.iter().map(|item| self.string(item).map(str::to_owned)).collect()
    }

    fn boolean(&self, value: &Value<'_>) -> Result<bool> {
        value.get_ref().as_bool().ok_or_else(|| self.wrong_type(value, "true or false"))
    }

    fn table<'t, 'i>(&self, value: &'t Value<'i>) -> Result<&'t DeTable<'i>> {
        value.get_ref().as_table().ok_or_else(|| self.wrong_type(value, "a section"))
    }

    fn delimiter(&self, value: &Value<'_>) -> Result<u8> {
        match self.string(value)?.as_bytes() {
            [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Ok(*byte),
            _ => Err(self.error_at(value, "a delimiter is one ASCII character, such as \";\" or \"\\t\"".to_owned())),
        }
    }

    fn compression(&self, value: &Value<'_>) -> Result<Compression> {
        match self.string(value)? {
            "gzip" => Ok(Compression::Gzip),
            "zstd" => Ok(Compression::Zstd),
            "none" => Ok(Compression::None),
            other => Err(self.unknown_word(value, "compression", other, &["gzip", "none", "zstd"])),
        }
    }

    /// `None` for UTF-8, which is read as it is.
    fn encoding(&self, value: &Value<'_>) -> Result<Option<&'static encoding_rs::Encoding>> {
        let name = self.string(value)?;
        let known = ["utf-8", "gb18030", "gbk", "big5", "shift_jis", "euc-kr", "windows-1252", "utf-16le", "utf-16be"];
        match encoding_rs::Encoding::for_label_no_replacement(name.as_bytes()) {
            Some(encoding) if encoding == encoding_rs::UTF_8 => Ok(None),
            Some(encoding) => Ok(Some(encoding)),
            None => Err(self.unknown_word(value, "encoding", name, &known)),
        }
    }

    fn epoch(&self, value: &Value<'_>) -> Result<EpochUnit> {
        match self.string(value)? {
            "s" => Ok(EpochUnit::Seconds),
            "ms" => Ok(EpochUnit::Milliseconds),
            "us" => Ok(EpochUnit::Microseconds),
            other => Err(self.unknown_word(value, "epoch unit", other, &["s", "ms", "us"])),
        }
    }

    fn share(&self, value: &Value<'_>) -> Result<f64> {
        let text = match value.get_ref() {
            DeValue::Float(number) => number.as_str(),
            DeValue::Integer(number) => number.as_str(),
            _ => return Err(self.wrong_type(value, "a number from 0 to 1")),
        };
        text.parse()
            .ok()
            .filter(|share| (0.0..=1.0).contains(share))
            .ok_or_else(|| self.error_at(value, "a share is a number from 0 to 1".to_owned()))
    }

    fn wrong_type(&self, value: &Value<'_>, wanted: &str) -> IngestError {
        self.error_at(value, format!("{wanted} is expected here, not a {}", value.get_ref().type_str()))
    }

    fn unknown_word(&self, value: &Value<'_>, what: &str, given: &str, known: &[&str]) -> IngestError {
        let hint = match suggest(given, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known: {}", known.join(", ")),
        };
        self.error_at(value, format!("unknown {what} `{given}`; {hint}"))
    }

    fn error_at(&self, value: &Value<'_>, message: String) -> IngestError {
        self.error(value.span().start, message)
    }

    fn error(&self, offset: usize, message: String) -> IngestError {
        let (line, column) = place_in(self.text, offset);
        IngestError::Contract { file: self.file.to_owned(), line, column, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str = "kind = \"orders\"\npath = \"orders/*.csv\"\nformat = \"csv\"\nevent_time = \"at\"\n\n[columns]\nid = { type = \"string\", from = \"Id\", pii = true, comment = \"an id\" }\nat = \"timestamp\"\namount = \"decimal(12,2)\"\n\n[[identifiers]]\ntype = \"member_id\"\nvalue = \"id\"\n";

    #[test]
    fn a_contract_gives_the_columns_in_its_own_order() {
        let spec = SourceSpec::parse("pipelines/p/sources/orders.toml", CONTRACT).unwrap();
        let schema = spec.raw_schema();
        let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(
            names,
            ["id", "at", "amount", "_unknown", "_source_file", "_source_line", "_batch", "_ingested_at", "_replay"]
        );
        assert_eq!(schema.field(0).metadata().get("pii").map(String::as_str), Some("true"));
        assert_eq!(spec.columns[0].source_name, "Id");
        assert_eq!(spec.identifiers[0].identifier_type, "member_id");
        let Origin::Files(glob) = &spec.origin else { panic!("it has a path") };
        assert_eq!(glob.folder(), "orders");
        assert!(glob.matcher.is_match("orders/1.csv") && !glob.matcher.is_match("orders/x/1.csv"));
    }

    #[test]
    fn a_contract_says_what_its_batches_are_held_against() {
        let rules = "key = [\"id\"]\n[quality]\nmax_null_share = { amount = 0.1 }\nmax_duplicate_share = 0\n\
                     late_after = \"90m\"\nfreshness_max = \"2d\"\nvolume = [0.25, 4]\n[columns]";
        let spec = SourceSpec::parse("orders.toml", &CONTRACT.replacen("[columns]", rules, 1)).unwrap();
        assert_eq!(spec.key, ["id"]);
        let quality = &spec.quality;
        assert_eq!(quality.max_null_share, BTreeMap::from([("amount".to_owned(), 0.1)]));
        assert_eq!((quality.max_duplicate_share, quality.max_late_share), (Some(0.0), None));
        assert_eq!(quality.late_after, Duration::from_secs(5_400));
        assert_eq!(quality.freshness_max, Some(Duration::from_secs(172_800)));
        assert_eq!(quality.volume, (0.25, 4.0));
        assert_eq!(SourceSpec::parse("orders.toml", CONTRACT).unwrap().quality, QualityRules::default());
    }

    #[test]
    fn every_mistake_has_a_place_and_a_remedy() {
        for (from, to, place, remedy) in [
            ("event_time", "evnt_time", "4:1", "did you mean `event_time`?"),
            ("\"timestamp\"", "\"timestmp\"", "8:7", "did you mean `timestamp`?"),
            ("pii = true", "pii = \"yes\"", "7:44", "true or false"),
            ("pii =", "pi =", "7:38", "did you mean `pii`?"),
            ("format = \"csv\"", "format = \"cvs\"", "3:10", "did you mean `csv`?"),
            ("= \"at\"", "= \"att\"", "4:14", "did you mean `at`?"),
            ("decimal(12,2)", "decimal(2,12)", "9:19", "no more decimals than digits"),
            ("decimal(12,2)", "list<string>", "9:10", "cannot hold a list"),
            ("orders/*.csv", "../orders/*.csv", "2:8", "relative to the ingested folder"),
            ("value = \"id\"", "", "11:1", "`value` is missing"),
            ("[columns]", "[columns", "6:9", ""),
            ("at = \"timestamp\"", "at = \"timestamp\"\nAt = \"string\"", "9:1", "differ in case only"),
            ("[columns]", "key = [\"idd\"]\n[columns]", "6:8", "did you mean `id`?"),
            ("[columns]", "[quality]\nmax_nul_share = {}\n[columns]", "7:1", "did you mean `max_null_share`?"),
            ("[columns]", "[quality]\nmax_null_share = { amont = 1 }\n[columns]", "7:20", "did you mean `amount`?"),
            ("[columns]", "[quality]\nmax_duplicate_share = 0.5\n[columns]", "7:23", "needs a key"),
            ("[columns]", "[quality]\nfreshness_max = \"2 days\"\n[columns]", "7:17", "36h"),
            ("[columns]", "[quality]\nvolume = [2.0, 0.5]\n[columns]", "7:10", "[0.5, 2.0]"),
            ("kind = \"orders\"", "kind = \"orders\"\ntimezone = \"Shanghai\"", "2:12", "+08:00"),
            ("path = \"orders/*.csv\"", "", "1:1", "a section [feed]"),
            ("[columns]", "[feed]\nkind = \"kafka\"\n[columns]", "6:2", "leave one of them out"),
            ("path = \"orders/*.csv\"", "feed = { topic = \"orders\" }", "2:8", "`kind` is missing"),
            ("path = \"orders/*.csv\"", "feed = { kind = \"kafka\" }", "3:1", "the records of a feed are JSON objects"),
        ] {
            assert!(CONTRACT.contains(from), "{from}");
            let text = CONTRACT.replacen(from, to, 1);
            let message = SourceSpec::parse("orders.toml", &text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("orders.toml:{place}: ")), "{place}: {message}");
            assert!(message.contains(remedy), "{message}");
        }
    }
}
