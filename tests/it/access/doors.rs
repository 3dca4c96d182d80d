//! Who may come in, and when a policy that was changed holds.

use std::time::Duration;

use arrow_flight::FlightClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use holdfast_access::Users;
use tonic::Code;

use super::{PASSWORD, Service, path, status, ticket};

#[tokio::test(flavor = "multi_thread")]
async fn users_come_in_with_passwords_and_tokens_and_nobody_else_does() {
    let service = Service::start().await;
    let call = async |authorization: Option<String>| {
        let mut client = FlightClient::new(service.channel.clone());
        if let Some(authorization) = authorization {
            client.add_header("authorization", &authorization).unwrap();
        }
        client.get_flight_info(path("core.customers")).await.map(|_| ()).map_err(|error| status(error).code())
    };
    assert_eq!(call(None).await, Err(Code::Unauthenticated));
    for wrong in ["Bearer hf_wrong", "Bearer ", "Basic YW5hOnh4eHg=", "hfs_AAAA", "Bearer hfs_AAAA", "Bearer a.b.c"] {
        assert_eq!(call(Some(wrong.to_owned())).await, Err(Code::Unauthenticated), "{wrong}");
    }
    assert_eq!(call(Some(format!("Bearer {}", service.tokens["ana"]))).await, Ok(()));

    let mut sql = FlightSqlServiceClient::new(service.channel.clone());
    let given = sql.handshake("ana", PASSWORD).await.unwrap();
    let token = String::from_utf8(given.to_vec()).unwrap();
    assert_eq!(sql.token(), Some(&token), "it is in the header, too");
    let info = sql.execute("select count(*) as n from core.customers".to_owned(), None).await.unwrap();
    sql.do_get(ticket(&info)).await.unwrap();

    // Who guesses is told nothing, and must wait; names that nobody has are like others.
    let mut codes = Vec::new();
    for (user, password) in [("ana", "wrong"), ("nobody-at-all", "wrong"), ("ana", "")] {
        let error = FlightSqlServiceClient::new(service.channel.clone()).handshake(user, password).await.unwrap_err();
        codes.push(error.to_string());
    }
    assert!(codes.iter().all(|said| said.contains("the user name or the password is wrong")), "{codes:?}");
    let guess = async || FlightSqlServiceClient::new(service.channel.clone()).handshake("ana", "wrong again").await;
    let mut said = String::new();
    for _ in 0..4 {
        said = guess().await.unwrap_err().to_string();
    }
    assert!(said.contains("too many wrong passwords"), "{said}");
    // A user that is taken away is out with the next look at the file, and so is a token.
    let file = service.folder.path().join("users.toml");
    let mut users = Users::load(&file).unwrap();
    users.remove_user("ana").unwrap();
    users.remove_token("boss").unwrap();
    users.save(&file).unwrap();
    for authorization in [format!("Bearer {token}"), format!("Bearer {}", service.tokens["boss"])] {
        let mut left = 500;
        while call(Some(authorization.clone())).await.is_ok() && left > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            left -= 1;
        }
        assert_eq!(call(Some(authorization)).await, Err(Code::Unauthenticated));
    }
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_holds_for_the_next_question_and_a_broken_one_for_none() {
    let service = Service::start().await;
    let file = service.folder.path().join("policy.toml");
    let count = async || service.flight("boss").get_schema(path("core.customers")).await.unwrap().fields().len();
    assert_eq!(count().await, 7);
    std::fs::write(&file, "[roles.owner]\ntables = [\"core.customers\n").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(count().await, 7, "the one before it holds");
    std::fs::remove_file(&file).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(count().await, 7, "without a file it holds, too");
    std::fs::write(&file, "[roles.owner]\ntables = [\"core.customers\"]\n").unwrap();
    let mut left = 500;
    while count().await == 7 && left > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        left -= 1;
    }
    assert_eq!(count().await, 5, "personal data without a rule is denied");
    service.shut_down().await;
}
