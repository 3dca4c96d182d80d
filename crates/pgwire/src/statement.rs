//! Splits what a client sends into statements and tells queries from everything else. Queries go on to the planner; what else PostgreSQL
//! has for sessions is understood here, because the planner's own `set`, `copy` and `prepare` mean other things.

use datafusion::sql::sqlparser::ast::Statement;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::encode::CopyStyle;
use crate::error::{Problem, state};
use crate::settings::PgSettings;

/// What a statement asks for.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Query(Box<Statement>),
    /// No value is the default.
    Set {
        name: String,
        value: Option<String>,
    },
    /// Of what has no effect here, such as the isolation of transactions.
    SetNothing,
    Show(String),
    ShowAll,
    Reset(Option<String>),
    Begin,
    Commit,
    Rollback,
    Savepoint,
    Release,
    RollbackTo,
    Declare {
        name: String,
        query: Box<Statement>,
        is_held: bool,
    },
    Fetch {
        cursor: String,
        count: Option<usize>,
        is_move: bool,
    },
    CloseCursor(Option<String>),
    CopyOut {
        query: Box<Statement>,
        style: CopyStyle,
        has_header: bool,
    },
    DiscardAll,
    /// `discard plans`, `sequences`, `temp`.
    DiscardSome(&'static str),
    Deallocate(Option<String>),
    /// `listen` and `unlisten`: nobody ever notifies.
    Ignored(&'static str),
}

impl Command {
    /// Whether it answers with rows that it has to plan.
    pub(crate) fn query(&self) -> Option<&Statement> {
        match self {
            Self::Query(query) => Some(query),
            _ => None,
        }
    }

    /// Whether it may run when the transaction has failed.
    pub(crate) fn ends_transaction(&self) -> bool {
        matches!(self, Self::Commit | Self::Rollback | Self::RollbackTo)
    }
}

/// The statements of a text; none of an empty one.
pub(crate) fn parse(sql: &str, settings: &PgSettings) -> Result<Vec<Command>, Problem> {
    let limit = settings.max_statement_bytes;
    if sql.len() > limit {
        let message = format!("the statement has {} bytes, and may have {limit}", sql.len());
        return Err(Problem::new(state::PROGRAM_LIMIT, message));
    }
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location().map_err(|error| {
        let mut problem = Problem::new(state::SYNTAX_ERROR, error.message);
        problem.place = Some((error.location.line, error.location.column));
        problem
    })?;
    let tokens: Vec<TokenWithSpan> =
        tokens.into_iter().filter(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF)).collect();
    let limit = settings.max_statement_tokens;
    if tokens.len() > limit {
        let message = format!("the statement has {} words and signs, and may have {limit}", tokens.len());
        return Err(Problem::new(state::STATEMENT_TOO_COMPLEX, message));
    }
    check_depth(&tokens)?;
    tokens
        .split(|token| token.token == Token::SemiColon)
        .filter(|tokens| !tokens.is_empty())
        .map(|tokens| Words { tokens, at: 0 }.command())
        .collect()
}

/// Operators that may stand in each other, and queries that may be joined or united: what is parsed is a tree, and walks over it, and its
/// end, take stack.
const OPERATORS_DEEP: usize = 500;
const QUERIES_LONG: usize = 300;

/// Refuses what would be too deep a tree: nested operators count, and those one behind the other, as in `a or b or c`.
fn check_depth(tokens: &[TokenWithSpan]) -> Result<(), Problem> {
    let refused = |what: &str, limit: usize, token: &TokenWithSpan| {
        let mut problem =
            Problem::new(state::STATEMENT_TOO_COMPLEX, format!("the statement has more than {limit} {what}"))
                .with_hint("write many values as `in (…)`, or read them from a table");
        problem.place = Some((token.span.start.line, token.span.start.column));
        Err(problem)
    };
    // How deep it was where the brackets that are open began.
    let mut outside = vec![0];
    let (mut depth, mut queries) = (0_usize, 0_usize);
    for token in tokens {
        let base = outside.last().copied().unwrap_or(0);
        match &token.token {
            Token::LParen | Token::LBracket => {
                depth += 1;
                outside.push(depth);
            }
            Token::RParen | Token::RBracket => {
                depth = base.saturating_sub(1);
                if outside.len() > 1 {
                    outside.pop();
                }
            }
            Token::Comma => depth = base,
            Token::SemiColon => (depth, queries, outside) = (0, 0, vec![0]),
            Token::Word(word) if word.quote_style.is_none() => match word.value.to_lowercase().as_str() {
                "select" | "from" | "where" | "group" | "order" | "having" | "on" => depth = base,
                "union" | "except" | "intersect" | "join" | "lateral" => {
                    depth = base;
                    queries += 1;
                }
                "and" | "or" | "not" | "like" | "ilike" | "is" | "between" | "in" | "case" | "any" | "all"
                | "collate" | "at" => depth += 1,
                _ => {}
            },
            Token::Word(_)
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::Period
            | Token::Placeholder(_) => {}
            _ => depth += 1,
        }
        if depth > OPERATORS_DEEP {
            return refused("operators in or behind each other", OPERATORS_DEEP, token);
        }
        if queries > QUERIES_LONG {
            return refused("queries joined or united", QUERIES_LONG, token);
        }
    }
    Ok(())
}

/// The words of one statement, read from the left.
struct Words<'a> {
    tokens: &'a [TokenWithSpan],
    at: usize,
}

impl<'a> Words<'a> {
    fn command(mut self) -> Result<Command, Problem> {
        let first = self.word().unwrap_or_default();
        Ok(match first.as_str() {
            "set" => return self.set(),
            "show" => return self.show(),
            "reset" => match self.rest_as_name().as_str() {
                "all" => Command::Reset(None),
                name => Command::Reset(Some(name.to_owned())),
            },
            "begin" | "start" => Command::Begin,
            "commit" | "end" => Command::Commit,
            "abort" => Command::Rollback,
            "rollback" => match self.tokens.iter().any(|token| is_word(&token.token, "to")) {
                true => Command::RollbackTo,
                false => Command::Rollback,
            },
            "savepoint" => Command::Savepoint,
            "release" => Command::Release,
            "declare" => return self.declare(),
            "fetch" | "move" => return self.fetch(first == "move"),
            "close" => Command::CloseCursor(self.name().filter(|name| name != "all")),
            "copy" => return self.copy(),
            "discard" => match self.word().unwrap_or_default().as_str() {
                "all" => Command::DiscardAll,
                "plans" => Command::DiscardSome("DISCARD PLANS"),
                "sequences" => Command::DiscardSome("DISCARD SEQUENCES"),
                "temp" | "temporary" => Command::DiscardSome("DISCARD TEMP"),
                _ => return Err(self.mistake("discard is followed by all, plans, sequences or temp")),
            },
            "deallocate" => {
                self.skip("prepare");
                Command::Deallocate(self.name().filter(|name| name != "all"))
            }
            "listen" => Command::Ignored("LISTEN"),
            "unlisten" => Command::Ignored("UNLISTEN"),
            "prepare" | "execute" => {
                return Err(Problem::new(
                    state::FEATURE_NOT_SUPPORTED,
                    format!("{first} as a statement is not offered: drivers prepare by messages of the protocol"),
                ));
            }
            "insert" | "update" | "delete" | "merge" | "truncate" | "create" | "alter" | "drop" | "grant"
            | "revoke" | "vacuum" | "analyze" | "reindex" | "cluster" | "refresh" | "comment" | "lock" | "call"
            | "do" | "notify" | "import" | "security" | "reassign" | "checkpoint" | "load" => {
                return Err(read_only(&first));
            }
            _ => Command::Query(query_of(self.tokens)?),
        })
    }

    fn set(mut self) -> Result<Command, Problem> {
        if !self.skip("session") {
            self.skip("local");
        }
        let name = match self.word().unwrap_or_default().as_str() {
            "characteristics" | "transaction" | "constraints" => return Ok(Command::SetNothing),
            "authorization" | "role" => {
                let who = self.value()?;
                return match who.as_deref() {
                    None | Some("none" | "default") => Ok(Command::SetNothing),
                    Some(_) => Err(Problem::new(
                        state::FEATURE_NOT_SUPPORTED,
                        "roles cannot be taken on here: log in as another user",
                    )),
                };
            }
            "time" if self.skip("zone") => {
                let zone = self.value()?;
                let zone = zone.filter(|zone| zone != "local");
                return Ok(Command::Set { name: "timezone".to_owned(), value: zone });
            }
            "names" => return Ok(Command::Set { name: "client_encoding".to_owned(), value: self.value()? }),
            "" => return Err(self.mistake("set is followed by a name")),
            first => self.dotted(first.to_owned()),
        };
        if !self.skip("to") && !self.skip_token(&Token::Eq) {
            return Err(self.mistake("the name of a setting is followed by to or ="));
        }
        Ok(Command::Set { name, value: self.value()? })
    }

    fn show(mut self) -> Result<Command, Problem> {
        let first = self.word().unwrap_or_default();
        Ok(match first.as_str() {
            "all" => Command::ShowAll,
            "tables" | "columns" | "functions" => Command::Query(query_of(self.tokens)?),
            "transaction" => Command::Show("transaction_isolation".to_owned()),
            "time" => Command::Show("timezone".to_owned()),
            "session" => Command::Show("session_authorization".to_owned()),
            "" => return Err(self.mistake("show is followed by a name")),
            _ => Command::Show(self.dotted(first)),
        })
    }

    fn declare(mut self) -> Result<Command, Problem> {
        let name = self.name().ok_or_else(|| self.mistake("declare is followed by the name of a cursor"))?;
        let mut is_held = false;
        loop {
            match self.word().unwrap_or_default().as_str() {
                "binary" => {
                    return Err(Problem::new(state::FEATURE_NOT_SUPPORTED, "binary cursors are not offered"));
                }
                "scroll" if !self.was("no") => {
                    return Err(Problem::new(
                        state::FEATURE_NOT_SUPPORTED,
                        "cursors go forward only here: leave out scroll",
                    ));
                }
                "insensitive" | "asensitive" | "no" | "scroll" | "cursor" | "without" => {}
                "with" => is_held = true,
                "hold" => is_held = !self.was("without"),
                "for" => break,
                _ => return Err(self.mistake("a cursor is declared as `declare name cursor for select …`")),
            }
        }
        let query = query_of(&self.tokens[self.at..])?;
        Ok(Command::Declare { name, query, is_held })
    }

    fn fetch(mut self, is_move: bool) -> Result<Command, Problem> {
        let backward = || {
            Problem::new(state::OBJECT_NOT_IN_STATE, "cursor can only scan forward")
                .with_hint("read the rows once, or ask again with `order by … desc`")
        };
        // `fetch name`, `fetch 10 from name`, `fetch forward all in name`.
        let mut count = Some(1);
        let mut rest: Vec<String> = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            self.at += 1;
            match &token.token {
                Token::Minus => return Err(backward()),
                Token::Number(number, _) => {
                    count = Some(number.parse().map_err(|_| self.mistake("the number of rows is too large"))?);
                }
                other => rest.push(name_of(other).ok_or_else(|| self.mistake("fetch is followed by a cursor"))?),
            }
        }
        let cursor = rest.pop().ok_or_else(|| self.mistake("fetch is followed by a cursor"))?;
        for word in rest {
            match word.as_str() {
                "all" => count = None,
                "next" | "forward" | "relative" | "from" | "in" => {}
                _ => return Err(backward()),
            }
        }
        Ok(Command::Fetch { cursor, count, is_move })
    }

    fn copy(mut self) -> Result<Command, Problem> {
        let query = if self.skip_token(&Token::LParen) {
            let begins = self.at;
            let mut depth = 1;
            while depth > 0 {
                match self.tokens.get(self.at).map(|token| &token.token) {
                    Some(Token::LParen) => depth += 1,
                    Some(Token::RParen) => depth -= 1,
                    Some(_) => {}
                    None => return Err(self.mistake("the query of copy is not closed")),
                }
                self.at += 1;
            }
            query_of(&self.tokens[begins..self.at - 1])?
        } else {
            let begins = self.at;
            while self
                .tokens
                .get(self.at)
                .is_some_and(|token| !is_word(&token.token, "to") && !is_word(&token.token, "from"))
            {
                self.at += 1;
            }
            let named = &self.tokens[begins..self.at];
            let open = named.iter().position(|token| token.token == Token::LParen).unwrap_or(named.len());
            let text =
                |tokens: &[TokenWithSpan]| tokens.iter().map(|token| token.token.to_string()).collect::<String>();
            let columns = match named.get(open + 1..named.len().saturating_sub(1)) {
                Some(columns) if open < named.len() => text(columns),
                _ => "*".to_owned(),
            };
            let sql = format!("select {columns} from {}", text(&named[..open]));
            parse_one(&sql)?
        };
        match self.word().unwrap_or_default().as_str() {
            "to" => {}
            "from" => return Err(read_only("copy … from")),
            _ => return Err(self.mistake("copy is followed by a table or a query, and to stdout")),
        }
        if self.word().as_deref() != Some("stdout") {
            return Err(Problem::new(
                state::FEATURE_NOT_SUPPORTED,
                "copy writes to stdout only: files and programs of the server are not reached",
            )
            .with_hint("in psql, \\copy writes a file on your side"));
        }
        self.skip("with");
        self.skip_token(&Token::LParen);
        let options = self.copy_options()?;
        if options.is_binary {
            return Ok(Command::CopyOut { query, style: CopyStyle::Binary, has_header: false });
        }
        let delimiter = options.delimiter.unwrap_or(if options.is_csv { b',' } else { b'\t' });
        let style = match options.is_csv {
            true => CopyStyle::Csv {
                delimiter,
                quote: options.quote.unwrap_or(b'"'),
                null: options.null.unwrap_or_default(),
                force_quote: options.force_quote,
            },
            false => CopyStyle::Text { delimiter, null: options.null.unwrap_or_else(|| "\\N".to_owned()) },
        };
        Ok(Command::CopyOut { query, style, has_header: options.has_header })
    }

    fn copy_options(&mut self) -> Result<CopyOptions, Problem> {
        let mut options = CopyOptions::default();
        while self.at < self.tokens.len() {
            if self.skip_token(&Token::Comma) || self.skip_token(&Token::RParen) {
                continue;
            }
            let option = self.word().ok_or_else(|| self.mistake("an option of copy is a word"))?;
            match option.as_str() {
                "format" => match self.text()?.as_str() {
                    "csv" => options.is_csv = true,
                    "binary" => options.is_binary = true,
                    "text" => {}
                    _ => return Err(self.mistake("the format of copy is text, csv or binary")),
                },
                "csv" => options.is_csv = true,
                "binary" => options.is_binary = true,
                "header" => {
                    let said = self.tokens.get(self.at).and_then(|token| name_of(&token.token));
                    options.has_header = !matches!(said.as_deref(), Some("false" | "off" | "0"));
                    if matches!(said.as_deref(), Some("false" | "off" | "true" | "on" | "match")) {
                        self.at += 1;
                    }
                }
                "delimiter" => {
                    self.skip("as");
                    options.delimiter = Some(self.one_byte("the delimiter")?);
                }
                "quote" => {
                    self.skip("as");
                    options.quote = Some(self.one_byte("the quote")?);
                }
                "null" => {
                    self.skip("as");
                    options.null = Some(self.text()?);
                }
                "encoding" => {
                    self.text()?;
                }
                "force_quote" | "force" => {
                    self.skip("quote");
                    if !self.skip_token(&Token::Mul) {
                        return Err(self.mistake("force_quote is offered for all columns only: force_quote *"));
                    }
                    options.force_quote = true;
                }
                _ => return Err(self.mistake("this option of copy is not known")),
            }
        }
        Ok(options)
    }

    fn one_byte(&mut self, what: &str) -> Result<u8, Problem> {
        match self.text()?.as_bytes() {
            [byte] => Ok(*byte),
            _ => Err(self.mistake(&format!("{what} of copy is one byte"))),
        }
    }

    /// A value of a setting: words, texts and numbers, with commas between; none for `default`.
    fn value(&mut self) -> Result<Option<String>, Problem> {
        let mut value = String::new();
        let mut is_default = false;
        for token in &self.tokens[self.at..] {
            match &token.token {
                Token::Comma => value.push_str(", "),
                Token::Minus => value.push('-'),
                token => {
                    is_default = is_word(token, "default");
                    value.push_str(&text_of(token).ok_or_else(|| self.mistake("this is no value of a setting"))?);
                }
            }
        }
        self.at = self.tokens.len();
        match value.is_empty() && !is_default {
            true if self
                .tokens
                .last()
                .is_some_and(|token| text_of(&token.token).is_some_and(|text| text.is_empty())) =>
            {
                Ok(Some(value))
            }
            true => Err(self.mistake("a value is missing")),
            false if is_default => Ok(None),
            false => Ok(Some(value)),
        }
    }

    fn word(&mut self) -> Option<String> {
        let Token::Word(word) = &self.tokens.get(self.at)?.token else { return None };
        self.at += 1;
        Some(if word.quote_style.is_some() { word.value.clone() } else { word.value.to_lowercase() })
    }

    fn name(&mut self) -> Option<String> {
        let name = name_of(&self.tokens.get(self.at)?.token)?;
        self.at += 1;
        Some(name)
    }

    fn text(&mut self) -> Result<String, Problem> {
        let text = self.tokens.get(self.at).and_then(|token| text_of(&token.token));
        self.at += 1;
        text.ok_or_else(|| self.mistake("a text is missing"))
    }

    fn dotted(&mut self, mut name: String) -> String {
        while self.skip_token(&Token::Period) {
            name.push('.');
            name.push_str(&self.word().unwrap_or_default());
        }
        name
    }

    fn rest_as_name(&mut self) -> String {
        let first = self.word().unwrap_or_default();
        self.dotted(first)
    }

    fn skip(&mut self, word: &str) -> bool {
        let found = self.tokens.get(self.at).is_some_and(|token| is_word(&token.token, word));
        self.at += usize::from(found);
        found
    }

    fn skip_token(&mut self, wanted: &Token) -> bool {
        let found = self.tokens.get(self.at).is_some_and(|token| token.token == *wanted);
        self.at += usize::from(found);
        found
    }

    /// Whether the word before the one just read is this one.
    fn was(&self, word: &str) -> bool {
        self.at >= 2 && is_word(&self.tokens[self.at - 2].token, word)
    }

    fn mistake(&self, message: &str) -> Problem {
        let token = self.tokens.get(self.at).or_else(|| self.tokens.last());
        let mut problem = Problem::new(state::SYNTAX_ERROR, message);
        problem.place = token.map(|token| (token.span.start.line, token.span.start.column));
        problem
    }
}

#[derive(Debug, Default)]
struct CopyOptions {
    is_csv: bool,
    is_binary: bool,
    has_header: bool,
    delimiter: Option<u8>,
    quote: Option<u8>,
    null: Option<String>,
    force_quote: bool,
}

fn read_only(what: &str) -> Problem {
    Problem::new(state::READ_ONLY, format!("cannot execute {} in a read-only transaction", what.to_uppercase()))
        .with_hint("the lake is written by `holdfast ingest` and `holdfast run`, and read here")
}

fn query_of(tokens: &[TokenWithSpan]) -> Result<Box<Statement>, Problem> {
    let mut parser = Parser::new(&PostgreSqlDialect {}).with_tokens_with_locations(tokens.to_vec());
    one(parser.parse_statements(), tokens.first())
}

/// One statement that is written here.
pub(crate) fn parse_one(sql: &str) -> Result<Box<Statement>, Problem> {
    one(Parser::parse_sql(&PostgreSqlDialect {}, sql), None)
}

fn one(
    statements: Result<Vec<Statement>, ParserError>,
    first: Option<&TokenWithSpan>,
) -> Result<Box<Statement>, Problem> {
    match statements.map(|mut statements| (statements.pop(), statements.is_empty())) {
        Ok((Some(statement), true)) => Ok(Box::new(statement)),
        Ok(_) => Err(Problem::new(state::SYNTAX_ERROR, "this is not one statement")),
        Err(ParserError::RecursionLimitExceeded) => {
            Err(Problem::new(state::STATEMENT_TOO_COMPLEX, "the statement is nested too deeply"))
        }
        Err(ParserError::ParserError(text) | ParserError::TokenizerError(text)) => {
            let place = text.rsplit_once(" at Line: ").and_then(|(what, place)| {
                let (line, column) = place.split_once(", Column: ")?;
                Some((what.to_owned(), (line.parse().ok()?, column.parse().ok()?)))
            });
            let (message, place) = match place {
                Some((what, place)) => (what, Some(place)),
                None => (text, first.map(|token| (token.span.start.line, token.span.start.column))),
            };
            let mut problem = Problem::new(state::SYNTAX_ERROR, message);
            problem.place = place;
            Err(problem)
        }
    }
}

fn is_word(token: &Token, wanted: &str) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted))
}

/// A name as SQL folds it.
fn name_of(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) if word.quote_style.is_some() => Some(word.value.clone()),
        Token::Word(word) => Some(word.value.to_lowercase()),
        Token::Number(number, _) => Some(number.clone()),
        _ => None,
    }
}

fn text_of(token: &Token) -> Option<String> {
    match token {
        Token::SingleQuotedString(text)
        | Token::EscapedStringLiteral(text)
        | Token::DoubleQuotedString(text)
        | Token::NationalStringLiteral(text) => Some(text.clone()),
        other => name_of(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(sql: &str) -> Result<Command, Problem> {
        let mut commands = parse(sql, &PgSettings::default())?;
        assert_eq!(commands.len(), 1, "{sql}");
        Ok(commands.remove(0))
    }

    #[test]
    fn settings_are_set_in_every_way_that_clients_write_them() {
        for (sql, name, value) in [
            ("SET extra_float_digits = 3", "extra_float_digits", Some("3")),
            ("set session datestyle to iso, mdy", "datestyle", Some("iso, mdy")),
            ("SET client_encoding TO 'UTF8'", "client_encoding", Some("UTF8")),
            ("set names 'utf8'", "client_encoding", Some("utf8")),
            ("SET TIME ZONE 'Asia/Shanghai'", "timezone", Some("Asia/Shanghai")),
            ("SET TIME ZONE LOCAL", "timezone", None),
            ("set statement_timeout = default", "statement_timeout", None),
            ("set application_name = ''", "application_name", Some("")),
            ("set holdfast.run = 'latest'", "holdfast.run", Some("latest")),
            ("SET search_path = \"$user\", public", "search_path", Some("$user, public")),
        ] {
            let Command::Set { name: found, value: set } = only(sql).unwrap() else { panic!("{sql}") };
            assert_eq!((found.as_str(), set.as_deref()), (name, value), "{sql}");
        }
        for sql in
            ["SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "set transaction isolation level serializable"]
        {
            assert!(matches!(only(sql).unwrap(), Command::SetNothing), "{sql}");
        }
        assert!(only("set role admin").is_err() && only("set x").is_err() && only("set").is_err());
    }

    #[test]
    fn cursors_and_copies_are_understood() {
        let declared = only("DECLARE \"My c\" NO SCROLL CURSOR WITHOUT HOLD FOR SELECT 1").unwrap();
        assert!(matches!(declared, Command::Declare { ref name, is_held: false, .. } if name == "My c"));
        assert!(matches!(
            only("declare c cursor with hold for select 1").unwrap(),
            Command::Declare { is_held: true, .. }
        ));
        assert!(only("declare c scroll cursor for select 1").is_err());
        for (sql, expected) in [
            ("FETCH FORWARD 100 FROM \"c\"", Some(100)),
            ("fetch c", Some(1)),
            ("fetch all in c", None),
            ("fetch forward all from c", None),
            ("fetch next from c", Some(1)),
        ] {
            let Command::Fetch { cursor, count, .. } = only(sql).unwrap() else { panic!("{sql}") };
            assert_eq!((cursor.as_str(), count), ("c", expected), "{sql}");
        }
        for sql in ["fetch prior from c", "fetch backward 3 from c", "fetch -1 from c", "fetch first from c"] {
            assert_eq!(only(sql).unwrap_err().code, state::OBJECT_NOT_IN_STATE, "{sql}");
        }
        let csv = |sql| match only(sql).unwrap() {
            Command::CopyOut { style, has_header, .. } => (style, has_header),
            other => panic!("{other:?}"),
        };
        let comma = CopyStyle::Csv { delimiter: b',', quote: b'"', null: String::new(), force_quote: false };
        assert_eq!(csv("copy (select (1), ')') to stdout with (format csv, header true)"), (comma.clone(), true));
        assert_eq!(csv("COPY core.orders (a, \"B\") TO STDOUT CSV HEADER"), (comma, true));
        assert_eq!(csv("copy t to stdout (format binary)").0, CopyStyle::Binary);
        let text = CopyStyle::Text { delimiter: b'|', null: "-".to_owned() };
        assert_eq!(csv("copy t to stdout with delimiter '|' null '-'"), (text, false));
        assert!(only("copy t to '/etc/passwd'").is_err());
        assert!(only("copy t to program 'sh'").is_err());
        assert_eq!(only("copy t from stdin").unwrap_err().code, state::READ_ONLY);
    }

    #[test]
    fn what_writes_is_refused_and_other_statements_are_told_apart() {
        for sql in ["insert into t values (1)", "DROP TABLE t", "create table t (a int)", "vacuum", "truncate t"] {
            assert_eq!(only(sql).unwrap_err().code, state::READ_ONLY, "{sql}");
        }
        let many = parse("begin; select ';' /* ; */ from t -- ;\n; rollback to savepoint a;;", &PgSettings::default());
        assert!(matches!(many.unwrap().as_slice(), [Command::Begin, Command::Query(_), Command::RollbackTo]));
        assert!(parse(" ; -- nothing", &PgSettings::default()).unwrap().is_empty());
        assert!(matches!(only("discard all").unwrap(), Command::DiscardAll));
        assert!(matches!(only("show transaction isolation level").unwrap(), Command::Show(_)));
        assert_eq!(only("select\n  1 +").unwrap_err().code, state::SYNTAX_ERROR);
        assert_eq!(only("selec 1").unwrap_err().place, Some((1, 1)));
    }

    #[test]
    fn long_and_deep_statements_are_refused() {
        let settings = PgSettings { max_statement_bytes: 100, ..PgSettings::default() };
        assert_eq!(parse(&" ".repeat(101), &settings).unwrap_err().code, state::PROGRAM_LIMIT);
        let settings = PgSettings { max_statement_tokens: 1_000, ..PgSettings::default() };
        let wide = format!("select {}", "1,".repeat(600));
        assert_eq!(parse(&wide, &settings).unwrap_err().code, state::STATEMENT_TOO_COMPLEX);
        let repeated = |what: &str, count: usize| format!("select {}1", what.repeat(count));
        for deep in [
            format!("select {}1{}", "(".repeat(5_000), ")".repeat(5_000)),
            repeated("1 + ", 20_000),
            repeated("not ", 20_000),
            repeated("- ", 20_000),
            repeated("(1 + ", 400) + &")".repeat(400),
            format!("select 1{}", " union all select 1".repeat(10_000)),
            format!("select 1{}", "::int".repeat(10_000)),
        ] {
            assert_eq!(only(&deep).unwrap_err().code, state::STATEMENT_TOO_COMPLEX, "{}", &deep[..40]);
        }
        let many = format!("select a in ({}1) from t where {}true", "1 + 1, ".repeat(5_000), "a = 1 or ".repeat(200));
        assert!(matches!(only(&many).unwrap(), Command::Query(_)));
    }
}
