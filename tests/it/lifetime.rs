//! A model of repeat buying: fitted to a shop's own purchases, kept like other models, asked by `p_alive`, `expected_purchases` and `clv` in SQL.

use chrono::{Days, NaiveDate};
use holdfast_testkit::Random;
use serde_json::Value;

use crate::train::Shop;
use crate::{commits, succeed};

const SEED: u64 = 20_260_501;

const MODEL: &str = r#"kind = "lifetime"
description = "Who buys again"

[purchases]
table = "core.orders"
time = "ordered_at"
amount = "amount"
where = "status <> 'cancelled'"

[model]
of = "bg_nbd"
judged_units = 13

[value]
units = 52
discount = 0.002
margin = 0.3
"#;

/// One row a customer: what they did, in weeks up to now(), and what is to be expected of them.
const STAGE: &str = r#"-- One row a customer who has ordered.
-- @stage incremental key(customer_id)
with placed as (
    select distinct
        customer_id,
        cast(ordered_at as date) as day
    from core.orders
    where customer_id is not null
        and status <> 'cancelled'
        and ordered_at <= now()
),

told as (
    select
        customer_id,
        count(*) - 1 as repeats,
        cast(max(day) - min(day) as double) / 7.0 as last_weeks,
        cast(cast(now() as date) - min(day) as double) / 7.0 as age_weeks
    from placed
    group by customer_id
)

select
    customer_id,
    p_alive(repeats, last_weeks, age_weeks) as alive,
    expected_purchases(repeats, last_weeks, age_weeks, 13) as purchases_13w,
    clv(repeats, last_weeks, age_weeks, 40.0) as value
from told
"#;

/// Customers who order at a rate of their own, and after each order stop with a probability of their own.
fn orders() -> String {
    let first = NaiveDate::from_ymd_opt(2024, 1, 1).unwrap();
    let mut random = Random::new(SEED);
    let mut text = String::new();
    for customer in 0..600_u64 {
        let mut random = random.fork();
        let gap_days = *random.pick(&[10.0, 20.0, 40.0, 90.0]);
        let stops = *random.pick(&[2, 5, 15, 40]);
        let amount = 10 + random.below(90);
        let mut day = random.below(300) as f64;
        let mut number = 0;
        while day < 546.0 {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a day")]
            let date = first + Days::new(day as u64);
            let paid = amount + random.below(20);
            text.push_str(&format!("o{customer}-{number},M{customer},{date}T08:00:00Z,{paid}.00,,completed,0\n"));
            if random.chance(stops) {
                break;
            }
            number += 1;
            let unit = (random.below(1_000_000) + 1) as f64 / 1e6;
            day += 1.0 - unit.ln() * gap_days;
        }
    }
    text
}

fn shop() -> Shop {
    let shop = Shop::of(&orders());
    shop.write("pipelines/churn/models/lifetime.toml", MODEL);
    shop
}

#[test]
fn repeat_buying_is_fitted_once_promoted_and_asked_in_queries_and_stages() {
    let shop = shop();
    let ask = |what: &str| shop.query(&format!("select {what} as said"))[0]["said"].clone();
    let refused = |what: &str, told: &[&str]| {
        let (code, said) = shop.fails(&["sql", &format!("select {what} as said")]);
        assert_eq!(code, Some(2), "{said}");
        told.iter().for_each(|told| assert!(said.contains(told), "{told}: {said}"));
    };
    refused("p_alive(1, 2, 3)", &["`lifetime` has no version yet", "train --model lifetime"]);
    let trained = shop.json(&["train", "--model", "lifetime"]);
    assert_eq!((&trained["outcome"], &trained["version"]), (&"made".into(), &1.into()), "seed {SEED}: {trained}");
    let (expected, made) = (trained["expected"].as_f64().unwrap(), trained["made"].as_f64().unwrap());
    assert!((expected / made - 1.0).abs() < 0.2, "seed {SEED}: {expected} and {made}");
    let auc = trained["measures"].as_array().unwrap().iter().find(|row| row["measure"] == "auc").unwrap();
    assert!(auc["value"].as_f64() > Some(0.8), "seed {SEED}: {auc}");
    assert_eq!(auc["baseline"], "recency");
    let before = commits(shop.path());
    assert_eq!(shop.json(&["train", "--model", "lifetime"])["outcome"], "unchanged");
    assert_eq!(before, commits(shop.path()));
    let forced = shop.json(&["train", "--model", "lifetime", "--again"]);
    assert_eq!((&forced["version"], &forced["artefact_hash"]), (&2.into(), &trained["artefact_hash"]));
    refused("p_alive(1, 2, 3)", &["`lifetime` has no champion", "models promote lifetime 2"]);
    succeed(&mut shop.command(&["models", "promote", "lifetime", "1"]));
    let text = succeed(&mut shop.command(&["models", "show", "lifetime", "1"]));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("BG/NBD") && text.contains("% bought nothing") && text.contains("log_likelihood"), "{text}");

    let number = |what: &str| ask(what).as_f64().unwrap();
    assert!((number("p_alive(0, 0, 30)") - 1.0).abs() < 1e-12, "who never bought again has not stopped, to BG/NBD");
    assert!(number("p_alive(4, 30, 31)") > number("p_alive(4, 30, 60)"), "the longer away");
    assert!(number("expected_purchases(4, 30, 31, 13)") < number("expected_purchases(4, 30, 31, 26)"));
    assert!(number("clv(4, 30, 31, 80)") > number("clv(4, 30, 31, 20)") && number("clv(0, 0, 1, 0)") > 0.0);
    // Three in ten of what all purchases of a year would bring, and less for the discount.
    let whole = number("expected_purchases(4, 30, 31, 52)") * 80.0 * 0.3;
    assert!((0.4 * whole..whole * 1.2).contains(&number("clv(4, 30, 31, 80)")), "{whole}");
    assert!(ask("p_alive(null, 2, 3)").is_null() && ask("clv(4, 30, 31, null)").is_null());
    refused("p_alive(1, 5, 3)", &["p_alive", "after the end of observation"]);
    refused("p_alive(-1, 2, 3)", &["repeats are a whole number"]);
    refused("expected_purchases(1, 2, 3, -4)", &["the number of units is below 0"]);
    refused("p_alive(1, 2)", &["p_alive"]);

    shop.write("sql/risk/value.sql", STAGE);
    let run = || {
        shop.run();
        let report = shop.json(&["run", "--as-of", crate::train::AS_OF]);
        report["stages"].as_array().unwrap().iter().find(|stage| stage["stage"] == "risk.value").unwrap().clone()
    };
    assert_eq!(run()["outcome"], "fresh");
    let sums = &shop.query(
        "select count(*) as n, count(value) as valued, min(alive) as low, max(alive) as high, min(purchases_13w) as fewest from risk.value",
    )[0];
    assert!(sums["n"].as_u64() > Some(500) && sums["n"] == sums["valued"], "{sums}");
    assert!(
        sums["low"].as_f64() < Some(0.1) && sums["high"].as_f64() <= Some(1.0) && sums["fewest"].as_f64() >= Some(0.0)
    );
    shop.bring("b", "late,M0,2025-06-29T08:00:00Z,10.00,,completed,0\n");
    succeed(&mut shop.command(&["run", "--as-of", crate::train::AS_OF]));
    succeed(&mut shop.command(&["verify", "--sample", "100%", "--select", "risk.value"]));
    succeed(&mut shop.command(&["models", "promote", "lifetime", "2"]));
    let planned = shop.json(&["plan", "--as-of", crate::train::AS_OF]);
    assert!(planned.to_string().contains("model lifetime: version 2"), "{planned}");

    // Parameters that are not what was written, and commands for other kinds of models.
    let artefact = shop.json(&["models", "show", "lifetime", "1"])["artefact"].as_str().unwrap().to_owned();
    let path = shop.path().join("lake/_holdfast").join(artefact);
    std::fs::write(&path, b"{}").unwrap();
    let (code, said) = shop.fails(&["models", "promote", "lifetime", "1"]);
    assert!(code == Some(5) && said.contains("is not what was written"), "{said}");
    let (code, said) = shop.fails(&["models", "shadow", "lifetime", "1"]);
    assert!(code == Some(2) && said.contains("is about repeat buying"), "{said}");
}

#[test]
fn the_other_model_of_repeat_buying_is_fitted_too() {
    let shop = shop();
    shop.write("pipelines/churn/models/lifetime.toml", &MODEL.replace("bg_nbd", "pareto_nbd"));
    let trained = shop.json(&["train", "--model", "lifetime"]);
    assert_eq!(trained["label"], "Pareto/NBD");
    succeed(&mut shop.command(&["models", "promote", "lifetime", "1"]));
    let said: &Value = &shop.query("select p_alive(0, 0, 30) as said")[0]["said"];
    assert!(said.as_f64() < Some(1.0), "to Pareto/NBD one may stop without buying: {said}");
}

#[test]
fn purchases_that_tell_nothing_are_refused_with_their_place() {
    let shop = shop();
    let refused = |from: &str, to: &str, told: &[&str]| {
        assert!(MODEL.contains(from), "{from}");
        shop.write("pipelines/churn/models/lifetime.toml", &MODEL.replacen(from, to, 1));
        let before = commits(shop.path());
        let (code, said) = shop.fails(&["train", "--model", "lifetime"]);
        assert_eq!(code, Some(2), "{said}");
        told.iter().for_each(|told| assert!(said.contains(told), "{told}: {said}"));
        assert_eq!(before, commits(shop.path()), "something was kept");
    };
    refused("status <> 'cancelled'", "statuz <> 'cancelled'", &["lifetime.toml:8:9", "did you mean `status`?"]);
    refused("amount = \"amount\"", "amount = \"amounts\"", &["lifetime.toml:7:10", "amounts"]);
    refused("core.orders", "core.ordres", &["core.ordres is not in the lake"]);
    refused("bg_nbd", "bg_nbt", &["lifetime.toml:11:6", "unknown variant"]);
    refused("judged_units = 13", "judged_units = 0", &["lifetime.toml:12:16", "from 1 to 1000"]);
    refused("margin = 0.3", "margin = 3", &["lifetime.toml:17:10", "at most 1"]);
    refused(
        "status <> 'cancelled'",
        "order_id like '%-0'",
        &["tell no model of repeat buying", "no customer has bought twice"],
    );
}
