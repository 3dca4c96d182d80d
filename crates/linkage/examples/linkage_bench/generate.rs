//! Made-up people with the errors of the FEBRL sets: seeded, of any number.

use std::io::{self, Write};

/// SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 32) as usize * limit) >> 32
    }

    /// A number below the limit, small ones far more often: about as names are given.
    fn common(&mut self, limit: usize) -> usize {
        let even = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        ((limit as f64).powf(even) - 1.0) as usize % limit
    }
}

const ONSETS: [&str; 18] = ["b", "br", "c", "ch", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "w"];
const VOWELS: [&str; 8] = ["a", "e", "i", "o", "u", "ai", "ee", "ou"];
const ENDS: [&str; 10] = ["", "n", "r", "s", "l", "tt", "nd", "m", "ck", "y"];
const STREETS: [&str; 8] = ["street", "road", "place", "circuit", "avenue", "crescent", "close", "drive"];
const STATES: [&str; 8] = ["nsw", "vic", "qld", "wa", "sa", "tas", "act", "nt"];

/// The n-th of as many words as wanted, always the same one.
fn word(kind: u64, number: usize) -> String {
    let mut numbers = Numbers(kind.wrapping_mul(1_000_003).wrapping_add(number as u64));
    let mut word = String::new();
    for _ in 0..2 {
        word += ONSETS[numbers.below(ONSETS.len())];
        word += VOWELS[numbers.below(VOWELS.len())];
    }
    word + ENDS[numbers.below(ENDS.len())]
}

/// Writes so many records: of ten people six have one record, the others two to four, each further one with one to three errors.
pub(crate) fn write(records: usize, seed: u64, mut to: impl Write) -> io::Result<()> {
    let mut numbers = Numbers(seed);
    writeln!(to, "rec_id,given_name,surname,street_number,address_1,postcode,state,date_of_birth,soc_sec_id")?;
    let (mut written, mut person) = (0, 0);
    while written < records {
        let birth = format!("{}{:02}{:02}", 1920 + numbers.below(90), 1 + numbers.below(12), 1 + numbers.below(28));
        let fields = [
            word(1, numbers.common(4_000)),
            word(2, numbers.common(60_000)),
            (1 + numbers.common(400)).to_string(),
            format!("{} {}", word(3, numbers.below(20_000)), STREETS[numbers.below(8)]),
            (2_000 + numbers.below(3_000)).to_string(),
            STATES[numbers.below(8)].to_owned(),
            birth,
            (1_000_000 + numbers.below(9_000_000)).to_string(),
        ];
        let others = if numbers.below(10) < 6 { 0 } else { 1 + numbers.below(3) };
        for record in 0..=others {
            let mut values = fields.clone();
            if record > 0 {
                for _ in 0..=numbers.below(3) {
                    damage(&mut values, &mut numbers);
                }
            }
            let name = if record == 0 { "org".to_owned() } else { format!("dup-{}", record - 1) };
            writeln!(to, "rec-{person}-{name},{}", values.join(","))?;
            written += 1;
            if written == records {
                break;
            }
        }
        person += 1;
    }
    to.flush()
}

/// One error: a typing error, a missing value, swapped names, another value.
fn damage(values: &mut [String; 8], numbers: &mut Numbers) {
    let at = numbers.below(values.len());
    match numbers.below(10) {
        0 => values[at].clear(),
        1 => values.swap(0, 1),
        2 => {
            values[at] = match at {
                0 => word(1, numbers.common(4_000)),
                1 => word(2, numbers.common(60_000)),
                4 => (2_000 + numbers.below(3_000)).to_string(),
                _ => return,
            }
        }
        _ => mistype(&mut values[at], numbers),
    }
}

fn mistype(value: &mut String, numbers: &mut Numbers) {
    let mut chars: Vec<char> = value.chars().collect();
    if chars.len() < 2 {
        return;
    }
    let at = numbers.below(chars.len());
    let is_digit = chars[at].is_ascii_digit();
    let random =
        if is_digit { char::from(b'0' + numbers.below(10) as u8) } else { char::from(b'a' + numbers.below(26) as u8) };
    match numbers.below(4) {
        0 => chars[at] = random,
        1 => chars.insert(at, random),
        2 => _ = chars.remove(at),
        _ => {
            let next = (at + 1) % chars.len();
            chars.swap(at, next);
        }
    }
    *value = chars.into_iter().collect();
}
