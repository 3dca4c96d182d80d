//! How alike two texts are. Texts are slices of code points, so that a comparison allocates nothing.

/// Jaro–Winkler similarity from 0 to 1 (Winkler 1990): Jaro's, raised for up to four equal first characters where it is above 0.7.
pub fn jaro_winkler(one: &[u32], other: &[u32]) -> f64 {
    let jaro = jaro(one, other);
    if jaro <= 0.7 {
        return jaro;
    }
    let prefix = one.iter().zip(other).take(4).take_while(|(a, b)| a == b).count();
    let prefix = prefix as f64;
    (jaro + 0.1 * prefix * (1.0 - jaro)).min(1.0)
}

/// Characters looked at; the rest of longer texts is not compared.
const CHARACTERS_MAX: usize = 64;

fn jaro(one: &[u32], other: &[u32]) -> f64 {
    let (one, other) = (&one[..one.len().min(CHARACTERS_MAX)], &other[..other.len().min(CHARACTERS_MAX)]);
    if one.is_empty() || other.is_empty() {
        return if one.len() == other.len() { 1.0 } else { 0.0 };
    }
    let window = (one.len().max(other.len()) / 2).saturating_sub(1);
    let (mut taken_one, mut taken_other) = (0_u64, 0_u64);
    for (at, char) in one.iter().enumerate() {
        let from = at.saturating_sub(window);
        let to = (at + window + 1).min(other.len());
        let free = |(place, candidate): &(usize, &u32)| *candidate == char && taken_other & (1 << place) == 0;
        if let Some((place, _)) = other.iter().enumerate().take(to).skip(from).find(free) {
            taken_one |= 1 << at;
            taken_other |= 1 << place;
        }
    }
    let matches = taken_one.count_ones();
    if matches == 0 {
        return 0.0;
    }
    let (mut left, mut right, mut out_of_order) = (taken_one, taken_other, 0_u32);
    while left != 0 && right != 0 {
        out_of_order += u32::from(one[left.trailing_zeros() as usize] != other[right.trailing_zeros() as usize]);
        left &= left - 1;
        right &= right - 1;
    }
    let matches = f64::from(matches);
    let transpositions = f64::from(out_of_order / 2);
    let (one, other) = (one.len() as f64, other.len() as f64);
    (matches / one + matches / other + (matches - transpositions) / matches) / 3.0
}

/// The Damerau–Levenshtein distance in its optimal string alignment form (no piece is changed twice), or `None` when it is above `at_most`.
pub fn damerau_levenshtein(one: &[u32], other: &[u32], at_most: u32) -> Option<u32> {
    let (one, other) = (&one[..one.len().min(CHARACTERS_MAX)], &other[..other.len().min(CHARACTERS_MAX)]);
    if one.len().abs_diff(other.len()) > at_most as usize {
        return None;
    }
    let (mut rows, width) = ([[0_u8; CHARACTERS_MAX + 1]; 3], other.len() + 1);
    let [before, last, row] = &mut rows;
    let (mut before, mut last, mut row) = (before, last, row);
    for (distance, cell) in (0..).zip(&mut last[..width]) {
        *cell = distance;
    }
    for (at, &char) in one.iter().enumerate() {
        row[0] = last[0] + 1;
        let mut least = row[0];
        for (place, &candidate) in other.iter().enumerate() {
            let mut cell = (last[place] + u8::from(char != candidate)).min(last[place + 1] + 1).min(row[place] + 1);
            if at > 0 && place > 0 && char == other[place - 1] && one[at - 1] == candidate {
                cell = cell.min(before[place - 1] + 1);
            }
            row[place + 1] = cell;
            least = least.min(cell);
        }
        if u32::from(least) > at_most {
            return None;
        }
        (before, last, row) = (last, row, before);
    }
    let distance = u32::from(last[width - 1]);
    (distance <= at_most).then_some(distance)
}

/// A bit for each character, several characters to a bit: what one text has and another lacks is quickly counted.
pub(crate) fn characters(text: &[u32]) -> u64 {
    text.iter().take(CHARACTERS_MAX).fold(0, |bits, char| bits | 1 << (char & 63))
}

/// No Damerau–Levenshtein distance is below this: every character that the other text lacks takes a change of its own.
pub(crate) fn distance_least((one, other): (u64, u64)) -> u32 {
    (one & !other).count_ones().max((other & !one).count_ones())
}

/// No Jaro–Winkler similarity is above this: characters that the other text lacks do not match.
pub(crate) fn similarity_most(one: &[u32], other: &[u32], (bits_one, bits_other): (u64, u64)) -> f64 {
    let length = |text: &[u32]| f64::from(u8::try_from(text.len().clamp(1, CHARACTERS_MAX)).unwrap_or(1));
    let matching = |text: &[u32], lacking: u64| length(text) - f64::from(lacking.count_ones());
    let matches = matching(one, bits_one & !bits_other).min(matching(other, bits_other & !bits_one));
    let jaro = (matches / length(one) + matches / length(other) + 1.0) / 3.0;
    let prefix = one.iter().zip(other).take(4).take_while(|(a, b)| a == b).count();
    jaro + 0.1 * f64::from(u8::try_from(prefix).unwrap_or(4)) * (1.0 - jaro)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matching::random::Numbers;

    fn chars(text: &str) -> Vec<u32> {
        text.chars().map(u32::from).collect()
    }

    #[test]
    fn distances_are_those_of_strsim() {
        let numbers = Numbers::new(7);
        let word = |at: u64| -> String {
            let length = numbers.below(at * 100, 12);
            (0..u64::from(length))
                .map(|i| char::from(b'a' + u8::try_from(numbers.below(at * 100 + 1 + i, 4)).unwrap()))
                .collect()
        };
        for at in 0..20_000 {
            let (one, other) = (word(at * 2), word(at * 2 + 1));
            let expected = strsim::jaro_winkler(&one, &other);
            let found = jaro_winkler(&chars(&one), &chars(&other));
            assert!((expected - found).abs() < 1e-12, "{one} {other} {expected} {found}");
            let bits = (characters(&chars(&one)), characters(&chars(&other)));
            if !one.is_empty() && !other.is_empty() {
                assert!(similarity_most(&chars(&one), &chars(&other), bits) >= expected - 1e-12, "{one} {other}");
            }
            let expected = u32::try_from(strsim::osa_distance(&one, &other)).unwrap();
            assert!(distance_least(bits) <= expected, "{one} {other}");
            for at_most in 0..5 {
                let found = damerau_levenshtein(&chars(&one), &chars(&other), at_most);
                assert_eq!(found, (expected <= at_most).then_some(expected), "{one} {other} {at_most}");
            }
        }
    }

    #[test]
    fn known_values() {
        assert!((jaro_winkler(&chars("martha"), &chars("marhta")) - 0.961_111).abs() < 1e-5);
        assert!((jaro_winkler(&chars("dixon"), &chars("dicksonx")) - 0.813_333).abs() < 1e-5);
        assert_eq!(damerau_levenshtein(&chars("19560409"), &chars("19564009"), 2), Some(1));
    }
}
