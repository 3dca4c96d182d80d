//! Models from customers as they were: trained, promoted, scored, and refused where they know what nobody could know.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use chrono::{DateTime, Datelike, Days, NaiveDate, Utc};
use holdfast_engine::{DeclaredTable, Past, Project, Question, Runner, Sees, SessionSettings};
use holdfast_identity::{IdentifierTokens, IdentityKey, IdentityRules, declared_tables};
use holdfast_ingest::load_sources;
use holdfast_lake::{Lake, StoreOptions};
use holdfast_testkit::Random;
use holdfast_types::{FixedClock, TableName};
use serde_json::Value;

use crate::folder::ProjectFolder;
use crate::{commits, holdfast, rows, succeed};

const SEED: u64 = 20_260_101;
const CUSTOMERS: u64 = 400;
pub(crate) const AS_OF: &str = "2025-07-01T00:00:00Z";

const ORDERS_SQL: &str = "-- One row an order.\nselect i.customer_id, o.order_id, o.at as ordered_at, o.amount, o.refunded_at, o.status, o.left_us\nfrom raw.orders o\n\
    left join identity.identifiers i on i.token = identifier_token('member_id', o.member)\n";

const ORDERS_CONTRACT: &str = r#"version = 1
grain = "an order"
key = ["order_id"]
event_time = "ordered_at"
identifiers = ["member_id"]

[columns]
customer_id = { type = "string", meaning = "Unified customer id" }
order_id = { type = "string", meaning = "The shop's key" }
ordered_at = { type = "timestamp", meaning = "When it was placed" }
amount = { type = "decimal(12,2)", unit = "CNY", meaning = "Paid" }
refunded_at = { type = "timestamp", known_at = "refunded_at", meaning = "When the money was given back" }
status = { type = "string", known_at = "later", meaning = "How it ended" }
left_us = { type = "int32", meaning = "Whether the account was closed some day" }
"#;

pub(crate) const FEATURES: &str = r#"-- One row a customer who has ordered.
-- @stage incremental key(customer_id)
select
    customer_id,
    arrow_cast(now(), 'Timestamp(Microsecond, Some("UTC"))') as event_timestamp,
    cast(cast(now() as date) - cast(max(ordered_at) as date) as double) as days_since, -- Days since the last order
    cast(count(*) as double) as orders,                                              -- Orders; 0 never stands here
    cast(count(*) filter (where ordered_at > now() - interval '90 days') as double) as orders_90d, -- Orders, last 90 days
    sum(amount) as spend,                                                            -- Spend, CNY
    case when max(amount) > 60 then 'large' else 'small' end as basket,              -- Largest basket
    cast(null as double) as nothing,                                                 -- Never known
    1.0 as always                                                                    -- The same for all
from core.orders
where ordered_at <= now() and customer_id is not null
group by customer_id
"#;

const MODEL: &str = r#"description = "Customers who will order nothing for 60 days"

[features]
stage = "features.f"

[label]
table = "core.orders"
time = "ordered_at"
observation_days = 60
gap_days = 7
horizon_days = 60

[training]
rounds = 60
learning_rate = 0.1
max_depth = 3
stop_after = 15
seed = 7

[baselines]
recency = "days_since"

[scores]
table = "risk.churn_probability"

[reasons]
days_since = "no order for {value} days"
"#;

/// A shop whose customers order in a rhythm of their own until they leave.
pub(crate) struct Shop {
    folder: ProjectFolder,
}

impl std::ops::Deref for Shop {
    type Target = ProjectFolder;

    fn deref(&self) -> &ProjectFolder {
        &self.folder
    }
}

impl Shop {
    pub(crate) fn new() -> Self {
        Self::of(&orders(|_| true))
    }

    pub(crate) fn of(orders: &str) -> Self {
        let shop = Self {
            folder: ProjectFolder::new(&[
                ("holdfast.toml", "[lake]\nurl = \"lake\"\n"),
                ("pipelines/churn/pipeline.toml", "stages = \"sql\"\n"),
                ("pipelines/churn/identity.toml", "priority = [\"member_id\"]\n[types.member_id]\nunique = true\n"),
                (
                    "pipelines/churn/sources/orders.toml",
                    "kind = \"orders\"\npath = \"orders/*.csv\"\nformat = \"csv\"\nevent_time = \"at\"\n\
                     [columns]\norder_id = \"string\"\nmember = \"string\"\nat = \"timestamp\"\namount = \"decimal(12,2)\"\n\
                     refunded_at = \"timestamp\"\nstatus = \"string\"\nleft_us = \"int32\"\n\
                     [[identifiers]]\ntype = \"member_id\"\nvalue = \"member\"\n",
                ),
                ("sql/core/orders.sql", ORDERS_SQL),
                ("sql/core/orders.contract.toml", ORDERS_CONTRACT),
                ("sql/features/f.sql", FEATURES),
                ("pipelines/churn/models/churn.toml", MODEL),
                // Ids come from tokens, and what a resample or a fold holds from ids.
                ("identity.key", &"5".repeat(64)),
            ]),
        };
        shop.bring("a", orders);
        shop.run();
        shop
    }

    pub(crate) fn bring(&self, name: &str, rows: &str) {
        self.write(
            &format!("in/orders/{name}.csv"),
            &format!("order_id,member,at,amount,refunded_at,status,left_us\n{rows}"),
        );
        self.ingest();
    }

    pub(crate) fn run(&self) {
        succeed(&mut self.command(&["run", "--as-of", AS_OF]));
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = succeed(self.command(arguments).arg("--json"));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn fails(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command(arguments).output().unwrap();
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Training is refused, and nothing is kept of it.
    #[track_caller]
    pub(crate) fn refuses(&self, code: i32, told: &[&str]) {
        let before = commits(self.path());
        let (found, said) = self.fails(&["train", "--model", "churn"]);
        assert_eq!(found, Some(code), "{said}");
        for told in told {
            assert!(said.contains(told), "{told}: {said}");
        }
        assert_eq!(before, commits(self.path()), "something was kept");
    }

    pub(crate) fn with_model(&self, from: &str, to: &str) {
        assert!(MODEL.contains(from), "{from}");
        self.write("pipelines/churn/models/churn.toml", &MODEL.replacen(from, to, 1));
    }

    fn with_feature(&self, sql: &str) {
        self.write(
            "sql/features/f.sql",
            &FEATURES.replace("    1.0 as always ", &format!("    {sql},\n    1.0 as always ")),
        );
    }

    fn artefact(&self, version: &Value) -> PathBuf {
        let hash = version["artefact_hash"].as_str().unwrap();
        self.path().join(format!("lake/_holdfast/models/churn/{hash}.ubj"))
    }
}

/// Orders from 2024-01-01 to 2025-06-30, one a line: those whose day is `wanted`.
pub(crate) fn orders(wanted: impl Fn(NaiveDate) -> bool) -> String {
    orders_from(NaiveDate::from_ymd_opt(2024, 1, 1).unwrap(), wanted)
}

/// Orders of 546 days from `first` on.
pub(crate) fn orders_from(first: NaiveDate, wanted: impl Fn(NaiveDate) -> bool) -> String {
    let mut random = Random::new(SEED);
    let mut text = String::new();
    for customer in 0..CUSTOMERS {
        let mut random = random.fork();
        let gap = *random.pick(&[5, 9, 14, 20]);
        let leaves = 60 + random.below(900);
        let mut day = random.below(gap * 2);
        let mut number = 0;
        while day < 546 {
            if day < leaves {
                let date = first + Days::new(day);
                let refund = match random.chance(8) {
                    true => format!("{}T09:00:00Z", date + Days::new(20)),
                    false => String::new(),
                };
                let status = if random.chance(95) { "completed" } else { "cancelled" };
                let amount = 20 + random.below(60);
                if wanted(date) {
                    let left = u8::from(leaves < 546);
                    text.push_str(&format!(
                        "o{customer}-{number},M{customer},{date}T08:00:00Z,{amount}.00,{refund},{status},{left}\n"
                    ));
                }
            }
            number += 1;
            day += 1 + gap / 2 + random.below(gap);
        }
    }
    text
}

fn value(measures: &Value, baseline: &str, measure: &str, which: &str) -> f64 {
    let rows = measures.as_array().unwrap();
    let row = rows
        .iter()
        .find(|row| row["judged_on"] == "out_of_time" && row["baseline"] == baseline && row["measure"] == measure);
    row.unwrap_or_else(|| panic!("{baseline} {measure}"))[which].as_f64().unwrap()
}

#[test]
fn a_model_is_trained_once_promoted_scored_and_rolled_back() {
    let shop = Shop::new();
    let trained = shop.json(&["train", "--model", "churn"]);
    assert_eq!((&trained["outcome"], &trained["version"]), (&"made".into(), &1.into()), "seed {SEED}: {trained}");
    let measures = &trained["measures"];
    let (auc, low) = (value(measures, "recency", "auc", "value"), value(measures, "recency", "auc", "low"));
    assert!(auc > 0.7 && low > 0.6 && low < auc, "seed {SEED}: {auc} from {low}");
    let [difference, from, to] =
        ["difference", "difference_low", "difference_high"].map(|which| value(measures, "recency", "auc", which));
    assert!(from < difference && difference < to, "seed {SEED}: {difference} from {from} to {to}");
    assert!((auc - value(measures, "recency", "auc", "baseline_value") - difference).abs() < 1e-9);
    let majority = value(measures, "recency", "accuracy_at_0.50", "majority_accuracy");
    assert!((0.5..1.0).contains(&majority));
    // No label that teaches ends after the first moment that judges.
    let last: DateTime<Utc> =
        trained["train_moments"].as_array().unwrap().last().unwrap().as_str().unwrap().parse().unwrap();
    let first: DateTime<Utc> = trained["test_moments"][0].as_str().unwrap().parse().unwrap();
    assert!(last + Days::new(67) <= first, "{last} and {first}");
    let useless: Vec<&str> =
        trained["useless"].as_array().unwrap().iter().map(|useless| useless[0].as_str().unwrap()).collect();
    assert_eq!(useless, ["nothing", "always"]);

    // Nothing changed: nothing is done. Asked to all the same, it makes the same bytes.
    let before = commits(shop.path());
    let again = shop.json(&["train", "--model", "churn"]);
    assert_eq!((&again["outcome"], &again["version"]), (&"unchanged".into(), &1.into()));
    assert_eq!(before, commits(shop.path()));
    let forced = shop.json(&["train", "--model", "churn", "--again"]);
    assert_eq!((&forced["version"], &forced["artefact_hash"]), (&2.into(), &trained["artefact_hash"]));

    // Nobody is scored by what nobody promoted.
    let (code, said) = shop.fails(&["score", "--model", "churn"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("has no champion") && said.contains("models promote churn 2"), "{said}");

    succeed(&mut shop.command(&["models", "promote", "churn", "1"]));
    let scored = shop.json(&["score", "--model", "churn"]);
    let customers = scored["customers"].as_u64().unwrap();
    assert!((50..CUSTOMERS).contains(&customers), "{scored}");
    let sums = &shop.query(
        "select count(*) as n, count(distinct customer_id) as customers, min(probability) as low, max(probability) as high, \
         count(*) filter (where band = case when probability >= 0.7 then 'high' when probability >= 0.4 then 'medium' else 'low' end) as banded, \
         count(*) filter (where raises_1 is not null or lowers_1 is not null) as reasoned, max(model_version) as version, \
         count(*) filter (where raises_1 like 'no order for % days' or raises_2 like 'no order for % days' or lowers_1 like 'no order for % days') as worded \
         from risk.churn_probability",
    )[0];
    for name in ["n", "customers", "banded", "reasoned"] {
        assert_eq!(sums[name].as_u64(), Some(customers), "{name} of {sums}");
    }
    assert!(sums["low"].as_f64() > Some(0.0) && sums["high"].as_f64() < Some(1.0), "{sums}");
    assert!(sums["worded"].as_u64() > Some(0), "{sums}");
    let published = succeed(&mut shop.command(&[
        "sql",
        "--published",
        "--output",
        "json",
        "select count(*) as n from risk.churn_probability",
    ]));
    assert!(String::from_utf8_lossy(&published.stdout).contains(&customers.to_string()));

    // Nothing new, nothing committed; another champion is news, and so are new rows.
    let before = commits(shop.path());
    assert_eq!(shop.json(&["score", "--model", "churn"])["outcome"], "unchanged");
    assert_eq!(before, commits(shop.path()));
    succeed(&mut shop.command(&["models", "promote", "churn", "2"]));
    assert_eq!(shop.json(&["score", "--model", "churn"])["model_version"], 2);
    shop.bring("b", "late,M0,2025-06-29T08:00:00Z,10.00,,completed,0\n");
    shop.run();
    assert_eq!(shop.json(&["score", "--model", "churn"])["outcome"], "made");

    succeed(&mut shop.command(&["models", "rollback", "churn"]));
    let listed = shop.json(&["models", "list"]);
    let aliases: Vec<&Value> = listed.as_array().unwrap().iter().map(|version| &version["aliases"]).collect();
    assert_eq!(aliases, [&serde_json::json!(["champion"]), &serde_json::json!(["challenger"])], "{listed}");
    let (code, said) = shop.fails(&["models", "rollback", "churn"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("no champion before this one"), "{said}");
    let shown = shop.json(&["models", "show", "churn", "1"]);
    assert_eq!(shown["dataset_id"], trained["dataset_id"]);
    assert_eq!(shown["moves"].as_array().unwrap().len(), 5);
    let compared = shop.json(&["models", "compare", "churn", "1", "2"]);
    assert_eq!(compared["same_rows_judge"], true);
}

/// A process that ends with its test, however that ends.
pub(crate) struct Process(pub(crate) std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Alerts of a watch, in words.
fn alerts(watched: &Value) -> Vec<String> {
    assert_eq!(watched["outcome"], "made", "{watched}");
    watched["alerts"].as_array().unwrap().iter().map(|alert| alert.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_champion_is_watched_quietly_until_habits_change() {
    // From May on customers come in the first days of a month alone.
    let may = NaiveDate::from_ymd_opt(2025, 5, 1).unwrap();
    let shop = Shop::of(&orders(|day| day < may || day.day() <= 6));
    // Sums over a lifetime grow as the shop does, which is drift; and two columns tell nothing.
    shop.with_model(
        "stage = \"features.f\"\n",
        "stage = \"features.f\"\nexclude = [\"orders\", \"spend\", \"basket\"]\n",
    );
    let (code, said) = shop.fails(&["models", "watch", "churn"]);
    assert!(code == Some(2) && said.contains("has no version yet"), "{said}");
    let trained = shop.json(&["train", "--model", "churn", "--as-of", "2025-05-01T00:00:00Z"]);
    assert_eq!(trained["test_moments"][0], "2025-02-01T00:00:00Z", "{trained}");
    let (code, said) = shop.fails(&["models", "watch", "churn"]);
    assert!(code == Some(2) && said.contains("models promote churn 1"), "{said}");
    succeed(&mut shop.command(&["models", "promote", "churn", "1"]));

    // Quiet: the days behind those that judged are like them.
    let watch = |as_of: &str| shop.json(&["models", "watch", "churn", "--as-of", as_of]);
    let quiet = watch("2025-05-01T00:00:00Z");
    assert_eq!((&quiet["labelled"], &quiet["version"]), (&"2025-02-23T00:00:00Z".into(), &1.into()), "{quiet}");
    assert_eq!(alerts(&quiet), Vec::<String>::new(), "seed {SEED}");
    let before = commits(shop.path());
    assert_eq!(watch("2025-05-01T15:00:00Z")["outcome"], "unchanged", "the same midnight");
    assert_eq!(before, commits(shop.path()));
    // What it is worth is what the library says of the same rows: a recency baseline and the majority class stand beside it.
    let row = |subject: &str, measure: &str| {
        let rows = shop.query(&format!(
            "select value, low, high, expected from metric.model_quality where subject = '{subject}' and measure = '{measure}' and kind in ('labels', 'score_drift', 'volume')"
        ));
        assert_eq!(rows.len(), 1, "{subject} {measure}: {rows:?}");
        rows[0].clone()
    };
    let auc = row("score", "auc");
    assert!(auc["low"].as_f64() < auc["value"].as_f64() && auc["value"].as_f64() < auc["high"].as_f64(), "{auc}");
    let judged = value(&trained["measures"], "recency", "auc", "value");
    assert!((auc["expected"].as_f64().unwrap() - judged).abs() < 1e-9, "{auc}");
    assert!(row("recency", "auc")["value"].as_f64() > Some(0.5));
    assert!((0.5..1.0).contains(&row("majority_class", "accuracy_at_0.50")["value"].as_f64().unwrap()));
    assert!(row("score", "psi")["value"].as_f64() < Some(0.25));
    assert_eq!(row("customers", "count")["value"].as_f64(), quiet["customers"].as_f64());
    // Before a horizon is over behind a later moment, there are no labels, and it is said from when.
    let early = watch("2025-04-01T00:00:00Z");
    assert!(early["labelled"].is_null() && early["labels_from"] == "2025-04-10T00:00:00Z", "{early}");

    // Changed: features and scores move at once, what it is worth when labels arrive.
    let told = alerts(&watch("2025-06-30T00:00:00Z"));
    assert!(told.iter().any(|alert| alert.contains("the feature orders_90d moved")), "{told:?}");
    let (of, held) = (shop.query("select count(*) as n from metric.model_quality where is_alert"), told.len() as u64);
    assert_eq!(of[0]["n"].as_u64(), Some(held), "alerts are rows");
    let published = succeed(&mut shop.command(&[
        "sql",
        "--published",
        "--output",
        "json",
        "select count(distinct watched_at) as n from metric.model_quality",
    ]));
    assert!(String::from_utf8_lossy(&published.stdout).contains('3'), "three watches are published");

    // A source that is gone: a feature without values, and fewer customers.
    shop.with_feature("case when ordered_at < timestamp '2025-05-02T00:00:00Z' then 1.0 end as seen");
    let (code, said) = shop.fails(&["models", "watch", "churn", "--as-of", "2025-06-29T00:00:00Z"]);
    assert!(code == Some(2), "a query that is wrong: {said}");
}

#[test]
fn trees_from_elsewhere_are_calibrated_and_judged_here_and_pickles_are_refused() {
    let shop = Shop::new();
    let trained = shop.json(&["train", "--model", "churn"]);
    // What XGBoost would have written: our own trees are its file.
    let folder = shop.path().join("mlruns/model");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(shop.artefact(&trained), folder.join("model.ubj")).unwrap();
    let described = "flavors:\n  python_function:\n    data: model.ubj\n    loader_module: mlflow.xgboost\n  xgboost:\n    data: model.ubj\n    model_format: ubj\nrun_id: 77\n";
    std::fs::write(folder.join("MLmodel"), described).unwrap();
    let import = ["models", "import", "churn", "mlruns/model"];
    let imported = shop.json(&import);
    assert_eq!((&imported["version"], &imported["imported"]), (&2.into(), &"model.ubj".into()), "{imported}");
    for measure in ["auc", "brier", "ece_10_bins"] {
        let of = |version: &Value| value(&version["measures"], "recency", measure, "value");
        assert!((of(&imported) - of(&trained)).abs() < 1e-6, "{measure}: the same trees, the same rows");
    }
    assert_eq!(shop.json(&import)["outcome"], "unchanged");
    succeed(&mut shop.command(&["models", "promote", "churn", "2"]));
    assert_eq!(shop.json(&["score", "--model", "churn"])["model_version"], 2);
    let shown = shop.json(&["models", "show", "churn", "2"]);
    assert_eq!(
        (&shown["engine"], &shown["notes"]["imported"]["mlflow_run"]),
        (&"xgboost, imported".into(), &"77".into())
    );

    let before = commits(shop.path());
    let refused = |told: &[&str]| {
        let (code, said) = shop.fails(&import);
        assert!(matches!(code, Some(2 | 5)), "{code:?} {said}");
        told.iter().for_each(|told| assert!(said.contains(told), "{told}: {said}"));
    };
    let whole = std::fs::read(folder.join("model.ubj")).unwrap();
    std::fs::write(folder.join("model.ubj"), &whole[..whole.len() / 2]).unwrap();
    refused(&["the model"]);
    std::fs::write(folder.join("model.ubj"), [0x80, 4, 0x95, 1, 2, 3]).unwrap();
    refused(&["Python pickle", "save_model"]);
    std::fs::write(folder.join("model.ubj"), &whole).unwrap();
    std::fs::write(folder.join("MLmodel"), "flavors:\n  sklearn:\n    pickled_model: model.pkl\n").unwrap();
    refused(&["flavours sklearn", "none is xgboost or lightgbm", "mlflow.xgboost.log_model"]);
    std::fs::write(folder.join("MLmodel"), described).unwrap();
    shop.write("sql/features/f.sql", &FEATURES.replace(" as orders_90d,", " as orders_90,"));
    refused(&["asks for the feature `orders_90d`", "did you mean `orders_90`?"]);
    assert_eq!(before, commits(shop.path()), "something was kept");
}

/// What LightGBM would have written: who was away for more than 30 days, and whose orders are small, is likelier to leave.
const LIGHTGBM: &str = "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\nmax_feature_idx=1\nobjective=binary sigmoid:1\n\
    feature_names=days_since basket\nfeature_infos=[0:400] 0:1\n\n\
    Tree=0\nnum_leaves=2\nnum_cat=0\nsplit_feature=0\nsplit_gain=1\nthreshold=30.000000000000004\ndecision_type=8\nleft_child=-1\nright_child=-2\n\
    leaf_value=-1 0.5\nleaf_weight=1 1\nleaf_count=5 5\ninternal_value=0\ninternal_weight=2\ninternal_count=10\nis_linear=0\nshrinkage=1\n\n\n\
    Tree=1\nnum_leaves=2\nnum_cat=1\nsplit_feature=1\nsplit_gain=1\nthreshold=0\ndecision_type=1\nleft_child=-1\nright_child=-2\n\
    leaf_value=-0.25 0.25\nleaf_weight=1 1\nleaf_count=5 5\ninternal_value=0\ninternal_weight=2\ninternal_count=10\ncat_boundaries=0 1\ncat_threshold=1\n\
    is_linear=0\nshrinkage=1\n\n\nend of trees\n\npandas_categorical:[[\"large\", \"small\"]]\n";

#[test]
fn trees_of_lightgbm_score_as_its_text_says_and_what_cannot_be_kept_is_refused_by_name() {
    let shop = Shop::new();
    let folder = shop.path().join("mlruns/model");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("model.lgb"), LIGHTGBM).unwrap();
    let described = "flavors:\n  lightgbm:\n    data: model.lgb\n    lgb_version: 4.7.0\n    model_class: lightgbm.basic.Booster\n  python_function:\n    loader_module: mlflow.lightgbm\nrun_id: 78\n";
    std::fs::write(folder.join("MLmodel"), described).unwrap();
    let imported = shop.json(&["models", "import", "churn", "mlruns/model"]);
    assert_eq!((&imported["version"], &imported["rounds"]), (&1.into(), &2.into()), "{imported}");
    let shown = shop.json(&["models", "show", "churn", "1"]);
    assert_eq!(
        (&shown["engine"], &shown["notes"]["imported"]["mlflow_run"]),
        (&"lightgbm, imported".into(), &"78".into())
    );
    succeed(&mut shop.command(&["models", "promote", "churn", "1"]));
    succeed(&mut shop.command(&["score", "--model", "churn"]));
    let told = shop.query(
        "select count(*) as n, count(distinct s.probability_raw) as values, max(abs(s.probability_raw - 1 / (1 + exp(-m.margin)))) as worst, \
         count(*) filter (where s.raises_1 is null and s.lowers_1 is null) as silent \
         from risk.churn_probability s inner join (select customer_id, case when days_since <= 30 then -1.0 else 0.5 end \
         + case basket when 'large' then -0.25 else 0.25 end as margin from features.f) m on m.customer_id = s.customer_id",
    );
    assert!(
        told[0]["n"].as_u64() > Some(50) && told[0]["values"].as_u64() > Some(1) && told[0]["silent"] == 0,
        "{told:?}"
    );
    assert!(told[0]["worst"].as_f64() < Some(1e-6), "{told:?}");

    // Categories by their names; what is missing or was never seen goes where the text says.
    let row =
        |days: &str, basket: &str| format!("predict('churn', named_struct('days_since', {days}, 'basket', {basket}))");
    let asked = [
        ("40", "'small'"),
        ("40", "'large'"),
        ("40", "null"),
        ("null", "'enormous'"),
        ("30", "'small'"),
        ("30", "'large'"),
    ];
    let asked = asked.map(|(days, basket)| row(days, basket)).join(", ");
    let said = shop.query(&format!("select make_array({asked}) as p"))[0]["p"].clone();
    let said: Vec<f64> = said.as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
    let [small, large, gone, other, recent_small, recent_large] = said[..] else { panic!("{said:?}") };
    assert_eq!((small.to_bits(), small.to_bits()), (gone.to_bits(), other.to_bits()), "{said:?}");
    assert!(small > large && large > recent_small && recent_small > recent_large, "{said:?}");

    // The file alone is enough, and it is the same version.
    shop.write("churn.txt", LIGHTGBM);
    let import = ["models", "import", "churn", "churn.txt"];
    assert_eq!(shop.json(&import)["outcome"], "unchanged");
    let before = commits(shop.path());
    for (from, to, told) in [
        ("objective=binary sigmoid:1", "objective=lambdarank", "its objective is lambdarank"),
        ("binary sigmoid:1", "binary sigmoid:2", "sigmoid"),
        ("is_linear=0", "is_linear=1", "linear_tree"),
        ("right_child=-2\nleaf_value=-0.25", "right_child=-9\nleaf_value=-0.25", "cannot be read"),
        ("feature_names=days_since", "feature_names=days_sinc", "did you mean `days_since`?"),
    ] {
        shop.write("churn.txt", &LIGHTGBM.replacen(from, to, 1));
        let (code, said) = shop.fails(&import);
        assert!(matches!(code, Some(2 | 5)) && said.contains(told), "{told}: {code:?} {said}");
    }
    assert_eq!(before, commits(shop.path()), "something was kept");
}

#[test]
fn a_pipeline_scores_and_watches_by_itself_behind_its_runs() {
    // A schedule goes by the wall's clock: the shop's days end today.
    let today = Utc::now().date_naive();
    let shop = Shop::of(&orders_from(today - Days::new(546), |day| day < today));
    shop.with_model("[scores]", "[cadence]\nscore = true\nwatch = true\ntrain_every = \"1h\"\n[scores]");
    shop.refuses(2, &["churn.toml:26:15", "from 1d to 3650d"]);
    shop.with_model("[scores]", "[watch]\npsi_max = 0\n[scores]");
    shop.refuses(2, &["churn.toml:23:1", "`psi_max` must be above 0"]);
    shop.with_model("[scores]", "[cadence]\nscore = true\nwatch = true\ntrain_every = \"1d\"\n[scores]");
    // The shipped view, over this shop's scores.
    shop.write("sql/features/churn.sql", include_str!("../../sql/features/churn.sql"));
    succeed(&mut shop.command(&["run"]));
    let trained = shop.json(&["train", "--model", "churn"]);
    succeed(&mut shop.command(&["models", "promote", "churn", "1"]));
    // A run of which it is not known what it brought: the schedule runs at once, and behind it scores, and brings the scores to the view.
    shop.write("pipelines/churn/pipeline.toml", "stages = \"sql\"\n[schedule]\ncontinuous = true\n");
    let mut process = Process(shop.command(&["run", "--scheduled"]).spawn().unwrap());
    let count = |sql: &str| {
        let output = shop.command(&["sql", "--published", "--output", "json", sql]).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).ok().and_then(|rows| rows[0]["n"].as_u64()).unwrap_or(0)
    };
    let began = std::time::Instant::now();
    while count("select count(*) as n from features.churn where score > 0 and score < 1") == 0 {
        assert!(began.elapsed().as_secs() < 240, "the scores did not come to the view: {trained}");
        assert!(process.0.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    drop(process);
    let sums = "select count(*) as n from features.churn c inner join risk.churn_probability p on p.customer_id = c.customer_id and p.probability = c.score";
    assert_eq!(count(sums), count("select count(*) as n from risk.churn_probability"));
    assert!(count("select count(*) as n from metric.model_quality where kind = 'score_drift'") > 0, "it was watched");
    // A version of today is not old enough to be trained anew.
    assert_eq!(shop.json(&["models", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_feature_that_sees_the_future_is_caught_and_nothing_is_kept() {
    let shop = Shop::new();
    // Orders after now(): rows that were not there.
    shop.write(
        "sql/features/f.sql",
        &FEATURES
            .replace("where ordered_at <= now() and", "where")
            .replace(
                "    1.0 as always ",
                "    cast(count(*) filter (where ordered_at > now()) as double) as orders_to_come,\n    1.0 as always ",
            )
            .replace(
                "cast(max(ordered_at) as date) as double)",
                "cast(max(case when ordered_at <= now() then ordered_at end) as date) as double)",
            ),
    );
    shop.refuses(2, &["features see the future", "orders_to_come (", "now()"]);

    // A refund that was paid later: a value that was not there.
    shop.with_feature("cast(count(refunded_at) as double) as refunds");
    shop.refuses(2, &["features see the future", "refunds ("]);
    shop.with_feature("cast(count(case when refunded_at <= now() then 1 end) as double) as refunds");
    assert_eq!(shop.json(&["train", "--model", "churn"])["outcome"], "made");
}

#[test]
fn what_changes_later_without_a_date_has_to_be_accepted_by_name() {
    let shop = Shop::new();
    shop.with_feature("cast(count(*) filter (where status = 'cancelled') as double) as cancelled");
    shop.refuses(2, &["churn.toml:4:9", "core.orders.status", "accept_changed_later = [\"core.orders.status\"]"]);
    shop.with_model(
        "stage = \"features.f\"\n",
        "stage = \"features.f\"\naccept_changed_later = [\"core.orders.status\"]\n",
    );
    let trained = shop.json(&["train", "--model", "churn"]);
    assert_eq!(trained["accepted_changed_later"], serde_json::json!(["core.orders.status"]));
    // What no feature rests on is not accepted for nothing.
    shop.write("sql/features/f.sql", FEATURES);
    shop.refuses(2, &["churn.toml:5:25", "no feature rests on `core.orders.status`"]);
}

#[test]
fn a_feature_that_tells_the_label_alone_is_refused() {
    let shop = Shop::new();
    // Nobody declared that the column is filled later: only its strength gives it away.
    let leaky = "cast(max(left_us) * 1000 + cast(now() as date) - cast(max(ordered_at) as date) as double) as hint";
    shop.with_feature(leaky);
    shop.with_model("[scores]", "[checks]\nsingle_feature_auc_max = 0.70\n[scores]");
    shop.refuses(2, &["alone has an AUC of", "above the bar of 0.7", "exclude"]);
    shop.with_model("stage = \"features.f\"\n", "stage = \"features.f\"\nexclude = [\"hint\"]\n");
    assert_eq!(shop.json(&["train", "--model", "churn"])["features"], 7);
}

#[test]
fn mistakes_of_a_model_are_told_with_file_line_column_and_remedy() {
    let shop = Shop::new();
    for (from, to, place, told) in [
        ("\"features.f\"", "\"features.g\"", "4:9", "did you mean `features.f`?"),
        ("gap_days", "gap_dyas", "10:1", "unknown field `gap_dyas`"),
        ("observation_days = 60", "observation_days = 0", "9:20", "from 1 to 10000"),
        ("\"ordered_at\"", "\"orderd_at\"", "8:8", "did you mean `ordered_at`?"),
        ("observation_days", "where = \"amont > 1\"\nobservation_days", "9:9", "amont"),
        ("max_depth = 3", "max_depth = 99", "16:1", "max_depth = 99: must be from 1 to 30"),
        ("recency = \"days_since\"", "recency = \"days_sinc\"", "21:11", "did you mean `days_since`?"),
        ("days_since = \"no", "day_since = \"no", "27:1", "no feature of features.f"),
        ("\"risk.churn_probability\"", "\"core.orders\"", "24:9", "schema risk"),
        (
            "stage = \"features.f\"\n",
            "stage = \"features.f\"\nexclude = [\"ordrs\"]\n",
            "5:12",
            "did you mean `orders`?",
        ),
    ] {
        shop.with_model(from, to);
        shop.refuses(2, &[&format!("churn.toml:{place}: "), told]);
    }
    let (code, said) = shop.fails(&["train", "--model", "chrn"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("there is no model `chrn`") && said.contains("there are churn"), "{said}");
}

#[test]
fn data_from_which_nothing_can_be_learnt_is_refused_with_what_to_do() {
    let shop = Shop::new();
    // Whoever ordered for less than a euro: nobody.
    shop.with_model("observation_days", "where = \"amount < 1\"\nobservation_days");
    shop.refuses(2, &["core.orders has no event up to 2025-07-01"]);
    // Everybody comes back within a day of never.
    shop.with_model("horizon_days = 60", "horizon_days = 500");
    shop.refuses(2, &["too short", "observation_days"]);
    // Within half a year each of them has either all left or none.
    shop.with_model("observation_days", "where = \"left_us = 0\"\nobservation_days");
    shop.refuses(2, &["need customers of both kinds", "nobody has churned"]);
    // Nothing but what is the same for all.
    let names = ["days_since", "orders", "orders_90d", "spend", "basket"].map(|name| format!("{name:?}")).join(", ");
    shop.write(
        "pipelines/churn/models/churn.toml",
        &MODEL
            .replace("stage = \"features.f\"\n", &format!("stage = \"features.f\"\nexclude = [{names}]\n"))
            .replace("recency = \"days_since\"\n", "")
            .replace("days_since = \"no order for {value} days\"\n", ""),
    );
    shop.refuses(2, &["no feature varies"]);
}

#[test]
fn a_damaged_artefact_is_never_promoted_and_never_scores() {
    let shop = Shop::new();
    let trained = shop.json(&["train", "--model", "churn"]);
    let path = shop.artefact(&trained);
    let whole = std::fs::read(&path).unwrap();
    let mut turned = whole.clone();
    turned[whole.len() / 2] ^= 0x20;
    for (bytes, told) in [
        (&whole[..whole.len() / 2], "is not what was written"),
        (&turned[..], "is not what was written"),
        (&[][..], "0 bytes"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let before = commits(shop.path());
        let (code, said) = shop.fails(&["models", "promote", "churn", "1"]);
        assert_eq!(code, Some(5), "{said}");
        assert!(said.contains(told) && said.contains("train again"), "{said}");
        assert_eq!(before, commits(shop.path()));
    }
    std::fs::write(&path, &whole).unwrap();
    succeed(&mut shop.command(&["models", "promote", "churn", "1"]));
    succeed(&mut shop.command(&["score", "--model", "churn"]));
    let scores = shop.query("select * from risk.churn_probability order by customer_id");

    // Damage after the promotion: the scores that are there stay.
    std::fs::remove_file(&path).unwrap();
    shop.bring("b", "late,M0,2025-06-29T08:00:00Z,10.00,,completed,0\n");
    shop.run();
    let (code, said) = shop.fails(&["score", "--model", "churn"]);
    assert_eq!(code, Some(5), "{said}");
    assert_eq!(scores, shop.query("select * from risk.churn_probability order by customer_id"));

    // A table of features without one that the model needs.
    std::fs::write(&path, &whole).unwrap();
    shop.write("sql/features/f.sql", &FEATURES.replace("    sum(amount) as spend, ", "    --"));
    shop.run();
    let (code, said) = shop.fails(&["score", "--model", "churn"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("spend is gone") && said.contains("roll back"), "{said}");
    assert_eq!(scores, shop.query("select * from risk.churn_probability order by customer_id"));
}

/// A runner over a shop's lake, as the command has it.
async fn runner(shop: &Shop) -> Runner {
    let clock = Arc::new(FixedClock(AS_OF.parse().unwrap()));
    let lake = Lake::open("lake", shop.path(), &StoreOptions::default(), clock).await.unwrap();
    let mut declared = declared_tables().unwrap();
    for source in load_sources(&shop.path().join("pipelines/churn/sources")).unwrap() {
        let name = TableName::new("raw", &source.name).unwrap();
        let identifiers = vec!["member_id".to_owned()];
        declared.push(DeclaredTable { name, schema: source.raw_schema(), identifiers });
    }
    let stages = Project::load(&shop.path().join("sql"), declared).unwrap();
    let rules =
        IdentityRules { priority: Vec::new(), types: BTreeMap::new(), blocked: BTreeMap::new(), matching: None };
    let tokens = IdentifierTokens::new(rules, &IdentityKey::new([0; 32]));
    let settings = SessionSettings { functions: vec![Arc::new(tokens.function())], ..SessionSettings::default() };
    Runner::new(lake, stages, settings)
}

async fn asked(past: &Past, at: &str, sees: Sees) -> Vec<(String, Vec<f64>)> {
    let sql = "select o.customer_id, days_since, orders, orders_90d, cast(spend as double) as spend \
        from features.f o order by days_since, orders, spend";
    let question = Question { sql: sql.to_owned(), at: at.parse().unwrap(), sees };
    let take = |kept: &mut Vec<RecordBatch>, batch| {
        kept.push(batch);
        Ok(())
    };
    let batches = past.gather(&question, Vec::new, take).await.unwrap();
    let mut rows = Vec::new();
    for batch in &batches {
        let ids = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).unwrap();
        for row in 0..batch.num_rows() {
            let numbers = (1..5).map(|column| batch.column(column).as_primitive::<Float64Type>().value(row));
            rows.push((ids.as_string::<i32>().value(row).to_owned(), numbers.collect()));
        }
    }
    rows.sort_by(|left, right| left.0.cmp(&right.0));
    rows
}

/// The lake holds orders up to June; what it says of March is what a lake said that held orders up to March.
#[tokio::test]
async fn a_stage_in_the_past_is_what_a_run_of_that_day_made() {
    let moment = "2025-03-01T00:00:00Z";
    let all = Shop::new();
    let past = runner(&all).await.past(&["features.f".parse().unwrap()], &[]).await.unwrap();
    let then = asked(&past, moment, Sees::KnownThen).await;

    let first = Shop::new();
    let day: DateTime<Utc> = moment.parse().unwrap();
    first.write("in/orders/a.csv", "");
    std::fs::remove_dir_all(first.path().join("lake")).unwrap();
    first.bring("a", &orders(|date| date < day.date_naive()));
    succeed(&mut first.command(&["run", "--as-of", moment]));
    let made = first.query("select days_since, orders, orders_90d, cast(spend as double) as spend from features.f");
    // The two lakes have keys of their own, and so ids of their own.
    let shown = |value: f64| format!("{value:.0}");
    let numbers = |row: &Value| -> Vec<String> {
        ["days_since", "orders", "orders_90d", "spend"].iter().map(|name| shown(row[name].as_f64().unwrap())).collect()
    };
    let mut made: Vec<Vec<String>> = made.iter().map(numbers).collect();
    let mut seen: Vec<Vec<String>> =
        then.iter().map(|(_, row)| row.iter().map(|value| shown(*value)).collect()).collect();
    made.sort();
    seen.sort();
    assert!(seen.len() > 100, "seed {SEED}");
    assert_eq!(made, seen, "seed {SEED}");
    // A query that keeps to now() sees no more when there is more to see.
    assert_eq!(then, asked(&past, moment, Sees::LaterToo).await);
    // Stages by key have the end of a day as now(): other moments would be of no run.
    let noon = Question {
        sql: "select 1 from features.f".to_owned(),
        at: "2025-03-01T12:00:00Z".parse().unwrap(),
        sees: Sees::KnownThen,
    };
    let error = past.gather(&noon, || (), |(), _| Ok(())).await.unwrap_err().to_string();
    assert!(error.contains("ask about midnight UTC"), "{error}");
}

/// The shipped features keep to now(), and the shipped model trains on the demo's shop and scores it.
#[test]
fn the_shipped_model_learns_from_the_demo_and_scores_it() {
    let folder = tempfile::tempdir().unwrap();
    succeed(holdfast().args(["demo", "--no-serve", "--customers", "600", "--days", "500", "--dir"]).arg(folder.path()));
    let command = |arguments: &[&str]| {
        let mut command = holdfast();
        command
            .arg("--lake")
            .arg(folder.path().join("lake"))
            .arg("--identity-key")
            .arg(folder.path().join("identity.key"));
        command.args(arguments);
        command
    };
    let output = succeed(&mut command(&["train", "--model", "churn", "--json"]));
    let trained: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(trained["accepted_changed_later"], serde_json::json!(["core.orders.status"]));
    assert!(value(&trained["measures"], "scorecard", "auc", "value") > 0.5, "{trained}");
    succeed(&mut command(&["models", "promote", "churn", "1"]));
    succeed(&mut command(&["score", "--model", "churn"]));
    let counts = rows(
        folder.path(),
        "select count(*) as n, count(distinct p.customer_id) as customers, count(s.customer_id) as in_scorecard \
         from risk.churn_probability p left join risk.churn_score s on s.customer_id = p.customer_id",
    );
    assert!(counts[0]["n"].as_u64() > Some(50), "{counts:?}");
    assert_eq!(counts[0]["n"], counts[0]["customers"]);
    assert_eq!(counts[0]["n"], counts[0]["in_scorecard"], "the scorecard and its table are as they were");

    // The shipped thresholds make alerts of the scores, for each of whom one holds.
    succeed(&mut command(&["run", "--select", "risk.churn_alerts"]));
    let alerts = rows(
        folder.path(),
        "select count(*) as n, count(*) filter (where a.customer_id is null and p.probability >= 0.8) as missed, \
         count(*) filter (where a.customer_id is not null and p.probability < 0.35) as too_many, count(a.thresholds_version) as judged, \
         count(*) filter (where a.probability <> p.probability) as other from risk.churn_probability p left join risk.churn_alerts a on a.customer_id = p.customer_id",
    );
    assert_eq!(alerts[0]["n"], counts[0]["n"], "{alerts:?}");
    for name in ["missed", "too_many", "other"] {
        assert_eq!(alerts[0][name], 0, "{name}: {alerts:?}");
    }
    assert!(alerts[0]["judged"].as_u64() > Some(0), "{alerts:?}");
}
