//! A model of texts: trained on a shop's own reviews, promoted and rolled back like others, asked by `sentiment(text)` wherever SQL is asked.

use std::process::Stdio;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int32Type};
use arrow_flight::sql::client::FlightSqlServiceClient;
use chrono::{Days, NaiveDate};
use holdfast_testkit::Random;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::folder::ProjectFolder;
use crate::models_in_use::{PATIENCE, flight_sql, simple_query};
use crate::train::Process;
use crate::{commits, holdfast, lines_of, rows, succeed};

const SEED: u64 = 20_260_301;
const AS_OF: &str = "2025-12-31T00:00:00Z";

const REVIEWS_SQL: &str = "-- One row a review.\n-- @stage incremental key(review_id)\n\
     select\n    i.customer_id,\n    r.review_id,\n    r.at as reviewed_at,\n    r.stars,\n    r.language,\n    r.text\nfrom raw.reviews r\n\
     left join identity.identifiers i on i.token = identifier_token('member_id', r.member)\n";

/// A stage that reads texts.
const STAGE: &str = "-- One row a review, and what it says.\n-- @stage incremental key(review_id)\n\
     with heard as (\n    select\n        review_id,\n        sentiment(text, language) as said\n    from core.reviews\n)\n\n\
     select\n    review_id,\n    said['score'] as score,\n    said['version'] as version\nfrom heard\n";

const MODEL: &str = r#"kind = "sentiment"
description = "Whether a review is content"

[texts]
table = "core.reviews"
text = "text"
time = "reviewed_at"
positive = "stars >= 4"
negative = "stars <= 2"

[split]
test_share = 0.25

[training]
bits = 16
"#;

/// A shop whose customers write what they think, in two languages.
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
        let contract = "kind = \"reviews\"\npath = \"reviews/*.csv\"\nformat = \"csv\"\nevent_time = \"at\"\n[columns]\n\
             review_id = \"string\"\nmember = \"string\"\nat = \"timestamp\"\nstars = \"int32\"\nlanguage = \"string\"\ntext = \"string\"\n\
             [[identifiers]]\ntype = \"member_id\"\nvalue = \"member\"\n";
        let rules = "priority = [\"member_id\"]\n[types.member_id]\nunique = true\n";
        let shop = Self { folder: ProjectFolder::of_one_source("reviews", contract, rules, REVIEWS_SQL) };
        shop.write("pipelines/churn/models/sentiment.toml", MODEL);
        shop.bring("a", &reviews());
        shop.run();
        shop
    }

    fn bring(&self, name: &str, rows: &str) {
        let header = "review_id,member,at,stars,language,text\n";
        self.write(&format!("in/reviews/{name}.csv"), &format!("{header}{rows}"));
        self.ingest();
    }

    fn run(&self) -> Value {
        self.json(&["run", "--as-of", AS_OF])
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = succeed(self.command(arguments).arg("--json"));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[track_caller]
    fn refuses(&self, arguments: &[&str], code: i32, told: &[&str]) {
        let before = commits(self.path());
        let output = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        told.iter().for_each(|told| assert!(said.contains(told), "{told}: {said}"));
        assert_eq!(before, commits(self.path()), "something was kept");
    }

    fn train(&self) -> Value {
        self.json(&["train", "--model", "sentiment"])
    }

    fn promote(&self, version: &str) {
        succeed(&mut self.command(&["models", "promote", "sentiment", version]));
    }
}

fn promoted() -> Shop {
    let shop = Shop::new();
    assert_eq!(shop.train()["version"], 1);
    shop.promote("1");
    shop
}

/// Reviews of 300 days, one a line; one in twenty says the contrary of its stars, one in ten is a copy, some say nothing either way.
fn reviews() -> String {
    let first = NaiveDate::from_ymd_opt(2025, 1, 1).unwrap();
    let mut random = Random::new(SEED);
    let mut text = String::new();
    for number in 0..900_u64 {
        let date = first + Days::new(number / 3);
        let is_good = random.chance(60);
        let english = random.chance(40);
        let said_good = is_good != random.chance(5);
        let words: [&[&str]; 3] = match (english, said_good) {
            (true, true) => [
                &["great", "lovely", "perfect"],
                &["fits well", "fast delivery", "very happy"],
                &["thanks", "again", "five stars"],
            ],
            (true, false) => [
                &["awful", "broken", "terrible"],
                &["never again", "late delivery", "very sad"],
                &["refund", "avoid", "one star"],
            ],
            (false, true) => [
                &["质量很好", "非常满意", "很喜欢"],
                &["物流很快", "客服热情", "包装精美"],
                &["下次还来", "推荐", "好评"],
            ],
            (false, false) => [
                &["质量很差", "非常失望", "太难用了"],
                &["物流很慢", "客服恶劣", "包装破损"],
                &["再也不买", "退货", "差评"],
            ],
        };
        let parts: Vec<&str> = words.iter().map(|words| *random.pick(words)).collect();
        let item = if random.chance(10) { 0 } else { number };
        let text_of = format!("{} no {item} {}", parts[0], parts[1..].join(" "));
        let stars = match (random.chance(10), is_good) {
            (true, _) => 3,
            (false, true) => 5,
            (false, false) => 1,
        };
        let language = if english { "en" } else { "zh" };
        text.push_str(&format!("v{number},M{},{date}T08:00:00Z,{stars},{language},{text_of}\n", number % 50));
    }
    text
}

fn auc(measures: &Value, judged_on: &str) -> f64 {
    let rows = measures.as_array().unwrap();
    let row = rows.iter().find(|row| row["judged_on"] == judged_on && row["measure"] == "auc");
    row.unwrap_or_else(|| panic!("{judged_on} in {measures}"))["value"].as_f64().unwrap()
}

#[test]
fn a_model_of_texts_is_trained_once_promoted_and_rolled_back_like_others() {
    let shop = Shop::new();
    let trained = shop.train();
    assert_eq!((&trained["outcome"], &trained["version"]), (&"made".into(), &1.into()), "seed {SEED}: {trained}");
    for judged_on in ["out_of_time", "zh", "en"] {
        assert!(auc(&trained["measures"], judged_on) > 0.9, "seed {SEED}: {trained}");
    }
    let counts = &trained["rows"];
    assert!(counts["copies"].as_u64() > Some(0), "{trained}");
    let (learning, test) = (counts["learning"].as_f64().unwrap(), counts["test"].as_f64().unwrap());
    assert!((test / (learning + test) - 0.25).abs() < 0.01, "{trained}");
    // No text that teaches is newer than one that judges.
    assert!(trained["taught"][1].as_str() <= trained["judged"][0].as_str(), "{trained}");

    let before = commits(shop.path());
    assert_eq!((&shop.train()["outcome"], &shop.train()["version"]), (&"unchanged".into(), &1.into()));
    assert_eq!(before, commits(shop.path()));
    let forced = shop.json(&["train", "--model", "sentiment", "--again"]);
    assert_eq!((&forced["version"], &forced["artefact_hash"]), (&2.into(), &trained["artefact_hash"]));
    shop.refuses(
        &["sql", "select sentiment('great')"],
        2,
        &["`sentiment` has no champion", "models promote sentiment 2"],
    );

    shop.promote("1");
    shop.promote("2");
    let champion = |version: &str| {
        let listed = shop.json(&["models", "list"]);
        let listed =
            listed.as_array().unwrap().iter().find(|listed| listed["aliases"][0] == "champion").unwrap().clone();
        assert_eq!((&listed["model"], listed["version"].to_string()), (&"sentiment".into(), version.to_owned()));
        assert_eq!(shop.query("select sentiment('great')['version'] as version")[0]["version"].to_string(), version);
    };
    champion("2");
    succeed(&mut shop.command(&["models", "rollback", "sentiment"]));
    champion("1");
    let told = succeed(&mut shop.command(&["models", "show", "sentiment", "1"]));
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    for part in ["hashed n-grams", "% positive", "in Chinese", "neutral_share"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!(shop.json(&["models", "compare", "sentiment", "1", "2"])["same_rows_judge"], true);

    // More texts came: the champion is what the next one is held against, over texts that it has not learnt from.
    let later = reviews().replace("v", "w").replace(" no ", " nr ");
    shop.bring(
        "b",
        &later.lines().rev().take(400).map(|line| line.replace("2025-", "2026-") + "\n").collect::<String>(),
    );
    shop.run();
    let trained = shop.train();
    assert_eq!(trained["version"], 3, "{trained}");
    let beside: Vec<&Value> = trained["measures"].as_array().unwrap().iter().map(|row| &row["baseline"]).collect();
    assert!(beside.iter().all(|baseline| *baseline == "champion"), "{trained}");

    // What is about customers is not for texts, and the other way round.
    for arguments in [
        ["score", "--model", "sentiment"].as_slice(),
        &["models", "shadow", "sentiment", "2"],
        &["models", "watch", "sentiment"],
        &["models", "test", "start", "sentiment", "2"],
        &["models", "import", "sentiment", "."],
    ] {
        shop.refuses(arguments, 2, &["`sentiment` is about texts", "sentiment(text)"]);
    }
    shop.refuses(&["sql", "select predict('sentiment', r) from core.reviews r"], 2, &["`sentiment` is about texts"]);
}

#[test]
fn every_text_has_a_defined_answer() {
    let shop = promoted();
    let read = |text: &str| shop.query(&format!("select sentiment({text}) as said"))[0]["said"].clone();
    let tone = |text: &str| read(text)["tone"].as_str().unwrap().to_owned();
    assert_eq!(
        (tone("'质量很好，物流很快'"), tone("'物流很慢，差评'")),
        ("positive".to_owned(), "negative".to_owned())
    );
    assert_eq!(
        (tone("'lovely, fast delivery'"), tone("'BROKEN! Never again'")),
        ("positive".to_owned(), "negative".to_owned())
    );
    let answer = read("'very happy, thanks'");
    assert_eq!((&answer["language"], &answer["version"]), (&"en".into(), &1.into()), "{answer}");
    let (score, confidence) = (answer["score"].as_f64().unwrap(), answer["confidence"].as_f64().unwrap());
    assert!(score > 0.3 && (score - (2.0 * confidence - 1.0)).abs() < 1e-12, "{answer}");

    for text in ["''", "'   '", "'。。。'", "'🙂🙂'", "'Спасибо'"] {
        let said = read(text);
        let nothing = json!({"score": 0.0, "confidence": 0.5, "tone": "neutral", "language": "unknown", "version": 1});
        assert_eq!(said, nothing, "{text}");
    }
    assert!(read("null").is_null() && read("cast(null as varchar)").is_null());
    assert_eq!(tone("repeat('很喜欢 包装精美 推荐 ', 100000)"), "positive", "three megabytes");
    // Who knows the language says it; where nobody does, the script tells.
    assert_eq!(read("'好评', 'ZH'")["language"], "zh");
    assert_eq!(read("'好评', null")["language"], "zh");
    assert_eq!(read("'trop bien', 'fr'")["language"], "fr");
    shop.refuses(&["sql", "select sentiment()"], 2, &["sentiment"]);

    // Over a table, each text by itself.
    let table = shop.query(
        "select count(*) as n, count(*) filter (where (r.stars > 3) = (sentiment(r.text)['score'] > 0)) as right from core.reviews r where r.stars <> 3",
    );
    let share = table[0]["right"].as_f64().unwrap() / table[0]["n"].as_f64().unwrap();
    assert!(share > 0.9, "{table:?}");
}

#[test]
fn a_stage_that_reads_texts_is_made_before_there_is_a_model_and_follows_the_promoted_one() {
    let shop = Shop::new();
    shop.write("sql/profile/heard.sql", STAGE);
    succeed(&mut shop.command(&["check"]));
    let run = || {
        let report = shop.run();
        let stages = report["stages"].as_array().unwrap();
        stages.iter().find(|stage| stage["stage"] == "profile.heard").unwrap().clone()
    };
    let counts = || {
        shop.query("select count(*) as n, count(score) as read, max(version) as version from profile.heard")[0].clone()
    };
    assert_eq!(run()["outcome"], "built");
    assert_eq!(counts(), json!({"n": 900, "read": 0, "version": null}), "nobody can read yet");
    assert_eq!(run()["outcome"], "fresh");
    shop.train();
    assert_eq!(run()["outcome"], "fresh", "a challenger changes nothing");
    shop.promote("1");
    let planned = shop.json(&["plan", "--as-of", AS_OF]);
    assert!(planned.to_string().contains("model sentiment: version 1"), "{planned}");
    let made = run();
    assert_eq!(made["outcome"], "built", "{made}");
    assert_eq!(made["refresh"]["reason"], "model sentiment: version 1", "{made}");
    assert_eq!(counts(), json!({"n": 900, "read": 900, "version": 1}));
    let before = commits(shop.path());
    assert_eq!(run()["outcome"], "fresh");
    assert_eq!(before, commits(shop.path()));

    // One review came: one row is worked out.
    shop.bring("b", "late,M1,2025-11-29T08:00:00Z,5,en,lovely\n");
    let by_key = run();
    assert_eq!((&by_key["refresh"]["kind"], &by_key["refresh"]["keys"]), (&"keys".into(), &1.into()), "{by_key}");
    succeed(&mut shop.command(&["verify", "--sample", "100%", "--select", "profile.heard"]));

    // Damaged weights: no promotion, no query, and the stage is left as it is.
    let listed = shop.json(&["models", "show", "sentiment", "1"]);
    let path = shop.path().join("lake/_holdfast").join(listed["artefact"].as_str().unwrap());
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    shop.refuses(&["models", "promote", "sentiment", "1"], 5, &["is not what was written", "train again"]);
    shop.refuses(&["sql", "select sentiment(r.text) from core.reviews r"], 2, &["is not what was written"]);
    shop.bring("c", "later,M1,2025-11-30T08:00:00Z,5,en,lovely\n");
    let output = shop.command(&["run", "--as-of", AS_OF]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("is not what was written"), "{said}");
    assert_eq!(counts()["n"], 901);
}

#[test]
fn what_cannot_teach_is_told_with_its_place_and_nothing_is_kept() {
    let shop = Shop::new();
    let train = ["train", "--model", "sentiment"];
    let refused = |from: &str, to: &str, told: &[&str]| {
        assert!(MODEL.contains(from), "{from}");
        shop.write("pipelines/churn/models/sentiment.toml", &MODEL.replacen(from, to, 1));
        shop.refuses(&train, 2, told);
    };
    refused("stars >= 4", "starz >= 4", &["sentiment.toml:8:12", "positive", "did you mean `stars`?"]);
    refused("text = \"text\"", "text = \"texts\"", &["sentiment.toml:6:8", "texts"]);
    refused("stars >= 4", "stars >= 9", &["which teach, need both kinds", "none is positive"]);
    refused("core.reviews", "core.revues", &["core.revues is not in the lake"]);
    refused("bits = 16", "bits = 60", &["sentiment.toml:15:1", "from 8 to 24"]);
    refused("bits = 16", "version = \"x\"", &["the registry's to say"]);
    refused("0.25", "0.9", &["sentiment.toml:12:14", "0.05 to 0.5"]);
    refused("kind = \"sentiment\"", "kind = \"sentimant\"", &["sentiment.toml:1:8", "unknown variant"]);
    shop.write("pipelines/churn/models/moods.toml", MODEL);
    shop.refuses(&["train", "--model", "moods"], 2, &["call this file sentiment.toml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sentiment_is_asked_over_flight_sql_and_the_wire_of_postgresql() {
    let shop = promoted();
    let mut command = shop.command(&["serve", "--listen", "127.0.0.1:0", "--pg-listen", "127.0.0.1:0"]);
    let mut server = Process(command.stderr(Stdio::piped()).spawn().unwrap());
    let lines = lines_of(&mut server.0);
    let said = std::iter::from_fn(|| lines.recv_timeout(PATIENCE).ok()).find(|line| line.contains("Ctrl-C")).unwrap();
    let address = |before: &str| {
        let after = said.split(before).nth(1).unwrap_or_else(|| panic!("no {before} in {said}"));
        after.split([',', '/', ' ']).next().unwrap().to_owned()
    };
    let (grpc, postgres) = (address("grpc://"), address("postgresql://"));
    let channel = Channel::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
    let mut client = FlightSqlServiceClient::new(channel);
    let whole = flight_sql(&mut client, "select sentiment('非常满意 包装精美 推荐') as said").await;
    let said = whole[0].column(0).as_struct();
    let score = said.column_by_name("score").unwrap().as_primitive::<Float64Type>().value(0);
    assert!(score > 0.3, "{whole:?}");
    assert_eq!(said.column_by_name("version").unwrap().as_primitive::<Int32Type>().value(0), 1);
    let sql = "select count(*) as n from core.reviews r where sentiment(r.text, r.language)['tone'] = 'negative'";
    let count = |batches: &[RecordBatch]| batches[0].column(0).as_primitive::<arrow::datatypes::Int64Type>().value(0);
    let negative = count(&flight_sql(&mut client, sql).await);
    assert!((200..500).contains(&negative), "{negative}");
    assert_eq!(simple_query(&postgres, sql)[0][0], Some(negative.to_string()));
    let scores =
        simple_query(&postgres, "select sentiment('非常满意 包装精美 推荐')['score'], sentiment(null)['score']");
    assert!((scores[0][0].as_ref().unwrap().parse::<f64>().unwrap() - score).abs() < 1e-12, "{scores:?}");
    assert_eq!(scores[0][1], None);
}

/// The shipped file learns from the stars of the demo's reviews, and the shipped stages tell whose words turn sour.
#[test]
fn the_shipped_model_of_texts_learns_from_the_demo_and_its_trend_is_told() {
    let folder = tempfile::tempdir().unwrap();
    succeed(holdfast().args(["demo", "--no-serve", "--customers", "600", "--days", "400", "--dir"]).arg(folder.path()));
    let command = |arguments: &[&str]| {
        let mut command = holdfast();
        command.arg("--lake").arg(folder.path().join("lake"));
        command.arg("--identity-key").arg(folder.path().join("identity.key")).args(arguments);
        command
    };
    let counts = "select count(*) as n, count(score) as read from profile.text_sentiment";
    let before = &rows(folder.path(), counts)[0];
    assert!(before["n"].as_u64() > Some(200) && before["read"] == 0, "{before}");
    let output = succeed(&mut command(&["train", "--model", "sentiment", "--json"]));
    let trained: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(auc(&trained["measures"], "out_of_time") > 0.85, "{trained}");
    succeed(&mut command(&["models", "promote", "sentiment", "1"]));
    // The year that the trend looks at is the one before the run.
    let last = "select cast(cast(max(written_at) as date) as varchar) as day from profile.text_sentiment";
    let last = rows(folder.path(), last)[0]["day"].as_str().unwrap().to_owned();
    succeed(&mut command(&["run", "--select", "profile.text_sentiment+", "--as-of", &last]));
    let after = &rows(folder.path(), counts)[0];
    assert_eq!((&after["n"], &after["read"]), (&before["n"], &before["n"]), "{after}");
    let trend = rows(
        folder.path(),
        "select count(*) as n, count(*) filter (where is_falling) as falling, count(*) filter (where is_falling_two_months) as running, \
         min(contentment) as low, max(contentment) as high from profile.sentiment_trend",
    );
    let number = |name: &str| trend[0][name].as_f64().unwrap();
    assert!(number("n") > 100.0 && number("falling") > number("running") && number("running") > 0.0, "{trend:?}");
    assert!(number("low") >= 0.0 && number("high") <= 1.0 && number("low") < number("high"), "{trend:?}");
}
