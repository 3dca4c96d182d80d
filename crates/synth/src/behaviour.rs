//! Browsing on the web, in the app and in the mini-program, in the Segment spec with its e-commerce v2 events.
//!
//! Events are the bulk of the data, so they wait for their file as small values and are written out only there.

use crate::calendar::{self, SECOND_MS};
use crate::dice::Dice;
use crate::encode::{push_cents, push_number};
use crate::hard_cases::{Group, HardCase};
use crate::ids::{Kind, mix};
use crate::life::Life;
use crate::number;
use crate::people::{Person, push_uuid};
use crate::rows::{Chunk, OrderId, Source, push_scrambled};
use crate::till::opening_second;
use crate::world::{CATEGORIES, World, product_at};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Web,
    App,
    MiniProgram,
    Kiosk,
}

impl Channel {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::App => "app",
            Self::MiniProgram => "mini_program",
            Self::Kiosk => "kiosk",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Session {
    /// Position in the chunk's people.
    pub(crate) person: u32,
    pub(crate) id: u64,
    pub(crate) channel: Channel,
    pub(crate) device: u64,
    pub(crate) anonymous: u64,
    pub(crate) iphone: bool,
    pub(crate) account: u8,
    pub(crate) ip: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Event {
    pub(crate) time_ms: i64,
    /// Position in the chunk's sessions.
    pub(crate) session: u32,
    pub(crate) number: u32,
    pub(crate) action: Action,
    pub(crate) signed_in: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Action {
    View { page: Page, duration_ms: u32 },
    Identify,
    Searched(&'static str),
    ListViewed { category: u8, duration_ms: u32 },
    ProductViewed { product: u16, duration_ms: u32 },
    Added { product: u16, quantity: u8, cart: u64 },
    Removed { product: u16, quantity: u8, cart: u64 },
    Wished { product: u16 },
    CartViewed { cart: u64, duration_ms: u32 },
    CheckoutStarted { cart: u64, order: Option<OrderId> },
    CouponApplied { order: OrderId },
    Completed { order: OrderId, value_cents: i64 },
    Reviewed { product: u16, order: OrderId },
    Help { duration_ms: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page {
    Home,
    Promotion,
    Account,
    OrderStatus,
}

impl Page {
    fn path(self) -> &'static str {
        match self {
            Self::Home => "/",
            Self::Promotion => "/promotion",
            Self::Account => "/account",
            Self::OrderStatus => "/orders",
        }
    }
}

/// What a session is for.
#[derive(Debug)]
pub(crate) enum Purpose<'a> {
    Browse,
    Order {
        id: OrderId,
        at_ms: i64,
        items: &'a [(u16, u8)],
        value_cents: i64,
        coupon: bool,
        signed_in: bool,
        account: u8,
    },
}

/// Searches of people who are about to leave: other words than the categories they used to look in.
const LEAVING_SEARCHES: [&str; 8] =
    ["便宜", "清仓", "退货 流程", "平替", "怎么 注销 账号", "临期 特价", "售后 电话", "cheap"];
const COMMON_SEARCHES: [&str; 4] = ["礼物", "新品", "包邮", "gift box"];

impl Life<'_> {
    /// One visit: its events up to an abandoned cart, or up to the order that it is for.
    pub(crate) fn session(&mut self, chunk: &mut Chunk, day: u32, channel: Channel, purpose: &Purpose<'_>) {
        let session = self.open_session(chunk, day, channel, purpose);
        let mood = self.mood(day);
        let browse = mood.browse.clamp(0.05, 1.2);
        let mut visit = Visit { events: Vec::with_capacity(16), time_ms: 0, signed_in: false, session };
        let wants_sign_in = match purpose {
            Purpose::Order { signed_in, .. } => *signed_in,
            Purpose::Browse => {
                let habit = match channel {
                    Channel::App => 0.92,
                    Channel::MiniProgram => 0.85,
                    Channel::Web => 0.5,
                    Channel::Kiosk => 0.4,
                };
                self.has_account(day) && self.dice.chance(habit)
            }
        };
        visit.signed_in = wants_sign_in && self.dice.chance(0.8);

        let dwell = |dice: &mut Dice, median: f64| {
            number::low32(
                number::whole(dice.log_normal(median * browse.sqrt(), 0.7).clamp(300.0, 900_000.0)).unsigned_abs(),
            )
        };
        let page = if self.dice.chance(0.12) { Page::Promotion } else { Page::Home };
        let duration_ms = dwell(&mut self.dice, 14_000.0);
        visit.add(&mut self.dice, Action::View { page, duration_ms });
        if wants_sign_in && !visit.signed_in {
            visit.signed_in = true;
            visit.add(&mut self.dice, Action::Identify);
        }
        let category = self.favourite_category();
        if self.dice.chance(0.34) {
            let searches = CATEGORIES[category].searches;
            let query = if self.dice.chance(0.06 + 0.6 * mood.decline) {
                *self.dice.pick(&LEAVING_SEARCHES)
            } else if self.dice.chance(0.15) {
                *self.dice.pick(&COMMON_SEARCHES)
            } else {
                *self.dice.pick(searches)
            };
            visit.add(&mut self.dice, Action::Searched(query));
        }
        if self.dice.chance(0.45 * browse.max(0.4)) {
            let duration_ms = dwell(&mut self.dice, 11_000.0);
            visit.add(&mut self.dice, Action::ListViewed { category: number::low8(category as u64), duration_ms });
        }
        let cart = self.world.ids.of_customer(Kind::Cart, self.person.index, session_number(&visit, chunk));
        match purpose {
            Purpose::Browse => self.look_around(&mut visit, category, cart, mood.decline, browse, &dwell),
            Purpose::Order { id, items, value_cents, coupon, .. } => {
                for (product, quantity) in *items {
                    let duration_ms = dwell(&mut self.dice, 32_000.0);
                    if self.dice.chance(0.85) {
                        visit.add(&mut self.dice, Action::ProductViewed { product: *product, duration_ms });
                    }
                    visit.add(&mut self.dice, Action::Added { product: *product, quantity: *quantity, cart });
                }
                if self.dice.chance(0.05 + 0.15 * mood.decline) {
                    let product = self.product_in(category);
                    visit.add(&mut self.dice, Action::Added { product, quantity: 1, cart });
                    visit.add(&mut self.dice, Action::Removed { product, quantity: 1, cart });
                }
                if self.dice.chance(0.5) {
                    let duration_ms = dwell(&mut self.dice, 15_000.0);
                    visit.add(&mut self.dice, Action::CartViewed { cart, duration_ms });
                }
                visit.add(&mut self.dice, Action::CheckoutStarted { cart, order: Some(*id) });
                if *coupon {
                    visit.add(&mut self.dice, Action::CouponApplied { order: *id });
                }
                visit.add(&mut self.dice, Action::Completed { order: *id, value_cents: *value_cents });
            }
        }
        // An order's visit ends at the moment of the order; any other begins at an hour of the person's liking.
        let offset = match purpose {
            Purpose::Order { at_ms, .. } => at_ms - visit.time_ms,
            Purpose::Browse => {
                let second = match channel {
                    // Kiosks stand in stores.
                    Channel::Kiosk => opening_second(&mut self.dice),
                    _ => self.waking_second(),
                };
                let millisecond = self.dice.range(0, 999);
                self.world.window.local_moment(day, second, millisecond)
            }
        };
        for event in visit.events {
            chunk.push_event(Event { time_ms: event.time_ms + offset, ..event });
        }
    }

    fn look_around(
        &mut self,
        visit: &mut Visit,
        category: usize,
        cart: u64,
        decline: f64,
        browse: f64,
        dwell: &dyn Fn(&mut Dice, f64) -> u32,
    ) {
        let views = self.dice.poisson(2.4 * browse * self.traits.curiosity) + u32::from(self.dice.chance(0.8));
        let fills_cart = self.traits.night_owl || self.dice.chance(0.25);
        for _ in 0..views.min(24) {
            let category = if self.dice.chance(0.75) { category } else { self.favourite_category() };
            let product = self.product_in(category);
            let duration_ms = dwell(&mut self.dice, 26_000.0);
            visit.add(&mut self.dice, Action::ProductViewed { product, duration_ms });
            if fills_cart && self.dice.chance(0.35) {
                let quantity = if self.dice.chance(0.1) { 2 } else { 1 };
                visit.add(&mut self.dice, Action::Added { product, quantity, cart });
                if self.dice.chance(0.08 + 0.5 * decline) {
                    visit.add(&mut self.dice, Action::Removed { product, quantity, cart });
                } else if self.dice.chance(0.15) {
                    let duration_ms = dwell(&mut self.dice, 12_000.0);
                    visit.add(&mut self.dice, Action::CartViewed { cart, duration_ms });
                    if self.dice.chance(0.3) {
                        visit.add(&mut self.dice, Action::CheckoutStarted { cart, order: None });
                    }
                }
            } else if self.dice.chance(0.05) {
                visit.add(&mut self.dice, Action::Wished { product });
            }
        }
        if self.dice.chance(0.08) {
            let page = *self.dice.pick(&[Page::Account, Page::OrderStatus]);
            let duration_ms = dwell(&mut self.dice, 9_000.0);
            visit.add(&mut self.dice, Action::View { page, duration_ms });
        }
        if self.dice.chance(0.015 + 0.05 * decline) {
            let duration_ms = dwell(&mut self.dice, 40_000.0);
            visit.add(&mut self.dice, Action::Help { duration_ms });
        }
    }

    pub(crate) fn open_session(&mut self, chunk: &mut Chunk, day: u32, channel: Channel, purpose: &Purpose<'_>) -> u32 {
        let ids = self.world.ids;
        let number = self.next(Kind::Session);
        let person = &self.person;
        let generation = u32::from(person.new_device_on.is_some_and(|from| day >= from));
        // A family's tablet is one device with one installation, whoever holds it.
        let tablet = person.family_phone.is_some() && channel == Channel::App && self.dice.chance(0.12);
        let (device, anonymous) = match channel {
            Channel::Kiosk => {
                let store = u64::from(self.home_store(day));
                (store, ids.scramble(Kind::Anonymous, (u64::from(u32::MAX) << 32) | store, 64))
            }
            Channel::App if tablet => {
                let head = person.head.unwrap_or(person.index);
                (ids.wide(Kind::Device, head, 99), ids.wide(Kind::Anonymous, head, 99))
            }
            Channel::App => {
                (ids.wide(Kind::Device, person.index, generation), ids.wide(Kind::Anonymous, person.index, generation))
            }
            Channel::MiniProgram => {
                (ids.wide(Kind::Device, person.index, generation), ids.wide(Kind::Anonymous, person.index, 1_000))
            }
            // Browsers forget their cookies a few times a year.
            Channel::Web => (0, ids.wide(Kind::Anonymous, person.index, 2_000 + day / 110)),
        };
        let iphone = if tablet { device & 1 == 0 } else { self.person.iphone };
        match channel {
            Channel::Kiosk => self.note_case(HardCase::Kiosk, Group::Store(device)),
            Channel::Web | Channel::MiniProgram => {
                self.note_device(anonymous, DeviceForm::Installation, DeviceNote::Own)
            }
            Channel::App => {
                let note = if tablet { DeviceNote::Family } else { DeviceNote::Own };
                self.note_device(anonymous, DeviceForm::Installation, note);
                self.note_device(device, if iphone { DeviceForm::Ios } else { DeviceForm::Android }, note);
            }
        }
        let id = ids.of_customer(Kind::Session, self.person.index, number);
        let account = match purpose {
            Purpose::Order { account, .. } => *account,
            Purpose::Browse => self.account_on(day),
        };
        let home_ip = number::low32(mix(ids.wide(Kind::Address, self.person.head.unwrap_or(self.person.index), 0)));
        let ip = if self.dice.chance(0.7) { home_ip } else { number::low32(self.dice.bits()) };
        let position = number::small(chunk.sessions.len());
        chunk.sessions.push(Session { person: self.position, id, channel, device, anonymous, iphone, account, ip });
        let mut key = Vec::with_capacity(20);
        push_session_id(&mut key, id);
        chunk.truth(Source::Events, &key, Some(self.person.index));
        position
    }

    fn waking_second(&mut self) -> i64 {
        let hour = if self.traits.night_owl && self.dice.chance(0.75) {
            23.5 + 1.2 * self.dice.normal()
        } else {
            self.traits.usual_hour + 2.6 * self.dice.normal()
        };
        number::whole(hour.rem_euclid(24.0) * 3_600.0).min(86_399)
    }

    pub(crate) fn local_moment(&mut self, day: u32) -> i64 {
        let second = self.waking_second();
        self.world.window.local_moment(day, second, 0)
    }

    pub(crate) fn favourite_category(&mut self) -> usize {
        self.dice.weighted(&self.traits.categories)
    }

    pub(crate) fn product_in(&mut self, category: usize) -> u16 {
        product_at(category, self.dice.unit() * self.dice.unit())
    }
}

/// Whose a device is, as truth says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceNote {
    Own,
    Family,
}

/// How a device's identifier is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceForm {
    /// The `anonymousId` of a browser, a mini-program or an installed app.
    Installation,
    Ios,
    Android,
}

struct Visit {
    events: Vec<Event>,
    /// Since the visit began.
    time_ms: i64,
    signed_in: bool,
    session: u32,
}

impl Visit {
    fn add(&mut self, dice: &mut Dice, action: Action) {
        if let Some(last) = self.events.last() {
            let dwelt = match last.action {
                Action::View { duration_ms, .. }
                | Action::ListViewed { duration_ms, .. }
                | Action::ProductViewed { duration_ms, .. }
                | Action::CartViewed { duration_ms, .. }
                | Action::Help { duration_ms } => i64::from(duration_ms),
                _ => 0,
            };
            self.time_ms += dwelt + number::whole(dice.exponential(4_000.0)).min(60_000) + SECOND_MS / 5;
        }
        let number = number::small(self.events.len());
        self.events.push(Event {
            time_ms: self.time_ms,
            session: self.session,
            number,
            action,
            signed_in: self.signed_in,
        });
    }
}

fn session_number(visit: &Visit, chunk: &Chunk) -> u32 {
    number::low32(chunk.sessions.get(visit.session as usize).map_or(0, |session| session.id))
}

pub(crate) fn push_session_id(out: &mut Vec<u8>, id: u64) {
    out.push(b's');
    push_scrambled(out, id);
}

pub(crate) fn push_kiosk(out: &mut Vec<u8>, store: u64) {
    out.extend_from_slice(b"KSK-");
    push_store(out, store);
    out.extend_from_slice(b"-1");
}

pub(crate) fn push_store(out: &mut Vec<u8>, store: u64) {
    out.extend_from_slice(b"ST");
    calendar::push_padded(out, i64::try_from(store).unwrap_or(0) + 1, 4);
}

pub(crate) fn push_device(out: &mut Vec<u8>, device: u64, iphone: bool) {
    if iphone {
        let start = out.len();
        push_uuid(out, device);
        out[start..].make_ascii_uppercase();
    } else {
        out.extend_from_slice(format!("{device:016x}").as_bytes());
    }
}

/// One event as a line of NDJSON.
pub(crate) fn write_event(out: &mut Vec<u8>, world: &World, event: &Event, session: &Session, person: &Person) {
    let ids = world.ids;
    let native = matches!(session.channel, Channel::App | Channel::MiniProgram);
    out.extend_from_slice(b"{\"messageId\":\"");
    let message = mix(session.id ^ (u64::from(event.number) << 48));
    out.extend_from_slice(format!("{:015x}{message:016x}", session.id & 0xfff_ffff_ffff_ffff).as_bytes());
    let (kind, name) = match event.action {
        Action::View { .. } | Action::Help { .. } if native => ("screen", ""),
        Action::View { .. } | Action::Help { .. } => ("page", ""),
        Action::Identify => ("identify", ""),
        Action::Searched(_) => ("track", "Products Searched"),
        Action::ListViewed { .. } => ("track", "Product List Viewed"),
        Action::ProductViewed { .. } => ("track", "Product Viewed"),
        Action::Added { .. } => ("track", "Product Added"),
        Action::Removed { .. } => ("track", "Product Removed"),
        Action::Wished { .. } => ("track", "Product Added to Wishlist"),
        Action::CartViewed { .. } => ("track", "Cart Viewed"),
        Action::CheckoutStarted { .. } => ("track", "Checkout Started"),
        Action::CouponApplied { .. } => ("track", "Coupon Applied"),
        Action::Completed { .. } => ("track", "Order Completed"),
        Action::Reviewed { .. } => ("track", "Product Reviewed"),
    };
    out.extend_from_slice(b"\",\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    if !name.is_empty() {
        out.extend_from_slice(b"\",\"event\":\"");
        out.extend_from_slice(name.as_bytes());
    }
    out.extend_from_slice(b"\",\"anonymousId\":\"");
    push_uuid(out, session.anonymous);
    if event.signed_in {
        out.extend_from_slice(b"\",\"userId\":\"");
        person.push_member(out, ids, session.account);
    }
    out.extend_from_slice(b"\",\"timestamp\":\"");
    calendar::push_utc_millis(out, event.time_ms);
    out.extend_from_slice(b"\",\"context\":{\"channel\":\"");
    out.extend_from_slice(session.channel.name().as_bytes());
    out.push(b'"');
    match session.channel {
        Channel::Web => out.extend_from_slice(b",\"device\":{\"type\":\"browser\"}"),
        Channel::Kiosk => {
            out.extend_from_slice(b",\"device\":{\"id\":\"");
            push_kiosk(out, session.device);
            out.extend_from_slice(b"\",\"type\":\"kiosk\"}");
        }
        Channel::App => {
            out.extend_from_slice(b",\"device\":{\"id\":\"");
            push_device(out, session.device, session.iphone);
            out.extend_from_slice(if session.iphone {
                b"\",\"type\":\"ios\"}".as_slice()
            } else {
                b"\",\"type\":\"android\"}"
            });
        }
        Channel::MiniProgram => {
            // WeChat hides the hardware from mini-programs; it tells openid always, unionid only after sign-in.
            out.extend_from_slice(b",\"device\":{\"type\":\"wechat\"},\"wechat\":{");
            if event.signed_in {
                out.extend_from_slice(b"\"unionid\":\"");
                person.push_union(out, ids);
                out.extend_from_slice(b"\",");
            }
            out.extend_from_slice(b"\"openid\":\"");
            person.push_mini_openid(out, ids);
            out.extend_from_slice(b"\"}");
        }
    }
    out.extend_from_slice(b",\"session_id\":\"");
    push_session_id(out, session.id);
    out.extend_from_slice(b"\",\"ip\":\"");
    push_ip(out, session.ip);
    out.extend_from_slice(b"\"},\"properties\":{");
    write_properties(out, world, &event.action);
    out.extend_from_slice(b"}}");
}

fn push_ip(out: &mut Vec<u8>, ip: u32) {
    let [a, b, c, d] = ip.to_be_bytes();
    // Ordinary public addresses of Chinese providers begin between 36 and 125.
    for (place, part) in [36 + a % 90, b, c, 1 + d % 254].into_iter().enumerate() {
        if place > 0 {
            out.push(b'.');
        }
        push_number(out, i64::from(part));
    }
}

fn write_properties(out: &mut Vec<u8>, world: &World, action: &Action) {
    let product_page = |out: &mut Vec<u8>, product: u16, with_price: bool| {
        let product = world.product(product);
        out.extend_from_slice(b"\"url\":\"/product/P");
        push_number(out, i64::from(product.code));
        out.extend_from_slice(b"\",\"product_id\":\"P");
        push_number(out, i64::from(product.code));
        out.extend_from_slice(b"\",\"category\":\"");
        out.extend_from_slice(product.category.as_bytes());
        out.push(b'"');
        if with_price {
            out.extend_from_slice(b",\"price\":");
            push_cents(out, product.price_cents);
        }
    };
    let text = |out: &mut Vec<u8>, field: &str, value: &str| {
        out.extend_from_slice(field.as_bytes());
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    };
    let cart_id = |out: &mut Vec<u8>, cart: u64| {
        out.extend_from_slice(b",\"cart_id\":\"c");
        push_scrambled(out, cart);
        out.push(b'"');
    };
    let order_id = |out: &mut Vec<u8>, order: OrderId| {
        out.extend_from_slice(b",\"order_id\":\"");
        order.push(out);
        out.push(b'"');
    };
    let duration = |out: &mut Vec<u8>, duration_ms: u32| {
        out.extend_from_slice(b",\"duration_ms\":");
        push_number(out, i64::from(duration_ms));
    };
    match *action {
        Action::View { page, duration_ms } => {
            text(out, "\"url\":", page.path());
            duration(out, duration_ms);
        }
        Action::Help { duration_ms } => {
            text(out, "\"url\":", "/help");
            duration(out, duration_ms);
        }
        Action::Identify => text(out, "\"url\":", "/login"),
        Action::Searched(query) => {
            text(out, "\"url\":", "/search");
            text(out, ",\"query\":", query);
        }
        Action::ListViewed { category, duration_ms } => {
            let name = CATEGORIES[usize::from(category)].name;
            text(out, "\"url\":", &format!("/category/{name}"));
            text(out, ",\"category\":", name);
            duration(out, duration_ms);
        }
        Action::ProductViewed { product, duration_ms } => {
            product_page(out, product, true);
            duration(out, duration_ms);
        }
        Action::Wished { product } => product_page(out, product, true),
        Action::Added { product, quantity, cart } | Action::Removed { product, quantity, cart } => {
            product_page(out, product, true);
            out.extend_from_slice(b",\"quantity\":");
            push_number(out, i64::from(quantity));
            cart_id(out, cart);
        }
        Action::CartViewed { cart, duration_ms } => {
            text(out, "\"url\":", "/cart");
            cart_id(out, cart);
            duration(out, duration_ms);
        }
        Action::CheckoutStarted { cart, order } => {
            text(out, "\"url\":", "/checkout");
            if let Some(order) = order {
                order_id(out, order);
            }
            cart_id(out, cart);
        }
        Action::CouponApplied { order } => {
            text(out, "\"url\":", "/checkout");
            order_id(out, order);
        }
        Action::Completed { order, value_cents } => {
            text(out, "\"url\":", "/checkout/done");
            out.extend_from_slice(b",\"price\":");
            push_cents(out, value_cents);
            order_id(out, order);
        }
        Action::Reviewed { product, order } => {
            product_page(out, product, false);
            order_id(out, order);
        }
    }
}
