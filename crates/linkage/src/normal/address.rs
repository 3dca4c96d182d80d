use super::{fold, simplified};

/// Words of an address in their short form, so that `12 Main Street` and `12 main st.` are one text.
const SHORT_WORDS: &[(&str, &str)] = &[
    ("apartment", "apt"),
    ("avenue", "ave"),
    ("boulevard", "blvd"),
    ("circuit", "cct"),
    ("close", "cl"),
    ("court", "ct"),
    ("crescent", "cres"),
    ("drive", "dr"),
    ("east", "e"),
    ("floor", "fl"),
    ("highway", "hwy"),
    ("lane", "ln"),
    ("mount", "mt"),
    ("north", "n"),
    ("parade", "pde"),
    ("place", "pl"),
    ("road", "rd"),
    ("saint", "st"),
    ("south", "s"),
    ("square", "sq"),
    ("street", "st"),
    ("terrace", "tce"),
    ("west", "w"),
];

/// A postal address in one notation: lower case, simplified hanzi, common words short, single spaces; `None` when nothing is left.
///
/// The order of the parts stays, and between hanzi there are no spaces.
pub fn address_key(text: &str) -> Option<String> {
    let folded = simplified(&fold(text));
    let mut out = String::with_capacity(folded.len());
    for word in folded.split(|char: char| !char.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let short = SHORT_WORDS.binary_search_by(|(long, _)| (*long).cmp(word)).map_or(word, |at| SHORT_WORDS[at].1);
        let touches_hanzi = |char: Option<char>| char.is_none_or(|char| !char.is_ascii());
        if !touches_hanzi(out.chars().next_back()) && !touches_hanzi(short.chars().next()) {
            out.push(' ');
        }
        out.push_str(short);
    }
    if out.is_empty() { None } else { Some(out) }
}

/// A postcode or number without spaces and punctuation, lower case; `None` when nothing is left.
pub fn postcode_key(text: &str) -> Option<String> {
    let key: String = fold(text).chars().filter(|char| char.is_alphanumeric()).collect();
    if key.is_empty() { None } else { Some(key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_listed_in_order() {
        let mut sorted = SHORT_WORDS.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, SHORT_WORDS);
    }

    #[test]
    fn notations_of_one_address_are_one_text() {
        assert_eq!(address_key("12 Main Street,  North Ryde"), address_key("12 main st. n ryde"));
        assert_eq!(address_key("北京市 朝陽區 建國路88號"), address_key("北京市朝阳区建国路88号"));
        assert_eq!(address_key(" , "), None);
        assert_eq!(postcode_key("ec1a 1bb").as_deref(), Some("ec1a1bb"));
        assert_eq!(postcode_key("--"), None);
    }
}
