//! The CRM: what it holds about a member at any time, and its export in full.

use crate::calendar::{self, DAY_MS, SECOND_MS};
use crate::dice::{Dice, Stream};
use crate::encode::Csv;
use crate::hard_cases::{Group, HardCase};
use crate::homes::{AddressStyle, Home};
use crate::ids::{Kind, mix};
use crate::life::Life;
use crate::loyalty::TIERS;
use crate::people::{NameStyle, PLACEHOLDER_EMAILS, PLACEHOLDER_PHONES, Person, PhoneStyle, System, push_phone};
use crate::rows::Chunk;
use crate::world::World;

/// One row of the CRM and how it changed.
#[derive(Debug)]
pub(crate) struct Contact {
    /// Position in the chunk's people.
    pub(crate) person: u32,
    pub(crate) account: u8,
    pub(crate) registered_ms: i64,
    versions: Vec<ContactVersion>,
}

#[derive(Debug, Clone, Copy)]
struct ContactVersion {
    updated_ms: i64,
    phone: u64,
    home: Home,
    tier: u8,
    consent: Consent,
}

/// Days after which a member tells the shop of a new home.
const DAYS_UNTIL_A_MOVE_IS_TOLD: u32 = 6;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Consent {
    pub(crate) sms: bool,
    pub(crate) email: bool,
    pub(crate) push: bool,
}

impl Life<'_> {
    pub(crate) fn open_account(&mut self) {
        if !self.person.member {
            return;
        }
        let consent = Consent {
            sms: self.dice.chance(0.75),
            email: self.person.email.is_some() && self.dice.chance(0.7),
            push: self.dice.chance(0.62),
        };
        self.open_ledger();
        let phone = self.phone_of_registration().unwrap_or(self.person.phone);
        self.add_contact(0, self.person.registered_ms, phone, self.person.home, consent);
    }

    /// The shop's number, which clerks enter for some who register in their store. People whose own number is a case by itself
    /// are spared.
    fn phone_of_registration(&mut self) -> Option<u64> {
        let person = &self.person;
        let ordinary = person.family_phone.is_none()
            && person.pair.is_none()
            && person.recycled_from.is_none()
            && person.moves_away_on.is_none();
        let store = self.home_store(0);
        let phone = self.world.stores[usize::from(store)].clerks_phone?;
        if person.registered_channel != "store" || !ordinary || !mix(person.index).is_multiple_of(4) {
            return None;
        }
        self.note_case(HardCase::StorePhone, Group::Store(u64::from(store)));
        Some(phone)
    }

    /// Enters what members tell the shop about themselves: a new number, a new home, or, by mistake, a second account.
    pub(crate) fn keep_contact_up_to_date(&mut self, day: u32) {
        let joined = self.person.joins_on.is_none_or(|joined| day > joined);
        if !self.person.member || !joined {
            return;
        }
        let at_ms = self.world.window.day_start(day) + 5 * SECOND_MS * i64::from(day % 7 + 1);
        if self.person.new_phone.is_some_and(|(from, _)| from + 12 == day) && self.dice.chance(0.7) {
            let phone = self.person.phone_on(day);
            if let Some(contact) = self.contacts.first_mut()
                && let Some(last) = contact.versions.last().copied()
            {
                contact.versions.push(ContactVersion { updated_ms: at_ms, phone, ..last });
            }
        }
        let is_here = self.departure.is_none_or(|departure| day < departure.gone_on);
        if let Some((from, home)) = self.person.new_home
            && from + DAYS_UNTIL_A_MOVE_IS_TOLD == day
            && is_here
        {
            self.change_contact(at_ms, |version| version.home = home);
            self.note_own_case(HardCase::Moved);
        }
        if self.person.second_account_on == Some(day)
            && is_here
            && let Some(consent) = self.consent()
        {
            let (phone, home) = (self.person.phone_on(day), *self.person.home_on(day));
            self.add_contact(1, at_ms, phone, home, consent);
        }
        if self.contacts.len() < 2 && self.person.second_account_on.is_some_and(|from| day >= from) {
            self.person.second_account_on = None;
        }
    }

    pub(crate) fn consent(&self) -> Option<Consent> {
        self.contacts.first().and_then(|contact| contact.versions.last()).map(|version| version.consent)
    }

    /// The number the CRM holds, which may be an old one.
    pub(crate) fn phone_on_file(&self) -> Option<u64> {
        let version = self.contacts.first().and_then(|contact| contact.versions.last())?;
        Some(version.phone)
    }

    pub(crate) fn update_contact(&mut self, at_ms: i64) {
        let tier = self.points.tier;
        self.change_contact(at_ms, |version| version.tier = tier);
    }

    pub(crate) fn withdraw_consent(&mut self, at_ms: i64, change: impl Fn(&mut Consent)) {
        self.change_contact(at_ms, |version| change(&mut version.consent));
    }

    fn change_contact(&mut self, at_ms: i64, change: impl FnOnce(&mut ContactVersion)) {
        if let Some(versions) = self.contacts.first_mut().map(|contact| &mut contact.versions)
            && let Some(mut version) = versions.last().copied()
        {
            // Changes may be entered out of order by minutes; the row's stamp never goes back.
            version.updated_ms = at_ms.max(version.updated_ms);
            change(&mut version);
            versions.push(version);
        }
    }

    fn add_contact(&mut self, account: u8, registered_ms: i64, phone: u64, home: Home, consent: Consent) {
        // Rows from before the window were touched last by the nightly job of its first day.
        let first_night = self.world.window.start_ms + self.dice.range(0, 18 * 3_600) * SECOND_MS;
        let phone = match account {
            0 if self.dice.chance(0.004) => *self.dice.pick(&PLACEHOLDER_PHONES),
            0 => match self.person.family_phone {
                Some(family) if self.dice.chance(0.4) => family,
                _ => phone,
            },
            _ => phone,
        };
        let updated_ms = if registered_ms < self.world.window.start_ms { first_night } else { registered_ms };
        let version = ContactVersion { updated_ms, phone, home, tier: self.points.tier, consent };
        self.contacts.push(Contact { person: self.position, account, registered_ms, versions: vec![version] });
    }
}

/// A contact as it stood at a moment, with the version that held then; none before it existed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing<'a> {
    pub(crate) crm_number: u64,
    contact: &'a Contact,
    version: &'a ContactVersion,
    person: &'a Person,
}

pub(crate) fn standing<'a>(world: &World, chunk: &'a Chunk, contact: &'a Contact, at_ms: i64) -> Option<Standing<'a>> {
    let version = contact.versions.iter().rev().find(|version| version.updated_ms < at_ms)?;
    let person = &chunk.people[contact.person as usize];
    let crm_number = crm_number(world, person, contact.account);
    (contact.registered_ms < at_ms).then_some(Standing { crm_number, contact, version, person })
}

pub(crate) fn crm_number(world: &World, person: &Person, account: u8) -> u64 {
    world.ids.scramble(Kind::Crm, person.index * 2 + u64::from(account), 32)
}

pub(crate) fn push_crm_id(out: &mut Vec<u8>, number: u64) {
    out.push(b'C');
    calendar::push_padded(out, i64::try_from(number).unwrap_or(0), 10);
}

impl Standing<'_> {
    /// The row of the export. It is written alike in every month: its draws belong to the contact, not to the file.
    pub(crate) fn write(&self, out: &mut Vec<u8>, world: &World) {
        let Self { contact, version, person, .. } = self;
        let ids = world.ids;
        let mut dice = Dice::new(world.seed, Stream::Contact, person.index * 2 + u64::from(contact.account));
        // A second account shares either the phone or the unionid with the first, and is often written differently.
        let second = contact.account > 0;
        let by_phone = !person.wechat || mix(person.index) & 1 == 0;
        let name_style = if second { NameStyle::draw(&mut dice) } else { person.crm_name_style };
        let name_style = person.name_style(System::Crm, name_style);
        let phone_style = if second { PhoneStyle::draw(&mut dice) } else { person.crm_phone_style };
        let shows_email = dice.chance(0.97);
        let placeholder_email = dice.chance(0.004);
        let shows_birthday = dice.chance(0.8);
        let shows_union = person.wechat && dice.chance(0.85);
        let placeholder = *dice.pick(&PLACEHOLDER_EMAILS);
        let habits = mix(self.crm_number);
        let shows_address = person.new_home.is_some() || !habits.is_multiple_of(12);
        let address_style = AddressStyle::of(habits >> 8);
        let home = &version.home;
        Csv::line(out)
            .field(|out| push_crm_id(out, self.crm_number))
            .field(|out| person.push_member(out, ids, contact.account))
            .field(|out| person.name.push(out, name_style, person.female))
            .text(if person.female { "F" } else { "M" })
            .field(|out| {
                if shows_birthday {
                    calendar::push_date(out, person.birth_day);
                }
            })
            .field(|out| {
                if !second || by_phone {
                    push_phone(out, version.phone, phone_style);
                }
            })
            .field(|out| match &person.email {
                _ if placeholder_email => out.extend_from_slice(placeholder.as_bytes()),
                Some(email) if shows_email && !second => email.push(out, &mut dice),
                _ => {}
            })
            .field(|out| {
                if (shows_union && !second) || (second && !by_phone) {
                    person.push_union(out, ids);
                }
            })
            .text(home.place().province)
            .text(home.place().name)
            .text(if shows_address { home.district() } else { "" })
            .field(|out| {
                if shows_address {
                    home.push_line(out, address_style);
                }
            })
            .field(|out| {
                if let Some(landline) = person.landline.filter(|_| !(habits >> 16).is_multiple_of(4)) {
                    landline.push(out, habits >> 24);
                }
            })
            .local(contact.registered_ms)
            .text(if second { "mini_program" } else { person.registered_channel })
            .text(TIERS[usize::from(version.tier)])
            .text(if version.consent.sms { "true" } else { "false" })
            .text(if version.consent.email { "true" } else { "false" })
            .text(if version.consent.push { "true" } else { "false" })
            .local(version.updated_ms);
    }
}

/// The last moment that a month's export knows of, of a system whose clocks are so far from UTC.
pub(crate) fn export_moment(world: &World, month: i64, offset_ms: i64) -> i64 {
    let month_end = calendar::month_start_ms(month + 1) - offset_ms;
    // Nothing changes in the last second, so that the export's own stamp lies inside its month.
    month_end.min(world.window.end_ms).max(world.window.start_ms + DAY_MS / 24)
}
