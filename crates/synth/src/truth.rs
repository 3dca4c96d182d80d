//! The truth about the customers, kept apart from what the shop's systems know: who is who, and who left when.

use crate::behaviour::{Channel, DeviceForm, DeviceNote, push_device, push_kiosk};
use crate::calendar::{self, push_date};
use crate::crm::{crm_number, push_crm_id};
use crate::encode::{Csv, push_number};
use crate::hard_cases::{Group, HardCase};
use crate::ids::Kind;
use crate::life::Life;
use crate::people::{PairKind, joint_card, push_token, push_uuid};
use crate::rows::{Chunk, Source};

pub(crate) const CUSTOMERS_HEADER: &str = "person_id,member_no,second_member_no,joined_at,purchases_a_year,basket_median,price_sensitivity,\
     contentment,satisfaction_at_end,curiosity,responsiveness,outspokenness,night_owl,preferred_channel,household_head,\
     moved_away,purchases,decline_began_on,churned_on,is_churned_by_end\n";
pub(crate) const IDENTIFIERS_HEADER: &str = "person_id,identifier_type,value,note\n";
pub(crate) const HARD_CASES_HEADER: &str = "person_id,hard_case,group_id\n";
pub(crate) const RECORDS_HEADER: &str = "source,record_key,person_id\n";
pub(crate) const PRODUCTS_HEADER: &str = "product_id,sku_code,listing\n";
pub(crate) const DIRTY_HEADER: &str = "file,line,defect\n";

pub(crate) fn push_person_id(out: &mut Vec<u8>, index: u64) {
    out.push(b'H');
    calendar::push_padded(out, i64::try_from(index).unwrap_or(0), 9);
}

impl Life<'_> {
    /// Writes down the truth about this customer when their life in the window is over.
    pub(crate) fn finish(mut self, chunk: &mut Chunk) {
        if self.gone_on().is_some() {
            chunk.churned += 1;
        }
        self.write_customer(chunk);
        self.write_identifiers(chunk);
        self.note_cases_of_birth_and_home();
        self.write_hard_cases(chunk);
        for contact in std::mem::take(&mut self.contacts) {
            let mut key = Vec::with_capacity(11);
            push_crm_id(&mut key, crm_number(self.world, &self.person, contact.account));
            chunk.truth(Source::CrmContacts, &key, Some(self.person.index));
            chunk.contacts.push(contact);
        }
    }

    /// Notes the cases that hold whatever happened in the window.
    fn note_cases_of_birth_and_home(&mut self) {
        let person = &self.person;
        let household = person.family_phone.map(|_| person.head.unwrap_or(person.index));
        let (pair, recycled_from, gives_up) = (person.pair, person.recycled_from, person.moves_away_on.is_some());
        let new_phone = person.new_phone.is_some();
        if let Some(head) = household {
            self.note_case(HardCase::Household, Group::Person(head));
        }
        if let Some(pair) = pair {
            let case = match pair.kind {
                PairKind::Twins => HardCase::Twins,
                PairKind::Couple => HardCase::Couple,
            };
            self.note_case(case, Group::Person(pair.first));
        }
        if let Some(giver) = recycled_from {
            self.note_case(HardCase::RecycledPhone, Group::Person(giver));
        }
        if gives_up {
            self.note_own_case(HardCase::RecycledPhone);
        }
        if new_phone {
            self.note_own_case(HardCase::NewPhone);
        }
        if self.contacts.len() > 1 {
            self.note_own_case(HardCase::SecondAccount);
        }
    }

    fn write_customer(&self, chunk: &mut Chunk) {
        let (world, person, traits) = (self.world, &self.person, &self.traits);
        let start_day = world.window.start_ms.div_euclid(calendar::DAY_MS);
        let declined = self.departure.filter(|departure| departure.begins_on < departure.gone_on);
        let favourite = (0..4usize).max_by(|a, b| traits.channels[*a].total_cmp(&traits.channels[*b])).unwrap_or(0);
        let thousandths = |value: f64| format!("{value:.3}");
        let out = &mut chunk.truth_customers;
        Csv::line(out)
            .field(|out| push_person_id(out, person.index))
            .field(|out| {
                if person.member {
                    person.push_member(out, world.ids, 0);
                }
            })
            .field(|out| {
                if self.contacts.len() > 1 {
                    person.push_member(out, world.ids, 1);
                }
            })
            .utc(person.registered_ms)
            .text(&thousandths(traits.purchases_a_year))
            .cents(crate::number::whole(traits.basket_cents))
            .text(&thousandths(traits.price_sensitivity))
            .text(&thousandths(traits.contentment))
            .text(&thousandths(self.satisfaction))
            .text(&thousandths(traits.curiosity))
            .text(&thousandths(traits.responsiveness))
            .text(&thousandths(traits.outspokenness))
            .text(if traits.night_owl { "true" } else { "false" })
            .text([Channel::Web.name(), Channel::App.name(), Channel::MiniProgram.name(), "store"][favourite])
            .field(|out| {
                if let Some(head) = person.head {
                    push_person_id(out, head);
                }
            })
            .text(if person.moves_away_on.is_some() { "true" } else { "false" })
            .number(i64::from(self.purchases))
            .field(|out| {
                if let Some(departure) = declined {
                    push_date(out, start_day + i64::from(departure.begins_on));
                }
            })
            .field(|out| {
                if let Some(day) = self.gone_on() {
                    push_date(out, start_day + i64::from(day));
                }
            })
            .text(if self.gone_on().is_some() { "true" } else { "false" });
        out.push(b'\n');
    }

    fn write_identifiers(&self, chunk: &mut Chunk) {
        let (person, ids) = (&self.person, self.world.ids);
        let out = &mut chunk.truth_identifiers;
        let mut line = |kind: &str, note: &str, value: &dyn Fn(&mut Vec<u8>)| {
            Csv::line(out).field(|out| push_person_id(out, person.index)).text(kind).field(value).text(note);
            out.push(b'\n');
        };
        let phone = |number: u64| {
            move |out: &mut Vec<u8>| {
                out.extend_from_slice(b"+86");
                calendar::push_padded(out, i64::try_from(number).unwrap_or(0), 11);
            }
        };
        for contact in &self.contacts {
            line("member_id", "", &|out| person.push_member(out, ids, contact.account));
        }
        let heads_family = person.family_phone == Some(person.phone);
        let twins = person.pair.filter(|pair| pair.kind == PairKind::Twins);
        let note = match (person.recycled_from, person.moves_away_on, twins) {
            (Some(_), _, _) => "recycled",
            (_, Some(_), _) => "given_up",
            (_, _, Some(_)) => "twins",
            _ if heads_family => "family",
            _ => "",
        };
        line("phone", note, &phone(person.phone));
        if let Some((_, number)) = person.new_phone {
            line("phone", "", &phone(number));
        }
        if let Some(number) = person.family_phone.filter(|number| *number != person.phone) {
            line("phone", "family", &phone(number));
        }
        // Only the CRM has the telephone at home.
        if let Some(landline) = person.landline.filter(|_| !self.contacts.is_empty()) {
            line("phone", "landline", &|out| landline.push_canonical(out));
        }
        if let Some(email) = &person.email {
            line("email", "", &|out| out.extend_from_slice(email.canonical.as_bytes()));
        }
        if person.wechat {
            line("unionid", "", &|out| person.push_union(out, ids));
            line("openid", "", &|out| person.push_mini_openid(out, ids));
            line("openid", "", &|out| person.push_account_openid(out, ids));
        }
        for method in 0..3 {
            let token = ids.wide(Kind::Token, person.index, method);
            line("payment_token", if heads_family { "family" } else { "" }, &|out| push_token(out, token));
            if let Some(head) = person.head.filter(|_| self.paid_with_heads_card & (1 << method) != 0) {
                let token = ids.wide(Kind::Token, head, method);
                line("payment_token", "family", &|out| push_token(out, token));
            }
        }
        if let Some(pair) = person.pair.filter(|pair| pair.kind == PairKind::Couple) {
            line("payment_token", "couple", &|out| push_token(out, joint_card(ids, pair)));
        }
        for (id, form, note) in &self.devices {
            let note = if *note == DeviceNote::Family { "family" } else { "" };
            line("device", note, &|out| match form {
                DeviceForm::Installation => push_uuid(out, *id),
                DeviceForm::Ios | DeviceForm::Android => push_device(out, *id, *form == DeviceForm::Ios),
            });
        }
        for (case, group) in &self.hard_cases {
            match (case, group) {
                (HardCase::Kiosk, Group::Store(store)) => line("device", "kiosk", &|out| push_kiosk(out, *store)),
                (HardCase::StorePhone, Group::Store(store)) => {
                    let clerks = self.world.stores.get(crate::number::index(*store));
                    if let Some(number) = clerks.and_then(|store| store.clerks_phone) {
                        line("phone", "store", &phone(number));
                    }
                }
                _ => {}
            }
        }
    }
}

/// One line of `truth/dirty.csv`.
pub(crate) fn push_dirty(out: &mut Vec<u8>, file: &str, line: u64, defect: &str) {
    Csv::line(out).text(file).field(|out| push_number(out, i64::try_from(line).unwrap_or(0))).text(defect);
    out.push(b'\n');
}
