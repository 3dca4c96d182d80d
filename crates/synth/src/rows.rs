//! Rows on their way from the lives that cause them to the files that hold them.

use crate::behaviour::{Event, Session};
use crate::calendar::{self, LOCAL_OFFSET_MS, Window};
use crate::crm::Contact;
use crate::people::Person;

/// The files' sources, one folder each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    CrmContacts,
    Orders,
    OrderLines,
    Receipts,
    Tickets,
    Events,
    CampaignTouches,
    Coupons,
    LoyaltyLedger,
    Shipments,
    Payments,
    Refunds,
    Reviews,
    SocialPosts,
    Products,
    TicketMessages,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Csv,
    Ndjson,
    Parquet,
}

impl Source {
    pub(crate) const ALL: [Self; 16] = [
        Self::CrmContacts,
        Self::Orders,
        Self::OrderLines,
        Self::Receipts,
        Self::Tickets,
        Self::Events,
        Self::CampaignTouches,
        Self::Coupons,
        Self::LoyaltyLedger,
        Self::Shipments,
        Self::Payments,
        Self::Refunds,
        Self::Reviews,
        Self::SocialPosts,
        Self::Products,
        Self::TicketMessages,
    ];

    /// The folder's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CrmContacts => "crm_contacts",
            Self::Orders => "orders",
            Self::OrderLines => "order_lines",
            Self::Receipts => "receipts",
            Self::Tickets => "tickets",
            Self::Events => "events",
            Self::CampaignTouches => "campaign_touches",
            Self::Coupons => "coupons",
            Self::LoyaltyLedger => "loyalty_ledger",
            Self::Shipments => "shipments",
            Self::Payments => "payments",
            Self::Refunds => "refunds",
            Self::Reviews => "reviews",
            Self::SocialPosts => "social_posts",
            Self::Products => "products",
            Self::TicketMessages => "ticket_messages",
        }
    }

    pub(crate) fn format(self) -> Format {
        match self {
            Self::CrmContacts
            | Self::Receipts
            | Self::CampaignTouches
            | Self::Coupons
            | Self::LoyaltyLedger
            | Self::Products => Format::Csv,
            Self::Payments | Self::Refunds => Format::Parquet,
            _ => Format::Ndjson,
        }
    }

    pub(crate) fn extension(self) -> &'static str {
        match self.format() {
            Format::Csv => "csv",
            Format::Ndjson => "ndjson",
            Format::Parquet => "parquet",
        }
    }

    /// A CSV file's first line.
    pub(crate) fn header(self) -> &'static str {
        match self {
            Self::CrmContacts => {
                "crm_id,member_no,full_name,gender,birth_date,mobile,email,wechat_unionid,province,city,district,\
                 address_line,landline,registered_at,registered_channel,member_tier,consent_sms,consent_email,consent_push,updated_at"
            }
            Self::Receipts => {
                "receipt_no,line_no,store_code,till_no,sold_at,member_card,mobile,sku_code,category,quantity,unit_price,\
                 line_amount,tender"
            }
            Self::CampaignTouches => {
                "touch_id,campaign_id,campaign_name,channel,action,occurred_at,recipient,member_no"
            }
            Self::Coupons => {
                "event_id,coupon_code,campaign_id,action,occurred_at,member_no,face_value,min_spend,valid_until,order_id"
            }
            Self::Products => "sku_code,product_id,product_name,category,brand,list_price,exported_at",
            Self::LoyaltyLedger => "entry_id,member_no,occurred_at,entry_type,points,tier,order_id",
            _ => "",
        }
    }

    /// How far from UTC the clocks of the system run that cuts its files by month.
    pub(crate) fn offset_ms(self) -> i64 {
        match self {
            Self::CrmContacts | Self::Receipts => LOCAL_OFFSET_MS,
            _ => 0,
        }
    }
}

/// The rows of one source from one chunk of customers, by month.
#[derive(Debug)]
pub(crate) struct Rows {
    first_month: i64,
    offset_ms: i64,
    /// The rows' text, one after the other, without line ends.
    pub(crate) text: Vec<u8>,
    pub(crate) months: Vec<Vec<RowSpan>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct RowSpan {
    pub(crate) time_ms: i64,
    pub(crate) start: u32,
    pub(crate) length: u32,
}

impl Rows {
    fn new(source: Source, window: Window) -> Self {
        let months = window.months(source.offset_ms());
        Self {
            first_month: *months.start(),
            offset_ms: source.offset_ms(),
            text: Vec::new(),
            months: months.map(|_| Vec::new()).collect(),
        }
    }

    /// Adds a row. One outside the window is dropped, so that nothing is told of what has not happened yet.
    fn push(&mut self, time_ms: i64, write: impl FnOnce(&mut Vec<u8>)) {
        let month = calendar::month_number(time_ms + self.offset_ms) - self.first_month;
        let Some(spans) = usize::try_from(month).ok().and_then(|month| self.months.get_mut(month)) else {
            return;
        };
        let start = self.text.len();
        write(&mut self.text);
        spans.push(RowSpan {
            time_ms,
            start: crate::number::small(start),
            length: crate::number::small(self.text.len() - start),
        });
    }
}

/// A row of `payments`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payment {
    pub(crate) id: u64,
    pub(crate) order: OrderId,
    pub(crate) paid_at: i64,
    pub(crate) method: &'static str,
    pub(crate) captured: bool,
    pub(crate) amount_cents: i64,
    pub(crate) token: u64,
}

/// A row of `refunds`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refund {
    pub(crate) id: u64,
    pub(crate) payment: u64,
    pub(crate) order: OrderId,
    pub(crate) requested_at: i64,
    pub(crate) promised_at: i64,
    pub(crate) refunded_at: Option<i64>,
    pub(crate) amount_cents: i64,
    pub(crate) reason: &'static str,
}

/// An order's number: its local day and a scrambled counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OrderId {
    pub(crate) local_day: i64,
    pub(crate) number: u64,
}

impl OrderId {
    pub(crate) fn push(self, out: &mut Vec<u8>) {
        let (year, month, day) = calendar::civil(self.local_day);
        out.extend_from_slice(b"SO");
        calendar::push_padded(out, year * 10_000 + month * 100 + day, 8);
        push_scrambled(out, self.number);
    }

    pub(crate) fn text(self) -> String {
        let mut out = Vec::with_capacity(25);
        self.push(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// A 48-bit number as fifteen digits.
pub(crate) fn push_scrambled(out: &mut Vec<u8>, number: u64) {
    calendar::push_padded(out, i64::try_from(number).unwrap_or(i64::MAX), 15);
}

/// All that one chunk of customers left behind.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) window: Window,
    pub(crate) people: Vec<Person>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) events: Vec<Vec<Event>>,
    pub(crate) contacts: Vec<Contact>,
    pub(crate) payments: Vec<Payment>,
    pub(crate) refunds: Vec<Refund>,
    rows: Vec<Rows>,
    /// Lines of `truth/records.csv`, `truth/customers.csv`, `truth/identifiers.csv` and `truth/hard_cases.csv`.
    pub(crate) truth_records: Vec<u8>,
    pub(crate) truth_customers: Vec<u8>,
    pub(crate) truth_identifiers: Vec<u8>,
    pub(crate) truth_hard_cases: Vec<u8>,
    pub(crate) churned: u64,
}

impl Chunk {
    pub(crate) fn new(window: Window) -> Self {
        Self {
            window,
            people: Vec::new(),
            sessions: Vec::new(),
            events: window.months(0).map(|_| Vec::new()).collect(),
            contacts: Vec::new(),
            payments: Vec::new(),
            refunds: Vec::new(),
            rows: Source::ALL.iter().map(|source| Rows::new(*source, window)).collect(),
            truth_records: Vec::new(),
            truth_customers: Vec::new(),
            truth_identifiers: Vec::new(),
            truth_hard_cases: Vec::new(),
            churned: 0,
        }
    }

    pub(crate) fn rows(&self, source: Source) -> &Rows {
        &self.rows[source as usize]
    }

    /// Adds a row of text, unless its time is outside the window.
    pub(crate) fn push(&mut self, source: Source, time_ms: i64, write: impl FnOnce(&mut Vec<u8>)) {
        if (self.window.start_ms..self.window.end_ms).contains(&time_ms) {
            self.rows[source as usize].push(time_ms, write);
        }
    }

    pub(crate) fn push_event(&mut self, event: Event) {
        if (self.window.start_ms..self.window.end_ms).contains(&event.time_ms) {
            let month = calendar::month_number(event.time_ms) - *self.window.months(0).start();
            if let Some(events) = usize::try_from(month).ok().and_then(|month| self.events.get_mut(month)) {
                events.push(event);
            }
        }
    }

    /// Notes whose record this is; nobody's when no person is given.
    pub(crate) fn truth(&mut self, source: Source, key: &[u8], person: Option<u64>) {
        self.truth_records.extend_from_slice(source.name().as_bytes());
        self.truth_records.push(b',');
        self.truth_records.extend_from_slice(key);
        self.truth_records.push(b',');
        if let Some(person) = person {
            crate::truth::push_person_id(&mut self.truth_records, person);
        }
        self.truth_records.push(b'\n');
    }

    /// Gives back what the buffers hold too much: many chunks wait in memory for their shard.
    pub(crate) fn finish(mut self) -> Self {
        self.sessions.shrink_to_fit();
        self.events.iter_mut().for_each(Vec::shrink_to_fit);
        self.payments.shrink_to_fit();
        self.refunds.shrink_to_fit();
        for rows in &mut self.rows {
            rows.text.shrink_to_fit();
            rows.months.iter_mut().for_each(Vec::shrink_to_fit);
        }
        self.truth_records.shrink_to_fit();
        self
    }
}
