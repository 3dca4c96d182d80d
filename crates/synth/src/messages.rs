//! The conversation about a ticket: the customer's request in more words than its subject, the desk's answers, and the
//! reminders that nobody answers. Calls are there as they were transcribed.
//!
//! A conversation has dice of its own, from the seed and the ticket, so that nothing else depends on what is said in it.

use crate::calendar::{DAY_MS, SECOND_MS};
use crate::dice::{Dice, Stream};
use crate::encode::Json;
use crate::message_text as wording;
use crate::rows::{Chunk, OrderId, Source};
use crate::service::{Topic, push_ticket_id};
use crate::world::World;

/// A ticket, as far as the conversation about it is concerned.
#[derive(Debug)]
pub(crate) struct Conversation<'a> {
    pub(crate) ticket: u64,
    pub(crate) opened_at: i64,
    /// When the desk answers first, within the window or after it.
    pub(crate) responded_at: i64,
    /// When it is solved, within the window or after it; none when it never is.
    pub(crate) resolved_at: Option<i64>,
    pub(crate) topic: Topic,
    pub(crate) complaint: bool,
    /// Transcribed, so that no automatic receipt is sent.
    pub(crate) by_phone: bool,
    pub(crate) english: bool,
    pub(crate) subject: &'a str,
    pub(crate) order: Option<OrderId>,
    pub(crate) phone: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Customer,
    Agent,
    System,
}

impl Sender {
    fn name(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Agent => "agent",
            Self::System => "system",
        }
    }
}

/// How long the desk goes on answering where it never solves anything.
const GIVES_UP_MS: i64 = 2 * DAY_MS;

impl Conversation<'_> {
    /// Writes the messages, those after the window's end left out.
    pub(crate) fn write(&self, world: &World, chunk: &mut Chunk) {
        let mut dice = Dice::new(world.seed, Stream::TicketMessages, self.ticket);
        let mut thread = Thread { chunk, ticket: self.ticket, english: self.english, messages: 0 };

        let request = wording::request(&mut dice, self);
        thread.add(self.opened_at, Sender::Customer, &request, attachments(&mut dice, self.topic));
        if !self.by_phone && dice.chance(0.7) {
            let receipt = wording::receipt(self.ticket, self.english);
            // Nobody answers sooner than in half a minute.
            thread.add(self.opened_at + dice.range(1, 9) * SECOND_MS, Sender::System, &receipt, 0);
        }
        let answer = wording::first_answer(&mut dice, self.topic, self.english);
        thread.add(self.responded_at, Sender::Agent, &answer, 0);

        let until = self.resolved_at.unwrap_or(self.responded_at + GIVES_UP_MS);
        self.exchange(&mut dice, &mut thread, until);
        match self.resolved_at {
            Some(at_ms) => {
                let by_agent = dice.chance(0.85);
                let (sender, text) = if by_agent {
                    (Sender::Agent, wording::solution(&mut dice, self.topic, self.english))
                } else {
                    (Sender::System, wording::notice_of_solution(self.english))
                };
                thread.add(at_ms, sender, text, 0);
            }
            None => self.remind(&mut dice, &mut thread, until),
        }
    }

    /// Questions and answers, evenly spread between the first answer and the end.
    fn exchange(&self, dice: &mut Dice, thread: &mut Thread<'_>, until: i64) {
        let rounds = i64::from(dice.poisson(if self.complaint { 1.3 } else { 0.6 }).min(6));
        let apart_ms = (until - self.responded_at) / (2 * rounds + 1);
        for turn in 1..=2 * rounds {
            // Earlier by up to half the distance: never before the message before it.
            let early_ms = dice.range(0, apart_ms / 2);
            let sent_at = (self.responded_at + turn * apart_ms - early_ms) / SECOND_MS * SECOND_MS;
            if turn % 2 == 1 {
                let text = wording::question(dice, self.complaint, self.english);
                let attached = if dice.chance(0.3) { attachments(dice, self.topic) } else { 0 };
                thread.add(sent_at, Sender::Customer, text, attached);
            } else {
                thread.add(sent_at, Sender::Agent, wording::interim_answer(dice, self.english), 0);
            }
        }
    }

    fn remind(&self, dice: &mut Dice, thread: &mut Thread<'_>, since: i64) {
        let mut sent_at = since;
        for place in 0..=dice.position(3) {
            sent_at += dice.range(86_400, 4 * 86_400) * SECOND_MS;
            thread.add(sent_at, Sender::Customer, wording::reminder(place, self.english), 0);
        }
    }
}

/// Photos of what is broken, screenshots of what was promised.
fn attachments(dice: &mut Dice, topic: Topic) -> i64 {
    let chance = match topic {
        Topic::Quality => 0.55,
        Topic::Refund => 0.2,
        Topic::Delivery | Topic::Account | Topic::Other => 0.08,
    };
    if dice.chance(chance) { dice.range(1, 3) } else { 0 }
}

struct Thread<'a> {
    chunk: &'a mut Chunk,
    ticket: u64,
    english: bool,
    messages: i64,
}

impl Thread<'_> {
    fn add(&mut self, sent_at: i64, sender: Sender, text: &str, attachments: i64) {
        self.messages += 1;
        let (ticket, number, english) = (self.ticket, self.messages, self.english);
        self.chunk.push(Source::TicketMessages, sent_at, |out| {
            Json::object(out, |json| {
                json.token("message_id", |out| {
                    push_ticket_id(out, ticket);
                    out.push(b'-');
                    crate::calendar::push_padded(out, number, 2);
                });
                json.token("ticket_id", |out| push_ticket_id(out, ticket));
                json.utc("sent_at", sent_at);
                json.text("sender", sender.name());
                json.text("language", if english { "en" } else { "zh" });
                json.text("text", text);
                json.number("attachments", attachments);
            });
        });
    }
}
