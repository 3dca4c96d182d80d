//! What readers of a generation may rely on, checked on the files themselves.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Decimal128Type, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::SynthError;
use crate::generate::{GenerateOptions, GenerateSummary, generate, generate_in_shards};
use crate::rows::{Format, Source};

fn options(out: &Path, customers: u64, days: u32, threads: usize) -> GenerateOptions {
    GenerateOptions {
        out: out.to_owned(),
        customers,
        days,
        seed: 7,
        end: GenerateOptions::default_end(),
        dirty_share: GenerateOptions::DEFAULT_DIRTY_SHARE,
        threads,
    }
}

/// Every file below a folder with its bytes.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

fn relative(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    contents(folder).into_iter().map(|(path, bytes)| (path.strip_prefix(folder).unwrap().to_owned(), bytes)).collect()
}

/// A shop of 5,000 customers over a year, made once for all tests that only read.
struct Shop {
    folder: tempfile::TempDir,
    summary: GenerateSummary,
    dirty: HashSet<(String, usize)>,
}

static SHOP: LazyLock<Shop> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let summary = generate(&options(folder.path(), 5_000, 365, 2), &|_| {}).unwrap();
    let truth = fs::read_to_string(folder.path().join("truth/dirty.csv")).unwrap();
    let dirty = truth
        .lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            (fields[0].to_owned(), fields[1].parse().unwrap())
        })
        .collect();
    Shop { folder, summary, dirty }
});

impl Shop {
    fn lines(&self, source: Source, clean: bool) -> Vec<(String, Vec<u8>)> {
        let folder = self.folder.path().join(source.name());
        let mut lines = Vec::new();
        for (path, bytes) in contents(&folder) {
            let name = path.strip_prefix(self.folder.path()).unwrap().to_str().unwrap().to_owned();
            let header = usize::from(source.format() == Format::Csv);
            for (place, line) in bytes.split(|byte| *byte == b'\n').enumerate().skip(header) {
                if !line.is_empty() && self.dirty.contains(&(name.clone(), place + 1)) != clean {
                    lines.push((name.clone(), line.to_vec()));
                }
            }
        }
        lines
    }

    fn json(&self, source: Source) -> Vec<Value> {
        self.lines(source, true).iter().map(|(_, line)| serde_json::from_slice(line).unwrap()).collect()
    }

    fn csv(&self, source: Source) -> Vec<HashMap<&'static str, String>> {
        let names: Vec<&str> = source.header().split(',').collect();
        self.lines(source, true)
            .iter()
            .map(|(_, line)| {
                let fields = csv_fields(std::str::from_utf8(line).unwrap());
                assert_eq!(fields.len(), names.len());
                names.iter().copied().zip(fields).collect()
            })
            .collect()
    }

    fn truth(&self, name: &str) -> Vec<HashMap<String, String>> {
        let text = fs::read_to_string(self.folder.path().join("truth").join(name)).unwrap();
        let mut lines = text.lines();
        let names: Vec<String> = lines.next().unwrap().split(',').map(str::to_owned).collect();
        lines.map(|line| names.iter().cloned().zip(csv_fields(line)).collect()).collect()
    }
}

fn csv_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields.last_mut().unwrap().push(character),
        }
    }
    fields
}

fn cents(value: &str) -> i64 {
    let (whole, rest) = value.split_once('.').unwrap();
    assert_eq!(rest.len(), 2);
    whole.parse::<i64>().unwrap() * 100 + rest.parse::<i64>().unwrap()
}

/// Amounts are written with two digits, so rounding gives the exact cents back.
fn json_cents(value: &Value) -> i64 {
    crate::number::whole((value.as_f64().unwrap() * 100.0).round())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[test]
fn same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let (one, three, other) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    generate(&options(one.path(), 700, 120, 1), &|_| {}).unwrap();
    generate(&options(three.path(), 700, 120, 3), &|_| {}).unwrap();
    generate(&GenerateOptions { seed: 8, ..options(other.path(), 700, 120, 3) }, &|_| {}).unwrap();
    let (one, three, other) = (relative(one.path()), relative(three.path()), relative(other.path()));
    assert!(one.keys().eq(three.keys()));
    for (path, bytes) in &one {
        assert!(bytes == &three[path], "{} differs", path.display());
    }
    assert!(one[Path::new("orders/2025-11.ndjson")] != other[Path::new("orders/2025-11.ndjson")]);
}

#[test]
fn shards_split_the_files_and_not_the_customers() {
    let (whole, split) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let clean = |out: &Path| GenerateOptions { dirty_share: 0.0, ..options(out, 900, 60, 2) };
    let summary = generate(&clean(whole.path()), &|_| {}).unwrap();
    let sharded = generate_in_shards(&clean(split.path()), &|_| {}, 500).unwrap();
    assert_eq!(summary.rows(), sharded.rows());
    assert_eq!(summary.churned_customers, sharded.churned_customers);
    let lines = |folder: &Path, name: &str| {
        let files = contents(&folder.join(name));
        let mut lines: Vec<Vec<u8>> =
            files.values().flat_map(|bytes| bytes.split(|byte| *byte == b'\n')).map(<[u8]>::to_vec).collect();
        lines.retain(|line| !line.is_empty());
        lines.sort();
        lines
    };
    assert!(split.path().join("orders/2025-12-0001.ndjson").exists());
    assert_eq!(lines(whole.path(), "orders"), lines(split.path(), "orders"));
    assert_eq!(lines(whole.path(), "events"), lines(split.path(), "events"));
}

#[test]
fn orders_lines_payments_refunds_and_parcels_agree() {
    let mut sums: HashMap<String, i64> = HashMap::new();
    for line in SHOP.json(Source::OrderLines) {
        let amount = json_cents(&line["line_amount"]);
        let quantity = line["quantity"].as_i64().unwrap();
        assert_eq!(amount, json_cents(&line["unit_price"]) * quantity - json_cents(&line["discount_amount"]));
        *sums.entry(text(&line["order_id"])).or_default() += amount;
    }
    let orders: HashMap<String, Value> =
        SHOP.json(Source::Orders).into_iter().map(|order| (text(&order["order_id"]), order)).collect();
    assert_eq!(orders.len(), sums.len());
    for (id, order) in &orders {
        let [goods, discount, shipping, paid] =
            ["goods_amount", "discount_amount", "shipping_fee", "paid_amount"].map(|field| json_cents(&order[field]));
        assert_eq!(goods, sums[id]);
        assert_eq!(paid, goods - discount + shipping);
        assert!(paid > 0);
        assert_eq!(discount > 0, order.get("coupon_code").is_some());
    }

    let mut captured: HashMap<String, (String, i64)> = HashMap::new();
    for_each_row(Source::Payments, |batch, row| {
        let column = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().value(row).to_owned();
        let amount = batch.column_by_name("amount").unwrap().as_primitive::<Decimal128Type>().value(row);
        assert_eq!(i128::from(json_cents(&orders[&column("order_id")]["paid_amount"])), amount);
        if column("status") == "captured" {
            captured.insert(column("payment_id"), (column("order_id"), i64::try_from(amount).unwrap()));
        }
    });
    let paid_orders: HashSet<&String> = captured.values().map(|(order, _)| order).collect();
    assert!(orders.iter().all(|(id, order)| order["status"] == "cancelled" || paid_orders.contains(id)));
    let mut refunds = 0;
    for_each_row(Source::Refunds, |batch, row| {
        let column = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().value(row).to_owned();
        let times = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<TimestampMicrosecondType>().clone();
        let (order, paid) = &captured[&column("payment_id")];
        assert_eq!(*order, column("order_id"));
        assert!(
            batch.column_by_name("amount").unwrap().as_primitive::<Decimal128Type>().value(row) <= i128::from(*paid)
        );
        assert!(times("requested_at").value(row) < times("promised_at").value(row));
        if times("refunded_at").is_valid(row) {
            assert!(times("requested_at").value(row) < times("refunded_at").value(row));
        }
        refunds += 1;
    });
    assert!(refunds > 100);

    for parcel in SHOP.json(Source::Shipments) {
        let order = &orders[&text(&parcel["order_id"])];
        assert!(text(&order["ordered_at"]) < text(&parcel["shipped_at"]));
        if let Some(delivered) = parcel.get("delivered_at") {
            assert!(text(&parcel["shipped_at"]) < text(delivered));
        }
    }
    for coupon in SHOP.csv(Source::Coupons).iter().filter(|row| row["action"] == "redeemed") {
        let order = &orders[&coupon["order_id"]];
        assert_eq!(text(&order["coupon_code"]), coupon["coupon_code"]);
        assert_eq!(text(&order["member_no"]), coupon["member_no"]);
        assert_eq!(json_cents(&order["discount_amount"]), cents(&coupon["face_value"]));
        assert!(json_cents(&order["goods_amount"]) >= cents(&coupon["min_spend"]));
    }
    let mut receipts: HashMap<String, i64> = HashMap::new();
    for line in SHOP.csv(Source::Receipts) {
        *receipts.entry(line["receipt_no"].clone()).or_default() += cents(&line["line_amount"]);
    }
    let mut balances: HashMap<String, i64> = HashMap::new();
    for entry in SHOP.csv(Source::LoyaltyLedger) {
        let points: i64 = entry["points"].parse().unwrap();
        *balances.entry(entry["member_no"].clone()).or_default() += points;
        if entry["entry_type"] == "earn" {
            let key = &entry["order_id"];
            let paid = receipts.get(key).copied().unwrap_or_else(|| json_cents(&orders[key]["paid_amount"]));
            assert_eq!(points, paid / 100);
        }
    }
    let completed: HashSet<String> = SHOP
        .json(Source::Events)
        .iter()
        .filter(|event| event["event"] == "Order Completed")
        .map(|event| text(&event["properties"]["order_id"]))
        .collect();
    assert_eq!(completed, orders.keys().cloned().collect());
    for review in SHOP.json(Source::Reviews) {
        assert!(orders.contains_key(&text(&review["order_id"])));
        assert!(!text(&review["text"]).is_empty());
    }
}

fn for_each_row(source: Source, mut visit: impl FnMut(&arrow::array::RecordBatch, usize)) {
    for path in contents(&SHOP.folder.path().join(source.name())).keys() {
        let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap()).unwrap().build().unwrap();
        for batch in reader {
            let batch = batch.unwrap();
            (0..batch.num_rows()).for_each(|row| visit(&batch, row));
        }
    }
}

#[test]
fn nothing_happens_outside_the_window_or_outside_its_file() {
    let times = [
        (Source::Orders, "ordered_at"),
        (Source::OrderLines, "ordered_at"),
        (Source::Tickets, "opened_at"),
        (Source::Tickets, "resolved_at"),
        (Source::TicketMessages, "sent_at"),
        (Source::Events, "timestamp"),
        (Source::Shipments, "shipped_at"),
        (Source::Shipments, "delivered_at"),
        (Source::Reviews, "reviewed_at"),
        (Source::SocialPosts, "posted_at"),
    ];
    for (source, field) in times {
        for (file, line) in SHOP.lines(source, true) {
            let row: Value = serde_json::from_slice(&line).unwrap();
            let Some(time) = row.get(field).and_then(Value::as_str) else { continue };
            assert!(("2025-01-01T00:00:00Z".."2026-01-01T00:00:00Z").contains(&time), "{field} {time}");
            if !field.ends_with("resolved_at") && !field.ends_with("delivered_at") {
                assert!(file.contains(&time[..7]), "{file} holds {time}");
            }
        }
    }
    for (source, field) in [
        (Source::CampaignTouches, "occurred_at"),
        (Source::Coupons, "occurred_at"),
        (Source::LoyaltyLedger, "occurred_at"),
    ] {
        for row in SHOP.csv(source) {
            assert!(("2025-01-01T00:00:00Z".."2026-01-01T00:00:00Z").contains(&row[field].as_str()));
        }
    }
    for (source, field) in [(Source::Receipts, "sold_at"), (Source::CrmContacts, "updated_at")] {
        for row in SHOP.csv(source) {
            assert!(
                ("2025-01-01 08:00:00".."2026-01-01 08:00:00").contains(&row[field].as_str()),
                "{field} {}",
                row[field]
            );
        }
    }
}

#[test]
fn messages_tell_the_story_of_their_ticket() {
    let tickets: HashMap<String, Value> =
        SHOP.json(Source::Tickets).into_iter().map(|ticket| (text(&ticket["ticket_id"]), ticket)).collect();
    let mut conversations: HashMap<String, Vec<Value>> = HashMap::new();
    let mut ids = HashSet::new();
    for message in SHOP.json(Source::TicketMessages) {
        assert!(ids.insert(text(&message["message_id"])), "{message}");
        assert!(["customer", "agent", "system"].contains(&message["sender"].as_str().unwrap()), "{message}");
        assert!(!text(&message["text"]).is_empty() && message["attachments"].as_i64().unwrap() >= 0);
        conversations.entry(text(&message["ticket_id"])).or_default().push(message);
    }
    assert_eq!(conversations.len(), tickets.len());

    let (mut unsolved, mut languages) = (0, HashSet::new());
    for (id, ticket) in &tickets {
        let messages = conversations.get_mut(id).unwrap();
        messages.sort_by_key(|message| text(&message["message_id"]));
        // Numbers and times agree, and no two messages are of the same second.
        assert!(messages.windows(2).all(|pair| text(&pair[0]["sent_at"]) < text(&pair[1]["sent_at"])), "{messages:?}");
        languages.insert(text(&messages[0]["language"]));

        let request = &messages[0];
        assert_eq!((&request["sender"], &request["sent_at"]), (&"customer".into(), &ticket["opened_at"]));
        let (subject, body) = (text(&ticket["subject"]), text(&request["text"]));
        assert!(body.starts_with(&subject) && body.chars().count() > subject.chars().count() + 4, "{body}");

        let first_answer = messages.iter().find(|message| message["sender"] == "agent");
        assert_eq!(first_answer.map(|answer| &answer["sent_at"]), ticket.get("first_response_at"), "{ticket}");
        let last = messages.last().unwrap();
        match ticket.get("resolved_at") {
            Some(resolved_at) => {
                assert_eq!(&last["sent_at"], resolved_at);
                assert_ne!(last["sender"], "customer");
            }
            // What is solved at all is solved within 45 days: these never were, and the customer asked again in vain.
            None if text(&ticket["opened_at"]).as_str() < "2025-11-01" => {
                unsolved += 1;
                assert!(messages.len() > 2 && last["sender"] == "customer", "{messages:?}");
            }
            None => {}
        }
    }
    assert!(unsolved > 10, "{unsolved} tickets were never solved");
    assert_eq!(languages.len(), 2);
    assert!(ids.len() > 3 * tickets.len(), "{} messages about {} tickets", ids.len(), tickets.len());
}

#[test]
fn every_export_of_the_crm_repeats_the_members_known_by_then() {
    let folder = SHOP.folder.path().join("crm_contacts");
    let members = |name: &str| -> HashSet<String> {
        let text = fs::read(folder.join(name)).unwrap();
        String::from_utf8_lossy(&text)
            .lines()
            .skip(1)
            .map(|line| line.split(',').next().unwrap().to_owned())
            .filter(|id| id.len() == 11)
            .collect()
    };
    let (march, june) = (members("2025-03.csv"), members("2025-06.csv"));
    assert!(march.is_subset(&june) && march.len() < june.len());
    let changed = SHOP.csv(Source::CrmContacts).iter().filter(|row| row["updated_at"].as_str() > "2025-02-01").count();
    assert!(changed > 100);
}

#[test]
fn dirty_rows_are_as_many_as_stated_and_all_listed() {
    let rows: u64 = SHOP
        .summary
        .sources
        .iter()
        .filter(|source| source.source != "payments" && source.source != "refunds")
        .map(|source| source.rows)
        .sum();
    let dirty: u64 = SHOP.summary.sources.iter().map(|source| source.dirty_rows).sum();
    let share = dirty as f64 / rows as f64;
    assert!((0.0015..0.0025).contains(&share), "dirty share {share}");
    assert_eq!(dirty, SHOP.dirty.len() as u64);
    for source in Source::ALL {
        let dirty = SHOP.summary.sources[source as usize].dirty_rows;
        if source.format() != Format::Parquet {
            assert_eq!(SHOP.lines(source, false).len() as u64, dirty);
        }
    }
    // The clean rows are parsed by the other tests; these must not be what a reader of the contract accepts.
    for source in [
        Source::Orders,
        Source::OrderLines,
        Source::Events,
        Source::Reviews,
        Source::Tickets,
        Source::SocialPosts,
        Source::Shipments,
        Source::TicketMessages,
    ] {
        for (_, line) in SHOP.lines(source, false) {
            let wrong = [
                "\"N/A\"",
                "\"two\"",
                "\"one\"",
                "\"long\"",
                "\"good\"",
                "\"ten\"",
                "\"perhaps\"",
                "\"five\"",
                "\"many\"",
                "2025-13-41",
            ];
            let broken = serde_json::from_slice::<Value>(&line).is_err();
            assert!(broken || wrong.iter().any(|value| String::from_utf8_lossy(&line).contains(value)));
        }
    }
    for source in [
        Source::CrmContacts,
        Source::Receipts,
        Source::Coupons,
        Source::CampaignTouches,
        Source::LoyaltyLedger,
        Source::Products,
    ] {
        let width = source.header().split(',').count();
        for (_, line) in SHOP.lines(source, false) {
            let Ok(line) = std::str::from_utf8(&line) else { continue };
            let fields = csv_fields(line);
            let wrong = fields.iter().any(|field| {
                ["two", "one", "N/A", "perhaps"].contains(&field.as_str()) || field.starts_with("2025-13-41")
            });
            assert!(fields.len() != width || wrong);
        }
    }
}

#[test]
fn about_a_third_is_lost_after_a_year_and_most_of_them_bought_little() {
    let customers = SHOP.truth("customers.csv");
    let lost: Vec<_> = customers.iter().filter(|row| row["is_churned_by_end"] == "true").collect();
    assert_eq!(lost.len() as u64, SHOP.summary.churned_customers);
    let share = lost.len() as f64 / customers.len() as f64;
    assert!((0.30..0.38).contains(&share), "churned share {share}");
    let few =
        lost.iter().filter(|row| row["purchases"].parse::<u32>().unwrap() <= 3).count() as f64 / lost.len() as f64;
    assert!(few > 0.5, "{few} of the lost bought three times or less");
}

#[test]
fn a_decline_shows_in_browsing_before_it_shows_in_orders() {
    let day = |date: &str| {
        let part = |range: std::ops::Range<usize>| date[range].parse::<i64>().unwrap();
        crate::calendar::days_of(part(0..4), part(5..7), part(8..10))
    };
    let declines: HashMap<String, (i64, i64)> = SHOP
        .truth("customers.csv")
        .into_iter()
        .filter(|row| !row["decline_began_on"].is_empty() && !row["churned_on"].is_empty())
        .map(|row| (row["person_id"].clone(), (day(&row["decline_began_on"]), day(&row["churned_on"]))))
        .filter(|(_, (began, _))| *began > day("2025-03-15"))
        .collect();
    assert!(declines.len() > 150);
    let people: HashMap<String, String> = SHOP
        .truth("records.csv")
        .into_iter()
        .map(|row| (row["record_key"].clone(), row["person_id"].clone()))
        .collect();
    // Counts a day: before the decline, in its first half, in its second half, and after it.
    let rates = |records: Vec<(String, String)>| {
        let mut counts = [0.0; 4];
        for (key, time) in records {
            let Some((began, gone)) = people.get(&key).and_then(|person| declines.get(person)) else { continue };
            let (at, half) = (day(&time), (began + gone) / 2);
            if at >= began - 60 && at < *began {
                counts[0] += 1.0 / 60.0;
            } else if at >= *began && at < half {
                counts[1] += 1.0 / (half - began) as f64;
            } else if at >= half && at < *gone {
                counts[2] += 1.0 / (gone - half) as f64;
            } else if at > *gone {
                counts[3] += 1.0 / 60.0;
            }
        }
        counts.map(|count| count / counts[0])
    };
    let events = SHOP.json(Source::Events);
    let views = events.iter().filter(|event| event["event"] == "Product Viewed");
    let browsing =
        rates(views.map(|event| (text(&event["context"]["session_id"]), text(&event["timestamp"]))).collect());
    let orders = rates(
        SHOP.json(Source::Orders).iter().map(|order| (text(&order["order_id"]), text(&order["ordered_at"]))).collect(),
    );
    assert!(browsing[2] < 0.7, "browsing {browsing:?}");
    assert!(orders[1] > browsing[2] && orders[1] > 0.7, "orders {orders:?}, browsing {browsing:?}");
    assert!(orders[2] < orders[1], "orders {orders:?}");
    assert!(browsing[3] < 0.1 && orders[3] < 0.1, "after: browsing {browsing:?}, orders {orders:?}");
}

#[test]
fn the_article_list_lacks_what_the_truth_says_and_ties_the_rest_together() {
    let truth = SHOP.truth("products.csv");
    assert_eq!(truth.iter().map(|row| &row["sku_code"]).collect::<HashSet<_>>().len(), truth.len());
    let listed: HashMap<String, String> = SHOP
        .csv(Source::Products)
        .into_iter()
        .map(|row| (row["product_id"].clone(), row["sku_code"].clone()))
        .collect();
    let (mut holes, none) = (0, String::new());
    for row in &truth {
        let wanted = match row["listing"].as_str() {
            "complete" => Some(&row["sku_code"]),
            "without_sku" => Some(&none),
            _ => None,
        };
        holes += usize::from(row["listing"] != "complete");
        assert_eq!(listed.get(&row["product_id"]), wanted, "{row:?}");
    }
    assert!((6..40).contains(&holes), "{holes} of {} products have holes", truth.len());
    // Tills and shop sell the same goods under codes of their own.
    let skus: HashSet<&String> = truth.iter().map(|row| &row["sku_code"]).collect();
    assert!(SHOP.csv(Source::Receipts).iter().all(|row| skus.contains(&row["sku_code"])));
}

#[test]
fn identities_have_their_hard_cases() {
    let identifiers = SHOP.truth("identifiers.csv");
    let noted = |note: &str| identifiers.iter().filter(|row| row["note"] == note).count();
    for note in ["family", "kiosk", "recycled", "given_up", "twins", "couple", "landline", "store", "bot"] {
        assert!(noted(note) > 0, "no identifier is noted as {note}");
    }
    let mut holders: HashMap<(&str, &str), HashSet<&str>> = HashMap::new();
    for row in &identifiers {
        holders.entry((&row["identifier_type"], &row["value"])).or_default().insert(&row["person_id"]);
    }
    for ((kind, _), people) in &holders {
        let unshared = ["member_id", "email", "unionid", "openid"].contains(kind);
        assert!(!unshared || people.len() == 1, "a {kind} belongs to several people");
    }
    assert!(holders.iter().any(|((kind, _), people)| *kind == "phone" && people.len() > 2));
    let cards = SHOP.csv(Source::Receipts);
    let without = cards.iter().filter(|row| row["member_card"].is_empty()).count() as f64 / cards.len() as f64;
    assert!((0.25..0.45).contains(&without), "receipts without a card {without}");
    assert!(SHOP.json(Source::Orders).iter().any(|order| order.get("member_no").is_none()));
    assert!(SHOP.truth("customers.csv").iter().any(|row| !row["second_member_no"].is_empty()));
}

/// Of every hard case, whom each group of it concerns.
fn hard_cases() -> BTreeMap<String, BTreeMap<String, Vec<String>>> {
    let mut cases: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for row in SHOP.truth("hard_cases.csv") {
        let group = cases.entry(row["hard_case"].clone()).or_default().entry(row["group_id"].clone()).or_default();
        assert!(!group.contains(&row["person_id"]), "{row:?} is there twice");
        group.push(row["person_id"].clone());
    }
    cases
}

/// The rows of the CRM, all months, of each person.
fn contacts() -> HashMap<String, Vec<HashMap<&'static str, String>>> {
    let people: HashMap<String, String> = SHOP
        .truth("customers.csv")
        .into_iter()
        .flat_map(|row| {
            [&row["member_no"], &row["second_member_no"]].map(|number| (number.clone(), row["person_id"].clone()))
        })
        .collect();
    let mut contacts: HashMap<String, Vec<HashMap<&str, String>>> = HashMap::new();
    for row in SHOP.csv(Source::CrmContacts) {
        contacts.entry(people[&row["member_no"]].clone()).or_default().push(row);
    }
    contacts
}

/// Whose each order is.
fn people_of_orders() -> HashMap<String, String> {
    let records = SHOP.truth("records.csv").into_iter().filter(|row| row["source"] == "orders");
    records.map(|row| (row["record_key"].clone(), row["person_id"].clone())).collect()
}

fn digits(text: &str) -> String {
    text.chars().filter(char::is_ascii_digit).collect()
}

/// What the values of a column have in common, empty ones left out.
fn distinct<'a>(rows: impl IntoIterator<Item = &'a HashMap<&'static str, String>>, column: &str) -> HashSet<String> {
    rows.into_iter().map(|row| row[column].clone()).filter(|value| !value.is_empty()).collect()
}

#[test]
fn every_hard_case_is_there_and_concerns_as_many_as_it_should() {
    let cases = hard_cases();
    let sizes = |case: &str| cases[case].values().map(Vec::len).collect::<Vec<_>>();
    for case in [
        "moved",
        "new_phone",
        "second_account",
        "guest_checkout",
        "names_across_scripts",
        "traditional_hanzi",
        "name_typo",
    ] {
        assert!(sizes(case).len() >= 5, "{case} {:?}", sizes(case));
        assert!(cases[case].iter().all(|(group, people)| [group.clone()] == people[..]), "{case} concerns others, too");
    }
    for (case, fewest, most) in
        [("household", 2, 4), ("twins", 2, 2), ("couple", 2, 2), ("recycled_phone", 2, 2), ("bot", 1, 1)]
    {
        assert!(
            !sizes(case).is_empty() && sizes(case).iter().all(|size| (fewest..=most).contains(size)),
            "{case} {:?}",
            sizes(case)
        );
    }
    for case in ["store_phone", "kiosk"] {
        assert!(sizes(case).iter().any(|size| *size > 10), "{case} {:?}", sizes(case));
    }
    assert_eq!(cases.len(), 14, "{:?}", cases.keys());
}

#[test]
fn a_household_has_one_address_one_surname_and_one_landline() {
    let contacts = contacts();
    let (mut shared_addresses, mut shared_landlines) = (0, 0);
    for people in hard_cases()["household"].values() {
        let members: Vec<_> = people.iter().filter_map(|person| contacts.get(person)).collect();
        let rows: Vec<_> = members.iter().copied().flatten().collect();
        for column in ["province", "city", "district"] {
            assert!(distinct(rows.iter().copied(), column).len() <= 1, "{rows:?}");
        }
        for (column, shared) in [("address_line", &mut shared_addresses), ("landline", &mut shared_landlines)] {
            let numbers: HashSet<String> = distinct(rows.iter().copied(), column)
                .iter()
                // Written with the country's code or without.
                .map(|value| digits(value).trim_start_matches("86").trim_start_matches('0').to_owned())
                .collect();
            assert!(numbers.len() <= 1, "{numbers:?}");
            let telling = members.iter().filter(|rows| !distinct(rows.iter(), column).is_empty()).count();
            *shared += usize::from(telling > 1);
        }
    }
    assert!(
        shared_addresses > 50 && shared_landlines > 20,
        "{shared_addresses} addresses, {shared_landlines} landlines"
    );
}

#[test]
fn twins_differ_in_the_end_of_their_name_alone() {
    let contacts = contacts();
    let mut pairs = 0;
    for people in hard_cases()["twins"].values() {
        let [one, two] = [0, 1].map(|place| contacts.get(&people[place]));
        let (Some(one), Some(two)) = (one, two) else { continue };
        pairs += 1;
        let both = || one.iter().chain(two);
        assert!(distinct(both(), "birth_date").len() <= 1);
        assert_eq!(distinct(both(), "gender").len(), 1);
        assert!(distinct(both(), "district").len() <= 1);
        let names = [one, two].map(|rows| distinct(rows, "full_name"));
        assert!(names[0].is_disjoint(&names[1]), "{names:?}");
    }
    assert!(pairs >= 3, "{pairs} pairs");
    let mut holders: HashMap<String, usize> = HashMap::new();
    for row in SHOP.truth("identifiers.csv").into_iter().filter(|row| row["note"] == "twins") {
        *holders.entry(row["value"].clone()).or_default() += 1;
    }
    assert!(holders.len() >= pairs && holders.values().all(|people| *people == 2), "{holders:?}");
}

#[test]
fn who_moved_is_known_at_both_addresses() {
    let contacts = contacts();
    let orders = people_of_orders();
    let mut places: HashMap<&String, HashSet<String>> = HashMap::new();
    for order in SHOP.json(Source::Orders) {
        places.entry(&orders[&text(&order["order_id"])]).or_default().insert(order["ship_to"].to_string());
    }
    let (mut cities, mut shipped) = (0, 0);
    let moved = hard_cases().remove("moved").unwrap();
    for person in moved.keys() {
        let lines: HashSet<String> =
            distinct(&contacts[person], "address_line").iter().map(|line| digits(line)).collect();
        assert_eq!(lines.len(), 2, "{person} lived at {lines:?}");
        cities += usize::from(distinct(&contacts[person], "city").len() == 2);
        shipped += usize::from(places.get(person).is_some_and(|places| places.len() == 2));
    }
    assert!(
        cities > moved.len() / 4 && shipped > moved.len() / 4,
        "{} moved, {cities} to another city, {shipped} ordered at both",
        moved.len()
    );
}

#[test]
fn names_are_written_in_other_scripts_by_other_systems() {
    let (contacts, orders, cases) = (contacts(), people_of_orders(), hard_cases());
    let mut ordered: HashMap<&String, HashSet<String>> = HashMap::new();
    for order in SHOP.json(Source::Orders) {
        ordered.entry(&orders[&text(&order["order_id"])]).or_default().insert(text(&order["buyer"]["name"]));
    }
    let mut sent: HashMap<&String, HashSet<String>> = HashMap::new();
    for parcel in SHOP.json(Source::Shipments) {
        sent.entry(&orders[&text(&parcel["order_id"])]).or_default().insert(text(&parcel["consignee"]["name"]));
    }
    let in_crm = |person: &String| &contacts[person][0]["full_name"];
    let all_three = cases["names_across_scripts"].keys().filter(|person| {
        let hanzi = !in_crm(person).is_ascii();
        let pinyin = &ordered[person];
        assert!(pinyin.len() == 1 && pinyin.iter().all(|name| name.is_ascii()), "{pinyin:?}");
        hanzi
            && sent.get(person).is_some_and(|names| names.iter().all(|name| name.is_ascii() && !pinyin.contains(name)))
    });
    assert!(all_three.count() > 10);
    let mut both = 0;
    for person in cases["traditional_hanzi"].keys() {
        let names = &ordered[person];
        assert_eq!(names.len(), 1, "{names:?}");
        let (crm, order) = (in_crm(person), names.iter().next().unwrap());
        both += usize::from(crm != order && crm.chars().count() == order.chars().count());
    }
    assert!(both > 5, "{both} names in both forms");
}

#[test]
fn a_couple_pays_with_one_card_and_a_clerk_types_one_number_for_many() {
    let orders = people_of_orders();
    let mut payers: HashMap<String, HashSet<&String>> = HashMap::new();
    for_each_row(Source::Payments, |batch, row| {
        let column = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().value(row).to_owned();
        payers.entry(column("payer_token")).or_default().insert(&orders[&column("order_id")]);
    });
    let identifiers = SHOP.truth("identifiers.csv");
    let listed = |note: &str| -> HashMap<String, HashSet<&String>> {
        let mut holders: HashMap<String, HashSet<&String>> = HashMap::new();
        for row in identifiers.iter().filter(|row| row["note"] == note) {
            holders.entry(row["value"].clone()).or_default().insert(&row["person_id"]);
        }
        holders
    };
    let couples = listed("couple");
    assert!(couples.values().all(|people| people.len() == 2));
    assert!(couples.keys().filter(|token| payers.get(*token).is_some_and(|people| people.len() == 2)).count() > 5);
    // Whoever pays with a token is listed with it.
    let tokens: HashSet<(&String, &String)> = identifiers
        .iter()
        .filter(|row| row["identifier_type"] == "payment_token")
        .map(|row| (&row["value"], &row["person_id"]))
        .collect();
    for (token, people) in &payers {
        assert!(people.iter().all(|person| tokens.contains(&(token, *person))), "{token} of {people:?}");
    }

    let clerks = listed("store");
    let receipts = SHOP.csv(Source::Receipts);
    let most = clerks.iter().map(|(number, people)| {
        let written = number.trim_start_matches("+86");
        let cards: HashSet<String> = receipts
            .iter()
            .filter(|row| row["mobile"] == written && !row["member_card"].is_empty())
            .map(|row| digits(&row["member_card"]))
            .collect();
        people.len().min(cards.len())
    });
    assert!(most.max().unwrap() > 10);
}

#[test]
fn a_bot_leaves_thousands_of_cookies_on_a_few_devices_and_few_events() {
    let identifiers = SHOP.truth("identifiers.csv");
    let bots: Vec<&String> = identifiers.iter().filter(|row| row["note"] == "bot").map(|row| &row["value"]).collect();
    let (cookies, devices): (Vec<&String>, Vec<&String>) = bots.into_iter().partition(|value| value.contains('-'));
    assert_eq!(devices.len(), 4);
    assert_eq!(cookies.len(), 10_000);
    let cookies: HashSet<&str> = cookies.into_iter().map(String::as_str).collect();
    let devices: HashSet<&str> = devices.into_iter().map(String::as_str).collect();
    let events = SHOP.json(Source::Events);
    let mut visits: HashMap<String, HashSet<String>> = HashMap::new();
    let mut theirs = 0;
    for event in &events {
        let cookie = event["anonymousId"].as_str().unwrap();
        let is_bot = cookies.contains(cookie);
        assert_eq!(is_bot, event["context"]["device"]["id"].as_str().is_some_and(|id| devices.contains(id)));
        if is_bot {
            theirs += 1;
            assert!(event.get("userId").is_none());
            visits.entry(cookie.to_owned()).or_default().insert(text(&event["context"]["session_id"]));
        }
    }
    assert!(visits.len() > 9_900 && visits.values().all(|sessions| sessions.len() == 1));
    let share = f64::from(theirs) / events.len() as f64;
    assert!((0.002..0.05).contains(&share), "{share} of all events are a bot's");
}

#[test]
fn a_finished_generation_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let first = generate(&options(folder.path(), 50, 40, 2), &|_| {}).unwrap();
    let before = contents(folder.path());
    let second = generate(&options(folder.path(), 50, 40, 1), &|_| {}).unwrap();
    assert!(!first.already_present && second.already_present);
    assert_eq!(GenerateSummary { already_present: false, ..second }, first);
    assert!(before == contents(folder.path()));

    let other = generate(&options(folder.path(), 51, 40, 2), &|_| {}).unwrap_err();
    assert!(matches!(other, SynthError::OtherOptions { .. }), "{other}");
    fs::remove_file(folder.path().join("orders/2025-12.ndjson")).unwrap();
    let altered = generate(&options(folder.path(), 50, 40, 2), &|_| {}).unwrap_err();
    assert!(matches!(altered, SynthError::Altered(_)), "{altered}");
}

#[test]
fn a_folder_with_other_contents_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.txt"), "precious").unwrap();
    let refused = generate(&options(folder.path(), 10, 10, 1), &|_| {}).unwrap_err();
    assert!(matches!(refused, SynthError::NotAGeneration(_)), "{refused}");
    assert_eq!(contents(folder.path()).len(), 1);
}

#[test]
fn an_interrupted_generation_begins_anew() {
    let (folder, fresh) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wanted = options(folder.path(), 50, 40, 2);
    assert!(matches!(crate::manifest::open(&wanted).unwrap(), crate::manifest::Opened::Ready(_)));
    // As if it had stopped between two moves.
    fs::rename(folder.path().join(".generation-staging/orders"), folder.path().join("orders")).unwrap();
    fs::write(folder.path().join("orders/2024-01.ndjson"), "half a fi").unwrap();
    generate(&wanted, &|_| {}).unwrap();
    generate(&options(fresh.path(), 50, 40, 2), &|_| {}).unwrap();
    assert!(relative(folder.path()) == relative(fresh.path()));
}

#[test]
fn options_out_of_range_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = options(folder.path(), 10, 10, 1);
    for bad in [
        GenerateOptions { customers: 0, ..good.clone() },
        GenerateOptions { days: 0, ..good.clone() },
        GenerateOptions { dirty_share: 0.9, ..good.clone() },
        GenerateOptions { dirty_share: f64::NAN, ..good },
    ] {
        assert!(matches!(generate(&bad, &|_| {}), Err(SynthError::InvalidOption { .. })));
    }
}

#[test]
fn the_smallest_shops_are_generated_too() {
    for days in [1, 2, 31] {
        let folder = tempfile::tempdir().unwrap();
        generate(&options(folder.path(), 1, days, 4), &|_| {}).unwrap();
    }
}
