//! Reading TOML of the project's so that every mistake in it is told with its place.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::Result;
use crate::diagnostic::{Diagnostic, line_and_column, most_similar};
use crate::error::EngineError;

/// Line, column and width, from 1.
pub type TomlPlace = (usize, usize, usize);
/// A value with its place in the text.
pub type TomlItem<'a> = Spanned<DeValue<'a>>;

/// A file that is being read, and what was found wrong with it.
#[derive(Debug)]
pub struct TomlFile<'a> {
    /// Its path, as it is told.
    pub file: &'a Path,
    /// What is in it.
    pub text: &'a str,
    /// Of every mistake.
    pub code: &'static str,
    /// Where they are gathered.
    pub mistakes: &'a mut Vec<Diagnostic>,
}

impl<'a> TomlFile<'a> {
    /// The file as a table; `None` when it is no TOML, which is told.
    pub fn table(&mut self) -> Option<Spanned<DeTable<'a>>> {
        match DeTable::parse(self.text) {
            Ok(table) => Some(table),
            Err(error) => {
                self.mistake(error.message(), error.span().unwrap_or(0..0), None);
                None
            }
        }
    }

    /// Tells of keys that are not among `known`; `what` says what has these.
    pub fn check_keys(&mut self, table: &DeTable<'_>, known: &[&str], what: &str) {
        for (key, _) in table.iter() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let help = match most_similar(name, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("{what} {}", known.join(", ")),
                };
                self.mistake(&format!("unknown key `{name}`"), key.span(), Some(help));
            }
        }
    }

    /// The text that a value is; `None` when it is none, which is told.
    pub fn text_of(&mut self, value: &TomlItem<'_>) -> Option<String> {
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.mistake("a text in quotes is expected here", value.span(), None);
        }
        text
    }

    /// Tells of a mistake at these bytes of the text.
    pub fn mistake(&mut self, message: &str, span: Range<usize>, help: Option<String>) {
        let (line, column, width) = self.place(span);
        let mistake = Diagnostic::at(self.code, message, self.file, self.text, line, column, width);
        self.mistakes.push(match help {
            Some(help) => mistake.with_help(help),
            None => mistake,
        });
    }

    /// Line, column and width of these bytes.
    pub fn place(&self, span: Range<usize>) -> TomlPlace {
        let (line, column) = line_and_column(self.text, span.start);
        let spanned = self.text.get(span).unwrap_or_default();
        (line, column, spanned.lines().next().unwrap_or_default().chars().count().max(1))
    }
}

/// The text of a file; `None` where there is no such file.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn read(file: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(EngineError::Unreadable { path: file.to_owned(), source }),
    }
}

/// Whether a name can be one of a feature, a view or a service: lowercase letters, digits and underscores.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The code of mistakes in a policy.
pub const POLICY_CODE: &str = "E0801";
/// The code of mistakes in a users file.
pub const USERS_CODE: &str = "E0802";
