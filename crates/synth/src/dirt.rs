//! Damage: copies of good rows, each broken in one way that a reader of the source's contract must refuse.

use crate::dice::Dice;
use crate::number;
use crate::rows::{Format, Source};

const IMPOSSIBLE_DATE: &[u8] = b"2025-13-41";

/// Writes a damaged copy of a row and answers what is wrong with it.
pub(crate) fn damage(dice: &mut Dice, source: Source, row: &[u8], out: &mut Vec<u8>) -> &'static str {
    match source.format() {
        Format::Csv => damage_csv(dice, source, row, out),
        _ => damage_json(dice, source, row, out),
    }
}

fn damage_json(dice: &mut Dice, source: Source, row: &[u8], out: &mut Vec<u8>) -> &'static str {
    let (time, numbers): (&str, &[(&str, &str)]) = match source {
        Source::Orders => ("ordered_at", &[("paid_amount", "\"N/A\""), ("goods_amount", "\"N/A\"")]),
        Source::OrderLines => {
            ("ordered_at", &[("quantity", "\"two\""), ("line_amount", "\"N/A\""), ("line_no", "\"one\"")])
        }
        Source::Tickets => ("opened_at", &[("csat", "\"good\""), ("nps", "\"ten\""), ("is_complaint", "\"perhaps\"")]),
        Source::Events => ("timestamp", &[("quantity", "\"two\""), ("price", "\"N/A\""), ("duration_ms", "\"long\"")]),
        Source::Reviews => ("reviewed_at", &[("stars", "\"five\""), ("photo_count", "\"two\"")]),
        Source::SocialPosts => ("posted_at", &[("likes", "\"many\""), ("reach", "\"N/A\"")]),
        Source::TicketMessages => ("sent_at", &[("attachments", "\"two\"")]),
        _ => ("shipped_at", &[]),
    };
    match dice.below(4) {
        0 if let Some((field, value)) = present(dice, row, numbers) => {
            replace_json(row, field, value.as_bytes(), out);
            "wrong_type"
        }
        1 if position_of(row, time).is_some() => {
            replace_json(row, time, &[b"\"", IMPOSSIBLE_DATE, b"T10:00:00Z\""].concat(), out);
            "bad_timestamp"
        }
        2 if let Some(place) = string_start(dice, row) => {
            insert_invalid_utf8(row, place, out);
            "invalid_utf8"
        }
        _ => {
            let share = dice.between(0.25, 0.95);
            let mut cut = number::index(number::whole(row.len() as f64 * share).unsigned_abs()).max(1);
            // Cut between characters, so that the row is broken in one way only.
            while cut > 1 && row.get(cut).is_some_and(|byte| byte & 0xc0 == 0x80) {
                cut -= 1;
            }
            out.extend_from_slice(&row[..cut]);
            "broken_json"
        }
    }
}

/// One of the fields that this row has.
fn present<'a>(dice: &mut Dice, row: &[u8], fields: &'a [(&'a str, &'a str)]) -> Option<(&'a str, &'a str)> {
    let here: Vec<_> = fields.iter().filter(|(field, _)| position_of(row, field).is_some()).collect();
    (!here.is_empty()).then(|| **dice.pick(&here))
}

/// Where a field's value begins.
fn position_of(row: &[u8], field: &str) -> Option<usize> {
    let name = format!("\"{field}\":");
    row.windows(name.len()).position(|window| window == name.as_bytes()).map(|place| place + name.len())
}

fn replace_json(row: &[u8], field: &str, value: &[u8], out: &mut Vec<u8>) {
    let Some(start) = position_of(row, field) else { return };
    let length = row[start..].iter().position(|byte| matches!(byte, b',' | b'}')).unwrap_or(0);
    out.extend_from_slice(&row[..start]);
    out.extend_from_slice(value);
    out.extend_from_slice(&row[start + length..]);
}

/// Inside the opening quote of some string value.
fn string_start(dice: &mut Dice, row: &[u8]) -> Option<usize> {
    let places: Vec<usize> =
        row.windows(2).enumerate().filter(|(_, pair)| *pair == b":\"").map(|(place, _)| place + 2).collect();
    (!places.is_empty()).then(|| *dice.pick(&places))
}

fn insert_invalid_utf8(row: &[u8], place: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&row[..place]);
    // A Chinese character in GBK, as an old system would have written it, and a byte that UTF-8 never has.
    out.extend_from_slice(&[0xd6, 0xd0, 0xff]);
    out.extend_from_slice(&row[place..]);
}

fn damage_csv(dice: &mut Dice, source: Source, row: &[u8], out: &mut Vec<u8>) -> &'static str {
    let (times, typed): (&[usize], &[(usize, &str)]) = match source {
        Source::CrmContacts => (&[4, 13, 19], &[(16, "perhaps"), (17, "perhaps")]),
        Source::Receipts => (&[4], &[(1, "one"), (9, "two"), (10, "N/A"), (11, "N/A")]),
        Source::CampaignTouches => (&[5], &[]),
        Source::Products => (&[6], &[(5, "N/A")]),
        Source::Coupons => (&[4, 8], &[(6, "N/A"), (7, "N/A")]),
        _ => (&[2], &[(4, "two")]),
    };
    let fields = split(row);
    let join = |out: &mut Vec<u8>, fields: &[&[u8]]| out.extend_from_slice(&fields.join(&b','));
    match dice.below(5) {
        0 if !typed.is_empty() => {
            let (column, value) = *dice.pick(typed);
            let mut fields = fields;
            fields[column] = value.as_bytes();
            join(out, &fields);
            "wrong_type"
        }
        1 => {
            let column = *dice.pick(times);
            // A date stays a date and a timestamp a timestamp, only an impossible one.
            let rest = fields[column].get(10..).unwrap_or_default();
            let value = [IMPOSSIBLE_DATE, rest].concat();
            let mut fields = fields;
            fields[column] = &value;
            join(out, &fields);
            "bad_timestamp"
        }
        2 => {
            let mut fields = fields;
            fields.push(b"0");
            join(out, &fields);
            "extra_fields"
        }
        3 => {
            let mut broken = Vec::with_capacity(8);
            insert_invalid_utf8(fields[0], 0, &mut broken);
            let mut fields = fields;
            fields[0] = &broken;
            join(out, &fields);
            "invalid_utf8"
        }
        _ => {
            let kept = fields.len() - 1 - dice.position(3);
            join(out, &fields[..kept]);
            "missing_fields"
        }
    }
}

/// The fields of a CSV line, quotes and all.
fn split(row: &[u8]) -> Vec<&[u8]> {
    let mut quoted = false;
    row.split(|byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
    .collect()
}
