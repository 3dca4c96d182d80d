//! Campaigns sent and answered, and the lives of coupons.

use crate::calendar::{DAY_MS, MINUTE_MS, SECOND_MS};
use crate::encode::Csv;
use crate::ids::Kind;
use crate::life::{Life, Mood};
use crate::people::{PhoneStyle, push_phone};
use crate::rows::{Chunk, OrderId, Source, push_scrambled};
use crate::world::{Campaign, Offer};

/// The share of members that a campaign is aimed at.
const TARGETED: f64 = 0.36;
/// What people fetch for themselves in the coupon centre.
const CENTRE: &str = "CENTER";
const CENTRE_OFFERS: [(i64, i64, i64); 4] = [(5, 49, 7), (10, 99, 7), (20, 199, 7), (15, 129, 5)];

#[derive(Debug)]
pub(crate) struct Coupon {
    code: u64,
    campaign: String,
    face_cents: i64,
    min_spend_cents: i64,
    claimed_at: i64,
    valid_until: i64,
    account: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    Sms,
    Email,
    Push,
    Wechat,
}

impl Life<'_> {
    pub(crate) fn receive_campaign(&mut self, chunk: &mut Chunk, day: u32, campaign: &Campaign) {
        let sent_at = campaign.at_ms + self.dice.range(0, 90 * 60) * SECOND_MS;
        let aimed = self.dice.chance(TARGETED);
        let Some(consent) = self.consent() else { return };
        if !aimed || !self.has_account(day) || sent_at <= self.person.registered_ms {
            return;
        }
        let may = |allowed: bool, weight: f64| if allowed { weight } else { 0.0 };
        let weights = [
            may(consent.sms && self.phone_on_file().is_some(), 1.0),
            may(consent.email && self.person.email.is_some(), 0.8),
            may(consent.push, 1.0),
            may(self.person.wechat, 0.7),
        ];
        if weights.iter().sum::<f64>() <= 0.0 {
            return;
        }
        let (via, opens) = match self.dice.weighted(&weights) {
            0 => (Via::Sms, 0.16),
            1 => (Via::Email, 0.24),
            2 => (Via::Push, 0.2),
            _ => (Via::Wechat, 0.34),
        };
        let mood = self.mood(day);
        let interest = mood.response * campaign.appeal * self.traits.responsiveness;
        self.touch(chunk, campaign, via, "sent", sent_at);
        if self.dice.chance(0.03) {
            return;
        }
        let delivered_at = sent_at + self.seconds_between(1, 40);
        self.touch(chunk, campaign, via, "delivered", delivered_at);
        let opened = self.dice.chance((opens * interest).min(0.95));
        let coupon = self.issue_coupon(chunk, campaign, sent_at);
        if !opened {
            return;
        }
        let opened_at = sent_at + self.seconds_between(60, 26 * 3_600);
        // Short messages do not tell that they were read, only that their link was followed.
        if via != Via::Sms {
            self.touch(chunk, campaign, via, "opened", opened_at);
        }
        if self.dice.chance(0.008 + 0.03 * mood.decline) {
            let gone_at = opened_at + MINUTE_MS;
            self.touch(chunk, campaign, via, "unsubscribed", gone_at);
            if gone_at < self.world.window.end_ms {
                self.withdraw_consent(gone_at, |consent| match via {
                    Via::Sms => consent.sms = false,
                    Via::Email => consent.email = false,
                    Via::Push | Via::Wechat => consent.push = false,
                });
            }
            return;
        }
        if !self.dice.chance(if via == Via::Sms { 0.9 } else { 0.5 }) {
            return;
        }
        let clicked_at = opened_at + self.seconds_between(3, 90);
        self.touch(chunk, campaign, via, "clicked", clicked_at);
        if self.dice.chance((0.45 + 0.3 * self.traits.price_sensitivity) * mood.response.max(0.2)) {
            let took_part_at = clicked_at + self.seconds_between(10, 600);
            self.touch(chunk, campaign, via, "participated", took_part_at);
            if let Some(coupon) = coupon {
                self.claim(chunk, coupon, took_part_at + SECOND_MS);
            }
        }
    }

    /// Claims in the coupon centre: the price-sensitive come often, and more so before they leave.
    pub(crate) fn visit_coupon_centre(&mut self, chunk: &mut Chunk, day: u32, mood: Mood) {
        let gone = self.gone_on().is_some_and(|gone_on| day >= gone_on);
        let thrift = self.traits.price_sensitivity;
        let hunger = if gone { 0.02 } else { 1.0 + 5.0 * mood.decline * thrift };
        if !self.dice.chance(0.022 * thrift * thrift * hunger * 2.0) {
            return;
        }
        let (face, min_spend, days) = *self.dice.pick(&CENTRE_OFFERS);
        let offer = Offer { face_cents: face * 100, min_spend_cents: min_spend * 100, valid_ms: days * DAY_MS };
        let at_ms = self.local_moment(day) / SECOND_MS * SECOND_MS;
        let account = self.account_on(day);
        if let Some(coupon) = self.issue(chunk, CENTRE, offer, at_ms, account) {
            self.claim(chunk, coupon, at_ms + SECOND_MS);
        }
    }

    fn issue_coupon(&mut self, chunk: &mut Chunk, campaign: &Campaign, at_ms: i64) -> Option<Coupon> {
        let offer = campaign.offer.filter(|_| self.dice.chance(0.7))?;
        self.issue(chunk, &campaign.id, offer, at_ms, 0)
    }

    /// Gives out a coupon, unless the window is over by then.
    fn issue(&mut self, chunk: &mut Chunk, campaign: &str, offer: Offer, at_ms: i64, account: u8) -> Option<Coupon> {
        let coupon = Coupon {
            code: self.next_id(Kind::Coupon),
            campaign: campaign.to_owned(),
            face_cents: offer.face_cents,
            min_spend_cents: offer.min_spend_cents,
            claimed_at: at_ms,
            valid_until: at_ms + offer.valid_ms,
            account,
        };
        self.coupon_event(chunk, &coupon, "issued", at_ms, None);
        (at_ms < self.world.window.end_ms).then_some(coupon)
    }

    fn claim(&mut self, chunk: &mut Chunk, mut coupon: Coupon, at_ms: i64) {
        if at_ms < self.world.window.end_ms {
            coupon.claimed_at = at_ms;
            self.coupon_event(chunk, &coupon, "claimed", at_ms, None);
            self.wallet.push(coupon);
        }
    }

    /// The best coupon that this order may use, as code and face value.
    pub(crate) fn redeem_coupon(
        &mut self,
        chunk: &mut Chunk,
        ordered_at: i64,
        goods_cents: i64,
        order: OrderId,
        account: u8,
    ) -> Option<(u64, i64)> {
        if !self.dice.chance(0.55 + 0.45 * self.traits.price_sensitivity) {
            return None;
        }
        let best = |wallet: &[Coupon]| {
            wallet
                .iter()
                .enumerate()
                .filter(|(_, coupon)| {
                    coupon.account == account
                        && (coupon.claimed_at..coupon.valid_until).contains(&ordered_at)
                        && coupon.min_spend_cents <= goods_cents
                })
                .max_by_key(|(_, coupon)| coupon.face_cents)
                .map(|(place, _)| place)
        };
        let place = match best(&self.wallet) {
            Some(place) => place,
            // The thrifty look for one before they pay.
            None if self.dice.chance(0.05 + 0.4 * self.traits.price_sensitivity) => {
                self.claim_before_paying(chunk, ordered_at, goods_cents, account);
                best(&self.wallet)?
            }
            None => return None,
        };
        let coupon = self.wallet.swap_remove(place);
        self.coupon_event(chunk, &coupon, "redeemed", ordered_at, Some(order));
        Some((coupon.code, coupon.face_cents))
    }

    fn claim_before_paying(&mut self, chunk: &mut Chunk, ordered_at: i64, goods_cents: i64, account: u8) {
        let usable = CENTRE_OFFERS.iter().filter(|(_, min_spend, _)| min_spend * 100 <= goods_cents);
        let at_ms = ordered_at - 2 * MINUTE_MS;
        if let Some((face, min_spend, days)) = usable.max_by_key(|(face, ..)| *face)
            && at_ms >= self.world.window.start_ms
        {
            let offer = Offer { face_cents: face * 100, min_spend_cents: min_spend * 100, valid_ms: days * DAY_MS };
            if let Some(coupon) = self.issue(chunk, CENTRE, offer, at_ms, account) {
                self.claim(chunk, coupon, at_ms + SECOND_MS);
            }
        }
    }

    pub(crate) fn drop_expired_coupons(&mut self, chunk: &mut Chunk, now: i64) {
        while let Some(place) = self.wallet.iter().position(|coupon| coupon.valid_until < now) {
            let coupon = self.wallet.swap_remove(place);
            self.coupon_event(chunk, &coupon, "expired", coupon.valid_until, None);
        }
    }

    fn seconds_between(&mut self, low: i64, high: i64) -> i64 {
        self.dice.range(low, high) * SECOND_MS
    }

    fn coupon_event(&mut self, chunk: &mut Chunk, coupon: &Coupon, action: &str, at_ms: i64, order: Option<OrderId>) {
        let id = self.next_id(Kind::CouponEvent);
        let (person, ids) = (&self.person, self.world.ids);
        chunk.push(Source::Coupons, at_ms, |out| {
            Csv::line(out)
                .field(|out| {
                    out.extend_from_slice(b"CE");
                    push_scrambled(out, id);
                })
                .field(|out| push_coupon_code(out, coupon.code))
                .text(&coupon.campaign)
                .text(action)
                .utc(at_ms)
                .field(|out| person.push_member(out, ids, coupon.account))
                .cents(coupon.face_cents)
                .cents(coupon.min_spend_cents)
                .utc(coupon.valid_until)
                .field(|out| {
                    if let Some(order) = order {
                        order.push(out);
                    }
                });
        });
    }

    fn touch(&mut self, chunk: &mut Chunk, campaign: &Campaign, via: Via, action: &str, at_ms: i64) {
        let id = self.next_id(Kind::Touch);
        let phone = self.phone_on_file();
        let (person, ids) = (&self.person, self.world.ids);
        let channel = match via {
            Via::Sms => "sms",
            Via::Email => "email",
            Via::Push => "push",
            Via::Wechat => "wechat",
        };
        chunk.push(Source::CampaignTouches, at_ms, |out| {
            Csv::line(out)
                .field(|out| {
                    out.push(b'T');
                    push_scrambled(out, id);
                })
                .text(&campaign.id)
                .text(campaign.name)
                .text(channel)
                .text(action)
                .utc(at_ms)
                .field(|out| match (via, &person.email, phone) {
                    (Via::Sms, _, Some(phone)) => push_phone(out, phone, PhoneStyle::Plain),
                    (Via::Email, Some(email), _) => out.extend_from_slice(email.canonical.as_bytes()),
                    _ => person.push_member(out, ids, 0),
                })
                .field(|out| person.push_member(out, ids, 0));
        });
    }
}

pub(crate) fn push_coupon_code(out: &mut Vec<u8>, code: u64) {
    out.extend_from_slice(b"CP");
    push_scrambled(out, code);
}
