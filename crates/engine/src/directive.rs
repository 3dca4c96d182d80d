//! Line directives: comments that begin with `@`, one a line.

use std::path::Path;

use chrono::TimeDelta;
use holdfast_types::{PII_KEY, TableName};
use serde::{Deserialize, Serialize};

use crate::diagnostic::{Diagnostic, most_similar};

/// How a stage's table is kept up to date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum StageKind {
    /// The whole table is made anew whenever its inputs, its query or (where it depends on time) the day changed.
    Full,
    /// Rows are brought up to date by key where the query lets that be derived, else as [`StageKind::Full`].
    Incremental {
        /// The key's columns.
        key: Vec<String>,
        /// Whether the key, one column then, is a day or moment by which ranges can be worked out anew.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        is_time: bool,
        /// How far `now()` moves at once, where the query asks for it: between two such moments rows are brought up to date by key.
        #[serde(skip)]
        grain: TimeDelta,
    },
    /// Rows are added for what came in an input, where the query takes its rows one by one; else as [`StageKind::Full`].
    Append,
}

/// The grain of stages that do not say another.
pub(crate) const DAY: TimeDelta = TimeDelta::days(1);

/// What happens to rows that do not meet an expectation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The stage fails and makes no version.
    Fail,
    /// They are counted and reported.
    Warn,
    /// They go to the stage's table in `quarantine` instead.
    Quarantine,
}

impl Severity {
    /// As it is written in a directive.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Warn => "warn",
            Self::Quarantine => "quarantine",
        }
    }
}

/// A rule that a stage's rows must meet before they are published. As with a SQL `check`, only `false` fails: null passes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expectation {
    /// Its name, unique in the stage.
    pub name: String,
    /// What happens when it is not met.
    pub severity: Severity,
    /// A boolean SQL expression over the stage's columns; with an aggregate in it, over the whole table.
    pub condition: String,
    /// Where the condition begins: line and column from 1.
    #[serde(skip)]
    pub place: (usize, usize),
}

/// What the directives of a file say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    /// `@stage`
    pub kind: StageKind,
    /// Where `@stage` says more than its name: line, column and width. `None` where the file does not say it.
    pub kind_place: Option<(usize, usize, usize)>,
    /// `@feature`: the table is a feature view.
    pub feature: Option<FeatureDirective>,
    /// `@expect`, in order.
    pub expectations: Vec<Expectation>,
    /// `@tag`: tag and columns; without columns it is the stage's.
    pub tags: Vec<(String, Vec<String>)>,
    /// The tags that come from the folder's defaults: they are about those of their columns that the stage has.
    pub default_tags: Vec<String>,
    /// `@source`, in order: what the author says about where rows come from.
    pub sources: Vec<String>,
    /// `@x.<name>`, in order, as they are written: for tools of your own.
    pub own: Vec<(String, String)>,
    /// `-- holdfast: allow(W0000) reason`, in order.
    pub allowed: Vec<Allowed>,
    /// `@owner`
    pub owner: Option<String>,
    /// The comment lines before the query that are not directives, joined.
    pub description: String,
}

/// What makes a stage a feature view. What is not said is `None`, and filled from the columns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeatureDirective {
    /// `view(name)`: what references call it; the table's name without its schema otherwise.
    pub view: Option<String>,
    /// `entity(column, …)`: whose features a row has, one row for each.
    pub entity: Option<Vec<String>>,
    /// `event_timestamp(column)`: when a row became true.
    pub event_timestamp: Option<String>,
    /// `ttl(90d)`: how old a row may be to be seen.
    pub ttl: Option<TimeDelta>,
    /// `online`: it is served from memory.
    pub online: bool,
    /// What stands behind `@feature`, or the whole line where nothing does: line, column and width.
    pub place: (usize, usize, usize),
}

/// A warning that the author looked at and wants to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// Its code.
    pub code: String,
    /// Why.
    pub reason: String,
    /// The line it stands on, with column and width.
    pub place: (usize, usize, usize),
    /// The line it is about: the next that is no comment. `None` when it stands before the query and is about the whole file.
    pub line: Option<usize>,
}

/// Tags that say nothing without columns.
const TAGS_OF_COLUMNS: [&str; 2] = [PII_KEY, "label"];

const KNOWN: [&str; 6] = ["stage", "expect", "feature", "tag", "owner", "source"];

/// Reads the directives of a stage file. Every mistake is reported, not only the first.
pub(crate) fn parse(file: &Path, text: &str) -> (Directives, Vec<Diagnostic>) {
    let mut directives = Directives {
        kind: StageKind::Full,
        kind_place: None,
        feature: None,
        expectations: Vec::new(),
        tags: Vec::new(),
        default_tags: Vec::new(),
        sources: Vec::new(),
        own: Vec::new(),
        allowed: Vec::new(),
        owner: None,
        description: String::new(),
    };
    let mut mistakes = Vec::new();
    let mut in_header = true;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        if !trimmed.starts_with("--") {
            if !trimmed.is_empty() {
                in_header = false;
            }
            continue;
        }
        let comment = trimmed.trim_start_matches('-').trim_start();
        let place = Place { file, text, line: index + 1, raw: line };
        if let Some(body) = comment.strip_prefix("holdfast:") {
            match allow(&place, body.trim(), text, in_header) {
                Ok(allowed) => directives.allowed.push(allowed),
                Err(mistake) => mistakes.push(*mistake),
            }
            continue;
        }
        match comment.strip_prefix('@') {
            Some(body) => {
                if let Err(mistake) = directive(&mut directives, &place, body.trim_end()) {
                    mistakes.push(*mistake);
                }
            }
            // The first line of a file may name the file and its table; that is no description.
            None if in_header && !comment.starts_with("sql/") && !comment.is_empty() => {
                if !directives.description.is_empty() {
                    directives.description.push(' ');
                }
                directives.description.push_str(comment.trim_end());
            }
            None => {}
        }
    }
    (directives, mistakes)
}

struct Place<'a> {
    file: &'a Path,
    text: &'a str,
    line: usize,
    raw: &'a str,
}

impl Place<'_> {
    /// A mistake at `part`, which must be a slice of this line.
    fn mistake(&self, code: &'static str, message: impl Into<String>, part: &str) -> Diagnostic {
        let offset = (part.as_ptr() as usize).saturating_sub(self.raw.as_ptr() as usize);
        let before = self.raw.get(..offset).unwrap_or_default();
        Diagnostic::at(
            code,
            message,
            self.file,
            self.text,
            self.line,
            before.chars().count() + 1,
            part.trim_end().chars().count(),
        )
    }

    fn column_of(&self, part: &str) -> usize {
        let offset = (part.as_ptr() as usize).saturating_sub(self.raw.as_ptr() as usize);
        self.raw.get(..offset).unwrap_or_default().chars().count() + 1
    }
}

fn directive(directives: &mut Directives, place: &Place<'_>, body: &str) -> Result<(), Box<Diagnostic>> {
    let (name, rest) = body.split_once(char::is_whitespace).unwrap_or((body, &body[body.len()..]));
    let rest = rest.trim_start();
    match name {
        "stage" => {
            once(place, name, directives.kind_place.is_some())?;
            directives.kind_place = Some((place.line, place.column_of(rest), rest.trim_end().chars().count()));
            directives.kind = stage_kind(place, rest)?;
        }
        "feature" => {
            once(place, name, directives.feature.is_some())?;
            directives.feature = Some(feature(place, rest.trim_end())?);
        }
        "expect" => {
            let expectation = expectation(place, rest)?;
            if directives.expectations.iter().any(|other| other.name == expectation.name) {
                let message = format!("expectation `{}` is there twice", expectation.name);
                let mistake = place.mistake("E0103", message, rest);
                return Err(Box::new(mistake.with_help("give each expectation a name of its own")));
            }
            directives.expectations.push(expectation);
        }
        "tag" => {
            let (tag, columns) = tag(place, rest)?;
            let mut tagged = directives.tags.iter().filter(|(other, _)| *other == tag).flat_map(|(_, columns)| columns);
            if let Some(column) = tagged.find(|column| columns.contains(column)) {
                let mistake = place.mistake("E0105", format!("`@tag {tag}` names `{column}` twice"), rest);
                return Err(Box::new(mistake.with_help("take one of the two out")));
            }
            directives.tags.push((tag, columns));
        }
        "owner" => {
            once(place, name, directives.owner.is_some())?;
            if rest.is_empty() {
                let mistake = place.mistake("E0102", "malformed @owner", place.raw);
                return Err(Box::new(mistake.with_help("write `@owner the team that answers for it`")));
            }
            directives.owner = Some(rest.to_owned());
        }
        // What a file reads from is found by parsing; the directive only documents it.
        "source" => directives.sources.push(rest.to_owned()),
        _ if name.starts_with("x.") => directives.own.push((name.to_owned(), rest.to_owned())),
        _ => {
            let mistake = place.mistake("E0101", format!("unknown directive `@{name}`"), name);
            return Err(Box::new(match most_similar(name, KNOWN) {
                Some(known) => mistake.with_help(format!("did you mean `@{known}`?")),
                None => {
                    mistake.with_help("known are @stage, @expect, @feature, @tag, @owner, @source and @x.<your own>")
                }
            }));
        }
    }
    Ok(())
}

fn once(place: &Place<'_>, name: &str, is_there: bool) -> Result<(), Box<Diagnostic>> {
    if !is_there {
        return Ok(());
    }
    let mistake = place.mistake("E0105", format!("`@{name}` is there twice"), place.raw.trim_start());
    Err(Box::new(mistake.with_help("a stage has one: take one of the two out")))
}

/// `allow(W0000) reason`. It is about the next line that is no comment, or about the whole file when it stands before the query.
fn allow(place: &Place<'_>, body: &str, text: &str, in_header: bool) -> Result<Allowed, Box<Diagnostic>> {
    let malformed = |message: &str| {
        let mistake = place.mistake("E0108", message, if body.is_empty() { place.raw } else { body });
        Box::new(mistake.with_help("write `-- holdfast: allow(W0601) why it is right here`"))
    };
    let (code, reason) = body
        .strip_prefix("allow(")
        .and_then(|rest| rest.split_once(')'))
        .ok_or_else(|| malformed("only `allow(…)` is known here"))?;
    let code = code.trim();
    if !crate::explain::is_known(code) {
        return Err(malformed(&format!("there is no warning `{code}`")));
    }
    if !code.starts_with('W') {
        return Err(malformed(&format!("`{code}` is an error, which cannot be allowed")));
    }
    let reason = reason.trim();
    if reason.is_empty() {
        return Err(malformed("the reason is missing"));
    }
    let next = || text.lines().enumerate().skip(place.line).find(|(_, line)| !line.trim_start().starts_with("--"));
    Ok(Allowed {
        code: code.to_owned(),
        reason: reason.to_owned(),
        place: (place.line, place.column_of(body), body.chars().count()),
        line: if in_header { None } else { next().map(|(index, _)| index + 1) },
    })
}

pub(crate) fn parse_kind(text: &str) -> Option<StageKind> {
    let place = Place { file: Path::new(""), text, line: 1, raw: text };
    stage_kind(&place, text).ok()
}

fn stage_kind(place: &Place<'_>, rest: &str) -> Result<StageKind, Box<Diagnostic>> {
    let malformed = |part: &str| {
        let mistake = place.mistake("E0102", "malformed @stage", part);
        Box::new(
            mistake
                .with_help("write `@stage full`, `@stage append`, `@stage incremental key(customer_id)` or `@stage incremental time(day)`, or with `grain(1h)` behind it"),
        )
    };
    let (kind, arguments) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    match kind {
        "full" if arguments.trim().is_empty() => Ok(StageKind::Full),
        "append" if arguments.trim().is_empty() => Ok(StageKind::Append),
        "incremental" => {
            let arguments = arguments.trim();
            let end = arguments.find(')').map_or(arguments.len(), |end| end + 1);
            let (key, rest_of_it) = arguments.split_at(end);
            let time = call(key, "time").filter(|columns| columns.len() == 1);
            let is_time = time.is_some();
            let key = time.or_else(|| call(key, "key").filter(|key| !key.is_empty())).ok_or_else(|| malformed(rest))?;
            let grain = match rest_of_it.trim() {
                "" => DAY,
                text => grain(text).ok_or_else(|| malformed(text))?,
            };
            Ok(StageKind::Incremental { key, is_time, grain })
        }
        _ => Err(malformed(if rest.is_empty() { place.raw } else { rest })),
    }
}

/// The parts of `@feature`, in any order, each once.
fn feature(place: &Place<'_>, rest: &str) -> Result<FeatureDirective, Box<Diagnostic>> {
    const PARTS: [&str; 5] = ["entity", "event_timestamp", "ttl", "online", "view"];
    let malformed = |message: String, part: &str| {
        let mistake = place.mistake("E0102", message, if part.is_empty() { place.raw } else { part });
        Box::new(mistake.with_help(
            "write `@feature entity(customer_id) event_timestamp(seen_at) ttl(90d) online`; each part may be left out",
        ))
    };
    let whole = if rest.is_empty() { place.raw.trim() } else { rest };
    let mut found = FeatureDirective {
        place: (place.line, place.column_of(whole), whole.chars().count()),
        ..FeatureDirective::default()
    };
    let mut open = rest;
    let mut seen = Vec::new();
    while !open.is_empty() {
        let word = open.find(|c: char| c.is_whitespace() || c == '(').unwrap_or(open.len());
        let has_arguments = open[word..].trim_start().starts_with('(');
        let end = match (has_arguments, open.find(')')) {
            (true, Some(end)) => end + 1,
            (true, None) => return Err(malformed("a bracket is not closed".to_owned(), open)),
            (false, _) => word,
        };
        let (part, behind) = open.split_at(end);
        open = behind.trim_start();
        let name = part[..word].trim();
        if !PARTS.contains(&name) {
            let mistake = place.mistake("E0102", format!("`{name}` is no part of @feature"), part);
            return Err(Box::new(match most_similar(name, PARTS) {
                Some(near) => mistake.with_help(format!("did you mean `{near}`?")),
                None => mistake.with_help(format!("its parts are {}", PARTS.join(", "))),
            }));
        }
        if seen.contains(&name) {
            return Err(malformed(format!("`{name}` is there twice"), part));
        }
        seen.push(name);
        let arguments = call(part, name).unwrap_or_default();
        let one = |of: &[String]| match of {
            [only] => Ok(only.clone()),
            _ => Err(malformed(format!("`{name}` takes one name in brackets"), part)),
        };
        match name {
            "online" if has_arguments => return Err(malformed("`online` takes nothing".to_owned(), part)),
            "online" => found.online = true,
            "entity" if arguments.is_empty() => {
                return Err(malformed("`entity` takes the columns that name it, in brackets".to_owned(), part));
            }
            "entity" => found.entity = Some(arguments),
            "event_timestamp" => found.event_timestamp = Some(one(&arguments)?),
            "ttl" => {
                let ttl = duration(&one(&arguments)?);
                found.ttl = Some(ttl.ok_or_else(|| malformed("a ttl is 15m, 24h or 90d".to_owned(), part))?);
            }
            _ => {
                let view = one(&arguments)?;
                if TableName::new("features", &view).is_err() {
                    let message = "the name of a view has lowercase letters, digits and underscores".to_owned();
                    return Err(malformed(message, part));
                }
                found.view = Some(view);
            }
        }
    }
    Ok(found)
}

/// `15m`, `24h`, `90d`.
fn duration(text: &str) -> Option<TimeDelta> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: i64 = number.trim().parse().ok().filter(|number| (1..=1_000_000).contains(number))?;
    match unit {
        "m" => Some(TimeDelta::minutes(number)),
        "h" => Some(TimeDelta::hours(number)),
        "d" => Some(TimeDelta::days(number)),
        _ => None,
    }
}

fn expectation(place: &Place<'_>, rest: &str) -> Result<Expectation, Box<Diagnostic>> {
    let malformed = |message: &str, part: &str| {
        let mistake = place.mistake("E0102", message, if part.is_empty() { place.raw } else { part });
        Box::new(mistake.with_help("write `@expect fail|warn|quarantine name: condition`"))
    };
    let (severity, tail) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let severity = match severity {
        "fail" => Severity::Fail,
        "warn" => Severity::Warn,
        "quarantine" => Severity::Quarantine,
        other => return Err(malformed(&format!("`{other}` is no severity"), severity)),
    };
    let Some((name, condition)) = tail.split_once(':') else {
        return Err(malformed("an expectation needs a name and a condition", tail));
    };
    let (name, condition) = (name.trim(), condition.trim());
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(malformed("the name of an expectation has letters, digits and underscores", tail));
    }
    if condition.is_empty() {
        return Err(malformed("the condition is missing", tail));
    }
    Ok(Expectation {
        name: name.to_owned(),
        severity,
        condition: condition.to_owned(),
        place: (place.line, place.column_of(condition)),
    })
}

fn tag(place: &Place<'_>, rest: &str) -> Result<(String, Vec<String>), Box<Diagnostic>> {
    let name = rest.split('(').next().unwrap_or_default().trim();
    let is_word = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if is_word && rest.trim() == name && !TAGS_OF_COLUMNS.contains(&name) {
        return Ok((name.to_owned(), Vec::new()));
    }
    match call(rest.trim(), name) {
        Some(columns) if !name.is_empty() && !columns.is_empty() => Ok((name.to_owned(), columns)),
        _ => {
            let mistake = place.mistake("E0102", "malformed @tag", rest);
            Err(Box::new(
                mistake.with_help("write `@tag pii(column, column)`, or `@tag name` for the stage as a whole"),
            ))
        }
    }
}

/// The arguments of `name(a, b)`.
/// `grain(15m)`, `grain(1h)`, `grain(1d)`: a whole part of a day, or whole days.
fn grain(text: &str) -> Option<TimeDelta> {
    let [amount] = call(text, "grain")?.try_into().ok()?;
    let (number, unit) = amount.split_at_checked(amount.len().checked_sub(1)?)?;
    let number: i64 = number.trim().parse().ok().filter(|number| (1..=366).contains(number))?;
    let grain = match unit {
        "m" => TimeDelta::minutes(number),
        "h" => TimeDelta::hours(number),
        "d" => TimeDelta::days(number),
        _ => return None,
    };
    let (grain_s, day_s) = (grain.num_seconds(), DAY.num_seconds());
    (day_s % grain_s == 0 || grain_s % day_s == 0).then_some(grain)
}

fn call(text: &str, name: &str) -> Option<Vec<String>> {
    let inner = text.strip_prefix(name)?.trim_start().strip_prefix('(')?.strip_suffix(')')?;
    Some(inner.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Directives, Vec<Diagnostic>) {
        parse(Path::new("sql/core/a.sql"), text)
    }

    #[test]
    fn all_directives_are_read() {
        let (directives, mistakes) = read(
            "-- One row an order.\n-- @stage incremental key(customer_id)\n-- @expect quarantine sane: amount >= 0\n-- @tag pii(name, mobile)\n-- @owner crm team\n-- @x.acme anything\nselect 1 -- not @a directive\n",
        );
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let key = vec!["customer_id".to_owned()];
        assert_eq!(directives.kind, StageKind::Incremental { key, is_time: false, grain: DAY });
        let day = vec!["day".to_owned()];
        assert_eq!(
            parse_kind("incremental time(day)"),
            Some(StageKind::Incremental { key: day, is_time: true, grain: DAY })
        );
        assert_eq!(parse_kind("incremental time(day, hour)"), None);
        assert_eq!(directives.expectations[0].condition, "amount >= 0");
        assert_eq!(directives.expectations[0].place, (3, 29));
        assert_eq!(directives.tags, [("pii".to_owned(), vec!["name".to_owned(), "mobile".to_owned()])]);
        assert_eq!(directives.description, "One row an order.");
    }

    #[test]
    fn every_mistake_is_reported_with_its_place() {
        let (_, mistakes) =
            read("-- @expct fail a: b\n-- @expect later a: b\n-- @stage sometimes\n-- @expect fail a b\nselect 1");
        let shown: Vec<_> = mistakes.iter().map(|m| (m.code, m.line, m.column)).collect();
        assert_eq!(shown, [("E0101", 1, 5), ("E0102", 2, 12), ("E0102", 3, 11), ("E0102", 4, 17)]);
        assert_eq!(mistakes[0].help.as_deref(), Some("did you mean `@expect`?"));
    }
}
