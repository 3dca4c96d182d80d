//! What makes it hard to tell who is who. Each case is listed in `truth/hard_cases.csv` with those it concerns, so that
//! a measure can be taken of each.

use crate::behaviour::push_store;
use crate::life::Life;
use crate::rows::Chunk;
use crate::truth::push_person_id;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HardCase {
    /// Two to four people of one surname at one address, with one telephone at home and the head's mobile in common.
    Household,
    /// Two people of one surname, birth date, address and mobile.
    Twins,
    /// Two people who pay with one card.
    Couple,
    /// Another address, and perhaps another city, from some day on. The CRM had the old one and learnt the new one.
    Moved,
    /// Another mobile from some day on, whether or not the CRM learnt of it.
    NewPhone,
    /// A number that belonged to somebody else before, or belongs to somebody else now.
    RecycledPhone,
    /// Two member accounts of one person.
    SecondAccount,
    /// An order without the account that the person has, or of somebody who has none.
    GuestCheckout,
    /// Hanzi in the CRM, pinyin in orders, an English given name on parcels.
    NamesAcrossScripts,
    /// Traditional hanzi in the CRM and simplified in orders, or the other way round.
    TraditionalHanzi,
    /// A name with a character that sounds alike.
    NameTypo,
    /// The shop's own number, typed by a clerk in place of the customer's.
    StorePhone,
    /// A visit on a device that stands in a store.
    Kiosk,
    /// No person: some devices that throw their cookies away after every visit.
    Bot,
}

impl HardCase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Household => "household",
            Self::Twins => "twins",
            Self::Couple => "couple",
            Self::Moved => "moved",
            Self::NewPhone => "new_phone",
            Self::RecycledPhone => "recycled_phone",
            Self::SecondAccount => "second_account",
            Self::GuestCheckout => "guest_checkout",
            Self::NamesAcrossScripts => "names_across_scripts",
            Self::TraditionalHanzi => "traditional_hanzi",
            Self::NameTypo => "name_typo",
            Self::StorePhone => "store_phone",
            Self::Kiosk => "kiosk",
            Self::Bot => "bot",
        }
    }
}

/// Whom a case has in common: the first of those it concerns, or a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Person(u64),
    Store(u64),
}

impl Group {
    pub(crate) fn push(self, out: &mut Vec<u8>) {
        match self {
            Self::Person(index) => push_person_id(out, index),
            Self::Store(store) => push_store(out, store),
        }
    }
}

impl Life<'_> {
    /// Notes that a case has come about; once is enough.
    pub(crate) fn note_case(&mut self, case: HardCase, group: Group) {
        if !self.hard_cases.contains(&(case, group)) {
            self.hard_cases.push((case, group));
        }
    }

    /// Notes a case that concerns nobody else.
    pub(crate) fn note_own_case(&mut self, case: HardCase) {
        self.note_case(case, Group::Person(self.person.index));
    }

    /// Lines of `truth/hard_cases.csv`.
    pub(crate) fn write_hard_cases(&self, chunk: &mut Chunk) {
        for (case, group) in &self.hard_cases {
            let out = &mut chunk.truth_hard_cases;
            push_person_id(out, self.person.index);
            out.push(b',');
            out.extend_from_slice(case.name().as_bytes());
            out.push(b',');
            group.push(out);
            out.push(b'\n');
        }
    }
}
