use serde::Serialize;

/// Letters of the parts of words that are looked at.
const PARTS: std::ops::RangeInclusive<usize> = 2..=5;

/// Characters of a text that are read.
const CHARACTERS_MOST: usize = 20_000;

/// Which script a text is in for the most part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Language {
    /// Hanzi.
    Chinese,
    /// Latin letters.
    English,
    /// Neither, or nothing to tell by.
    Unknown,
}

impl Language {
    /// The code of ISO 639-1, or `unknown`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chinese => "zh",
            Self::English => "en",
            Self::Unknown => "unknown",
        }
    }

    /// By counting: a hanzi says about as much as three letters.
    pub(crate) fn of(text: &str) -> Self {
        let (mut hanzi, mut letters) = (0_usize, 0_usize);
        for character in text.chars().take(CHARACTERS_MOST) {
            if is_hanzi(character) {
                hanzi += 1;
            } else if character.is_ascii_alphabetic() {
                letters += 1;
            }
        }
        match 3 * hanzi {
            0 if letters == 0 => Self::Unknown,
            weighed if weighed >= letters => Self::Chinese,
            _ => Self::English,
        }
    }
}

/// The text in lower case and half width, runs of anything but letters, hanzi, digits and emoji as one space.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::new();
    for character in text.chars().take(CHARACTERS_MOST) {
        let character = half_width(character);
        // 's and n't belong to their word.
        if character.is_alphanumeric() || character == '\'' || is_emoji(character) || matches!(character, '!' | '?') {
            plain.extend(character.to_lowercase());
        } else if !plain.ends_with(' ') {
            plain.push(' ');
        }
    }
    plain.trim().to_owned()
}

/// The places of a text's n-grams among 2^`bits` weights, each once, ascending: hanzi and other single signs with their pairs and triples; words with
/// their pairs and triples, and two to five letters of them, so that a slip of the pen costs little.
pub(crate) fn places(text: &str, bits: u32) -> Vec<u32> {
    let plain = plain(text);
    let mut places = Vec::new();
    let mut before: [Option<u64>; 2] = [None, None];
    let mut take = |token: u64, before: &mut [Option<u64>; 2]| {
        places.push(place(token, bits));
        if let Some(one) = before[0] {
            let pair = joined(one, token);
            places.push(place(pair, bits));
            if let Some(two) = before[1] {
                places.push(place(joined(two, pair), bits));
            }
        }
        *before = [Some(token), before[0]];
    };
    let mut parts = Vec::new();
    for word in plain.split(' ') {
        let mut rest = word;
        while let Some(first) = rest.chars().next() {
            let end = if is_word(first) {
                rest.find(|other| !is_word(other)).unwrap_or(rest.len())
            } else {
                first.len_utf8()
            };
            let (token, after) = rest.split_at(end);
            take(hash(token.as_bytes()), &mut before);
            if is_word(first) {
                let ends: Vec<usize> = token.char_indices().map(|(place, _)| place).chain([token.len()]).collect();
                for length in PARTS {
                    // A part at the edge of its word is another one: "un" begins words.
                    for part in ends.windows(length + 1).filter(|_| ends.len() > length + 1) {
                        let (begin, end) = (part[0], part[length]);
                        let edge = u64::from(begin == 0) + 2 * u64::from(end == token.len());
                        let part = hash(&token.as_bytes()[begin..end]);
                        parts.push(place(joined(8 * length as u64 + edge, part), bits));
                    }
                }
            }
            rest = after;
        }
    }
    places.append(&mut parts);
    places.sort_unstable();
    places.dedup();
    places
}

/// Letters and digits that make words, unlike hanzi and emoji.
fn is_word(character: char) -> bool {
    (character.is_alphanumeric() || character == '\'') && !is_hanzi(character)
}

fn is_hanzi(character: char) -> bool {
    matches!(u32::from(character), 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x3ffff)
}

fn is_emoji(character: char) -> bool {
    matches!(u32::from(character), 0x2600..=0x27bf | 0x1f300..=0x1faff)
}

/// Full-width Latin letters, digits and signs as the usual ones.
fn half_width(character: char) -> char {
    match u32::from(character) {
        code @ 0xff01..=0xff5e => char::from_u32(code - 0xfee0).unwrap_or(character),
        _ => character,
    }
}

/// FNV-1a.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn joined(one: u64, other: u64) -> u64 {
    (one.rotate_left(23) ^ other).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The upper bits of a hash that is mixed once more.
fn place(hash: u64, bits: u32) -> u32 {
    let mixed = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    u32::try_from(mixed >> (64 - bits)).unwrap_or(0)
}
