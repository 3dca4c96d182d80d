//! Earlier runs by `as_of(…)`, seen by the policy of today.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Schema};
use arrow::util::pretty::pretty_format_batches;
use holdfast_engine::{LakeReader, SessionSettings};
use tonic::Code;

use super::{CANARY, Service, customers, path, publish, replace, rows_of, shown, ticket};

#[tokio::test(flavor = "multi_thread")]
async fn pol_1_as_of_shows_of_an_earlier_run_what_the_table_shows() {
    let service = Service::start().await;
    let mut before: HashMap<&str, BTreeSet<String>> = HashMap::new();
    for who in ["ana", "nowhere", "agent1", "both", "boss"] {
        before.insert(who, shown(&service.select(who, "select * from core.customers").await.unwrap()));
    }
    // A run later half of the customers are gone, and what nobody had tagged is found to be personal data.
    let pii = HashMap::from([("pii".to_owned(), "true".to_owned())]);
    let all = customers();
    let columns = all.schema();
    let tagged = columns.fields().iter().map(|field| match field.name().as_str() {
        "age" => field.as_ref().clone().with_metadata(pii.clone()),
        _ => field.as_ref().clone(),
    });
    let tagged = Schema::new(tagged.collect::<Vec<_>>());
    let rows = RecordBatch::try_new(Arc::new(tagged), all.columns().to_vec()).unwrap().slice(0, 12);
    for (who, seen) in &before {
        let earlier = service.select(who, "select * from as_of('core.customers', 1)").await.unwrap();
        assert_eq!(&shown(&earlier), seen, "{who}, before there is another run");
    }
    replace(&service.lake, "core.customers", &rows).await;
    publish(&service.lake, 2).await;
    let newest = || async {
        let mut client = service.flight("boss");
        client.get_flight_info(path("core.customers")).await.unwrap().total_records
    };
    let began = std::time::Instant::now();
    while newest().await != 12 {
        assert!(began.elapsed() < Duration::from_secs(20), "run 2 is not served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let columns = |batch: &RecordBatch| -> Vec<(String, DataType)> {
        batch.schema().fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
    };
    for (who, rows) in [("ana", 12), ("nowhere", 0), ("agent1", 8), ("both", 16), ("boss", 24)] {
        let now = service.select(who, "select * from core.customers").await.unwrap();
        let mut sql = service.sql(who);
        let mut prepared = sql
            .prepare("select * from as_of('core.customers', 1) where customer_id <> ?".to_owned(), None)
            .await
            .unwrap();
        let nobody: ArrayRef = Arc::new(StringArray::from(vec!["nobody"]));
        prepared.set_parameters(RecordBatch::try_from_iter([("0", nobody)]).unwrap()).unwrap();
        let bound = prepared.execute().await.unwrap();
        let by_parameter = service.fetch(who, ticket(&bound)).await.unwrap();
        for earlier in [
            service.select(who, "select * from as_of('core.customers', 1)").await.unwrap(),
            service
                .select(who, "with c as (select * from as_of('core.customers', 'run-1')) select * from c")
                .await
                .unwrap(),
            by_parameter,
        ] {
            assert_eq!(earlier.num_rows(), rows, "{who}");
            assert_eq!(columns(&earlier), columns(&now), "{who}: the columns that are seen now");
            let said = pretty_format_batches(std::slice::from_ref(&earlier)).unwrap().to_string();
            assert!(!said.contains("@example.org"), "{who}: {said}");
            if let Some(ages) = earlier.column_by_name("age") {
                // The mask of personal data makes null of a number, and nobody's is shown.
                assert_eq!(ages.null_count(), rows, "{who}: {said}");
            }
        }
    }
    for (who, query, expected) in [
        ("ana", "select * from as_of('raw.crm', 1)", "run 1 has no table `raw.crm`"),
        ("ana", "select * from as_of('raw.nothing', 1)", "run 1 has no table `raw.nothing`"),
        ("nobody", "select * from as_of('core.customers', 1)", "run 1 has no table `core.customers`"),
        ("agent1", "select email from as_of('core.customers', 1)", "email"),
        ("agent1", "select * from as_of('core.payments', 'run-1')", "run 1 has no table `core.payments`"),
    ] {
        let error = service.select(who, query).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{who} {query}");
        assert!(error.message().contains(expected), "{who} {query}: {}", error.message());
        assert!(!error.message().contains(CANARY), "{}", error.message());
    }
    let plan = service.select("ana", "explain select * from as_of('core.customers', 1)").await.unwrap();
    let plan = pretty_format_batches(&[plan]).unwrap().to_string();
    assert!(plan.contains("PolicyExec") && !plan.contains("north"), "{plan}");

    // What is read of an earlier run is written down as what is read of the newest.
    let (lake, _folder) = service.shut_down().await;
    let name = "audit.accesses".parse().unwrap();
    let run = LakeReader::newest_of(&lake, &SessionSettings::default(), &[name]).await.unwrap();
    let rows = rows_of(&run).await;
    let said = pretty_format_batches(std::slice::from_ref(&rows)).unwrap().to_string();
    assert!(said.lines().filter(|line| line.contains("core.customers.phone")).count() > 10, "{said}");
}
