//! The loyalty ledger: points earned when a purchase is final, burnt, expired, and the tier that follows from them.

use crate::calendar::{self, DAY_MS, HOUR_MS, LOCAL_OFFSET_MS};
use crate::encode::Csv;
use crate::ids::Kind;
use crate::life::Life;
use crate::rows::{Chunk, Source, push_scrambled};

pub(crate) const TIERS: [&str; 4] = ["normal", "silver", "gold", "platinum"];

/// Points of a lifetime from which a tier is reached.
const TIER_FROM: [i64; 4] = [0, 1_000, 4_000, 12_000];

/// A tier is lost after this long without a purchase, at the next review.
const TIER_LAPSES_AFTER_MS: i64 = 240 * DAY_MS;
const POINTS_LAPSE_AFTER_MS: i64 = 180 * DAY_MS;

#[derive(Debug, Default)]
pub(crate) struct Points {
    balance: i64,
    lifetime: i64,
    pub(crate) tier: u8,
    last_earned_at: i64,
    /// Purchases that are not final yet.
    due: Vec<Due>,
    last_review_month: i64,
}

#[derive(Debug)]
struct Due {
    at_ms: i64,
    points: i64,
    purchase: String,
    account: u8,
}

impl Life<'_> {
    /// What was collected before the window.
    pub(crate) fn open_ledger(&mut self) {
        let start_ms = self.world.window.start_ms;
        let years = (start_ms - self.person.registered_ms).max(0) as f64 / (365 * DAY_MS) as f64;
        let past =
            years * self.traits.purchases_a_year * self.traits.basket_cents / 100.0 * self.dice.between(0.5, 1.2);
        let lifetime = crate::number::whole(past);
        let tier = TIER_FROM.iter().rposition(|from| lifetime >= *from).unwrap_or(0);
        self.points.lifetime = lifetime;
        self.points.balance = lifetime / 5;
        self.points.tier = crate::number::low8(tier as u64);
        self.points.last_earned_at = start_ms.max(self.person.registered_ms);
        self.points.last_review_month = calendar::month_number(start_ms + LOCAL_OFFSET_MS);
    }

    pub(crate) fn earn_later(&mut self, at_ms: i64, paid_cents: i64, purchase: String, account: u8) {
        if paid_cents >= 100 {
            self.points.due.push(Due { at_ms, points: paid_cents / 100, purchase, account });
        }
    }

    /// Writes all entries due before a moment.
    pub(crate) fn settle_points(&mut self, chunk: &mut Chunk, now: i64) {
        if !self.person.member {
            return;
        }
        if self.points.due.iter().any(|due| due.at_ms < now) {
            let mut due = std::mem::take(&mut self.points.due);
            due.sort_by_key(|due| due.at_ms);
            for entry in due {
                if entry.at_ms < now {
                    self.earn(chunk, &entry);
                } else {
                    self.points.due.push(entry);
                }
            }
        }
        self.review_tier(chunk, now);
    }

    fn earn(&mut self, chunk: &mut Chunk, due: &Due) {
        self.points.balance += due.points;
        self.points.lifetime += due.points;
        self.points.last_earned_at = due.at_ms;
        self.ledger_entry(chunk, due.at_ms, "earn", due.points, &due.purchase, due.account);
        let reached = TIER_FROM.iter().rposition(|from| self.points.lifetime >= *from).unwrap_or(0);
        if reached > usize::from(self.points.tier) {
            self.points.tier = crate::number::low8(reached as u64);
            self.ledger_entry(chunk, due.at_ms + 1_000, "tier_up", 0, "", due.account);
            self.update_contact(due.at_ms + 1_000);
        }
        if self.points.balance >= 500 && self.dice.chance(0.12) {
            let burnt = (self.points.balance / 100 * 100).min(2_000);
            self.points.balance -= burnt;
            self.ledger_entry(chunk, due.at_ms + 2 * HOUR_MS, "burn", -burnt, "", due.account);
        }
    }

    /// At the turn of a half-year tiers lapse; at the turn of a quarter points do.
    fn review_tier(&mut self, chunk: &mut Chunk, now: i64) {
        let month = calendar::month_number(now + LOCAL_OFFSET_MS);
        if month == self.points.last_review_month {
            return;
        }
        self.points.last_review_month = month;
        let at_ms = calendar::month_start_ms(month) - LOCAL_OFFSET_MS + 3 * HOUR_MS;
        // The window's end may stand between the turn of the month and the night of the review.
        if at_ms >= self.world.window.end_ms || at_ms < self.person.registered_ms {
            return;
        }
        let quiet_ms = at_ms - self.points.last_earned_at;
        if month % 3 == 0 && quiet_ms > POINTS_LAPSE_AFTER_MS && self.points.balance > 0 {
            let lapsed = self.points.balance - self.points.balance / 3;
            self.points.balance -= lapsed;
            self.ledger_entry(chunk, at_ms, "expire", -lapsed, "", 0);
        }
        if month % 6 == 0 && quiet_ms > TIER_LAPSES_AFTER_MS && self.points.tier > 0 {
            self.points.tier -= 1;
            self.points.lifetime = TIER_FROM[usize::from(self.points.tier)];
            self.ledger_entry(chunk, at_ms + 1_000, "tier_down", 0, "", 0);
            self.update_contact(at_ms + 1_000);
        }
    }

    fn ledger_entry(&mut self, chunk: &mut Chunk, at_ms: i64, entry: &str, points: i64, purchase: &str, account: u8) {
        let id = self.next_id(Kind::Loyalty);
        let (person, ids) = (&self.person, self.world.ids);
        let tier = TIERS[usize::from(self.points.tier)];
        chunk.push(Source::LoyaltyLedger, at_ms, |out| {
            Csv::line(out)
                .field(|out| {
                    out.push(b'L');
                    push_scrambled(out, id);
                })
                .field(|out| person.push_member(out, ids, account))
                .utc(at_ms)
                .text(entry)
                .number(points)
                .text(tier)
                .text(purchase);
        });
    }
}
