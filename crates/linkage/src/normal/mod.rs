//! Values in one notation, so that equal things are equal texts. Pure functions; what cannot be understood is `None`.

mod address;
mod birth_date;
mod hanzi;
mod name;

pub use address::{address_key, postcode_key};
pub(crate) use birth_date::written_date;
pub use birth_date::{BirthDate, DateOrder, birth_date};
pub use hanzi::{has_hanzi, name_pinyin, pinyin_syllables, simplified};
pub use name::{name_key, name_key_any_order};

/// A text as it is compared: full-width forms as ASCII, lower case, Latin letters without accents.
pub(crate) fn fold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            'a'..='z' | '0'..='9' | ' ' => out.push(char),
            '\u{3000}' => out.push(' '),
            '\u{ff01}'..='\u{ff5e}' => {
                let ascii = u32::from(char) - 0xfee0;
                out.extend(char::from_u32(ascii).unwrap_or(char).to_lowercase());
            }
            // Combining accents, after a letter that came apart from its accent.
            '\u{300}'..='\u{36f}' => {}
            _ => char.to_lowercase().for_each(|lower| fold_accent(lower, &mut out)),
        }
    }
    out
}

/// Latin-1 Supplement and Latin Extended-A, which hold the letters of European names.
fn fold_accent(char: char, out: &mut String) {
    let plain = match char {
        'à'..='å' | 'ā' | 'ă' | 'ą' | 'ǎ' => "a",
        'æ' => "ae",
        'ç' | 'ć' | 'ĉ' | 'ċ' | 'č' => "c",
        'ď' | 'đ' | 'ð' => "d",
        'è'..='ë' | 'ē' | 'ĕ' | 'ė' | 'ę' | 'ě' => "e",
        'ĝ' | 'ğ' | 'ġ' | 'ģ' => "g",
        'ĥ' | 'ħ' => "h",
        'ì'..='ï' | 'ĩ' | 'ī' | 'ĭ' | 'į' | 'ı' | 'ǐ' => "i",
        'ķ' => "k",
        'ĺ' | 'ļ' | 'ľ' | 'ł' => "l",
        'ñ' | 'ń' | 'ņ' | 'ň' => "n",
        'ò'..='ö' | 'ø' | 'ō' | 'ŏ' | 'ő' | 'ǒ' => "o",
        'œ' => "oe",
        'ŕ' | 'ř' => "r",
        'ś' | 'ŝ' | 'ş' | 'š' | 'ș' => "s",
        'ß' => "ss",
        'ţ' | 'ť' | 'ț' | 'ŧ' => "t",
        'þ' => "th",
        'ù'..='ü' | 'ũ' | 'ū' | 'ŭ' | 'ů' | 'ű' | 'ų' | 'ǔ' | 'ǖ' | 'ǘ' | 'ǚ' | 'ǜ' => "u",
        'ŵ' => "w",
        'ý' | 'ÿ' | 'ŷ' => "y",
        'ź' | 'ż' | 'ž' => "z",
        other => {
            out.push(other);
            return;
        }
    };
    out.push_str(plain);
}
