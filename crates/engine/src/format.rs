//! Directives in columns. The query and all other comments stay as they are.

/// How wide the name of a directive and the severity of an expectation are, with the blanks behind.
const COLUMN: usize = 12;

/// The text with its directives aligned: names, severities and conditions each begin in one column of the file.
pub fn format_directives(text: &str) -> String {
    let condition = text.lines().filter_map(expectation_name).map(|name| name.chars().count() + 1).max().unwrap_or(0);
    let mut formatted = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let body = line.trim_end_matches(['\n', '\r']);
        match aligned(body, condition) {
            Some(aligned) => {
                formatted.push_str(&aligned);
                formatted.push_str(&line[body.len()..]);
            }
            None => formatted.push_str(line),
        }
    }
    formatted
}

/// The name and the rest of a directive.
fn directive(line: &str) -> Option<(&str, &str)> {
    let comment = line.trim_start().strip_prefix("--")?.trim_start_matches('-').trim();
    let body = comment.strip_prefix('@')?;
    let (name, rest) = body.split_once(char::is_whitespace).unwrap_or((body, ""));
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic());
    is_name.then(|| (name, rest.trim_start()))
}

/// Severity, name with its colon, and condition of an expectation that is written as one.
fn expectation(rest: &str) -> Option<(&str, &str, &str)> {
    let (severity, tail) = rest.split_once(char::is_whitespace)?;
    let (name, condition) = tail.trim_start().split_once(':')?;
    let is_name = !name.is_empty() && name.trim_end().chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name.then(|| (severity, name.trim_end(), condition.trim_start()))
}

fn expectation_name(line: &str) -> Option<&str> {
    match directive(line)? {
        ("expect", rest) => expectation(rest).map(|(_, name, _)| name),
        _ => None,
    }
}

fn aligned(line: &str, condition: usize) -> Option<String> {
    let (name, rest) = directive(line)?;
    let name = format!("@{name}");
    let body = match (name.as_str(), expectation(rest)) {
        ("@expect", Some((severity, name, rule))) => {
            format!("{}{}{rule}", padded(severity, COLUMN), padded(&format!("{name}:"), condition + 2))
        }
        _ => rest.to_owned(),
    };
    if body.is_empty() { Some(format!("-- {name}")) } else { Some(format!("-- {}{body}", padded(&name, COLUMN))) }
}

/// The text with blanks behind it up to `width`, and one at least.
fn padded(text: &str, width: usize) -> String {
    format!("{text:<width$}", width = width.max(text.chars().count() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_aligned_and_the_query_is_left_alone() {
        let text = "-- One row an order.\n--@stage incremental  key(a)\n-- @expect fail has_id: id is not null\n\
                    -- @expect quarantine   sane_amount:amount  >= 0\n-- @x.acme.tier  1\nselect   a, -- The @key\n    id from core.x\n";
        let formatted = format_directives(text);
        assert_eq!(
            formatted,
            "-- One row an order.\n-- @stage      incremental  key(a)\n-- @expect     fail        has_id:       id is not null\n\
             -- @expect     quarantine  sane_amount:  amount  >= 0\n-- @x.acme.tier 1\nselect   a, -- The @key\n    id from core.x\n"
        );
        assert_eq!(format_directives(&formatted), formatted);
    }

    #[test]
    fn what_is_no_directive_yet_is_not_lost() {
        for text in
            ["-- @\nselect 1", "-- @expect fail\nselect 1", "-- @expect fail a b\r\nselect 1\r\n", "-- mail a@b.c"]
        {
            let formatted = format_directives(text);
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&formatted), words(text));
        }
    }
}
