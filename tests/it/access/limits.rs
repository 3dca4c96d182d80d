//! How much a role may use, and what no statement may do.

use tonic::Code;
use tonic_types::StatusExt;

use super::Service;

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_role_end_an_answer_or_ask_to_come_back() {
    let service = Service::start().await;
    let few = service.select("small", "select customer_id from core.customers limit 5").await.unwrap();
    assert_eq!(few.num_rows(), 5);
    let error = service.select("small", "select customer_id from core.customers limit 6").await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("more than 5 rows"), "{error}");
    assert!(error.get_details_retry_info().is_none(), "the same question would end the same way");
    service.select("small", "select customer_id from core.customers limit 1").await.unwrap();
    let error = service.select("small", "select customer_id from core.customers limit 1").await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()), "{error}");
    // Others are not held up.
    service.select("ana", "select customer_id from core.customers").await.unwrap();
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_and_writing_statements_are_errors_and_the_service_goes_on() {
    let service = Service::start().await;
    let chain = |part: &str, between: &str| vec![part; 10_000].join(between);
    for deep in [
        format!("select {}1{}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("select {}", chain("1", " + ")),
        format!("select * from core.customers where {}", chain("age = 1", " or ")),
        chain("select 1", " union all "),
        format!("select {}1", "- ".repeat(10_000)),
        format!("select {} true", "not ".repeat(10_000)),
        format!("select * from {}core.customers{}", "(select * from ".repeat(10_000), ") x".repeat(10_000)),
        format!("select * from core.customers {}", "cross join core.customers ".repeat(10_000)),
        format!("select * from {}", chain("core.customers", ", ")),
        format!("select {}", chain("case when true then ", " ")),
    ] {
        let error = service.select("ana", &deep).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    // Below the limits they are answered.
    let wide = format!("select {} as n", vec!["1"; 900].join(" + "));
    service.select("ana", &wide).await.unwrap();
    let list = (0..20_000).map(|n| format!("'c{n}'")).collect::<Vec<_>>().join(", ");
    service.select("ana", &format!("select * from core.customers where customer_id in ({list})")).await.unwrap();
    let unions = vec!["select customer_id from core.customers"; 100].join(" union all ");
    service.select("ana", &unions).await.unwrap();
    for writing in [
        "insert into core.customers values (1)",
        "create table t as select * from core.customers",
        "create view core.v as select 1",
        "create external table t stored as csv location '/etc/passwd'",
        "copy core.customers to 'x.csv'",
        "drop table core.customers",
        "set datafusion.execution.batch_size = 1",
        "delete from core.customers",
        "update core.customers set age = 1",
        "truncate table core.customers",
        "explain create table t as select 1",
        "prepare p as select 1",
        "select * from '/etc/passwd'",
        "select * from read_csv('/etc/passwd')",
        "begin",
    ] {
        let error = service.select("boss", writing).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{writing}: {error}");
    }
    assert_eq!(service.select("ana", "select 1 as n").await.unwrap().num_rows(), 1);
    service.shut_down().await;
}
