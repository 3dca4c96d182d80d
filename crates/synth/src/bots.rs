//! Bots that read prices in the app: a few devices that come at any hour, never sign in, and throw their cookies away
//! after every visit, so that each leaves up to ten thousand anonymous ids a year.

use crate::behaviour::{Action, Channel, Event, Session, push_device, push_session_id};
use crate::calendar::{DAY_MS, MINUTE_MS, push_padded};
use crate::dice::{Dice, Stream};
use crate::hard_cases::HardCase;
use crate::ids::Kind;
use crate::number;
use crate::people::push_uuid;
use crate::rows::{Chunk, Source};
use crate::world::{CATEGORIES, World, product_at};

/// One bot for so many customers: about 4 % of all events are a bot's, however large the shop.
const CUSTOMERS_A_BOT: u64 = 5_000;
const VISITS_A_YEAR: u64 = 10_000;
const DEVICES: u32 = 4;
/// A number that belongs to one thing of one owner has sixteen bits.
const MAX_VISITS: u64 = 60_000;
/// Bots are numbered behind all customers, whose numbers end at a thousand million.
const FIRST_BOT: u64 = 1 << 31;

/// What the bot does that came with this customer, if one did. It grows with the customers it stands for, so that a small
/// shop has a small one or none.
pub(crate) fn write_bots(world: &World, index: u64, chunk: &mut Chunk) {
    if index % CUSTOMERS_A_BOT != CUSTOMERS_A_BOT / 2 {
        return;
    }
    let number = index / CUSTOMERS_A_BOT;
    let bot = FIRST_BOT + number;
    let customers = (world.customers - number * CUSTOMERS_A_BOT).min(CUSTOMERS_A_BOT);
    let visits = VISITS_A_YEAR * customers * u64::from(world.window.days) / (CUSTOMERS_A_BOT * 365);
    let mut dice = Dice::new(world.seed, Stream::Bot, number);
    let devices: Vec<u64> = (0..DEVICES).map(|device| world.ids.wide(Kind::Device, bot, device)).collect();
    for device in &devices {
        write_identifier(chunk, number, |out| push_device(out, *device, false));
    }
    for visit in 0..number::low32(visits.clamp(1, MAX_VISITS)) {
        let session = Session {
            // Never signed in, so that nothing of a person is written.
            person: number::small(chunk.people.len().saturating_sub(1)),
            id: world.ids.of_customer(Kind::Session, bot, visit),
            channel: Channel::App,
            device: *dice.pick(&devices),
            anonymous: world.ids.wide(Kind::Anonymous, bot, visit),
            iphone: false,
            account: 0,
            ip: number::low32(dice.bits()),
        };
        write_identifier(chunk, number, |out| push_uuid(out, session.anonymous));
        write_record(chunk, number, session.id);
        let mut time_ms = world.window.start_ms + dice.range(0, i64::from(world.window.days) * DAY_MS - MINUTE_MS);
        for event in 0..1 + number::low32(dice.below(2)) {
            let category = dice.position(CATEGORIES.len());
            let duration_ms = 150 + number::low32(dice.below(900));
            let action = Action::ProductViewed { product: product_at(category, dice.unit()), duration_ms };
            let session = number::small(chunk.sessions.len());
            chunk.push_event(Event { time_ms, session, number: event, action, signed_in: false });
            time_ms += i64::from(duration_ms);
        }
        chunk.sessions.push(session);
    }
    let out = &mut chunk.truth_hard_cases;
    push_bot_id(out, number);
    out.push(b',');
    out.extend_from_slice(HardCase::Bot.name().as_bytes());
    out.push(b',');
    push_bot_id(out, number);
    out.push(b'\n');
}

fn write_identifier(chunk: &mut Chunk, number: u64, write: impl FnOnce(&mut Vec<u8>)) {
    let out = &mut chunk.truth_identifiers;
    push_bot_id(out, number);
    out.extend_from_slice(b",device,");
    write(out);
    out.extend_from_slice(b",bot\n");
}

fn write_record(chunk: &mut Chunk, number: u64, session: u64) {
    let out = &mut chunk.truth_records;
    out.extend_from_slice(Source::Events.name().as_bytes());
    out.push(b',');
    push_session_id(out, session);
    out.push(b',');
    push_bot_id(out, number);
    out.push(b'\n');
}

/// Bots are no customers: their ids begin with another letter.
fn push_bot_id(out: &mut Vec<u8>, number: u64) {
    out.push(b'B');
    push_padded(out, i64::try_from(number).unwrap_or(0), 9);
}
