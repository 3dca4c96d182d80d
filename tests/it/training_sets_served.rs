//! Training sets over Flight: made of a spine that is sent, recorded under an id, given again by it, and seen by the policy.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::util::display::array_value_to_string;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, FlightDescriptor};
use chrono::TimeDelta;
use futures::{StreamExt, TryStreamExt};
use holdfast_serve::{CommandMessage, CreateDataset, GetDataset, GetHistoricalFeatures};
use serde_json::Value;

use crate::features::{customer, now, order, run, shop};
use crate::policy_everywhere::{Asker, project};
use crate::served::Served;
use crate::succeed;

fn spine(customers: &[String], at: i64) -> RecordBatch {
    let moments = TimestampMicrosecondArray::from(vec![at; customers.len()]);
    RecordBatch::try_from_iter([
        ("customer_id", Arc::new(StringArray::from(customers.to_vec())) as ArrayRef),
        ("event_timestamp", Arc::new(moments.with_timezone("UTC")) as ArrayRef),
    ])
    .unwrap()
}

fn features(names: &[&str]) -> GetHistoricalFeatures {
    let features = names.iter().map(|name| (*name).to_owned()).collect();
    GetHistoricalFeatures { features, ..GetHistoricalFeatures::default() }
}

fn create(names: &[&str]) -> CreateDataset {
    CreateDataset { features: Some(features(names)), ..CreateDataset::default() }
}

/// The training sets that the caller may know of.
async fn known(asker: &Asker<'_>) -> Vec<Value> {
    let request = asker.request(Action::new("get_dataset", ""));
    let told = FlightServiceClient::new(asker.channel.clone()).do_action(request).await.unwrap();
    let told: Vec<_> = told.into_inner().try_collect().await.unwrap();
    serde_json::from_slice(&told[0].body).unwrap()
}

fn again(id: &str, skip_rows: u64) -> arrow_flight::Ticket {
    arrow_flight::Ticket::new(GetDataset { dataset_id: id.to_owned(), skip_rows }.to_command())
}

/// The label of somebody's later orders, within nine days.
fn labelled(open_horizon: bool) -> CreateDataset {
    let features = GetHistoricalFeatures {
        feature_service: "churn".to_owned(),
        ignore_known_at: true,
        ..GetHistoricalFeatures::default()
    };
    CreateDataset { features: Some(features), label: "bought:amount".to_owned(), horizon_s: 9 * 86_400, open_horizon }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_lie_behind_the_moment_and_a_horizon_that_is_not_over_is_refused() {
    let shop = shop();
    shop.write(
        "sql/label/bought.sql",
        "-- @feature\n-- @tag label(amount)\nselect customer_id, max(ordered_at) as event_timestamp, sum(amount) as amount\n\
         from core.orders where order_id like 'later%' group by customer_id\n",
    );
    order(&shop, "a", &[("o1", "M1", 30, "10.00"), ("later1", "M1", 5, "3.00"), ("o2", "M2", 30, "1.00")]);
    run(&shop);
    let customers = [customer(&shop, "o1"), customer(&shop, "o2")];
    let served = Served::start(&shop, &[], &[]);
    let days_ago = |days: i64| (now() - TimeDelta::days(days)).timestamp_micros();
    let made = async |command: CreateDataset, at: i64| {
        let messages = FlightDataEncoderBuilder::new()
            .with_flight_descriptor(Some(FlightDescriptor::new_cmd(command.to_command())))
            .build(futures::stream::iter([Ok::<_, FlightError>(spine(&customers, at))]))
            .map(Result::unwrap);
        let answer = FlightServiceClient::new(served.channel().await).do_exchange(messages).await?.into_inner();
        let answer = FlightRecordBatchStream::new_from_flight_data(answer.map_err(FlightError::from));
        answer.try_collect::<Vec<RecordBatch>>().await
    };
    let batches = made(labelled(false), days_ago(10)).await.unwrap();
    let cell =
        |row: usize, column: &str| array_value_to_string(batches[0].column_by_name(column).unwrap(), row).unwrap();
    assert_eq!([cell(0, "amount"), cell(1, "amount")], ["3.00", ""]);
    assert_eq!([cell(0, "bought__status"), cell(1, "bought__status")], ["PRESENT", "NOT_FOUND"]);
    assert!(batches[0].schema().metadata()["holdfast.dataset_id"].starts_with("ds_"));
    let error = made(labelled(false), days_ago(3)).await.unwrap_err().to_string();
    assert!(error.contains("its horizon ends after"), "{error}");
    assert_eq!(made(labelled(true), days_ago(3)).await.unwrap()[0].num_rows(), 2);
    served.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_set_of_a_sent_spine_is_recorded_and_given_again_to_who_had_it_made() {
    let (folder, passwords) = project();
    let served = Served::start(&folder, &["--users", "users.toml", "--audit", "on"], &[]);
    let ids = folder.query("select customer_id from features.reach order by customer_id");
    let mut customers: Vec<String> = ids.iter().map(|row| row["customer_id"].as_str().unwrap().to_owned()).collect();
    customers.push("nobody".to_owned());
    let at = now().timestamp_micros();
    let names = ["reach:phone", "reach:entries"];

    let mut boss = Asker::new(&served, "boss", &passwords["boss"]).await;
    let plain = boss.exchange(features(&names).to_command(), spine(&customers, at)).await.unwrap();
    let made = boss.exchange(create(&names).to_command(), spine(&customers, at)).await.unwrap();
    assert_eq!((made.len(), &made), (7, &plain), "the rows are those of the features");
    let recorded = known(&boss).await;
    assert_eq!(recorded.len(), 1, "{recorded:?}");
    let id = recorded[0]["id"].as_str().unwrap().to_owned();
    assert_eq!((&recorded[0]["made_by"], &recorded[0]["spine"]["rows"]), (&"password/boss".into(), &7.into()));

    // The same again is the same training set; other rows are another.
    boss.exchange(create(&names).to_command(), spine(&customers, at)).await.unwrap();
    assert_eq!(known(&boss).await.len(), 1);
    boss.exchange(create(&names).to_command(), spine(&customers[..2], at)).await.unwrap();
    assert_eq!(known(&boss).await.len(), 2);

    // By its id, whole, by a part of the id, and from where the answer was cut.
    assert_eq!(boss.fetch(again(&id, 0)).await.unwrap(), made);
    assert_eq!(boss.fetch(again(&id[..12], 5)).await.unwrap(), made[5..]);
    assert!(boss.fetch(again(&id, 99)).await.unwrap().is_empty());
    assert!(boss.fetch(again("ds_none", 0)).await.unwrap_err().contains("no training set is called"));
    assert!(boss.info(arrow_flight::FlightDescriptor::new_cmd(again(&id, 0).ticket)).await.is_err());

    // Another sees it masked if it makes it, and does not get somebody else's: the spine is theirs.
    let mut ana = Asker::new(&served, "ana", &passwords["ana"]).await;
    let masked = ana.exchange(create(&names).to_command(), spine(&customers, at)).await.unwrap();
    assert_eq!(masked.len(), 7);
    for (masked, shown) in masked.iter().zip(&made).take(6) {
        assert_eq!((&masked[0], &masked[3]), (&shown[0], &shown[3]));
        assert!(masked[2].as_ref().is_some_and(|phone| phone.len() == 32), "{masked:?}");
    }
    assert!(ana.fetch(again(&id, 0)).await.unwrap_err().contains("to who had it made"));
    for (who, names, expected) in [
        ("hid", &names[..], "has no feature `phone`"),
        ("reg", &names[1..], "sees some rows"),
        ("hid", &["reach:entries"][..], ""),
    ] {
        let mut asker = Asker::new(&served, who, &passwords[who]).await;
        let answer = asker.exchange(create(names).to_command(), spine(&customers, at)).await;
        match expected {
            "" => assert_eq!(answer.unwrap().len(), 7),
            expected => assert!(answer.clone().unwrap_err().contains(expected), "{who}: {answer:?}"),
        }
    }
    let half = CreateDataset { label: "reach:entries".to_owned(), ..create(&names) };
    let error = boss.exchange(half.to_command(), spine(&customers, at)).await.unwrap_err();
    assert!(error.contains("a label has a horizon"), "{error}");
    served.stop();

    // What was recorded is had again by the command, byte for byte, and the log names it.
    succeed(&mut folder.command(&["features", "datasets", "replay", &id, "--out", "again.parquet"]));
    let bytes = std::fs::metadata(folder.path().join("again.parquet")).unwrap().len();
    assert_eq!(recorded[0]["output"]["bytes"], bytes);
    let rows = folder.query(&format!(
        "select action, outcome, array_to_string(tables, ' ') as tables from audit.accesses where principal = 'boss' and \
         action in ('create_dataset:{id}', 'get_dataset:{id}') and outcome = 'ok'"
    ));
    assert_eq!(rows.len(), 5, "{rows:?}");
    assert!(rows.iter().all(|row| row["tables"] == "features.reach"), "{rows:?}");
}
