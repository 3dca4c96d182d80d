//! Trees that are told what a sequence model makes of a customer's weeks: they score where that helps, and nowhere else.

use chrono::{Days, NaiveDate};
use holdfast_testkit::Random;
use serde_json::Value;

use crate::scored_rows::refused_by_hybrid;
use crate::train::Shop;
use crate::{commits, succeed};

const SEED: u64 = 20_260_401;

/// One row a customer and week in which something happened.
const WEEKS: &str = r#"-- One row a customer and week before now() with an order.
-- @stage incremental key(customer_id)
with placed as (
    select
        customer_id,
        cast(floor((cast(now() as date) - cast(ordered_at as date)) / 7.0) as bigint) as weeks_ago,
        amount
    from core.orders
    where ordered_at <= now()
        and customer_id is not null
)

select
    customer_id,
    arrow_cast(now(), 'Timestamp(Microsecond, Some("UTC"))') as event_timestamp,
    weeks_ago,
    count(*) as orders,
    cast(sum(amount) as double) as spend,
    count(*) filter (where amount > 500) as large
from placed
group by
    customer_id,
    weeks_ago
"#;

const SEQUENCE: &str = "[sequence]\nstage = \"features.weeks\"\nsteps = 12\nfolds = 2\n\n[sequence.training]\nhidden = 8\nepochs = 25\nlearning_rate = 0.03\nbatch = 128\nseed = 3\n\n[baselines]";

fn shop(orders: &str) -> Shop {
    let shop = Shop::of(orders);
    shop.write("sql/features/weeks.sql", WEEKS);
    shop.with_model("[baselines]", SEQUENCE);
    shop.run();
    shop
}

/// A habit that only its order gives away: each cycle of six weeks has a large and a small order early, and one of a week later; whoever has the large one first stays, and
/// whoever has the small one first is gone after the cycle. What they sum to is the same.
fn orders() -> String {
    let first = NaiveDate::from_ymd_opt(2024, 1, 1).unwrap();
    let mut random = Random::new(SEED);
    let mut text = String::new();
    for customer in 0..500_u64 {
        let mut day = random.below(480);
        let mut number = 0;
        loop {
            let leaves = random.chance(22);
            let (one, other) = if leaves { (30, 900) } else { (900, 30) };
            for (at, amount) in [(day, one), (day + 7 + random.below(7), other)] {
                if at < 546 {
                    let date = first + Days::new(at);
                    text.push_str(&format!(
                        "o{customer}-{number},M{customer},{date}T08:00:00Z,{amount}.00,,completed,0\n"
                    ));
                    number += 1;
                }
            }
            day += 28 + random.below(14);
            if leaves || day >= 546 {
                break;
            }
        }
    }
    text
}

fn ablation(shown: &Value) -> &Value {
    &shown["notes"]["sequence"]["ablation"]
}

#[test]
fn a_hybrid_scores_where_order_tells_and_is_replayed_shadowed_and_watched_like_trees() {
    let shop = shop(&orders());
    let trained = shop.json(&["train", "--model", "churn"]);
    let told = &trained["ablation"];
    assert_eq!(told["hybrid_wins"], true, "seed {SEED}: {told}");
    assert!(told["auc"]["difference"]["low"].as_f64() > Some(0.05), "seed {SEED}: {told}");
    let shown = shop.json(&["models", "show", "churn", "1"]);
    assert_eq!(ablation(&shown), told);
    assert_eq!(shown["engine"], "hessboost, told by an LSTM");
    assert!(shown["signature"].to_string().contains("sequence_probability"), "{shown}");
    let text = succeed(&mut shop.command(&["models", "show", "churn", "1"]));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("told they are better") && text.contains("the sequence model alone"), "{text}");

    // Nothing changed: nothing is done. The same again makes the same bytes.
    assert_eq!(shop.json(&["train", "--model", "churn"])["outcome"], "unchanged");
    let forced = shop.json(&["train", "--model", "churn", "--again"]);
    assert_eq!((&forced["version"], &forced["artefact_hash"]), (&2.into(), &trained["artefact_hash"]));

    // Promoted, it has answered its examples; then it scores, and says why in words.
    succeed(&mut shop.command(&["models", "promote", "churn", "1"]));
    let scored = shop.json(&["score", "--model", "churn"]);
    assert!(scored["customers"].as_u64() > Some(50), "{scored}");
    let before = commits(shop.path());
    assert_eq!(shop.json(&["score", "--model", "churn"])["outcome"], "unchanged");
    assert_eq!(before, commits(shop.path()));
    let worded = shop.query(
        "select count(*) as n from risk.churn_probability where raises_1 like 'Probability by the order%' or lowers_1 like 'Probability by the order%'",
    );
    assert!(worded[0]["n"].as_u64() > Some(0), "{worded:?}");
    // The same version made twice says the same of everybody.
    let shadow = shop.json(&["models", "shadow", "churn", "2"]);
    assert_eq!(shadow["beside_champion"]["other_band"], 0, "{shadow}");
    assert!(shadow["beside_champion"]["mean_difference"].as_f64().unwrap().abs() < 1e-12, "{shadow}");
    let watched = shop.json(&["models", "watch", "churn"]);
    assert_eq!(watched["outcome"], "made", "{watched}");
    let drift = shop.query(
        "select count(*) as n from metric.model_quality where subject = 'sequence_probability' and measure = 'psi'",
    );
    assert_eq!(drift[0]["n"], 1, "{drift:?}");
    // A challenger is held against it over the same rows.
    shop.with_model("[baselines]", &SEQUENCE.replace("seed = 3", "seed = 4"));
    let third = shop.json(&["train", "--model", "churn"]);
    assert_eq!(third["version"], 3);

    // A row holds no weeks.
    let (code, said) = shop.fails(&["sql", "select predict('churn', f) from features.f f"]);
    assert_eq!(code, Some(2), "{said}");
    let sent = refused_by_hybrid(&shop);
    for told in ["features.weeks", "holdfast score --model churn", "risk.churn_probability"] {
        assert!(said.contains(told), "{told}: {said}");
        assert!(sent.contains(told), "{told}: {sent}");
    }

    // Steps of another day are not those of the features.
    succeed(&mut shop.command(&["run", "--as-of", "2025-07-03T00:00:00Z", "--select", "features.f"]));
    let (code, said) = shop.fails(&["score", "--model", "churn"]);
    assert!(code == Some(2) && said.contains("features.weeks counts steps from 2025-07-01"), "{said}");
    shop.run();

    // Damaged weights, and steps that are gone.
    let folder = shop.path().join("lake/_holdfast/models/churn");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let weights: Vec<_> = files.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors")).collect();
    let whole: Vec<_> = weights.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(!weights.is_empty());
    weights.iter().zip(&whole).for_each(|(path, whole)| std::fs::write(path, &whole[..whole.len() - 4]).unwrap());
    let (code, said) = shop.fails(&["models", "promote", "churn", "1"]);
    assert!(code == Some(5) && said.contains("is not what was written"), "{said}");
    weights.iter().zip(&whole).for_each(|(path, whole)| std::fs::write(path, whole).unwrap());
    shop.write("sql/features/weeks.sql", &WEEKS.replace("    count(*) as orders,\n", ""));
    shop.run();
    let (code, said) = shop.fails(&["models", "promote", "churn", "2"]);
    assert!(code == Some(2) && said.contains("orders") && said.contains("features.weeks"), "{said}");
    let (code, said) = shop.fails(&["score", "--model", "churn"]);
    assert!(code == Some(2) && said.contains("features.weeks has not what the model is told of"), "{said}");
}

#[test]
fn plain_trees_score_where_order_tells_nothing() {
    let shop = shop(&crate::train::orders(|_| true));
    let trained = shop.json(&["train", "--model", "churn"]);
    assert_eq!(trained["ablation"]["hybrid_wins"], false, "{trained}");
    let shown = shop.json(&["models", "show", "churn", "1"]);
    assert_eq!((ablation(&shown), &shown["engine"]), (&trained["ablation"], &"hessboost".into()));
    assert!(!shown["signature"].to_string().contains("sequence_probability"));
    let kept = std::fs::read_dir(shop.path().join("lake/_holdfast/models/churn")).unwrap();
    assert!(kept.map(|entry| entry.unwrap().path()).all(|path| path.extension().unwrap() != "safetensors"));
    // The trees are those that a file without sequences makes, and they are asked by row.
    succeed(&mut shop.command(&["models", "promote", "churn", "1"]));
    assert!(shop.query("select max(predict('churn', f)) as most from features.f f")[0]["most"].as_f64() > Some(0.0));
    shop.with_model("[baselines]", "[baselines]");
    let plain = shop.json(&["train", "--model", "churn"]);
    assert_eq!((&plain["version"], &plain["artefact_hash"]), (&2.into(), &trained["artefact_hash"]));
}

#[test]
fn steps_that_cannot_be_learnt_from_are_told_with_their_place() {
    let shop = shop(&crate::train::orders(|_| true));
    let refused = |from: &str, to: &str, told: &[&str]| {
        assert!(SEQUENCE.contains(from), "{from}");
        shop.with_model("[baselines]", &SEQUENCE.replacen(from, to, 1));
        shop.refuses(2, told);
    };
    refused("features.weeks", "features.weekz", &["churn.toml:21:9", "did you mean `features.weeks`?"]);
    refused("steps = 12", "steps = 1", &["churn.toml:22:9", "from 2 to 520"]);
    refused("hidden = 8", "hidden = 0", &["churn.toml:26:1", "from 1 to 1024"]);
    refused("folds = 2", "ago = \"week_ago\"", &["churn.toml:21:9", "did you mean `weeks_ago`?"]);
    refused("folds = 2", "exclude = [\"money\"]", &["churn.toml:23:12", "no column `money`"]);
    // Who looks past the moment is found out.
    shop.with_model("[baselines]", SEQUENCE);
    shop.write(
        "sql/features/weeks.sql",
        &WEEKS
            .replace("    where ordered_at <= now()\n        and customer_id", "    where customer_id")
            .replace("floor((cast(now()", "floor(abs(cast(now()"),
    );
    shop.run();
    shop.refuses(2, &["features see the future", "the steps of features.weeks"]);
    // So is what becomes known later without a date.
    shop.write(
        "sql/features/weeks.sql",
        &WEEKS.replace(
            "        amount\n    from",
            "        case when status = 'cancelled' then 0 else amount end as amount\n    from",
        ),
    );
    shop.run();
    shop.refuses(2, &["core.orders.status", "accept_changed_later"]);
}
