//! On-demand features through the front door: declared beside views, the same in training sets and from memory, proved by what is compared.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow::util::display::array_value_to_string;
use chrono::{DateTime, SecondsFormat, Utc};
use holdfast_feature_store::{Asked, OnlineColumns, OnlineStore, ServedLog, ValueStatus, compare_served};
use holdfast_lake::{Lake, StoreOptions};
use holdfast_types::FixedClock;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::features::{customer, now, order, run, shop};
use crate::stages::Shop;
use crate::succeed;

const BASKET: &str = "[basket]\ndescription = \"The basket in hand\"\nrequest = { amount = \"float64\", channel = \"string\" }\n\n\
    [basket.features]\nto_usual = \"request.amount / nullif(cast(spend.spend as double), 0)\"\n\
    orders_and_year = \"coalesce(spend.orders, 0) + date_part('year', event_timestamp)\"\n";

pub(crate) fn shop_with_baskets() -> Shop {
    let shop = shop();
    shop.write("pipelines/churn/on_demand_features.toml", BASKET);
    shop.write("pipelines/churn/feature_services.toml", "[churn]\nfeatures = [\"spend:spend\", \"basket\"]\n");
    order(&shop, "a", &[("o1", "M1", 10, "10.00"), ("o2", "M2", 200, "7.00"), ("o3", "M3", 1, "40.00")]);
    run(&shop);
    shop
}

fn text(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn said(shop: &Shop, arguments: &[&str]) -> String {
    String::from_utf8(succeed(&mut shop.command(arguments)).stdout).unwrap()
}

fn rows(file: &Path) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap().build().unwrap();
    reader.map(Result::unwrap).collect()
}

fn cells(batch: &RecordBatch, columns: &[&str]) -> Vec<Vec<String>> {
    let cell = |row: usize, column: &&str| array_value_to_string(batch.column_by_name(column).unwrap(), row).unwrap();
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| cell(row, column)).collect()).collect()
}

async fn lake(shop: &Shop) -> Lake {
    let folder = shop.path().join("lake").display().to_string();
    Lake::open_to_write(&folder, Path::new("/"), &StoreOptions::new(), Arc::new(FixedClock(now()))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pit_3_on_demand_features_are_the_same_in_a_training_set_and_from_memory() {
    let shop = shop_with_baskets();
    let customers = [customer(&shop, "o1"), customer(&shop, "o2"), customer(&shop, "o3"), "nobody".to_owned()];
    let lake = lake(&shop).await;
    let store = OnlineStore::new(&lake);
    store.refresh().await.unwrap();
    let at: DateTime<Utc> = text(now()).parse().unwrap();
    let amounts = [5.0, 5.0, 100.0, 1.0];

    let lines: Vec<String> = customers
        .iter()
        .zip(amounts)
        .map(|(customer, amount)| format!("{customer},{},{amount},web\n", text(at)))
        .collect();
    shop.write("spine.csv", &format!("customer_id,event_timestamp,amount,channel\n{}", lines.concat()));
    let set =
        ["features", "training-set", "--spine", "spine.csv", "--service", "churn", "--status", "value", "--full-names"];
    let id = said(&shop, &[&set[..], &["--out", "set.parquet"]].concat());
    let offline = rows(&shop.path().join("set.parquet")).remove(0);
    let columns =
        ["spend__spend", "basket__to_usual", "basket__to_usual__status", "basket__orders_and_year", "spend__status"];
    let year = at.format("%Y").to_string();
    let next = (year.parse::<i64>().unwrap() + 1).to_string();
    let found = cells(&offline, &columns);
    assert_eq!(found[0], ["10.00", "0.5", "PRESENT", next.as_str(), "PRESENT"]);
    assert_eq!(found[1], ["", "", "NULL_VALUE", year.as_str(), "OUTSIDE_MAX_AGE"]);
    assert_eq!(found[2], ["40.00", "2.5", "PRESENT", next.as_str(), "PRESENT"]);
    assert_eq!(found[3], ["", "", "NULL_VALUE", year.as_str(), "NOT_FOUND"]);

    let keys = RecordBatch::try_from_iter([
        ("customer_id", Arc::new(StringArray::from(customers.to_vec())) as ArrayRef),
        ("amount", Arc::new(Float64Array::from(amounts.to_vec())) as ArrayRef),
        ("channel", Arc::new(StringArray::from(vec!["web"; 4])) as ArrayRef),
    ])
    .unwrap();
    let wanted = OnlineColumns { full_names: true, status: ValueStatus::Value, event_timestamps: false };
    let asked = Asked::Service("churn".to_owned());
    let plan = store.plan(&asked, wanted).unwrap();
    let online = plan.answer(&keys, at).unwrap();
    assert_eq!(cells(&online, &columns), found);
    // The value of the request comes back beside the keys; what is only read does not.
    let names: Vec<&str> = online.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names[..5], ["customer_id", "amount", "channel", "spend__spend", "spend__spend__status"], "{names:?}");
    assert!(!names.contains(&"spend__orders"));

    // What was served is compared, on-demand features with it; a value that is another is found.
    let log = ServedLog::new(NonZeroU64::new(1));
    log.note(&plan, &online, at);
    log.keep(&lake).await.unwrap();
    let compared = compare_served(&lake, 64 << 20).await.unwrap();
    let of_basket: Vec<_> = compared.features.iter().filter(|feature| feature.view == "basket").collect();
    assert_eq!((of_basket.len(), compared.mismatches()), (2, 0), "{compared:?}");
    let at_wrong = online.schema_ref().index_of("basket__to_usual").unwrap();
    let mut wrong = online.columns().to_vec();
    wrong[at_wrong] = Arc::new(Float64Array::from(vec![Some(0.4), None, Some(2.5), None]));
    log.note(&plan, &RecordBatch::try_new(online.schema(), wrong).unwrap(), at);
    log.keep(&lake).await.unwrap();
    let compared = compare_served(&lake, 64 << 20).await.unwrap();
    let wrong: Vec<_> = compared.features.iter().filter(|feature| feature.mismatches > 0).collect();
    assert_eq!(wrong.len(), 1);
    assert_eq!((wrong[0].feature.as_deref(), wrong[0].mismatches), (Some("to_usual"), 1));
    let (_, told) = shop.fails(&["features", "consistency"]);
    assert!(told.contains("1 of "), "{told}");

    // The same bytes again.
    let replayed = said(&shop, &["features", "datasets", "replay", id.trim(), "--out", "again.parquet"]);
    assert!(
        std::fs::read(shop.path().join("set.parquet")).unwrap()
            == std::fs::read(shop.path().join("again.parquet")).unwrap(),
        "{replayed}"
    );

    // What is missing is told.
    let only_keys = keys.project(&[0, 2]).unwrap();
    let told = plan.answer(&only_keys, at).unwrap_err().to_string();
    assert!(told.contains("`basket` needs the request value `amount` (Float64)"), "{told}");
    let mut words = keys.columns().to_vec();
    words[1] = Arc::new(StringArray::from(vec!["1.5", "2", "3", "secret"]));
    let words = RecordBatch::try_from_iter(["customer_id", "amount", "channel"].into_iter().zip(words)).unwrap();
    let told = plan.answer(&words, at).unwrap_err().to_string();
    assert!(told.contains("`amount` of `basket` is Utf8, and some of it cannot be read as Float64"), "{told}");
    assert!(!told.contains("secret"), "{told}");
    shop.write("spine.csv", "customer_id,event_timestamp\n");
    let (_, told) = shop.fails(&[&set[..], &["--out", "none.parquet"]].concat());
    assert!(told.contains("needs the request value `amount`"), "{told}");
}

#[test]
fn on_demand_views_are_registered_with_versions_that_stay() {
    let shop = shop_with_baskets();
    let list = said(&shop, &["features", "list"]);
    assert!(list.contains("on demand") && list.contains("amount, channel"), "{list}");
    let shown = said(&shop, &["features", "show", "basket"]);
    for part in ["on-demand view basket@v1", "spend@v1:spend, spend@v1:orders", "Float64", "request.amount / nullif"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let service = said(&shop, &["features", "show", "churn"]);
    assert!(service.contains("basket@v1:to_usual"), "{service}");
    assert!(said(&shop, &["features", "diff"]).contains("registered as the files say"));

    // Other words change nothing; another expression makes a version, and one of the service.
    shop.write(
        "pipelines/churn/on_demand_features.toml",
        &BASKET.replace("The basket in hand", "What is in the basket"),
    );
    assert!(said(&shop, &["features", "diff"]).contains("registered as the files say"));
    shop.write("pipelines/churn/on_demand_features.toml", &BASKET.replace("as double), 0)", "as double), 0) * 100"));
    let diff = said(&shop, &["features", "diff"]);
    assert!(diff.contains("on-demand view basket@v1: a run registers v2"), "{diff}");
    assert!(diff.contains("service churn@v1: a run registers v2"), "{diff}");
    order(&shop, "b", &[("o4", "M1", 1, "10.00")]);
    run(&shop);
    let at = text(now());
    let m1 = customer(&shop, "o1");
    shop.write("spine.csv", &format!("customer_id,event_timestamp,amount,channel\n{m1},{at},5,web\n"));
    for (service, expected) in [("churn", "25.0"), ("churn@v1", "0.25")] {
        let set = ["features", "training-set", "--spine", "spine.csv", "--service", service, "--out", "set.parquet"];
        said(&shop, &set);
        let found = cells(&rows(&shop.path().join("set.parquet"))[0], &["to_usual"]);
        assert_eq!(found, [[expected]], "{service}");
    }
}

#[test]
fn mistakes_in_on_demand_features_are_told_with_their_place() {
    let shop = shop();
    shop.write(
        "pipelines/churn/on_demand_features.toml",
        "[basket]\nrequest = { amount = \"float\" }\nrequst = {}\n[basket.features]\na = \"spend.spent\"\nb = \"spnd.spend\"\n\
         c = \"request.amount\"\nd = \"now()\"\ne = \"sum(spend.spend)\"\nf = \"spend.spend +\"\n\
         [spend]\n[spend.features]\na = \"1 + 1\"\n[empty]\n",
    );
    shop.write(
        "pipelines/churn/feature_services.toml",
        "[churn]\nfeatures = [\"spend\", \"basket:aa\", \"basket:d\"]\n",
    );
    let output = shop.command(&["check", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let found: Vec<String> = findings
        .iter()
        .map(|finding| {
            let text = |key: &str| finding[key].as_str().unwrap_or("").to_owned();
            format!("{} {}:{} {} | {}", text("code"), finding["line"], finding["column"], text("message"), text("help"))
        })
        .collect();
    let told = found.join("\n");
    for expected in [
        "E0606 2:",
        "did you mean `float64`?",
        "E0606 3:1 unknown key `requst` | did you mean `request`?",
        "E0606 5:5 basket:a: the feature view `spend` has no feature `spent` | did you mean `spend.spend`?",
        "E0606 6:5 basket:b: there is no feature view `spnd` | did you mean `spend.spend`?",
        "E0606 7:5 basket:c: `request.amount` is not among the values of the request",
        "E0606 8:5 basket:d: `now` is another value each time",
        "E0606 9:5 basket:e: ",
        "E0606 10:5 basket:f: ",
        "E0606 11:2 `spend` is the feature view that features.spend makes",
        "the on-demand view `empty` has no features",
        "E0605 2:22 service `churn`: the on-demand view `basket` has no feature `aa`",
    ] {
        assert!(told.contains(expected), "{expected} is not in\n{told}");
    }
}
