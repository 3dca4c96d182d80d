use pinyin::ToPinyin as _;

/// Surnames that are read in their own way, and how; the `pinyin` tables give the common reading.
const SURNAME_READINGS: &[(char, &str)] = &[
    ('仇', "qiu"),
    ('区', "ou"),
    ('单', "shan"),
    ('召', "shao"),
    ('尉', "wei"),
    ('曾', "zeng"),
    ('朴', "piao"),
    ('查', "zha"),
    ('繁', "po"),
    ('翟', "zhai"),
    ('覃', "qin"),
    ('解', "xie"),
    ('长', "zhang"),
    ('乐', "yue"),
    ('盖', "ge"),
    ('种', "chong"),
    ('洗', "xian"),
];

/// Surnames of two hanzi.
const LONG_SURNAMES: &[&str] = &[
    "欧阳", "上官", "司马", "司徒", "诸葛", "皇甫", "尉迟", "公孙", "令狐", "慕容", "夏侯", "东方", "宇文", "长孙",
    "南宫", "轩辕", "端木", "独孤", "西门", "闻人",
];

/// Whether the text has a hanzi in it.
pub fn has_hanzi(text: &str) -> bool {
    !text.is_ascii() && text.chars().any(is_hanzi)
}

fn is_hanzi(char: char) -> bool {
    matches!(char, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}' | '〇')
}

/// The text with traditional hanzi replaced by simplified ones.
pub fn simplified(text: &str) -> String {
    if has_hanzi(text) { fast2s::convert(text) } else { text.to_owned() }
}

/// The syllables of the hanzi in a text, lower case and without tones; Latin words stay as they are.
pub fn pinyin_syllables(text: &str) -> Vec<String> {
    let mut syllables: Vec<String> = Vec::new();
    let mut word = String::new();
    let end_word = |word: &mut String, syllables: &mut Vec<String>| {
        if !word.is_empty() {
            syllables.push(std::mem::take(word));
        }
    };
    for char in text.chars() {
        if let Some(reading) = char.to_pinyin() {
            end_word(&mut word, &mut syllables);
            // Passports write ü as yu or v; a name key has folded it to u.
            syllables.push(reading.plain().replace('ü', "u"));
        } else if char.is_alphanumeric() {
            word.push(char);
        } else {
            end_word(&mut word, &mut syllables);
        }
    }
    end_word(&mut word, &mut syllables);
    syllables
}

/// A name as it is written in Latin letters, without spaces and in an order that swapping does not change: `王小明`, `Wang Xiaoming` and `xiao ming wang`
/// give one text. The input is a [`name_key`](super::name_key).
///
/// Syllables are sorted where the text is hanzi or reads as pinyin throughout; other names keep their words, sorted.
pub fn name_pinyin(key: &str) -> String {
    let mut syllables = if has_hanzi(key) { hanzi_name_syllables(key) } else { Vec::new() };
    if syllables.is_empty() {
        syllables =
            key.split(' ').flat_map(|word| split_pinyin(word).unwrap_or_else(|| vec![word.to_owned()])).collect();
    }
    syllables.sort_unstable();
    syllables.concat()
}

fn hanzi_name_syllables(key: &str) -> Vec<String> {
    let mut syllables = pinyin_syllables(key);
    let is_long = LONG_SURNAMES.iter().any(|surname| key.starts_with(surname));
    if let Some(first) = key.chars().next()
        && let Some((_, reading)) = SURNAME_READINGS.iter().find(|(surname, _)| *surname == first)
        && !is_long
        && let Some(syllable) = syllables.first_mut()
    {
        (*reading).clone_into(syllable);
    }
    if key.starts_with("尉迟") {
        "yu".clone_into(&mut syllables[0]);
    } else if key.starts_with("长孙") {
        "zhang".clone_into(&mut syllables[0]);
    }
    syllables
}

/// A Latin word cut into syllables of Mandarin, the longest first with a way back; `None` when it is no pinyin.
fn split_pinyin(word: &str) -> Option<Vec<String>> {
    if word.is_empty() {
        return Some(Vec::new());
    }
    if !word.is_ascii() {
        return None;
    }
    for length in (1..=word.len().min(6)).rev() {
        let (syllable, rest) = word.split_at(length);
        if is_syllable(syllable)
            && let Some(mut others) = split_pinyin(rest)
        {
            others.insert(0, syllable.to_owned());
            return Some(others);
        }
    }
    None
}

/// Whether an initial and a final stand together to the eye; a few pairs that Mandarin does not use pass too, which costs nothing here.
fn is_syllable(text: &str) -> bool {
    const INITIALS: [&str; 23] = [
        "zh", "ch", "sh", "b", "p", "m", "f", "d", "t", "n", "l", "g", "k", "h", "j", "q", "x", "r", "z", "c", "s",
        "y", "w",
    ];
    const FINALS: [&str; 34] = [
        "a", "o", "e", "i", "u", "v", "ai", "ei", "ui", "ao", "ou", "iu", "ie", "ue", "ve", "an", "en", "in", "un",
        "vn", "ang", "eng", "ing", "ong", "ia", "ian", "iang", "iao", "iong", "ua", "uai", "uan", "uang", "uo",
    ];
    const ALONE: [&str; 12] = ["a", "o", "e", "ai", "ei", "ao", "ou", "an", "en", "ang", "eng", "er"];
    let initial = INITIALS.iter().find(|initial| text.starts_with(**initial));
    ALONE.contains(&text) || initial.is_some_and(|initial| FINALS.contains(&&text[initial.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normal::name_key;

    fn pinyin(name: &str) -> String {
        name_pinyin(&name_key(name).expect("a name"))
    }

    #[test]
    fn hanzi_and_latin_spellings_of_one_name_are_one_text() {
        for names in [
            ["王小明", "Wang Xiaoming", "Xiao Ming WANG"],
            ["張偉", "张伟", "Wei Zhang"],
            ["欧阳娜", "Ouyang Na", "na ou yang"],
            ["呂布", "吕布", "Lü Bu"],
            ["单雄信", "Shan Xiongxin", "xiongxin shan"],
            ["曾国藩", "Zeng Guofan", "曾國藩"],
        ] {
            assert_eq!(pinyin(names[0]), pinyin(names[1]), "{names:?}");
            assert_eq!(pinyin(names[0]), pinyin(names[2]), "{names:?}");
        }
        assert_ne!(pinyin("王小明"), pinyin("王小民".replace('民', "红").as_str()));
    }

    #[test]
    fn other_names_keep_their_words() {
        assert_eq!(pinyin("John Smith"), "johnsmith");
        assert_eq!(pinyin("Smith John"), "johnsmith");
    }

    #[test]
    fn traditional_becomes_simplified() {
        assert_eq!(simplified("陳國華 abc"), "陈国华 abc");
        assert_eq!(pinyin_syllables("abc王伟 x"), ["abc", "wang", "wei", "x"]);
    }
}
