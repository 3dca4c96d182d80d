//! One customer's life in the window: what they are like, how content they are, when they begin to drift away and when
//! they are gone. The other modules write down what such a life leaves behind in the shop's systems.

use crate::behaviour::{Channel, DeviceForm, DeviceNote, Purpose};
use crate::calendar::{DAY_MS, SECOND_MS};
use crate::crm::Contact;
use crate::dice::{Dice, Stream};
use crate::hard_cases::{Group, HardCase};
use crate::ids::{Kind, mix};
use crate::loyalty::Points;
use crate::marketing::Coupon;
use crate::number;
use crate::people::Person;
use crate::rows::Chunk;
use crate::world::{CATEGORIES, STORES_IN_CITY, World};

/// Chances a day that an indifferent customer begins to leave. Set so that about a third is gone after a year.
const BASE_HAZARD: f64 = 0.001_5;

/// What never changes about a person.
#[derive(Debug)]
pub(crate) struct Traits {
    pub(crate) purchases_a_year: f64,
    pub(crate) basket_cents: f64,
    /// 0 to 1.
    pub(crate) price_sensitivity: f64,
    /// How content they are when nothing happens, about -1 to 1.5.
    pub(crate) contentment: f64,
    /// How much they look around, against 1.0.
    pub(crate) curiosity: f64,
    /// How readily they answer campaigns, against 1.0.
    pub(crate) responsiveness: f64,
    pub(crate) outspokenness: f64,
    pub(crate) usual_hour: f64,
    /// Fills the cart late at night and sleeps over it.
    pub(crate) night_owl: bool,
    /// Web, app, mini-program, store.
    pub(crate) channels: [f64; 4],
    pub(crate) categories: [f64; 10],
    pub(crate) english: bool,
    pub(crate) payment_method: u8,
    pub(crate) shows_card: f64,
}

impl Traits {
    fn draw(dice: &mut Dice, person: &Person) -> Self {
        let purchases_a_year = dice.gamma(0.95, 10.0).clamp(0.7, 90.0);
        let curiosity = dice.log_normal(1.0, 0.45);
        let favourite = dice.position(4);
        let mut channels = [0.6, 1.0, 0.9, 0.8];
        channels[favourite] *= 5.0;
        if !person.wechat {
            channels[2] = 0.0;
        }
        if person.registered_channel == "store" {
            channels[3] *= 2.0;
        }
        Self {
            purchases_a_year,
            basket_cents: dice.log_normal(11_500.0, 0.65),
            price_sensitivity: (0.42 + 0.24 * dice.normal()).clamp(0.0, 1.0),
            contentment: 0.35 + 0.42 * dice.normal(),
            curiosity,
            responsiveness: dice.log_normal(0.9, 0.5) * curiosity.sqrt(),
            outspokenness: dice.log_normal(1.0, 0.6),
            usual_hour: *dice.pick(&[10.0, 12.5, 15.0, 19.5, 20.5, 21.5]),
            night_owl: dice.chance(0.09),
            channels,
            categories: CATEGORIES.map(|category| category.share * dice.log_normal(1.0, 1.1)),
            english: dice.chance(0.1),
            payment_method: number::low8(dice.weighted(&[52.0, 36.0, 12.0]) as u64),
            shows_card: dice.between(0.75, 1.0),
        }
    }
}

/// How a customer leaves: a decline of some weeks, or from one day to the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Departure {
    pub(crate) begins_on: u32,
    pub(crate) gone_on: u32,
    depth: f64,
}

/// What a day is like, against 1.0 on an ordinary one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mood {
    pub(crate) browse: f64,
    pub(crate) basket: f64,
    pub(crate) purchase: f64,
    pub(crate) response: f64,
    /// How far the decline has come, 0 to 1.
    pub(crate) decline: f64,
    /// What the decline takes off every rating.
    pub(crate) rating_loss: f64,
}

#[derive(Debug)]
pub(crate) struct Life<'w> {
    pub(crate) world: &'w World,
    pub(crate) person: Person,
    /// Position in the chunk's people.
    pub(crate) position: u32,
    pub(crate) dice: Dice,
    pub(crate) traits: Traits,
    pub(crate) satisfaction: f64,
    /// Experiences still to come: when, and what they do to satisfaction.
    experiences: Vec<(i64, f64)>,
    pub(crate) departure: Option<Departure>,
    /// Spells of quiet that mean nothing: first day, day after the last, what is left of browsing and of purchases.
    quiet_spells: Vec<(u32, u32, f64, f64)>,
    pub(crate) wallet: Vec<Coupon>,
    pub(crate) points: Points,
    pub(crate) contacts: Vec<Contact>,
    pub(crate) purchases: u32,
    pub(crate) devices: Vec<(u64, DeviceForm, DeviceNote)>,
    pub(crate) hard_cases: Vec<(HardCase, Group)>,
    /// Methods by which they paid with the card of the head of their household, a bit each.
    pub(crate) paid_with_heads_card: u8,
    counters: [u32; 32],
}

impl<'w> Life<'w> {
    /// Lives a customer's life in the window and leaves its traces in the chunk.
    pub(crate) fn live(world: &'w World, index: u64, chunk: &mut Chunk) {
        let person = Person::new(world, index);
        let mut dice = Dice::new(world.seed, Stream::Life, index);
        let traits = Traits::draw(&mut dice, &person);
        let mut life = Life {
            world,
            position: number::small(chunk.people.len()),
            satisfaction: traits.contentment,
            experiences: Vec::new(),
            departure: None,
            quiet_spells: Vec::new(),
            wallet: Vec::new(),
            points: Points::default(),
            contacts: Vec::new(),
            purchases: 0,
            devices: Vec::new(),
            hard_cases: Vec::new(),
            paid_with_heads_card: 0,
            counters: [0; 32],
            person,
            dice,
            traits,
        };
        chunk.people.push(life.person.clone());
        life.plan_quiet_spells();
        life.open_account();
        let first_day = match life.person.joins_on {
            Some(day) => {
                life.welcome(chunk, day);
                day + 1
            }
            None => 0,
        };
        let mut next_campaign =
            world.campaigns.partition_point(|campaign| world.window.day_of(campaign.at_ms) < i64::from(first_day));
        for day in first_day..world.window.days {
            life.spend_day(chunk, day);
            while let Some(campaign) = world.campaigns.get(next_campaign)
                && world.window.day_of(campaign.at_ms) <= i64::from(day)
            {
                life.receive_campaign(chunk, day, campaign);
                next_campaign += 1;
            }
        }
        life.settle_points(chunk, world.window.end_ms);
        life.drop_expired_coupons(chunk, world.window.end_ms);
        life.finish(chunk);
    }

    pub(crate) fn gone_on(&self) -> Option<u32> {
        self.departure.map(|departure| departure.gone_on).filter(|day| *day < self.world.window.days)
    }

    /// The next number of a kind for this customer.
    pub(crate) fn next(&mut self, kind: Kind) -> u32 {
        let counter = &mut self.counters[kind as usize];
        *counter += 1;
        *counter
    }

    pub(crate) fn next_id(&mut self, kind: Kind) -> u64 {
        let number = self.next(kind);
        self.world.ids.of_customer(kind, self.person.index, number)
    }

    pub(crate) fn experience(&mut self, time_ms: i64, effect: f64) {
        if time_ms < self.world.window.end_ms {
            self.experiences.push((time_ms, effect));
        }
    }

    pub(crate) fn has_account(&self, day: u32) -> bool {
        self.person.member && self.person.joins_on.is_none_or(|joined| day >= joined)
    }

    pub(crate) fn account_on(&mut self, day: u32) -> u8 {
        // The day itself belongs to the first account: the second is opened at some hour of it.
        u8::from(self.person.second_account_on.is_some_and(|from| day > from) && self.dice.chance(0.5))
    }

    pub(crate) fn home_store(&self, day: u32) -> u16 {
        let choice = mix(self.person.head.unwrap_or(self.person.index)) % u64::from(STORES_IN_CITY);
        u16::from(self.person.home_on(day).city) * STORES_IN_CITY + u16::from(number::low8(choice))
    }

    pub(crate) fn note_device(&mut self, id: u64, form: DeviceForm, note: DeviceNote) {
        if !self.devices.contains(&(id, form, note)) {
            self.devices.push((id, form, note));
        }
    }

    pub(crate) fn mood(&self, day: u32) -> Mood {
        let mut mood = Mood { browse: 1.0, basket: 1.0, purchase: 1.0, response: 1.0, decline: 0.0, rating_loss: 0.0 };
        for (from, to, browse, purchase) in &self.quiet_spells {
            if (*from..*to).contains(&day) {
                mood.browse *= browse;
                mood.purchase *= purchase;
                mood.response *= browse.max(0.15);
            }
        }
        let Some(departure) = self.departure else { return mood };
        if day >= departure.gone_on {
            return Mood {
                browse: 0.012,
                basket: 0.6,
                purchase: 0.003,
                response: 0.03,
                decline: 1.0,
                rating_loss: 0.8,
            };
        }
        let length = departure.gone_on - departure.begins_on;
        if day >= departure.begins_on && length > 0 {
            let progress = f64::from(day - departure.begins_on) / f64::from(length);
            let ramp = |from: f64, to: f64| departure.depth * ((progress - from) / (to - from)).clamp(0.0, 1.0);
            // The order in which it shows: browsing, answers to campaigns, ratings and baskets, and only then orders.
            mood.browse *= 1.0 - 0.85 * ramp(0.0, 0.45);
            mood.response *= 1.0 - 0.85 * ramp(0.05, 0.5);
            mood.basket *= 1.0 - 0.5 * ramp(0.15, 0.7);
            mood.purchase *= 1.0 - 0.8 * ramp(0.5, 1.0);
            mood.decline = ramp(0.0, 0.5);
            mood.rating_loss = 1.2 * ramp(0.1, 0.6);
        }
        mood
    }

    fn plan_quiet_spells(&mut self) {
        let days = self.world.window.days;
        let years = f64::from(days) / 365.0;
        // A holiday or a stay abroad: away altogether, then back. A busy spell: still buying, hardly looking around.
        for (share, shortest, longest, browse, purchase) in [(0.2, 18, 60, 0.03, 0.02), (0.12, 21, 45, 0.35, 0.85)] {
            for _ in 0..self.dice.poisson(share * years) {
                let from = number::low32(self.dice.below(u64::from(days)));
                let length = number::low32(self.dice.range(shortest, longest).unsigned_abs());
                self.quiet_spells.push((from, from + length, browse, purchase));
            }
        }
    }

    /// The day somebody comes for the first time; most come in order to buy something.
    fn welcome(&mut self, chunk: &mut Chunk, day: u32) {
        if !self.dice.chance(0.72) {
            return;
        }
        let at_ms = self.person.registered_ms + self.dice.range(1_500, 9_000) * SECOND_MS;
        if at_ms < self.world.window.end_ms {
            self.purchase(chunk, day, Some(at_ms));
        }
    }

    fn spend_day(&mut self, chunk: &mut Chunk, day: u32) {
        let now = self.world.window.day_start(day);
        self.feel(now);
        self.settle_points(chunk, now);
        self.drop_expired_coupons(chunk, now);
        self.keep_contact_up_to_date(day);
        self.consider_leaving(day);
        let mood = self.mood(day);
        let season = self.world.seasons.get(day as usize).copied().unwrap_or(1.0);

        let eagerness = (self.traits.purchases_a_year / 9.7).sqrt();
        let visits_a_day = 5.2 / 365.0 * self.traits.curiosity * eagerness * mood.browse * season.sqrt();
        if self.dice.chance(visits_a_day) {
            let channel = self.browsing_channel();
            self.session(chunk, day, channel, &Purpose::Browse);
        }
        // A coupon in the wallet is a reason to buy, the more so for those who mind the price.
        let lure = if self.wallet.is_empty() { 1.0 } else { 1.0 + 3.0 * self.traits.price_sensitivity };
        if self.dice.chance(self.traits.purchases_a_year / 365.0 * mood.purchase * season * lure) {
            self.purchase(chunk, day, None);
        }
        if self.has_account(day) {
            self.visit_coupon_centre(chunk, day, mood);
        }
        self.ask_out_of_the_blue(chunk, day, mood);
        self.speak_up(chunk, day, mood);
    }

    /// One purchase where the person likes to buy.
    fn purchase(&mut self, chunk: &mut Chunk, day: u32, at_ms: Option<i64>) {
        self.purchases += 1;
        match self.dice.weighted(&self.traits.channels) {
            0 => self.order(chunk, day, Channel::Web, at_ms),
            1 => self.order(chunk, day, Channel::App, at_ms),
            2 => self.order(chunk, day, Channel::MiniProgram, at_ms),
            _ => self.buy_in_store(chunk, day, at_ms),
        }
    }

    fn browsing_channel(&mut self) -> Channel {
        let [web, app, mini_program, store] = self.traits.channels;
        match self.dice.weighted(&[web, app, mini_program, store * 0.12]) {
            0 => Channel::Web,
            1 => Channel::App,
            2 => Channel::MiniProgram,
            _ => Channel::Kiosk,
        }
    }

    /// Lets what has happened by now work on satisfaction, which otherwise drifts back to the person's own level.
    fn feel(&mut self, now: i64) {
        self.satisfaction += (self.traits.contentment - self.satisfaction) * 0.006;
        let mut happened = 0.0;
        self.experiences.retain(|(time_ms, effect)| {
            let over = *time_ms < now;
            if over {
                happened += effect;
            }
            !over
        });
        self.satisfaction = (self.satisfaction + happened).clamp(-3.0, 2.0);
    }

    fn consider_leaving(&mut self, day: u32) {
        if self.departure.is_some() {
            return;
        }
        if self.person.moves_away_on.is_some_and(|leaves| day >= leaves) {
            self.departure = Some(Departure { begins_on: day, gone_on: day, depth: 1.0 });
            return;
        }
        let tenure_days = (self.world.window.day_start(day) - self.person.registered_ms) / DAY_MS;
        let newcomer = self.person.joins_on.is_some();
        let stage = match self.purchases {
            0..=1 if newcomer && tenure_days < 75 => 5.0,
            0..=3 if newcomer && tenure_days < 150 => 2.4,
            10.. => 0.55,
            _ => 1.0,
        };
        let engagement = (self.traits.curiosity * self.traits.purchases_a_year / 8.0).clamp(0.1, 6.0).ln();
        let pull = 1.3 * (self.traits.price_sensitivity - 0.42) - 1.0 * self.satisfaction - 0.3 * engagement;
        if !self.dice.chance((BASE_HAZARD * stage * pull.exp()).min(0.03)) {
            return;
        }
        let abruptly = self.dice.chance(if self.purchases <= 1 { 0.35 } else { 0.18 });
        let length = if abruptly { 0 } else { number::low32(self.dice.range(42, 70).unsigned_abs()) };
        let depth = self.dice.between(0.65, 1.05);
        self.departure = Some(Departure { begins_on: day, gone_on: day + length, depth });
    }
}
