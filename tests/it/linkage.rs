//! Records that share no identifier, through the command line: what is alike is joined, what is not sure is asked, and people have the last word.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::folder::ProjectFolder;
use crate::{commits, succeed};

const RULES: &str = r#"priority = ["member_id", "email"]
[types.member_id]
unique = true
[types.email]
[matching]
link = 0.99
[matching.sources.contacts]
full_name = "name"
birth_date = "born"
phone = "phone"
city = "city"
address = "address"
"#;

/// A phone is no identifier here: families have one in common.
const CONTACTS: &str = r#"kind = "crm"
path = "contacts/*.csv"
format = "csv"
event_time = "at"
[columns]
member = "string"
email = { type = "string", pii = true }
name = { type = "string", pii = true }
born = { type = "date", pii = true }
phone = { type = "string", pii = true }
city = "string"
address = { type = "string", pii = true }
visits = "boolean"
at = "timestamp"
[[identifiers]]
type = "member_id"
value = "member"
[[identifiers]]
type = "email"
value = "email"
"#;

const CORE: &str = "-- One row a contact.\n-- @expect fail has_name: name is not null\n\
    with contacts as (\n    select *, coalesce(identifier_token('member_id', member), identifier_token('email', email)) as token\n\
    from raw.contacts\n)\n\
    select i.customer_id, c.name from contacts c left join identity.identifiers i on i.token = c.token\n";

const GIVEN: [&str; 24] = [
    "Alice",
    "Bruno",
    "Carla",
    "Dmitri",
    "Eleanor",
    "Felix",
    "Gloria",
    "Hector",
    "Ingrid",
    "Jonathan",
    "Katarina",
    "Leonard",
    "Matilda",
    "Nikolai",
    "Ophelia",
    "Patrick",
    "Quentin",
    "Rosalind",
    "Sebastian",
    "Theresa",
    "Ulrich",
    "Veronica",
    "Winston",
    "Yolanda",
];
const FAMILY: [&str; 24] = [
    "Abernathy",
    "Bergström",
    "Castellano",
    "Drummond",
    "Eriksen",
    "Fitzgerald",
    "Grabowski",
    "Hathaway",
    "Ivanova",
    "Jablonski",
    "Kowalczyk",
    "Lindqvist",
    "Montgomery",
    "Nakamura",
    "Oyelaran",
    "Papadakis",
    "Quintero",
    "Rasmussen",
    "Sokolova",
    "Thackeray",
    "Underwood",
    "Villanueva",
    "Whitaker",
    "Zimmerman",
];
const CITIES: [&str; 8] = ["Basel", "Cork", "Ghent", "Lodz", "Malmo", "Porto", "Turin", "Varna"];

/// A twin pair, two spellings of one person, and the lines of both.
const ANNA: &str = ",anna@one.example,Theodora Blackwood,1984-03-07,0151 555 0101,Turin,12 Harbour Road";
const ANNA_AGAIN: &str = ",dora@two.example,Theodora Blackwod,1984-03-07,0160 777 4242,Turin,12 Harbour Road";
const TWIN_ONE: &str = ",kim@three.example,Lavinia Thistlewood,1991-11-23,0151 555 0303,Cork,4 Mill Lane";
const TWIN_TWO: &str = ",kit@four.example,Marcus Thistlewood,1991-11-23,0151 555 0303,Cork,4 Mill Lane";

struct Shop {
    folder: ProjectFolder,
}

impl std::ops::Deref for Shop {
    type Target = ProjectFolder;

    fn deref(&self) -> &ProjectFolder {
        &self.folder
    }
}

impl Shop {
    fn new() -> Self {
        Self { folder: ProjectFolder::of_one_source("contacts", CONTACTS, RULES, CORE) }
    }

    fn put(&self, file: &str, contacts: &[String]) {
        let mut text = "member,email,name,born,phone,city,address,visits,at\n".to_owned();
        for contact in contacts {
            text.push_str(&format!("{contact},,2026-01-05T08:00:00Z\n"));
        }
        self.write(&format!("in/contacts/{file}.csv"), &text);
    }

    fn bring(&self, file: &str, contacts: &[String]) {
        self.put(file, contacts);
        self.ingest();
    }

    fn learn(&self) {
        succeed(&mut self.command(&["identity", "learn"]));
    }

    fn customer(&self, email: &str) -> String {
        self.identity(&["show", &format!("email:{email}")])["customer_id"].as_str().unwrap().to_owned()
    }

    /// Pairs to review, of customers that these addresses belong to.
    fn review_of(&self, one: &str, two: &str) -> Option<Value> {
        let (one, two) = (self.customer(one), self.customer(two));
        let is_it = |pair: &Value| {
            let ids = [pair["left_customer_id"].as_str(), pair["right_customer_id"].as_str()];
            ids.contains(&Some(&one)) && ids.contains(&Some(&two))
        };
        let all = self.identity(&["review", "--limit", "100000"]);
        all.as_array().unwrap().iter().find(|pair| is_it(pair)).cloned()
    }

    fn clusters(&self) -> BTreeSet<String> {
        let rows = self.query(
            "select token, min(token) over (partition by customer_id) as cluster, standing from identity.identifiers",
        );
        assert!(!rows.is_empty());
        rows.iter().map(Value::to_string).collect()
    }

    /// The best weight of each pair of identifiers under the newest model.
    fn matches(&self) -> BTreeSet<String> {
        let rows = self.query(
            "select left_token, right_token, max(weight) filter (where not names_differ) as joins, max(weight) as weight \
             from identity.matches where model = (select max(model) from identity.models) group by left_token, right_token",
        );
        assert!(!rows.is_empty());
        rows.iter().map(Value::to_string).collect()
    }
}

/// People from `from` on, every fifth of them twice: with a slip in the name, another address of mail and another phone. Seeded, so that a failure can be repeated.
fn people(from: u64, to: u64) -> Vec<String> {
    let mut contacts = Vec::new();
    for person in from..to {
        let mut state = person.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        let (given, family, city) = (GIVEN[next(24)], FAMILY[next(24)], CITIES[next(8)]);
        let born = format!("{}-{:02}-{:02}", 1940 + next(60), 1 + next(12), 1 + next(28));
        let street = format!("{} {} Street", 1 + next(200), FAMILY[next(24)]);
        let phone = format!("0151 {:03} {:04}", next(900) + 100, next(10_000));
        contacts.push(format!(",p{person}@shop.example,{given} {family},{born},{phone},{city},{street}"));
        if person % 5 == 0 {
            let mut letters: Vec<char> = given.chars().collect();
            let at = 1 + next(letters.len() - 2);
            letters.swap(at, at + 1);
            let given: String = letters.into_iter().collect();
            let phone = format!("0151 {:03} {:04}", next(900) + 100, next(10_000));
            contacts.push(format!(",again{person}@shop.example,{given} {family},{born},{phone},{city},{street}"));
        }
    }
    contacts
}

fn with(mut contacts: Vec<String>, more: &[&str]) -> Vec<String> {
    contacts.extend(more.iter().map(|contact| (*contact).to_owned()));
    contacts
}

#[test]
fn two_spellings_of_one_person_become_one_and_twins_with_one_phone_do_not() {
    let shop = Shop::new();
    shop.bring("1", &with(people(0, 600), &[ANNA, TWIN_ONE]));
    let (older, twin) = (shop.customer("anna@one.example"), shop.customer("kim@three.example"));
    shop.bring("2", &with(Vec::new(), &[ANNA_AGAIN, TWIN_TWO]));
    assert_eq!(shop.customer("dora@two.example"), older);
    assert_ne!(shop.customer("kit@four.example"), twin);
    let model = shop.query("select count(*) as n, max(records) as records from identity.models");
    assert_eq!((&model[0]["n"], &model[0]["records"]), (&1.into(), &722.into()), "learnt once, from what was there");

    // Core follows in the same round, and the history says why.
    let core = shop.query("select distinct customer_id from core.contacts where name like 'Theodora%'");
    assert_eq!(core.len(), 1, "{core:?}");
    let explained = shop.identity(&["explain", "email:anna@one.example", "email:dora@two.example"]);
    let step = &explained["steps"][0];
    assert_eq!((&step["support"], &step["source"]), (&"match".into(), &"contacts".into()), "{explained}");
    let words = step["words"].as_str().unwrap();
    for expected in ["full_name almost the same", "birth_date the same", "address the same", "phone differs", "weight "]
    {
        assert!(words.contains(expected), "{expected}: {words}");
    }
    assert!(step["weight"].as_f64().unwrap() > 6.6, "{step}");

    // The weights say what they should: most of the people who came twice are one.
    let twice = shop.query(
        "select count(*) as n from identity.customers c join (select customer_id, count(*) as n from identity.identifiers \
         group by customer_id) i on i.customer_id = c.customer_id where i.n = 2",
    );
    assert!((110..=122).contains(&twice[0]["n"].as_i64().unwrap()), "of 121: {twice:?}");
    let quality = shop.identity(&["quality"]);
    assert_eq!(quality["model"], 1);
    assert!(quality["alike"].as_i64().unwrap() >= 110, "{quality}");
    let curve = quality["guard_curve"].as_array().unwrap();
    assert!(curve.iter().all(|point| point["customers"].as_i64() > Some(500)), "{curve:?}");

    // No value of a record is in what identity keeps.
    let kept: String = ["matches", "models", "match_terms", "history"]
        .map(|table| format!("{:?}", shop.query(&format!("select * from identity.{table}"))))
        .concat();
    for value in ["Theodora", "theodora", "blackw", "Turin", "turin", "harbour", "1984-03-07", "01515550101", "@"] {
        assert!(!kept.contains(value), "{value} is kept");
    }
    let before = commits(shop.path());
    shop.ingest();
    assert_eq!(commits(shop.path()), before, "with nothing new nothing is committed");

    // Where given names are often wrong, and twins rare, all else may outweigh them.
    let rules = RULES.replace("link = 0.99\n", "link = 0.99\ntwins_apart = false\n");
    shop.write("pipelines/churn/identity.toml", &rules);
    shop.ingest();
    assert_eq!(shop.customer("kit@four.example"), shop.customer("kim@three.example"));
    shop.write("pipelines/churn/identity.toml", RULES);
    shop.ingest();
    assert_ne!(shop.customer("kit@four.example"), shop.customer("kim@three.example"));
}

#[test]
fn what_is_not_sure_is_reviewed_and_a_decision_takes_it_off_for_ever() {
    let shop = Shop::new();
    shop.bring("1", &with(people(0, 600), &[ANNA, TWIN_ONE, ANNA_AGAIN, TWIN_TWO]));
    let pair = shop.review_of("kim@three.example", "kit@four.example").expect("the twins are asked about");
    assert_eq!(pair["why"], "the names are clearly different", "{pair}");
    assert!(pair["agree"].to_string().contains("birth_date the same") && pair["agree"].to_string().contains("phone"));
    assert!(pair["score"].as_f64().unwrap() > 0.99, "{pair}");
    let text = succeed(&mut shop.command(&["identity", "review"])).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("for:") && !text.contains("Thistlewood") && !text.contains("0151"), "{text}");

    let (one, two) = (shop.customer("kim@three.example"), shop.customer("kit@four.example"));
    let signed = ["--why", "a test", "--by", "ann"];
    shop.identity(&[&["unlink", &one, &two][..], &signed].concat());
    assert_eq!(shop.review_of("kim@three.example", "kit@four.example"), None);
    // What was joined by its weight alone comes apart, and stays so whatever is learnt and comes.
    shop.identity(&[&["unlink", "email:anna@one.example", "email:dora@two.example"][..], &signed].concat());
    assert_ne!(shop.customer("anna@one.example"), shop.customer("dora@two.example"));
    shop.bring(
        "2",
        &with(
            people(600, 640),
            &[",dora@two.example,Theodora Blackwood,1984-03-07,0151 555 0101,Turin,12 Harbour Road"],
        ),
    );
    shop.learn();
    assert_ne!(shop.customer("anna@one.example"), shop.customer("dora@two.example"));
    assert_eq!(shop.review_of("anna@one.example", "dora@two.example"), None);
    assert_eq!(shop.review_of("kim@three.example", "kit@four.example"), None);
    let explained = shop.identity(&["explain", "email:anna@one.example", "email:dora@two.example"]);
    assert!(explained["steps"].to_string().contains("never one customer: decision 2"), "{explained}");

    shop.identity(&["withdraw", "1", "--why", "she married", "--by", "ann"]);
    shop.identity(&[&["link", &one, &two][..], &signed].concat());
    assert_eq!(shop.customer("kim@three.example"), shop.customer("kit@four.example"));
    assert_eq!(shop.review_of("anna@one.example", "dora@two.example"), None);
}

#[test]
fn records_without_an_identifier_take_part_by_their_own_key_and_one_number_outweighs_another_name() {
    let rules = RULES
        .replace("[\"member_id\", \"email\"]", "[\"email\", \"contact\"]")
        .replace("[types.member_id]\nunique = true", "[types.contact]")
        .replace("phone = \"phone\"", "id_number = \"tax_number\"");
    let source = CONTACTS
        .replace("member = \"string\"", "contact = \"string\"\ntax_number = { type = \"string\", pii = true }")
        .replace("\"member_id\"\nvalue = \"member\"", "\"contact\"\nvalue = \"contact\"");
    let stage = CORE.replace(
        "coalesce(identifier_token('member_id', member), identifier_token('email', email))",
        "coalesce(identifier_token('email', email), identifier_token('contact', contact))",
    );
    let folder = ProjectFolder::of_one_source("contacts", &source, &rules, &stage);
    // A tax number for all but the bare: that of one birth date and one house.
    let bring = |file: &str, contacts: &[String]| {
        let mut text = "contact,email,name,born,phone,city,address,visits,at,tax_number\n".to_owned();
        for (row, contact) in contacts.iter().enumerate() {
            let parts: Vec<&str> = contact.split(',').collect();
            let tax = match parts.get(7) {
                Some(given) => (*given).to_owned(),
                None => format!("{}{:0>3}", parts[3].replace('-', ""), parts[6].split(' ').next().unwrap()),
            };
            text.push_str(&format!("{file}-{row},{},,2026-01-05T08:00:00Z,{tax}\n", parts[1..7].join(",")));
        }
        folder.write(&format!("in/contacts/{file}.csv"), &text);
        folder.ingest();
    };
    let customer = |name: &str| folder.identity(&["show", name])["customer_id"].as_str().unwrap().to_owned();
    let mut first = people(0, 600);
    first.push(format!("{ANNA},"));
    first.push(",kim@three.example,Lavinia Thistlewood,1991-11-23,,Cork,4 Mill Lane,19911123777".to_owned());
    bring("1", &first);
    let bare = [
        ",,Theodora Blackwod,1984-03-07,,Turin,12 Harbour Road,",
        ",,Leopold Ravensworth,1972-09-14,,Varna,9 Quay Street,",
        ",,Leopold Ravenswort,1972-09-14,,Varna,9 Quay Street,",
        ",,Isadora Quicksilver,1969-02-01,,Ghent,77 Lime Street,",
        ",,Marcus Thistlewood,1991-11-23,,Cork,4 Mill Lane,19911123778",
        ",wed@five.example,Winifred Ashgrove,1991-11-23,,Cork,4 Mill Lane,19911123777",
    ];
    bring("2", &bare.map(str::to_owned));
    // To a customer by evidence; to each other; to nobody.
    let anna = customer("email:anna@one.example");
    assert_eq!(customer("contact:2-0"), anna);
    assert_eq!(customer("contact:2-1"), customer("contact:2-2"));
    let alone = customer("contact:2-3");
    assert_eq!(folder.query(&format!("select 1 from identity.identifiers where customer_id = '{alone}'")).len(), 1);
    // The twin stays apart, though his number is nearly hers; a name that was changed does not hide one number.
    let kim = customer("email:kim@three.example");
    assert_ne!(customer("contact:2-4"), kim);
    assert_eq!(customer("email:wed@five.example"), kim);
    let nobody = folder.query("select count(*) as n from core.contacts where customer_id is null");
    assert_eq!(nobody[0]["n"], 0, "every record finds its customer");

    let explained = folder.identity(&["explain", "contact:2-0", "email:anna@one.example"]);
    let step = &explained["steps"][0];
    assert!(step["support"] == "match" && step["words"].to_string().contains("birth_date the same"), "{explained}");
    let signed = ["--why", "a namesake", "--by", "ann"];
    folder.identity(&[&["unlink", "contact:2-0", "email:anna@one.example"][..], &signed].concat());
    assert_ne!(customer("contact:2-0"), anna);
    bring("3", &people(600, 620));
    assert_ne!(customer("contact:2-0"), anna, "later batches keep to it");
    folder.identity(&["withdraw", "1", "--why", "it was she", "--by", "ann"]);
    assert_eq!(customer("contact:2-0"), anna);
}

#[test]
fn two_member_ids_are_never_one_customer_by_weight_alone() {
    let shop = Shop::new();
    shop.bring("1", &with(people(0, 600), &[&format!("M1{ANNA}"), &format!("M2{ANNA_AGAIN}")]));
    assert_ne!(shop.customer("anna@one.example"), shop.customer("dora@two.example"));
    let pair = shop.review_of("anna@one.example", "dora@two.example").expect("a person may know better");
    assert_eq!(pair["why"], "a rule keeps them apart", "{pair}");
    let (one, two) = (shop.customer("anna@one.example"), shop.customer("dora@two.example"));
    shop.identity(&["link", &one, &two, "--why", "two accounts", "--by", "ann"]);
    assert_eq!(shop.customer("anna@one.example"), shop.customer("dora@two.example"));
    assert_eq!(shop.review_of("anna@one.example", "dora@two.example"), None);
}

#[test]
fn idn_1_records_compared_batch_by_batch_give_what_comparing_all_at_once_gives() {
    let first = people(0, 500);
    let later = [
        with(people(500, 600), &[ANNA, TWIN_ONE]),
        with(people(600, 640), &[TWIN_TWO]),
        // Records that were there before, and a third one of somebody.
        with(
            people(590, 650),
            &[ANNA_AGAIN, ",third@five.example,Theodora Blackwood,1984-03-07,,Turin,12 Harbour Road"],
        ),
    ];
    let step_by_step = Shop::new();
    step_by_step.bring("0", &first);
    for (number, contacts) in later.iter().enumerate() {
        step_by_step.bring(&format!("{}", number + 1), contacts);
    }
    // By the same model, the rest at once.
    let at_once = Shop::new();
    at_once.bring("0", &first);
    at_once.bring("1", &later.concat());
    assert_eq!(step_by_step.matches(), at_once.matches());
    assert_eq!(step_by_step.clusters(), at_once.clusters());
    assert_eq!(step_by_step.customer("third@five.example"), step_by_step.customer("dora@two.example"));

    // The last come first; what is learnt does not depend on it.
    let backwards = Shop::new();
    for (number, contacts) in later.iter().rev().enumerate() {
        backwards.put(&format!("{number}"), contacts);
    }
    backwards.put("9", &first);
    backwards.ingest();
    backwards.learn();
    step_by_step.learn();
    let settings = |shop: &Shop| shop.query("select settings from identity.models order by model desc limit 1");
    assert_eq!(settings(&backwards), settings(&step_by_step));
    assert_eq!(backwards.matches(), step_by_step.matches());
    assert_eq!(backwards.clusters(), step_by_step.clusters());
    // A model is learnt when it is asked for, and one set of weights counts.
    assert_eq!(step_by_step.query("select count(*) as n from identity.models")[0]["n"], 2);
}

#[test]
fn few_records_are_not_learnt_from_and_a_wrong_attribute_is_told_with_its_place() {
    let shop = Shop::new();
    shop.bring("1", &with(people(0, 20), &[ANNA, ANNA_AGAIN]));
    assert_ne!(shop.customer("anna@one.example"), shop.customer("dora@two.example"));
    assert_eq!(shop.identity(&["quality"])["model"], 0);
    assert_eq!(shop.identity(&["review"]), Value::Array(Vec::new()));
    shop.put("2", &people(20, 600));
    for (from, to, place, words) in [
        ("full_name = \"name\"", "ful_name = \"name\"", "identity.toml:8:1", "did you mean `full_name`?"),
        ("full_name = \"name\"", "full_name = 3", "identity.toml:8:13", "expected a string"),
        ("full_name = \"name\"", "full_name = \" \"", "identity.toml:8:13", "this is empty"),
        ("full_name = \"name\"", "full_name = \"nmae\"", "identity.toml:8:13", "full_name of contacts"),
        ("full_name = \"name\"", "full_name = \"visits\"", "identity.toml:8:13", "a text, a date or a whole number"),
        ("sources.contacts", "sources.contcts", "identity.toml:7:19", "did you mean `contacts`?"),
        ("link = 0.99", "link = 99", "identity.toml:6:8", "between 0 and 1"),
        ("link = 0.99", "link = 0.4\nreview = 0.6", "identity.toml:7:10", "above link"),
        ("link = 0.99", "lnk = 0.9", "identity.toml:6:1", "did you mean `link`?"),
    ] {
        assert!(RULES.contains(from), "{from}");
        shop.write("pipelines/churn/identity.toml", &RULES.replacen(from, to, 1));
        let output = shop.command(&["ingest", "--from", "in"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{to}: {said}");
        assert!(said.contains(place) && said.contains(words), "{to}: {said}");
        assert!(!shop.path().join("lake/identity/models").exists(), "{to}");
    }
    shop.write("pipelines/churn/identity.toml", RULES.split("[matching]").next().unwrap());
    let output = shop.command(&["identity", "learn"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("no [matching] in identity.toml"));
    // Nothing was half applied: with the mistake mended all are compared.
    shop.write("pipelines/churn/identity.toml", RULES);
    shop.ingest();
    assert_eq!(shop.customer("anna@one.example"), shop.customer("dora@two.example"));
    // Without [matching] what it joined is apart again.
    shop.write("pipelines/churn/identity.toml", RULES.split("[matching]").next().unwrap());
    shop.ingest();
    assert_ne!(shop.customer("anna@one.example"), shop.customer("dora@two.example"));
}
