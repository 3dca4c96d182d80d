//! Who a customer is: a name, a home, and the identifiers that systems know them by. A person follows from the seed
//! and their index alone, so whatever people share (a family's phone, a recycled number) needs no shared state.

use crate::calendar::{self, DAY_MS, LOCAL_OFFSET_MS, SECOND_MS};
use crate::dice::{Dice, Stream};
use crate::homes::{Home, Landline, draw_city};
use crate::ids::{Ids, Kind, mix};
use crate::number;
use crate::world::World;

const LONGEST_MONTH_DAYS: u32 = 31;

#[derive(Debug, Clone)]
pub(crate) struct Person {
    pub(crate) index: u64,
    pub(crate) member: bool,
    /// When the member account was opened; for people who never open one, when they first come.
    pub(crate) registered_ms: i64,
    /// The day of the window on which they first come; none for those who were customers before it.
    pub(crate) joins_on: Option<u32>,
    pub(crate) registered_channel: &'static str,
    pub(crate) name: Name,
    pub(crate) female: bool,
    pub(crate) birth_day: i64,
    pub(crate) home: Home,
    /// From that day on they live elsewhere.
    pub(crate) new_home: Option<(u32, Home)>,
    /// The telephone of their household.
    pub(crate) landline: Option<Landline>,
    pub(crate) phone: u64,
    /// From that day on they use another number.
    pub(crate) new_phone: Option<(u32, u64)>,
    /// The number of the head of the household, which everybody in it uses at times.
    pub(crate) family_phone: Option<u64>,
    pub(crate) head: Option<u64>,
    pub(crate) pair: Option<Pair>,
    pub(crate) email: Option<Email>,
    pub(crate) wechat: bool,
    pub(crate) iphone: bool,
    /// From that day on they use another device.
    pub(crate) new_device_on: Option<u32>,
    /// When they open a second account by mistake.
    pub(crate) second_account_on: Option<u32>,
    /// When they move away for good; their number goes to somebody else later.
    pub(crate) moves_away_on: Option<u32>,
    /// Whose number theirs was before.
    pub(crate) recycled_from: Option<u64>,
    pub(crate) crm_phone_style: PhoneStyle,
    pub(crate) crm_name_style: NameStyle,
    pub(crate) naming: Naming,
}

impl Person {
    pub(crate) fn new(world: &World, index: u64) -> Self {
        let mut dice = Dice::new(world.seed, Stream::Person, index);
        let household = Household::of(world, index);
        let recycling = Recycling::of(world, index);
        let pair = Pair::of(world, index);
        let days = f64::from(world.window.days);

        let joining = dice.chance(1.0 - (-days / 760.0).exp());
        let mut joins_on = joining.then(|| number::low32(dice.below(u64::from(world.window.days))));
        let (mut moves_away_on, mut recycled_from) = (None, None);
        match recycling {
            Some(Recycling::Giver { leaves_on }) => {
                joins_on = None;
                moves_away_on = Some(leaves_on);
            }
            Some(Recycling::Receiver { giver, from_day }) => {
                joins_on = Some(from_day + number::low32(dice.below(20)));
                recycled_from = Some(giver);
            }
            None => {}
        }

        let mut name = Name::draw(&mut dice);
        let city = draw_city(&mut dice);
        let twin = pair.filter(|pair| pair.kind == PairKind::Twins).map(|pair| Twin::of(world, pair, index));
        let mut family_phone = None;
        let mut head = None;
        if let Some(twin) = &twin {
            name = twin.name;
        }
        if let Some(household) = &household {
            name.surname = household.surname;
            family_phone = Some(world.ids.phone(household.head, 0));
            head = (household.head != index).then_some(household.head);
        }

        let registered_ms = match joins_on {
            Some(day) => world.window.local_moment(day, waking_second(&mut dice), 0),
            None => {
                let before = number::whole(1.0 + dice.exponential(480.0).min(1_800.0));
                let second = waking_second(&mut dice);
                world.window.start_ms - before * DAY_MS - LOCAL_OFFSET_MS + second * SECOND_MS
            }
        };
        let member = dice.chance(0.91) || recycling.is_some() || twin.is_some();
        // One case at a time, so that each can be measured.
        let ordinary = household.is_none() && recycling.is_none() && pair.is_none();
        let changes_phone = dice.chance(0.07 * days / 365.0) && ordinary;
        let new_phone = changes_phone.then(|| (day_within(&mut dice, world), world.ids.phone(index, 1)));
        let email = dice.chance(0.72).then(|| Email::draw(&mut dice, world, index, name));
        let second_account_on = (member && dice.chance(0.018)).then(|| day_within(&mut dice, world));

        let registered_channel = dice.word(&["app", "mini_program", "mini_program", "web", "store"]);
        let female = dice.chance(0.62);
        let birth_day = calendar::days_of(1990, 1, 1) + number::whole(dice.normal() * 3_400.0).clamp(-11_000, 5_800);
        let district = number::low8(dice.below(3));

        let mut home_dice = Dice::new(world.seed, Stream::Home, index);
        let own_home = Home::draw(&mut home_dice, city, district);
        let home = match (&household, pair) {
            (Some(household), _) => household.home,
            (None, Some(pair)) => pair.home(world),
            (None, None) => own_home,
        };
        let moves = home_dice.chance(0.05 * days / 365.0) && ordinary;
        let new_home = moves
            .then(|| (day_within(&mut home_dice, world), home.draw_next(&mut home_dice)))
            // An export is made in between: it has the old address.
            .filter(|(day, _)| *day > joins_on.unwrap_or(0) + LONGEST_MONTH_DAYS);

        Self {
            index,
            member,
            registered_ms,
            joins_on,
            registered_channel,
            name,
            female: twin.as_ref().map_or(female, |twin| twin.female),
            birth_day: twin.as_ref().map_or(birth_day, |twin| twin.birth_day),
            home,
            new_home,
            landline: household.as_ref().and_then(|household| household.landline),
            phone: match (recycled_from, pair) {
                (Some(giver), _) => world.ids.phone(giver, 0),
                (None, Some(pair)) if pair.kind == PairKind::Twins => world.ids.phone(pair.first, 0),
                _ => world.ids.phone(index, 0),
            },
            new_phone,
            family_phone,
            head,
            pair,
            email,
            wechat: dice.chance(0.68),
            iphone: dice.chance(0.45),
            new_device_on: dice.chance(0.25 * days / 365.0).then(|| day_within(&mut dice, world)),
            second_account_on,
            moves_away_on,
            recycled_from,
            crm_phone_style: PhoneStyle::draw(&mut dice),
            crm_name_style: if dice.chance(0.92) { NameStyle::Hanzi } else { NameStyle::draw(&mut dice) },
            naming: Naming::draw(&mut Dice::new(world.seed, Stream::Naming, index), name),
        }
    }

    pub(crate) fn home_on(&self, day: u32) -> &Home {
        match &self.new_home {
            Some((from, home)) if day >= *from => home,
            _ => &self.home,
        }
    }

    /// How a system has their name: some people's in a script of its own, other people's as it was `drawn`.
    pub(crate) fn name_style(&self, system: System, drawn: NameStyle) -> NameStyle {
        match (self.naming, system) {
            (Naming::Usual, _) | (Naming::Traditional { .. }, System::Carrier) => drawn,
            (Naming::AcrossScripts { .. }, System::Crm) => NameStyle::Hanzi,
            (Naming::AcrossScripts { .. }, System::Shop) => NameStyle::Pinyin,
            (Naming::AcrossScripts { english }, System::Carrier) => NameStyle::English(english),
            (Naming::Traditional { in_crm }, _) if in_crm == (system == System::Crm) => NameStyle::Traditional,
            (Naming::Traditional { .. }, _) => NameStyle::Hanzi,
        }
    }

    pub(crate) fn phone_on(&self, day: u32) -> u64 {
        match self.new_phone {
            Some((from, phone)) if day >= from => phone,
            _ => self.phone,
        }
    }

    /// Accounts are 0 and, for those who opened another by mistake, 1.
    pub(crate) fn member_number(&self, ids: Ids, account: u8) -> u64 {
        ids.scramble(Kind::Member, self.index * 2 + u64::from(account), 32)
    }

    pub(crate) fn push_member(&self, out: &mut Vec<u8>, ids: Ids, account: u8) {
        out.push(b'M');
        calendar::push_padded(out, i64::try_from(self.member_number(ids, account)).unwrap_or(0), 10);
    }

    pub(crate) fn push_union(&self, out: &mut Vec<u8>, ids: Ids) {
        push_social(out, b"oU", ids.wide(Kind::Union, self.index, 0));
    }

    pub(crate) fn push_mini_openid(&self, out: &mut Vec<u8>, ids: Ids) {
        push_social(out, b"oM", ids.wide(Kind::MiniOpenid, self.index, 0));
    }

    /// The openid under the shop's official account; another application, hence another value.
    pub(crate) fn push_account_openid(&self, out: &mut Vec<u8>, ids: Ids) {
        push_social(out, b"oA", ids.wide(Kind::AccountOpenid, self.index, 0));
    }

    pub(crate) fn push_handle(&self, out: &mut Vec<u8>, world: &World) {
        out.extend_from_slice(GIVEN[usize::from(self.name.given[0])].1.as_bytes());
        let number = world.ids.scramble(Kind::Handle, self.index, world.bits);
        out.extend_from_slice(format!("_{number}").as_bytes());
    }
}

/// Twenty-eight characters, as WeChat's identifiers have.
fn push_social(out: &mut Vec<u8>, prefix: &[u8], value: u64) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    out.extend_from_slice(prefix);
    // Eleven characters hold all 64 bits, so different values stay different; the rest only fill up.
    for half in [value, mix(value), mix(mix(value))] {
        let width = if half == value { 11 } else { 8 };
        for place in 0..width {
            out.push(ALPHABET[number::index((half >> (6 * place)) & 63)]);
        }
    }
    out.pop();
}

/// Digits of a token, as payment providers write them.
pub(crate) fn push_token(out: &mut Vec<u8>, token: u64) {
    push_social(out, b"tk", token);
}

pub(crate) fn push_uuid(out: &mut Vec<u8>, value: u64) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for (half, dashes) in [(value, [8, 12]), (mix(value), [0, 4])] {
        for place in 0..16 {
            if dashes.contains(&place) {
                out.push(b'-');
            }
            out.push(HEX[number::index((half >> (60 - 4 * place)) & 15)]);
        }
    }
}

fn waking_second(dice: &mut Dice) -> i64 {
    dice.range(8 * 3_600, 22 * 3_600)
}

fn day_within(dice: &mut Dice, world: &World) -> u32 {
    number::low32(dice.below(u64::from(world.window.days)))
}

/// Two to four people under one roof: neighbours by index, who share a surname, a home with its telephone, and the head's
/// mobile.
struct Household {
    head: u64,
    surname: u8,
    home: Home,
    landline: Option<Landline>,
}

impl Household {
    const PLACES: u64 = 4;

    fn of(world: &World, index: u64) -> Option<Self> {
        let block = index / Self::PLACES;
        let mut dice = Dice::new(world.seed, Stream::Household, block);
        let head = block * Self::PLACES;
        let size = if dice.chance(0.13) { 2 + dice.below(3) } else { 0 };
        let apart = (head..head + Self::PLACES)
            .any(|member| Recycling::of(world, member).is_some() || Pair::of(world, member).is_some());
        let inhabited = head + 1 < world.customers;
        (index - head < size && inhabited && !apart).then(|| {
            let surname = number::low8(dice.below(SURNAMES.len() as u64));
            let city = draw_city(&mut dice);
            let district = number::low8(dice.below(3));
            let home = Home::draw(&mut dice, city, district);
            // Numbers come again only behind another area code, and only above eight million blocks.
            let number = world.ids.scramble(Kind::Landline, block, Landline::BITS);
            let landline = if dice.chance(0.7) { Landline::new(&home, number) } else { None };
            Self { head, surname, home, landline }
        })
    }
}

/// Two people with something in common that mostly belongs to one: neighbours by index, at places where nobody gives a number
/// away or gets one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) kind: PairKind,
    pub(crate) first: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PairKind {
    /// One surname, one birth date, one home, one mobile.
    Twins,
    /// One home, one card.
    Couple,
}

impl Pair {
    const TWINS_PLACE: u64 = 28;
    const COUPLES_PLACE: u64 = 32;

    fn of(world: &World, index: u64) -> Option<Self> {
        let place = index % Recycling::PLACES;
        let (kind, first_place, share) = match place & !1 {
            Self::TWINS_PLACE => (PairKind::Twins, Self::TWINS_PLACE, 0.12),
            Self::COUPLES_PLACE => (PairKind::Couple, Self::COUPLES_PLACE, 0.5),
            _ => return None,
        };
        let first = index - place + first_place;
        let exists = first + 1 < world.customers && Dice::new(world.seed, Stream::Pair, first).chance(share);
        exists.then_some(Self { kind, first })
    }

    fn home(self, world: &World) -> Home {
        let mut dice = Dice::new(world.seed, Stream::Pair, self.first + 1);
        let city = draw_city(&mut dice);
        let district = number::low8(dice.below(3));
        Home::draw(&mut dice, city, district)
    }
}

/// The token of the card that a couple shares: one more of the first's, who has one for each method.
pub(crate) fn joint_card(ids: Ids, pair: Pair) -> u64 {
    ids.wide(Kind::Token, pair.first, 3)
}

/// What a twin is born with.
struct Twin {
    name: Name,
    female: bool,
    birth_day: i64,
}

impl Twin {
    fn of(world: &World, pair: Pair, index: u64) -> Self {
        let mut dice = Dice::new(world.seed, Stream::Pair, pair.first + 2);
        let mut name = Name::draw(&mut dice);
        let characters = GIVEN.len() as u64;
        // The generation's character is the same, the other one is their own.
        let other = 1 + dice.below(characters - 1);
        if index != pair.first {
            name.given[1] = number::low8((u64::from(name.given[1]) + other) % characters);
        }
        name.single = false;
        Self {
            name,
            female: dice.chance(0.5),
            birth_day: calendar::days_of(1992, 1, 1) + number::whole(dice.normal() * 2_500.0).clamp(-9_000, 5_000),
        }
    }
}

/// One who moves away and one who gets the number later.
enum Recycling {
    Giver { leaves_on: u32 },
    Receiver { giver: u64, from_day: u32 },
}

impl Recycling {
    const PLACES: u64 = 64;
    /// Carriers keep a number back for about three months.
    const QUARANTINE_DAYS: u32 = 90;

    fn of(world: &World, index: u64) -> Option<Self> {
        let days = world.window.days;
        if days < 200 {
            return None;
        }
        let block = index / Self::PLACES;
        let mut dice = Dice::new(world.seed, Stream::Recycling, block);
        let giver = block * Self::PLACES + 4 + dice.below(24);
        let receiver = block * Self::PLACES + 36 + dice.below(24);
        let leaves_on = number::low32(u64::from(days / 10) + dice.below(u64::from(days / 4)));
        if !dice.chance(0.4) || receiver >= world.customers {
            return None;
        }
        match index {
            _ if index == giver => Some(Self::Giver { leaves_on }),
            _ if index == receiver => Some(Self::Receiver { giver, from_day: leaves_on + Self::QUARANTINE_DAYS }),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Name {
    surname: u8,
    given: [u8; 2],
    single: bool,
}

/// How somebody wrote a name down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameStyle {
    Hanzi,
    Pinyin,
    PinyinUpper,
    GivenFirst,
    /// 王女士, as parcels are addressed.
    Courtesy,
    /// A given character that sounds alike.
    Typo,
    /// 陳偉, as it is written in Hong Kong and Taiwan.
    Traditional,
    /// David Wang: the place of a given name that somebody chose for foreigners.
    English(u8),
}

/// Systems that hold names, each as it got them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    Crm,
    Shop,
    Carrier,
}

/// How one person's name differs between systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// By occasion.
    Usual,
    /// Hanzi in the CRM, pinyin in orders, English on parcels.
    AcrossScripts { english: u8 },
    /// Traditional hanzi in the CRM and simplified in orders, or the other way round.
    Traditional { in_crm: bool },
}

impl Naming {
    fn draw(dice: &mut Dice, name: Name) -> Self {
        match dice.unit() {
            share if share < 0.02 => {
                Self::AcrossScripts { english: number::low8(dice.below(ENGLISH_NAMES[0].len() as u64)) }
            }
            share if share < 0.035 && name.has_traditional_form() => Self::Traditional { in_crm: dice.chance(0.5) },
            _ => Self::Usual,
        }
    }
}

impl NameStyle {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        match dice.weighted(&[76.0, 7.0, 2.0, 3.0, 9.0, 1.5]) {
            0 => Self::Hanzi,
            1 => Self::Pinyin,
            2 => Self::PinyinUpper,
            3 => Self::GivenFirst,
            4 => Self::Courtesy,
            _ => Self::Typo,
        }
    }
}

impl Name {
    fn draw(dice: &mut Dice) -> Self {
        // Squaring favours the front of the list, where the commonest surnames stand.
        let position = dice.unit() * dice.unit() * SURNAMES.len() as f64;
        Self {
            surname: number::low8(number::whole(position).unsigned_abs()),
            given: [(); 2].map(|()| number::low8(dice.below(GIVEN.len() as u64))),
            single: dice.chance(0.22),
        }
    }

    fn has_traditional_form(self) -> bool {
        let given = &self.given[..if self.single { 1 } else { 2 }];
        let differs = |text: &str| text.chars().any(|character| traditional(character) != character);
        differs(SURNAMES[usize::from(self.surname)].0)
            || given.iter().any(|character| differs(GIVEN[usize::from(*character)].0))
    }

    pub(crate) fn push(self, out: &mut Vec<u8>, style: NameStyle, female: bool) {
        let (surname, surname_pinyin) = SURNAMES[usize::from(self.surname)];
        let given = &self.given[..if self.single { 1 } else { 2 }];
        match style {
            NameStyle::Hanzi | NameStyle::Typo => {
                out.extend_from_slice(surname.as_bytes());
                for (place, character) in given.iter().enumerate() {
                    let position = usize::from(*character);
                    // Neighbours in the list sound alike.
                    let written = if style == NameStyle::Typo && place == 0 { position ^ 1 } else { position };
                    out.extend_from_slice(GIVEN[written].0.as_bytes());
                }
            }
            NameStyle::Traditional => {
                let written = given.iter().map(|character| GIVEN[usize::from(*character)].0);
                for character in std::iter::once(surname).chain(written).flat_map(str::chars) {
                    out.extend_from_slice(traditional(character).encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
            NameStyle::English(place) => {
                out.extend_from_slice(ENGLISH_NAMES[usize::from(female)][usize::from(place)].as_bytes());
                out.push(b' ');
                push_capital(out, surname_pinyin);
            }
            NameStyle::Courtesy => {
                out.extend_from_slice(surname.as_bytes());
                out.extend_from_slice(if female { "女士" } else { "先生" }.as_bytes());
            }
            NameStyle::GivenFirst => {
                push_given(out, given);
                out.push(b' ');
                push_capital(out, surname_pinyin);
            }
            NameStyle::Pinyin | NameStyle::PinyinUpper => {
                let start = out.len();
                push_capital(out, surname_pinyin);
                out.push(b' ');
                push_given(out, given);
                if style == NameStyle::PinyinUpper {
                    out[start..].make_ascii_uppercase();
                }
            }
        }
    }
}

fn push_given(out: &mut Vec<u8>, given: &[u8]) {
    let start = out.len();
    for character in given {
        out.extend_from_slice(GIVEN[usize::from(*character)].1.as_bytes());
    }
    out[start..=start].make_ascii_uppercase();
}

fn push_capital(out: &mut Vec<u8>, word: &str) {
    let start = out.len();
    out.extend_from_slice(word.as_bytes());
    out[start..=start].make_ascii_uppercase();
}

/// How somebody wrote a phone number down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PhoneStyle {
    Plain,
    Plus,
    PlusDashes,
    DoubleZero,
    Spaces,
    Dashes,
    FullWidth,
    CountryDash,
}

impl PhoneStyle {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        match dice.weighted(&[62.0, 8.0, 6.0, 4.0, 8.0, 6.0, 2.5, 3.5]) {
            0 => Self::Plain,
            1 => Self::Plus,
            2 => Self::PlusDashes,
            3 => Self::DoubleZero,
            4 => Self::Spaces,
            5 => Self::Dashes,
            6 => Self::FullWidth,
            _ => Self::CountryDash,
        }
    }
}

pub(crate) fn push_phone(out: &mut Vec<u8>, phone: u64, style: PhoneStyle) {
    let (prefix, separator) = match style {
        PhoneStyle::Plain | PhoneStyle::FullWidth => ("", None),
        PhoneStyle::Plus => ("+86", None),
        PhoneStyle::PlusDashes => ("+86 ", Some(b'-')),
        PhoneStyle::DoubleZero => ("0086", None),
        PhoneStyle::Spaces => ("", Some(b' ')),
        PhoneStyle::Dashes => ("", Some(b'-')),
        PhoneStyle::CountryDash => ("86-", None),
    };
    out.extend_from_slice(prefix.as_bytes());
    let mut digits = Vec::with_capacity(11);
    calendar::push_padded(&mut digits, i64::try_from(phone).unwrap_or(0), 11);
    for (place, digit) in digits.into_iter().enumerate() {
        if let (3 | 7, Some(separator)) = (place, separator) {
            out.push(separator);
        }
        if style == PhoneStyle::FullWidth {
            // The full-width digits stand at U+FF10, which is EF BC 90 in UTF-8.
            out.extend_from_slice(&[0xef, 0xbc, 0x90 + (digit - b'0')]);
        } else {
            out.push(digit);
        }
    }
}

/// What people type to get past a form; the same for everybody, so it identifies nobody.
pub(crate) const PLACEHOLDER_PHONES: [u64; 3] = [13_800_138_000, 10_000_000_000, 11_111_111_111];
pub(crate) const PLACEHOLDER_EMAILS: [&str; 3] = ["none@none.com", "test@test.com", "noreply@example.com"];

#[derive(Debug, Clone)]
pub(crate) struct Email {
    /// The canonical address: lower case, no tag, no dots where the provider ignores them.
    pub(crate) canonical: String,
    local_split: usize,
    ignores_dots: bool,
}

impl Email {
    fn draw(dice: &mut Dice, world: &World, index: u64, name: Name) -> Self {
        if dice.chance(0.45) {
            let number = 100_000_000 + world.ids.scramble(Kind::Qq, index, world.bits.max(31));
            return Self { canonical: format!("{number}@qq.com"), local_split: 3, ignores_dots: false };
        }
        let domain = *dice.pick(&[
            "163.com",
            "163.com",
            "126.com",
            "gmail.com",
            "gmail.com",
            "outlook.com",
            "sina.com",
            "foxmail.com",
        ]);
        let mut first = Vec::new();
        push_given(&mut first, &name.given[..if name.single { 1 } else { 2 }]);
        first.make_ascii_lowercase();
        let first = String::from_utf8_lossy(&first).into_owned();
        let surname = SURNAMES[usize::from(name.surname)].1;
        let number = world.ids.scramble(Kind::Email, index, world.bits);
        Self {
            local_split: first.len(),
            canonical: format!("{first}{surname}{number}@{domain}"),
            ignores_dots: domain == "gmail.com",
        }
    }

    /// The address as it is typed on one occasion.
    pub(crate) fn push(&self, out: &mut Vec<u8>, dice: &mut Dice) {
        let start = out.len();
        let (local, domain) = self.canonical.split_once('@').unwrap_or((&self.canonical, ""));
        if self.ignores_dots && dice.chance(0.35) {
            let (first, rest) = local.split_at(self.local_split);
            out.extend_from_slice(first.as_bytes());
            out.push(b'.');
            out.extend_from_slice(rest.as_bytes());
        } else {
            out.extend_from_slice(local.as_bytes());
        }
        if self.ignores_dots && dice.chance(0.12) {
            out.extend_from_slice(dice.pick(&["+shop", "+order", "+cn"]).as_bytes());
        }
        out.push(b'@');
        // A slip of the finger gives another address, which truth does not list.
        if dice.chance(0.004) {
            out.extend_from_slice(
                domain.replacen("ma", "am", 1).replacen("63", "36", 1).replacen("qq", "q", 1).as_bytes(),
            );
        } else {
            out.extend_from_slice(domain.as_bytes());
        }
        match dice.weighted(&[86.0, 7.0, 4.0, 3.0]) {
            1 => out[start..=start].make_ascii_uppercase(),
            2 => out[start..].make_ascii_uppercase(),
            3 => out.push(b' '),
            _ => {}
        }
    }
}

/// Surnames, the commonest first, with their reading.
const SURNAMES: [(&str, &str); 40] = [
    ("王", "wang"),
    ("李", "li"),
    ("张", "zhang"),
    ("刘", "liu"),
    ("陈", "chen"),
    ("杨", "yang"),
    ("黄", "huang"),
    ("赵", "zhao"),
    ("吴", "wu"),
    ("周", "zhou"),
    ("徐", "xu"),
    ("孙", "sun"),
    ("马", "ma"),
    ("朱", "zhu"),
    ("胡", "hu"),
    ("郭", "guo"),
    ("何", "he"),
    ("林", "lin"),
    ("高", "gao"),
    ("罗", "luo"),
    ("郑", "zheng"),
    ("梁", "liang"),
    ("谢", "xie"),
    ("宋", "song"),
    ("唐", "tang"),
    ("许", "xu"),
    ("韩", "han"),
    ("冯", "feng"),
    ("邓", "deng"),
    ("曹", "cao"),
    ("彭", "peng"),
    ("曾", "zeng"),
    ("萧", "xiao"),
    ("田", "tian"),
    ("董", "dong"),
    ("潘", "pan"),
    ("袁", "yuan"),
    ("蔡", "cai"),
    ("欧阳", "ouyang"),
    ("司马", "sima"),
];

/// Given names that people choose for foreigners: of men, then of women.
const ENGLISH_NAMES: [[&str; 12]; 2] = [
    ["David", "Kevin", "Jason", "Eric", "Leo", "Tony", "Jack", "Andy", "Frank", "Michael", "Sam", "Alex"],
    ["Lily", "Amy", "Grace", "Cindy", "Vivian", "Tina", "Joyce", "Coco", "Emily", "Helen", "Sunny", "Alice"],
];

/// The traditional form of a character, which for most is the same.
fn traditional(simplified: char) -> char {
    TRADITIONAL.iter().find(|(from, _)| *from == simplified).map_or(simplified, |(_, to)| *to)
}

/// Characters of the names below whose traditional form is another.
const TRADITIONAL: [(char, char); 36] = [
    ('张', '張'),
    ('刘', '劉'),
    ('陈', '陳'),
    ('杨', '楊'),
    ('黄', '黃'),
    ('赵', '趙'),
    ('吴', '吳'),
    ('孙', '孫'),
    ('马', '馬'),
    ('罗', '羅'),
    ('郑', '鄭'),
    ('谢', '謝'),
    ('许', '許'),
    ('韩', '韓'),
    ('冯', '馮'),
    ('邓', '鄧'),
    ('萧', '蕭'),
    ('欧', '歐'),
    ('阳', '陽'),
    ('华', '華'),
    ('伟', '偉'),
    ('静', '靜'),
    ('丽', '麗'),
    ('强', '強'),
    ('蔷', '薔'),
    ('艳', '艷'),
    ('杰', '傑'),
    ('洁', '潔'),
    ('涛', '濤'),
    ('铭', '銘'),
    ('刚', '剛'),
    ('钢', '鋼'),
    ('贵', '貴'),
    ('莹', '瑩'),
    ('丝', '絲'),
    ('怿', '懌'),
];

/// Characters of given names in pairs that sound alike, with their reading.
const GIVEN: [(&str, &str); 64] = [
    ("华", "hua"),
    ("花", "hua"),
    ("伟", "wei"),
    ("薇", "wei"),
    ("静", "jing"),
    ("晶", "jing"),
    ("丽", "li"),
    ("莉", "li"),
    ("敏", "min"),
    ("民", "min"),
    ("强", "qiang"),
    ("蔷", "qiang"),
    ("磊", "lei"),
    ("蕾", "lei"),
    ("洋", "yang"),
    ("阳", "yang"),
    ("艳", "yan"),
    ("燕", "yan"),
    ("勇", "yong"),
    ("永", "yong"),
    ("杰", "jie"),
    ("洁", "jie"),
    ("娟", "juan"),
    ("涓", "juan"),
    ("涛", "tao"),
    ("桃", "tao"),
    ("明", "ming"),
    ("铭", "ming"),
    ("超", "chao"),
    ("朝", "chao"),
    ("霞", "xia"),
    ("夏", "xia"),
    ("平", "ping"),
    ("萍", "ping"),
    ("刚", "gang"),
    ("钢", "gang"),
    ("桂", "gui"),
    ("贵", "gui"),
    ("文", "wen"),
    ("雯", "wen"),
    ("英", "ying"),
    ("莹", "ying"),
    ("玉", "yu"),
    ("宇", "yu"),
    ("婷", "ting"),
    ("庭", "ting"),
    ("欣", "xin"),
    ("鑫", "xin"),
    ("佳", "jia"),
    ("嘉", "jia"),
    ("倩", "qian"),
    ("茜", "qian"),
    ("晨", "chen"),
    ("辰", "chen"),
    ("浩", "hao"),
    ("昊", "hao"),
    ("梓", "zi"),
    ("子", "zi"),
    ("涵", "han"),
    ("晗", "han"),
    ("思", "si"),
    ("丝", "si"),
    ("怡", "yi"),
    ("怿", "yi"),
];
