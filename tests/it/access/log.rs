//! What is written down of accesses, and of those that were cancelled.

use arrow::util::pretty::pretty_format_batches;
use arrow_flight::{CancelFlightInfoRequest, CancelStatus, FlightClient};
use futures::StreamExt;
use holdfast_access::{AuditKey, verify_audit};
use holdfast_engine::{LakeReader, SessionSettings};
use tonic::Code;

use super::{CANARY, Service, path, rows_of, statement, status, texts, ticket, values};

#[tokio::test(flavor = "multi_thread")]
async fn each_access_is_written_down_without_what_was_read() {
    let service = Service::start().await;
    service
        .select("ana", &format!("select phone from core.customers where email = '{CANARY}-x' or age > 30"))
        .await
        .unwrap();
    let info = service.flight("boss").get_flight_info(path("risk.churn_score")).await.unwrap();
    service.fetch("boss", ticket(&info)).await.unwrap();
    service.fetch("agent1", ticket(&info)).await.unwrap_err();
    let mut nobody = FlightClient::new(service.channel.clone());
    nobody.get_flight_info(path("core.customers")).await.unwrap_err();
    let (lake, _folder) = service.shut_down().await;

    let key = AuditKey::derive(b"secret");
    let report = verify_audit(&lake, &SessionSettings::default(), &key).await.unwrap();
    assert_eq!((report.broken.len(), report.chains, report.lost), (0, 1, 0));
    let name = "audit.accesses".parse().unwrap();
    let run = LakeReader::newest_of(&lake, &SessionSettings::default(), &[name]).await.unwrap();
    let rows = rows_of(&run).await;
    let said = pretty_format_batches(std::slice::from_ref(&rows)).unwrap().to_string();
    assert!(!said.contains(CANARY), "{said}");
    let (lists, lines): (Vec<&str>, Vec<&str>) =
        said.lines().filter(|line| line.starts_with('|')).skip(2).partition(|line| line.contains(" list:"));
    assert_eq!((lists.len(), lines.len()), (2, 4), "{said}");
    for expected in [["ana", "list:statement", "core.customers"], ["boss", "list:table", "risk.churn_score"]] {
        let is_it = |line: &&&str| expected.iter().all(|part| line.contains(part)) && !line.contains("core.customers.");
        assert_eq!(lists.iter().filter(is_it).count(), 1, "{expected:?}: {said}");
    }
    // Who ends first is written first.
    for expected in [
        ["ana", "statement", "core.customers.phone", "core.customers.email", " ok "],
        ["boss", "table", "flight", "risk.churn_score", " ok "],
        ["agent1", "token", "table", "flight", "not_found"],
        ["", "authenticate", "flight", "", "refused"],
    ] {
        let is_it = |line: &&str| expected.iter().all(|part| line.contains(part));
        assert_eq!(lines.iter().filter(|line| is_it(line)).count(), 1, "{expected:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_cancelled_by_whose_it_is_and_by_nobody_else() {
    let service = Service::start().await;
    let endless = "select a.value from generate_series(1, 1000000) a, generate_series(1, 1000000) b";
    let info = service.flight("ana").get_flight_info(statement(endless)).await.unwrap();
    let mut stream = service.flight("ana").do_get(ticket(&info)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let request = CancelFlightInfoRequest::new(info);
    let by_another = service.flight("boss").cancel_flight_info(request.clone()).await.unwrap();
    assert_eq!(by_another.status(), CancelStatus::NotCancellable);
    for _ in 0..10 {
        stream.next().await.unwrap().unwrap();
    }
    let by_ana = service.flight("ana").cancel_flight_info(request).await.unwrap();
    assert_eq!(by_ana.status(), CancelStatus::Cancelled);
    let error = loop {
        match stream.next().await.expect("the stream ends with an error") {
            Ok(_) => {}
            Err(error) => break status(error),
        }
    };
    assert_eq!(error.code(), Code::Cancelled, "{}", error.message());
    let (lake, _folder) = service.shut_down().await;
    let name = "audit.accesses".parse().unwrap();
    let run = LakeReader::newest_of(&lake, &SessionSettings::default(), &[name]).await.unwrap();
    assert!(texts(&rows_of(&run).await, "outcome").contains(&Some("cancelled".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn bound_values_are_not_written_down_and_statements_are_known_without_them() {
    let service = Service::start().await;
    let query = "select customer_id from core.customers where age > ? and phone <> ?".to_owned();
    let mut prepared = service.sql("boss").prepare(query, None).await.unwrap();
    for number in [1, 2] {
        prepared.set_parameters(values(number, &format!("{CANARY}-{number}"))).unwrap();
        let info = prepared.execute().await.unwrap();
        service.fetch("boss", ticket(&info)).await.unwrap();
    }
    let (lake, _folder) = service.shut_down().await;
    let name = "audit.accesses".parse().unwrap();
    let run = LakeReader::newest_of(&lake, &SessionSettings::default(), &[name]).await.unwrap();
    let rows = rows_of(&run).await;
    let said = pretty_format_batches(std::slice::from_ref(&rows)).unwrap().to_string();
    assert!(!said.contains(CANARY), "{said}");
    let hashes: Vec<(Option<String>, Option<String>)> =
        texts(&rows, "action").into_iter().zip(texts(&rows, "query_hash")).collect();
    let of = |action: &str| -> Vec<String> {
        let of_action = hashes.iter().filter(|(found, _)| found.as_deref() == Some(action));
        of_action.filter_map(|(_, hash)| hash.clone()).collect()
    };
    let (read, told) = (of("statement"), of("list:statement"));
    assert!(read.len() == 2 && read[0] == read[1], "{said}");
    // It was told once what the columns are.
    assert_eq!(told, read[..1], "{said}");
}
