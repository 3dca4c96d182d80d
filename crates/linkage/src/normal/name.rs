use super::{fold, has_hanzi, simplified};

/// A name in one notation: lower case, simplified hanzi without spaces, Latin parts with single spaces and without accents or punctuation.
///
/// `None` when nothing but punctuation is left.
pub fn name_key(text: &str) -> Option<String> {
    let parts = name_parts(text);
    if parts.is_empty() { None } else { Some(join(&parts)) }
}

/// [`name_key`] that does not depend on the order of the parts: `Wang Xiaoming` and `Xiaoming Wang` give one text.
///
/// Hanzi without a space have one part, so their order stays.
pub fn name_key_any_order(text: &str) -> Option<String> {
    let mut parts = name_parts(text);
    parts.sort_unstable();
    if parts.is_empty() { None } else { Some(join(&parts)) }
}

fn name_parts(text: &str) -> Vec<String> {
    let folded = simplified(&fold(text));
    // An apostrophe or a dot inside a name joins: o'brien, j.r.
    let joined: String = folded.chars().filter(|char| !matches!(char, '\'' | '’' | '‘' | '`' | '.' | '·')).collect();
    joined.split(|char: char| !char.is_alphanumeric()).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn join(parts: &[String]) -> String {
    let between = if parts.iter().all(|part| has_hanzi(part)) { "" } else { " " };
    parts.join(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notations_of_one_name_are_one_text() {
        for (one, other) in [
            ("  José  GARCÍA ", "jose garcia"),
            ("O’Brien", "obrien"),
            ("Smith-Jones", "smith jones"),
            ("ＷＡＮＧ　Xiaoming", "wang xiaoming"),
            ("張 偉", "张伟"),
            ("Jose\u{301}", "jose"),
        ] {
            assert_eq!(name_key(one).as_deref(), Some(other), "{one}");
        }
        assert_eq!(name_key(" -. "), None);
    }

    #[test]
    fn swapped_parts_are_one_text() {
        assert_eq!(name_key_any_order("Wang Xiaoming"), name_key_any_order("XIAOMING, wang"));
        assert_ne!(name_key_any_order("Wang Xiaoming"), name_key_any_order("Wang Xiaomin"));
    }
}
