//! Tills: what customers buy in stores, with or without showing their card, and what passers-by buy.

use crate::behaviour::push_store;
use crate::calendar::{self, DAY_MS, LOCAL_OFFSET_MS, SECOND_MS};
use crate::catalogue::push_sku;
use crate::dice::{Dice, Stream};
use crate::encode::Csv;
use crate::hard_cases::{Group, HardCase};
use crate::ids::{Kind, mix};
use crate::life::Life;
use crate::number;
use crate::people::{PhoneStyle, push_phone};
use crate::rows::{Chunk, Source};
use crate::world::{CATEGORIES, World, product_at};

/// Receipts a year of passers-by for each customer; with the forgotten cards about 35 % of all receipts show none.
const WALK_INS_A_YEAR: f64 = 0.55;

#[derive(Debug)]
struct Receipt {
    number: Vec<u8>,
    store: u16,
    till: i64,
    sold_at: i64,
    /// The card as the till read it; empty when none was shown.
    card: Vec<u8>,
    mobile: Option<(u64, PhoneStyle)>,
    tender: &'static str,
}

impl Life<'_> {
    pub(crate) fn buy_in_store(&mut self, chunk: &mut Chunk, day: u32, at_ms: Option<i64>) {
        let mood = self.mood(day);
        let sold_at = at_ms.unwrap_or_else(|| opening_moment(self.world, &mut self.dice, day)) / SECOND_MS * SECOND_MS;
        let store = if self.dice.chance(0.82) {
            self.home_store(day)
        } else {
            u16::from(number::low8(self.dice.below(self.world.stores.len() as u64)))
        };
        let mut card = Vec::new();
        let account = self.account_on(day);
        let shows_card = self.has_account(day) && self.dice.chance(self.traits.shows_card);
        if shows_card {
            self.person.push_member(&mut card, self.world.ids, account);
            // Cashiers type what the scanner can't read: in lower case, or in groups as printed on the card.
            match self.dice.weighted(&[94.0, 3.0, 3.0]) {
                1 => card.make_ascii_lowercase(),
                2 => {
                    card.insert(4, b' ');
                    card.insert(8, b' ');
                }
                _ => {}
            }
        }
        let typed = self.dice.chance(if shows_card { 0.02 } else { 0.12 }).then(|| {
            let phone = self.person.phone_on(day);
            (phone, PhoneStyle::draw(&mut self.dice))
        });
        let counter = self.next(Kind::Receipt);
        let id = self.world.ids.of_customer(Kind::Receipt, self.person.index, counter);
        let mobile = typed.or_else(|| self.phone_of_clerk(store, id));
        let receipt = Receipt {
            number: receipt_number(store, sold_at, id),
            store,
            till: self.dice.range(1, self.world.stores[usize::from(store)].tills),
            sold_at,
            card,
            mobile,
            tender: self.dice.word(&["wechat_pay", "wechat_pay", "alipay", "card", "cash"]),
        };
        let count = 1 + self.dice.poisson(1.0 * mood.basket).min(8);
        let target_cents = self.traits.basket_cents * mood.basket;
        let lines: Vec<(u16, i64)> =
            (0..count).map(|_| (self.product_near(target_cents), 1 + i64::from(self.dice.chance(0.12)))).collect();
        let total_cents = write_receipt(chunk, self.world, &receipt, &lines);
        chunk.truth(Source::Receipts, &receipt.number, Some(self.person.index));
        if shows_card {
            let number = String::from_utf8_lossy(&receipt.number).into_owned();
            self.earn_later(sold_at + 2 * SECOND_MS, total_cents, number, account);
        }
        self.experience(sold_at, 0.03);
    }

    /// The shop's number, which a clerk typed because the customer gave none.
    fn phone_of_clerk(&mut self, store: u16, receipt: u64) -> Option<(u64, PhoneStyle)> {
        let phone = self.world.stores[usize::from(store)].clerks_phone?;
        // A quarter of their receipts, by the receipt's number: what clerks do is none of the customer's draws.
        if !mix(receipt).is_multiple_of(4) {
            return None;
        }
        self.note_case(HardCase::StorePhone, Group::Store(u64::from(store)));
        Some((phone, PhoneStyle::Plain))
    }
}

/// What passers-by buy, counted by customer so that it grows with the shop. They are in no other system.
pub(crate) fn write_walk_ins(world: &World, index: u64, chunk: &mut Chunk) {
    let mut dice = Dice::new(world.seed, Stream::WalkIn, index);
    let mean = WALK_INS_A_YEAR * f64::from(world.window.days) / 365.0;
    for counter in 0..dice.poisson(mean) {
        let day = number::low32(dice.below(u64::from(world.window.days)));
        let sold_at = opening_moment(world, &mut dice, day) / SECOND_MS * SECOND_MS;
        let store = u16::from(number::low8(dice.below(world.stores.len() as u64)));
        // Counters of customers begin at 1 and stay far below these.
        let id = world.ids.of_customer(Kind::Receipt, index, 40_000 + counter);
        let receipt = Receipt {
            number: receipt_number(store, sold_at, id),
            store,
            till: dice.range(1, world.stores[usize::from(store)].tills),
            sold_at,
            card: Vec::new(),
            mobile: None,
            tender: dice.word(&["wechat_pay", "wechat_pay", "alipay", "card", "cash", "cash"]),
        };
        let lines: Vec<(u16, i64)> = (0..=dice.poisson(0.8).min(8))
            .map(|_| {
                let category = dice.weighted(&CATEGORIES.map(|category| category.share));
                (product_at(category, dice.unit() * dice.unit()), 1 + i64::from(dice.chance(0.12)))
            })
            .collect();
        write_receipt(chunk, world, &receipt, &lines);
        chunk.truth(Source::Receipts, &receipt.number, None);
    }
}

fn opening_moment(world: &World, dice: &mut Dice, day: u32) -> i64 {
    let second = opening_second(dice);
    world.window.local_moment(day, second, 0)
}

/// A second of the day at which stores are open, from ten to ten.
pub(crate) fn opening_second(dice: &mut Dice) -> i64 {
    let hour = (15.0 + 3.2 * dice.normal()).clamp(10.0, 21.0);
    number::whole(hour * 3_600.0) + dice.range(0, 3_599)
}

fn receipt_number(store: u16, sold_at: i64, id: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    push_store(&mut out, u64::from(store));
    out.push(b'-');
    let (year, month, day) = calendar::civil((sold_at + LOCAL_OFFSET_MS).div_euclid(DAY_MS));
    calendar::push_padded(&mut out, year % 100 * 10_000 + month * 100 + day, 6);
    out.push(b'-');
    crate::rows::push_scrambled(&mut out, id);
    out
}

/// Writes the lines and answers their sum.
fn write_receipt(chunk: &mut Chunk, world: &World, receipt: &Receipt, lines: &[(u16, i64)]) -> i64 {
    let mut total_cents = 0;
    for (place, (product, quantity)) in lines.iter().enumerate() {
        let product = world.product(*product);
        let amount_cents = product.price_cents * quantity;
        total_cents += amount_cents;
        chunk.push(Source::Receipts, receipt.sold_at, |out| {
            Csv::line(out)
                .field(|out| out.extend_from_slice(&receipt.number))
                .number(i64::from(number::small(place + 1)))
                .field(|out| push_store(out, u64::from(receipt.store)))
                .field(|out| calendar::push_padded(out, receipt.till, 2))
                .local(receipt.sold_at)
                .field(|out| out.extend_from_slice(&receipt.card))
                .field(|out| {
                    if let Some((phone, style)) = receipt.mobile {
                        push_phone(out, phone, style);
                    }
                })
                .field(|out| push_sku(out, product))
                .text(product.category)
                .number(*quantity)
                .cents(product.price_cents)
                .cents(amount_cents)
                .text(receipt.tender);
        });
    }
    total_cents
}
