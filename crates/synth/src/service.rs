//! The service desk: tickets from troubles with orders, and those that come out of the blue. What is written about them
//! is in `messages`.

use crate::calendar::{DAY_MS, MINUTE_MS, SECOND_MS};
use crate::encode::Json;
use crate::ids::Kind;
use crate::life::{Life, Mood};
use crate::messages::Conversation;
use crate::number::whole;
use crate::orders::Order;
use crate::people::{PhoneStyle, push_phone};
use crate::rows::{Chunk, Source, push_scrambled};
use crate::text;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topic {
    Delivery,
    Quality,
    Refund,
    Account,
    Other,
}

impl Topic {
    fn name(self) -> &'static str {
        match self {
            Self::Delivery => "delivery",
            Self::Quality => "quality",
            Self::Refund => "refund",
            Self::Account => "account",
            Self::Other => "other",
        }
    }
}

/// Why somebody turns to the service desk.
#[derive(Debug)]
pub(crate) struct Trouble<'a> {
    pub(crate) topic: Topic,
    pub(crate) order: Option<&'a Order>,
    pub(crate) complaint: bool,
}

impl Life<'_> {
    pub(crate) fn ticket(&mut self, chunk: &mut Chunk, opened_at: i64, trouble: &Trouble<'_>) {
        let end_ms = self.world.window.end_ms;
        let opened_at = opened_at / SECOND_MS * SECOND_MS;
        if opened_at >= end_ms {
            return;
        }
        let id = self.next_id(Kind::Ticket);
        let day = crate::number::low32(self.world.window.day_of(opened_at).unsigned_abs());
        let channel = match self.dice.weighted(&[26.0, 40.0, 9.0, if self.person.wechat { 25.0 } else { 0.0 }]) {
            0 => "phone",
            1 => "chat",
            2 if self.person.email.is_some() => "email",
            3 => "wechat",
            _ => "chat",
        };
        let responds_ms = self.dice.log_normal(14.0, 1.3).clamp(0.5, 3_000.0) * MINUTE_MS as f64;
        let responded_at = opened_at + whole(responds_ms) / SECOND_MS * SECOND_MS;
        let never = self.dice.chance(if trouble.complaint { 0.2 } else { 0.05 });
        let takes_days = self.dice.log_normal(if trouble.complaint { 1.6 } else { 0.4 }, 0.9).clamp(0.01, 45.0);
        let resolved_at = responded_at + whole(takes_days * 86_400.0) * SECOND_MS;
        let known_resolved = (!never && resolved_at < end_ms).then_some(resolved_at);
        if never {
            self.experience(opened_at + 6 * DAY_MS, if trouble.complaint { -0.75 } else { -0.3 });
        } else if trouble.complaint {
            self.experience(resolved_at, if takes_days > 4.0 { -0.3 } else { 0.15 });
        }

        let mood = self.mood(day);
        let slow = (takes_days / 3.0).min(1.5);
        let content =
            4.3 + 0.7 * self.satisfaction - mood.rating_loss - slow - f64::from(u8::from(trouble.complaint)) * 0.5;
        let csat = whole((content + 0.8 * self.dice.normal()).round()).clamp(1, 5);
        let nps = whole((content * 2.0 - 0.6 + 1.5 * self.dice.normal()).round()).clamp(0, 10);
        let answers = known_resolved.is_some() && self.dice.chance(0.36);
        let answers_nps = known_resolved.is_some() && self.dice.chance(0.15);
        let phone_style = PhoneStyle::draw(&mut self.dice);
        let phone = match self.person.family_phone {
            Some(family) if self.dice.chance(0.25) => family,
            _ => self.person.phone_on(day),
        };
        let account = match trouble.order {
            Some(order) => order.account,
            None if self.has_account(day) => Some(self.account_on(day)),
            None => None,
        };
        let tells_member = account.filter(|_| channel == "chat" || channel == "wechat" || self.dice.chance(0.45));
        let tells_phone = channel == "phone" || tells_member.is_none() && channel != "email";
        let tells_order = trouble.order.filter(|_| self.dice.chance(0.85));
        let subject = text::subject(&mut self.dice, trouble.topic, trouble.complaint, self.traits.english);

        let (world, person, dice) = (self.world, &self.person, &mut self.dice);
        chunk.push(Source::Tickets, opened_at, |out| {
            Json::object(out, |json| {
                json.token("ticket_id", |out| push_ticket_id(out, id));
                json.utc("opened_at", opened_at);
                if responded_at < end_ms {
                    json.utc("first_response_at", responded_at);
                }
                if let Some(at_ms) = known_resolved {
                    json.utc("resolved_at", at_ms);
                }
                json.text("channel", channel);
                json.text("topic", trouble.topic.name());
                json.flag("is_complaint", trouble.complaint);
                json.text("status", if known_resolved.is_some() { "resolved" } else { "open" });
                if answers {
                    json.number("csat", csat);
                }
                if answers_nps {
                    json.number("nps", nps);
                }
                json.nested("requester", |json| {
                    if let Some(account) = tells_member {
                        json.token("member_no", |out| person.push_member(out, world.ids, account));
                    }
                    if tells_phone {
                        json.token("mobile", |out| push_phone(out, phone, phone_style));
                    }
                    if let Some(email) = person.email.as_ref().filter(|_| channel == "email") {
                        json.token("email", |out| email.push(out, dice));
                    }
                });
                if let Some(order) = tells_order {
                    json.token("order_id", |out| order.id.push(out));
                }
                json.text("subject", &subject);
            });
        });
        let mut key = Vec::with_capacity(20);
        push_ticket_id(&mut key, id);
        chunk.truth(Source::Tickets, &key, Some(self.person.index));
        let conversation = Conversation {
            ticket: id,
            opened_at,
            responded_at,
            resolved_at: (!never).then_some(resolved_at),
            topic: trouble.topic,
            complaint: trouble.complaint,
            by_phone: channel == "phone",
            english: self.traits.english,
            subject: &subject,
            order: tells_order.map(|order| order.id),
            phone,
        };
        conversation.write(self.world, chunk);
    }

    /// Questions that no order of ours explains; the discontented on their way out have more of them.
    pub(crate) fn ask_out_of_the_blue(&mut self, chunk: &mut Chunk, day: u32, mood: Mood) {
        let active = mood.browse.min(1.0).max(if mood.decline > 0.0 && mood.browse > 0.05 { 0.7 } else { 0.0 });
        let yearly = (0.16 + 1.5 * mood.decline) * self.traits.outspokenness.min(2.0) * active;
        if !self.dice.chance(yearly / 365.0) {
            return;
        }
        let topic = *self.dice.pick(&[Topic::Account, Topic::Other, Topic::Other, Topic::Quality, Topic::Delivery]);
        let complaint = self.dice.chance(0.1 + 0.5 * mood.decline);
        let opened_at = self.local_moment(day);
        self.ticket(chunk, opened_at, &Trouble { topic, order: None, complaint });
    }
}

pub(crate) fn push_ticket_id(out: &mut Vec<u8>, id: u64) {
    out.extend_from_slice(b"TK");
    push_scrambled(out, id);
}
