//! An order in the shop and all that follows from it: lines, payments, parcels, refunds, points, and how it felt.

use crate::behaviour::{Channel, Purpose};
use crate::calendar::{DAY_MS, HOUR_MS, LOCAL_OFFSET_MS, MINUTE_MS, SECOND_MS};
use crate::encode::Json;
use crate::hard_cases::HardCase;
use crate::ids::Kind;
use crate::life::Life;
use crate::number::{self, whole};
use crate::people::{
    NameStyle, Naming, PLACEHOLDER_EMAILS, PLACEHOLDER_PHONES, PairKind, PhoneStyle, System, joint_card, push_phone,
};
use crate::rows::{Chunk, OrderId, Payment, Refund, Source, push_scrambled};
use crate::service::{Topic, Trouble};

/// From this amount on delivery is free.
const FREE_DELIVERY_CENTS: i64 = 9_900;
const DELIVERY_CENTS: i64 = 800;
const REFUND_PROMISE_MS: i64 = 7 * DAY_MS;

#[derive(Debug, Clone, Copy)]
struct Line {
    product: u16,
    quantity: u8,
    unit_cents: i64,
    discount_cents: i64,
}

impl Line {
    fn amount_cents(&self) -> i64 {
        self.unit_cents * i64::from(self.quantity) - self.discount_cents
    }
}

/// What the shop knows about an order once and for all.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) id: OrderId,
    pub(crate) ordered_at: i64,
    pub(crate) day: u32,
    /// The account it was made with; none at a guest checkout.
    pub(crate) account: Option<u8>,
    lines: Vec<Line>,
    goods_cents: i64,
    coupon: Option<(u64, i64)>,
    delivery_cents: i64,
    paid_cents: i64,
    phone: Option<u64>,
}

/// What became of the parcel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    Late,
    Damaged,
    Lost,
    Refused,
}

#[derive(Debug, Clone, Copy)]
struct Delivery {
    shipped_at: i64,
    promised_at: i64,
    delivered_at: Option<i64>,
    fate: Fate,
}

impl Life<'_> {
    pub(crate) fn order(&mut self, chunk: &mut Chunk, day: u32, channel: Channel, at_ms: Option<i64>) {
        let ordered_at = at_ms.unwrap_or_else(|| self.local_moment(day)) / SECOND_MS * SECOND_MS;
        let order = self.fill_basket(chunk, day, ordered_at);
        let items: Vec<(u16, u8)> = order.lines.iter().map(|line| (line.product, line.quantity)).collect();
        let purpose = Purpose::Order {
            id: order.id,
            at_ms: ordered_at,
            items: &items,
            value_cents: order.paid_cents,
            coupon: order.coupon.is_some(),
            signed_in: order.account.is_some(),
            account: order.account.unwrap_or(0),
        };
        self.session(chunk, day, channel, &purpose);
        self.write_lines(chunk, &order);

        let cancelled = self.dice.chance(0.025);
        let captured = self.pay(chunk, &order, cancelled);
        let status = match captured {
            Some(payment) if !cancelled => self.fulfil(chunk, &order, payment),
            Some(payment) => {
                let asked_at = payment.paid_at + self.dice.range(600, 14_000) * SECOND_MS;
                self.refund(chunk, &order, payment, asked_at, order.paid_cents, "cancelled");
                "cancelled"
            }
            None => "cancelled",
        };
        self.write_order(chunk, &order, channel, status);
    }

    fn fill_basket(&mut self, chunk: &mut Chunk, day: u32, ordered_at: i64) -> Order {
        let mood = self.mood(day);
        let account = if self.has_account(day) && !self.dice.chance(0.07) { Some(self.account_on(day)) } else { None };
        let count = 1 + self.dice.poisson(0.75 * mood.basket).min(7);
        let target_cents = self.traits.basket_cents * mood.basket;
        let mut lines: Vec<Line> = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let product = self.product_near(target_cents);
            if lines.iter().any(|line| line.product == product) {
                continue;
            }
            let unit_cents = self.world.product(product).price_cents;
            let quantity = if unit_cents < 10_000 && self.dice.chance(0.22 * mood.basket) {
                number::low8(2 + self.dice.below(2))
            } else {
                1
            };
            let discounted = self.dice.chance(0.12 + 0.3 * self.traits.price_sensitivity);
            let discount_cents =
                if discounted { unit_cents * i64::from(quantity) * self.dice.range(1, 5) * 5 / 100 } else { 0 };
            lines.push(Line { product, quantity, unit_cents, discount_cents });
        }
        let goods_cents = lines.iter().map(Line::amount_cents).sum();
        let id =
            OrderId { local_day: (ordered_at + LOCAL_OFFSET_MS).div_euclid(DAY_MS), number: self.next_id(Kind::Order) };
        let coupon = account.and_then(|account| self.redeem_coupon(chunk, ordered_at, goods_cents, id, account));
        let delivery_cents = if goods_cents >= FREE_DELIVERY_CENTS { 0 } else { DELIVERY_CENTS };
        let discount_cents = coupon.map_or(0, |(_, face_cents)| face_cents);
        let phone = match self.person.family_phone {
            Some(family) if self.dice.chance(0.35) => Some(family),
            _ if self.dice.chance(0.012) => Some(*self.dice.pick(&PLACEHOLDER_PHONES)),
            _ => self.dice.chance(0.98).then(|| self.person.phone_on(day)),
        };
        Order {
            id,
            ordered_at,
            day,
            account,
            goods_cents,
            coupon,
            delivery_cents,
            paid_cents: goods_cents - discount_cents + delivery_cents,
            lines,
            phone,
        }
    }

    /// The one of three products whose price is nearest to what the person likes to spend.
    pub(crate) fn product_near(&mut self, target_cents: f64) -> u16 {
        let category = self.favourite_category();
        let distance = |product: u16| (self.world.product(product).price_cents as f64 / target_cents).ln().abs();
        let candidates = [(); 3].map(|()| self.dice.unit());
        let mut best = crate::world::product_at(category, candidates[0]);
        for candidate in &candidates[1..] {
            let other = crate::world::product_at(category, *candidate);
            if distance(other) < distance(best) {
                best = other;
            }
        }
        best
    }

    /// Pays, perhaps at the second attempt; the capture, unless all attempts fail.
    fn pay(&mut self, chunk: &mut Chunk, order: &Order, cancelled: bool) -> Option<Payment> {
        const METHODS: [&str; 3] = ["wechat_pay", "alipay", "card"];
        const CARD: u8 = 2;
        let mut method =
            if self.dice.chance(0.9) { self.traits.payment_method } else { number::low8(self.dice.below(3)) };
        let ids = self.world.ids;
        // Families share a card now and then, couples more often than not.
        let token = match (self.person.head, self.person.pair) {
            (Some(head), _) if self.dice.chance(0.1) => {
                self.paid_with_heads_card |= 1 << method;
                ids.wide(Kind::Token, head, u32::from(method))
            }
            (None, Some(pair)) if pair.kind == PairKind::Couple && self.dice.chance(0.6) => {
                method = CARD;
                joint_card(ids, pair)
            }
            _ => ids.wide(Kind::Token, self.person.index, u32::from(method)),
        };
        let attempt = |life: &mut Self, delay_ms: i64, captured: bool| Payment {
            id: life.next_id(Kind::Payment),
            order: order.id,
            paid_at: (order.ordered_at + delay_ms).min(life.world.window.end_ms - SECOND_MS),
            method: METHODS[usize::from(method)],
            captured,
            amount_cents: order.paid_cents,
            token,
        };
        let fails = cancelled && self.dice.chance(0.5);
        if fails || self.dice.chance(0.035) {
            let delay_ms = self.dice.range(2, 40) * SECOND_MS;
            let failed = attempt(self, delay_ms, false);
            chunk.payments.push(failed);
        }
        if fails {
            return None;
        }
        let delay_ms = self.dice.range(41, 240) * SECOND_MS;
        let captured = attempt(self, delay_ms, true);
        chunk.payments.push(captured);
        Some(captured)
    }

    /// Ships and delivers; answers the order's last known status.
    fn fulfil(&mut self, chunk: &mut Chunk, order: &Order, payment: Payment) -> &'static str {
        let end_ms = self.world.window.end_ms;
        let delivery = self.plan_delivery(order, payment.paid_at);
        if delivery.shipped_at >= end_ms {
            return "paid";
        }
        let parcels = if order.lines.len() > 2 && self.dice.chance(0.15) { 2 } else { 1 };
        let mut delivered_at = delivery.delivered_at;
        for parcel in 0..parcels {
            let apart_ms = parcel * self.dice.range(1, 20) * HOUR_MS;
            let part = Delivery { delivered_at: delivery.delivered_at.map(|at_ms| at_ms + apart_ms), ..delivery };
            delivered_at = delivered_at.max(part.delivered_at);
            self.write_shipment(chunk, order, &part);
        }
        let Some(delivered_at) = delivered_at.filter(|at_ms| *at_ms < end_ms) else {
            return self.never_arrived(chunk, order, payment, &delivery);
        };
        let late = delivered_at > delivery.promised_at;
        if late {
            let days_late = (delivered_at - delivery.promised_at) as f64 / DAY_MS as f64;
            self.experience(delivery.promised_at, -0.25 - 0.06 * days_late.min(6.0));
            self.complain(chunk, delivery.promised_at + 4 * HOUR_MS, Topic::Delivery, 0.22, order);
        } else {
            self.experience(delivered_at, 0.05);
        }
        let faulty = delivery.fate == Fate::Damaged || self.dice.chance(0.045);
        if faulty {
            self.experience(delivered_at, -0.45);
            self.complain(chunk, delivered_at + 6 * HOUR_MS, Topic::Quality, 0.4, order);
        }
        let mut status = "completed";
        if self.dice.chance(if faulty { 0.6 } else { 0.028 }) {
            let asked_at = delivered_at + whole(self.dice.between(0.3, 8.0) * DAY_MS as f64);
            let everything = self.dice.chance(0.75);
            let amount_cents =
                if everything { order.paid_cents } else { order.lines[0].amount_cents().min(order.paid_cents) };
            let reason = if faulty {
                *self.dice.pick(&["quality", "not_as_described", "damaged"])
            } else {
                *self.dice.pick(&["size", "changed_mind"])
            };
            if self.refund(chunk, order, payment, asked_at, amount_cents, reason) && everything {
                status = "returned";
            }
        }
        if status == "completed"
            && let Some(account) = order.account
        {
            self.earn_later(delivered_at + HOUR_MS, order.paid_cents, order.id.text(), account);
        }
        self.maybe_review(chunk, order, delivered_at, late, faulty);
        status
    }

    fn never_arrived(
        &mut self,
        chunk: &mut Chunk,
        order: &Order,
        payment: Payment,
        delivery: &Delivery,
    ) -> &'static str {
        match delivery.fate {
            Fate::Lost | Fate::Refused => {
                if delivery.fate == Fate::Lost {
                    self.experience(delivery.promised_at + 2 * DAY_MS, -0.8);
                    self.complain(chunk, delivery.promised_at + 2 * DAY_MS, Topic::Delivery, 0.8, order);
                }
                let asked_at = delivery.promised_at + 3 * DAY_MS;
                let reason = if delivery.fate == Fate::Lost { "not_received" } else { "refused" };
                if self.refund(chunk, order, payment, asked_at, order.paid_cents, reason) {
                    "returned"
                } else {
                    "shipped"
                }
            }
            _ => {
                if delivery.promised_at < self.world.window.end_ms {
                    self.experience(delivery.promised_at, -0.25);
                }
                "shipped"
            }
        }
    }

    fn plan_delivery(&mut self, order: &Order, paid_at: i64) -> Delivery {
        let home = self.person.home_on(order.day).place();
        let rush = self.world.seasons.get(order.day as usize).copied().unwrap_or(1.0);
        let shipped_at = paid_at + self.dice.range(4 * 60, 40 * 60) * MINUTE_MS;
        let promised_at = shipped_at + (home.transit_days + 1) * DAY_MS;
        let late_chance = (0.085 * home.lateness * if rush > 1.5 { 1.9 } else { 1.0 }).min(0.6);
        let fate = match self.dice.weighted(&[1.0 - late_chance, late_chance, 0.008, 0.005, 0.004]) {
            0 => Fate::Arrives,
            1 => Fate::Late,
            2 => Fate::Damaged,
            3 => Fate::Lost,
            _ => Fate::Refused,
        };
        let delay_days = 0.1 + self.dice.exponential(1.9).min(14.0);
        let transit_days = home.transit_days as f64 * self.dice.between(0.5, 1.1);
        let delivered_at = match fate {
            Fate::Arrives | Fate::Damaged => Some(shipped_at + whole(transit_days * DAY_MS as f64)),
            Fate::Late => Some(promised_at + whole(delay_days * DAY_MS as f64)),
            Fate::Lost | Fate::Refused => None,
        };
        let to_second = |at_ms: i64| at_ms / SECOND_MS * SECOND_MS;
        Delivery { shipped_at, promised_at, delivered_at: delivered_at.map(to_second), fate }
    }

    /// Asks for money back; whether that happened in the window.
    fn refund(
        &mut self,
        chunk: &mut Chunk,
        order: &Order,
        payment: Payment,
        asked_at: i64,
        amount_cents: i64,
        reason: &'static str,
    ) -> bool {
        let end_ms = self.world.window.end_ms;
        let requested_at = asked_at / SECOND_MS * SECOND_MS;
        let id = self.next_id(Kind::Refund);
        let slow = self.dice.chance(if reason == "cancelled" { 0.08 } else { 0.26 });
        let days = if slow { 7.2 + self.dice.exponential(5.0).min(30.0) } else { self.dice.between(0.5, 6.5) };
        let refunded_at = requested_at + whole(days * 86_400.0) * SECOND_MS;
        if requested_at >= end_ms {
            return false;
        }
        let promised_at = requested_at + REFUND_PROMISE_MS;
        chunk.refunds.push(Refund {
            id,
            payment: payment.id,
            order: order.id,
            requested_at,
            promised_at,
            refunded_at: (refunded_at < end_ms).then_some(refunded_at),
            amount_cents,
            reason,
        });
        if slow {
            self.experience(promised_at, -0.65);
            self.complain(chunk, promised_at + 8 * HOUR_MS, Topic::Refund, 0.45, order);
        }
        true
    }

    fn complain(&mut self, chunk: &mut Chunk, at_ms: i64, topic: Topic, chance: f64, order: &Order) {
        if self.dice.chance(chance * self.traits.outspokenness.min(1.6)) {
            let opened_at = at_ms + self.dice.range(0, 30 * 3_600) * SECOND_MS;
            let complaint = self.dice.chance(0.75);
            self.ticket(chunk, opened_at, &Trouble { topic, order: Some(order), complaint });
        }
    }

    fn maybe_review(&mut self, chunk: &mut Chunk, order: &Order, delivered_at: i64, late: bool, faulty: bool) {
        let provoked = if late || faulty { 1.5 } else { 1.0 };
        if !self.dice.chance((0.17 * self.traits.outspokenness * provoked).min(0.8)) {
            return;
        }
        let reviewed_at = delivered_at + self.dice.range(2 * 3_600, 9 * 86_400) * SECOND_MS;
        if let Some(line) = order.lines.first() {
            self.review(chunk, order, line.product, reviewed_at, late, faulty);
        }
    }

    fn write_lines(&mut self, chunk: &mut Chunk, order: &Order) {
        for (place, line) in order.lines.iter().enumerate() {
            let product = self.world.product(line.product);
            chunk.push(Source::OrderLines, order.ordered_at, |out| {
                Json::object(out, |json| {
                    json.token("order_id", |out| order.id.push(out));
                    json.number("line_no", i64::from(number::small(place + 1)));
                    json.utc("ordered_at", order.ordered_at);
                    json.token("product_id", |out| push_product(out, product.code));
                    json.text("product_name", &product.name);
                    json.text("category", product.category);
                    json.text("brand", product.brand);
                    json.number("quantity", i64::from(line.quantity));
                    json.cents("unit_price", line.unit_cents);
                    json.cents("discount_amount", line.discount_cents);
                    json.cents("line_amount", line.amount_cents());
                });
            });
        }
    }

    fn write_order(&mut self, chunk: &mut Chunk, order: &Order, channel: Channel, status: &str) {
        let name_style = self.person.name_style(System::Shop, NameStyle::draw(&mut self.dice));
        self.note_cases_of(order, name_style);
        let (world, person) = (self.world, &self.person);
        let dice = &mut self.dice;
        let phone_style = PhoneStyle::draw(dice);
        let wechat = channel == Channel::MiniProgram;
        let shows_union = dice.chance(0.85);
        // A guest must leave some way to be reached.
        let email = person.email.as_ref().filter(|_| order.phone.is_none() || dice.chance(0.4));
        let placeholder_email = dice.chance(0.004).then(|| *dice.pick(&PLACEHOLDER_EMAILS));
        let home = person.home_on(order.day);
        chunk.push(Source::Orders, order.ordered_at, |out| {
            Json::object(out, |json| {
                json.token("order_id", |out| order.id.push(out));
                json.utc("ordered_at", order.ordered_at);
                json.text("status", status);
                json.text("channel", channel.name());
                if let Some(account) = order.account {
                    json.token("member_no", |out| person.push_member(out, world.ids, account));
                }
                json.nested("buyer", |json| {
                    json.token("name", |out| person.name.push(out, name_style, person.female));
                    if let Some(phone) = order.phone {
                        json.token("mobile", |out| push_phone(out, phone, phone_style));
                    }
                    match (placeholder_email, email) {
                        (Some(placeholder), _) => json.text("email", placeholder),
                        (None, Some(email)) => json.token("email", |out| email.push(out, dice)),
                        (None, None) => {}
                    }
                });
                if wechat {
                    json.nested("wechat", |json| {
                        json.token("openid", |out| person.push_mini_openid(out, world.ids));
                        if shows_union {
                            json.token("unionid", |out| person.push_union(out, world.ids));
                        }
                    });
                }
                json.text("currency", "CNY");
                json.cents("goods_amount", order.goods_cents);
                json.cents("discount_amount", order.coupon.map_or(0, |(_, face_cents)| face_cents));
                json.cents("shipping_fee", order.delivery_cents);
                json.cents("paid_amount", order.paid_cents);
                if let Some((code, _)) = order.coupon {
                    json.token("coupon_code", |out| crate::marketing::push_coupon_code(out, code));
                }
                json.nested("ship_to", |json| {
                    json.text("province", home.place().province);
                    json.text("city", home.place().name);
                    json.text("district", home.district());
                });
            });
        });
        chunk.truth(Source::Orders, order.id.text().as_bytes(), Some(person.index));
    }

    fn note_cases_of(&mut self, order: &Order, name_style: NameStyle) {
        if order.account.is_none() {
            self.note_own_case(HardCase::GuestCheckout);
        }
        if name_style == NameStyle::Typo {
            self.note_own_case(HardCase::NameTypo);
        }
        // A name has to be in two systems to differ between them.
        if !self.contacts.is_empty() {
            match self.person.naming {
                Naming::Usual => {}
                Naming::AcrossScripts { .. } => self.note_own_case(HardCase::NamesAcrossScripts),
                Naming::Traditional { .. } => self.note_own_case(HardCase::TraditionalHanzi),
            }
        }
    }

    fn write_shipment(&mut self, chunk: &mut Chunk, order: &Order, delivery: &Delivery) {
        const CARRIERS: [&str; 5] = ["SF Express", "ZTO", "YTO", "JD Logistics", "EMS"];
        let id = self.next_id(Kind::Shipment);
        let end_ms = self.world.window.end_ms;
        let carrier = *self.dice.pick(&CARRIERS);
        let delivered_at = delivery.delivered_at.filter(|at_ms| *at_ms < end_ms);
        let known_lost = delivery.promised_at + DAY_MS < end_ms;
        let (status, exception) = match (delivery.fate, delivered_at) {
            (Fate::Damaged, Some(_)) => ("delivered", Some("damaged")),
            (_, Some(_)) => ("delivered", None),
            (Fate::Lost, None) if known_lost => ("exception", Some("lost")),
            (Fate::Refused, None) if known_lost => ("returned", Some("refused")),
            (Fate::Late, None) if delivery.promised_at < end_ms => ("in_transit", Some("delayed")),
            _ => ("in_transit", None),
        };
        let drawn = if self.dice.chance(0.5) { NameStyle::Courtesy } else { NameStyle::draw(&mut self.dice) };
        let name_style = self.person.name_style(System::Carrier, drawn);
        let phone_style = PhoneStyle::draw(&mut self.dice);
        let person = &self.person;
        chunk.push(Source::Shipments, delivery.shipped_at, |out| {
            Json::object(out, |json| {
                json.token("shipment_id", |out| {
                    out.extend_from_slice(b"SH");
                    push_scrambled(out, id);
                });
                json.token("order_id", |out| order.id.push(out));
                json.text("carrier", carrier);
                json.utc("shipped_at", delivery.shipped_at);
                json.utc("promised_at", delivery.promised_at);
                if let Some(at_ms) = delivered_at {
                    json.utc("delivered_at", at_ms);
                }
                json.text("status", status);
                if let Some(exception) = exception {
                    json.text("exception", exception);
                }
                json.nested("consignee", |json| {
                    json.token("name", |out| person.name.push(out, name_style, person.female));
                    if let Some(phone) = order.phone {
                        json.token("mobile", |out| push_phone(out, phone, phone_style));
                    }
                });
            });
        });
    }
}

pub(crate) fn push_product(out: &mut Vec<u8>, code: u32) {
    out.push(b'P');
    crate::encode::push_number(out, i64::from(code));
}
