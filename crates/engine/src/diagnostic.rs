use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// One mistake in a file that a person wrote, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// A stable code, such as `E0203`.
    pub code: &'static str,
    /// What is wrong, in one line.
    pub message: String,
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 when the mistake is about the file as a whole.
    pub line: usize,
    /// The column, from 1, in characters.
    pub column: usize,
    /// How many characters are meant.
    pub width: usize,
    /// The line's text.
    pub snippet: String,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A mistake at a place in `text`. Line and column count from 1.
    pub fn at(
        code: &'static str,
        message: impl Into<String>,
        file: impl Into<PathBuf>,
        text: &str,
        line: usize,
        column: usize,
        width: usize,
    ) -> Self {
        let snippet = text.lines().nth(line.saturating_sub(1)).unwrap_or_default().to_owned();
        Self {
            code,
            message: message.into(),
            file: file.into(),
            line,
            column: column.max(1),
            width: width.max(1),
            snippet,
            help: None,
        }
    }

    /// A mistake about a file as a whole.
    pub fn of_file(code: &'static str, message: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        Self {
            code,
            message: message.into(),
            file: file.into(),
            line: 0,
            column: 0,
            width: 0,
            snippet: String::new(),
            help: None,
        }
    }

    /// Whether it is a warning: something that works today and will surprise somebody. Codes of warnings begin with `W`.
    pub fn is_warning(&self) -> bool {
        self.code.starts_with('W')
    }

    /// Where it belongs in a list: by file, then by place.
    pub(crate) fn order(&self) -> (PathBuf, usize, usize, &'static str) {
        (self.file.clone(), self.line, self.column, self.code)
    }

    /// With a hint on what to do.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// With a hint that names the most similar of `known`, if one is similar.
    #[must_use]
    pub fn with_suggestion<'a>(self, wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        match most_similar(wrong, known) {
            Some(name) => self.with_help(format!("did you mean `{name}`?")),
            None => self,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = if self.is_warning() { "warning" } else { "error" };
        write!(f, "{level}[{}]: {}", self.code, self.message)?;
        if self.line == 0 {
            write!(f, "\n  --> {}", self.file.display())?;
            if let Some(help) = &self.help {
                write!(f, "\n  help: {help}")?;
            }
            return Ok(());
        }
        write!(f, "\n  --> {}:{}:{}", self.file.display(), self.line, self.column)?;
        let gutter = self.line.to_string();
        write!(f, "\n{gutter} | {}", self.snippet)?;
        // Tabs keep their width, so that the caret stands below what it means.
        let indent: String = self
            .snippet
            .chars()
            .take(self.column - 1)
            .map(|character| if character == '\t' { '\t' } else { ' ' })
            .collect();
        write!(f, "\n{} | {indent}{}", " ".repeat(gutter.len()), "^".repeat(self.width))?;
        if let Some(help) = &self.help {
            write!(f, " help: {help}")?;
        }
        Ok(())
    }
}

/// All mistakes that were found; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

/// The most similar name, when one is similar enough to be a slip of the pen.
pub fn most_similar<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lowered = wrong.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&lowered, &name.to_lowercase()), name))
        .filter(|(similarity, _)| *similarity >= 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, name)| name)
}

/// Line and column, from 1, of a byte offset.
pub(crate) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_below_the_word() {
        let text = "select\n\tagee\nfrom core.customers\n";
        let shown = Diagnostic::at("E0203", "column `agee` not found", "sql/a/b.sql", text, 2, 2, 4)
            .with_suggestion("agee", ["age", "gender"])
            .to_string();
        assert_eq!(
            shown,
            "error[E0203]: column `agee` not found\n  --> sql/a/b.sql:2:2\n2 | \tagee\n  | \t^^^^ help: did you mean `age`?"
        );
    }

    #[test]
    fn offsets_become_lines_and_columns() {
        assert_eq!(line_and_column("ab\ncd", 4), (2, 2));
        assert_eq!(line_and_column("ab\n", 99), (2, 1));
    }
}
