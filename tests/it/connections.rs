//! Connections to the service: how many there may be, over which protocol ever, and how long one may be silent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::{Criteria, FlightClient, FlightDescriptor};
use futures::TryStreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_types::StatusExt;

use crate::features::{order, run, shop};
use crate::pg_client::PgClient;
use crate::served::Served;
use crate::stages::Shop;
use crate::succeed;

const POLICY: &str = "[roles.analyst]\ntables = [\"core.*\", \"features.*\"]\n[roles.tool]\ntables = [\"core.*\"]\n\
    [roles.tool.limits]\nconnections = 3\n";

/// A shop with users and tokens; the password of `ana` and the tokens of `bo` and `tool`.
pub(crate) fn shop_with_users() -> (Shop, String, [String; 2]) {
    let shop = shop();
    order(&shop, "a", &[("o1", "M1", 10, "10.00")]);
    run(&shop);
    shop.write("pipelines/churn/policy.toml", POLICY);
    let made = |arguments: &[&str]| {
        let output = succeed(shop.command(&["access"]).args(arguments));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let password = made(&["user", "add", "ana", "--role", "analyst", "--make-password"]);
    let tokens = ["bo", "tool"].map(|name| {
        let role = if name == "bo" { "analyst" } else { "tool" };
        made(&["token", "add", name, "--role", role])
    });
    (shop, password, tokens)
}

/// How a connection that sends these bytes, and then one every so often, is ended by the service, and after how long.
async fn ended(address: SocketAddr, first: &[u8], trickle: &[u8], every: Duration) -> (Vec<u8>, Duration) {
    let began = Instant::now();
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    writer.write_all(first).await.unwrap();
    let trickle = trickle.to_vec();
    let sending = tokio::spawn(async move {
        for byte in trickle.iter().cycle() {
            tokio::time::sleep(every).await;
            if writer.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
    });
    let mut said = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), reader.read_to_end(&mut said)).await;
    assert!(read.is_ok(), "{address} goes on with a connection that says nothing");
    sending.abort();
    (said, began.elapsed())
}

async fn tables(channel: tonic::transport::Channel, token: &str) -> Result<usize, tonic::Status> {
    let mut client = arrow_flight::flight_service_client::FlightServiceClient::new(channel);
    let mut request = tonic::Request::new(Criteria::default());
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    Ok(client.list_flights(request).await?.into_inner().try_collect::<Vec<_>>().await?.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_slow_to_say_who_it_is_is_closed_over_every_protocol_and_costs_little() {
    let (shop, password, tokens) = shop_with_users();
    let served = Served::start(&shop, &["--users", "users.toml", "--log-in-timeout-s", "1.5"], &[]);
    let before = served.resident();
    let every = Duration::from_millis(200);
    let startup = [0, 0, 39, 16, 0, 3, 0, 0, b'u'];
    let client_preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // A frame of a megabyte that is announced and never comes.
    let frame = [&client_preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[15, 255, 255, 0, 0, 0, 0, 0, 1]].concat();
    let head = b"POST /get-online-features HTTP/1.1\r\nhost: x\r\nx-slow: ";
    let mut slow = Vec::new();
    for (name, address, first) in [
        ("a startup packet", served.postgres, &startup[..]),
        ("nothing", served.postgres, &[]),
        ("a TLS handshake", served.postgres, &[22, 3, 1, 2, 0, 1]),
        ("a preface", served.flight, &client_preface[..10]),
        ("a frame", served.flight, &frame),
        ("nothing", served.flight, &[]),
        ("a head", served.http, &head[..]),
    ] {
        let first = first.to_vec();
        slow.push(tokio::spawn(async move {
            let (_, took) = ended(address, &first, b"x", every).await;
            assert!(took < Duration::from_secs(8), "{name}: {took:?}");
        }));
    }
    for slow in slow {
        slow.await.unwrap();
    }
    assert!(served.resident() < before + (64 << 20), "{} of {before}", served.resident());

    // Who has said it stays, for longer than that.
    let channel = served.channel().await;
    assert!(tables(channel.clone(), &tokens[0]).await.unwrap() > 0);
    let mut wire = PgClient::connect(served.postgres, "ana", Some(&password)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(tables(channel, &tokens[0]).await.unwrap() > 0);
    assert_eq!(wire.simple("select 1").await.unwrap(), [[Some("1".to_owned())]]);
    served.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_ask_nothing_are_closed_and_calls_that_are_open_are_not() {
    let (shop, password, tokens) = shop_with_users();
    let served = Served::start(&shop, &["--users", "users.toml", "--idle-timeout-s", "1.5"], &[]);
    let mut wire = PgClient::connect(served.postgres, "ana", Some(&password)).await.unwrap();
    wire.simple("select 1").await.unwrap();
    let began = Instant::now();
    let error = wire.message().await.unwrap_err();
    assert_eq!((error.code.as_str(), began.elapsed() < Duration::from_secs(20)), ("57P05", true), "{error:?}");
    // A session may ask for less.
    let mut wire = PgClient::connect(served.postgres, "ana", Some(&password)).await.unwrap();
    wire.simple("set idle_session_timeout = '300ms'").await.unwrap();
    assert_eq!(wire.message().await.unwrap_err().code, "57P05");

    // Over HTTP/1.1 a connection that is kept open.
    let mut http = TcpStream::connect(served.http).await.unwrap();
    let body = "{\"entities\": {\"customer_id\": [\"c\"]}, \"features\": [\"spend:spend\"]}";
    let asked = format!(
        "POST /get-online-features HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        tokens[0],
        body.len()
    );
    http.write_all(asked.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), http.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));

    // A stream over Flight that is read slowly goes on.
    let mut sql = FlightSqlServiceClient::new(served.channel().await);
    sql.set_token(tokens[0].clone());
    let info = sql.execute("select a.value from generate_series(1, 100000000) a".to_owned(), None).await.unwrap();
    let mut stream = sql.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    for _ in 0..6 {
        assert!(stream.try_next().await.unwrap().is_some());
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    drop(stream);
    // One over which nothing goes is closed, and the client's next call opens another.
    tokio::time::sleep(Duration::from_secs(4)).await;
    sql.execute("select 1".to_owned(), None).await.unwrap();
    let said = served.stop();
    let closed = said.iter().filter(|line| line.contains("a connection was silent")).count();
    assert!(closed >= 2, "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_when_there_is_no_room_is_told_to_come_back_and_the_others_are_served() {
    let (shop, password, tokens) = shop_with_users();
    let flags = ["--users", "users.toml", "--connections-max", "300", "--connections-unknown-max", "280"];
    let served = Served::start(&shop, &flags, &[]);
    let channel = served.channel().await;
    assert!(tables(channel.clone(), &tokens[0]).await.unwrap() > 0);
    let mut wire = PgClient::connect(served.postgres, "ana", Some(&password)).await.unwrap();

    // Far more than there may be, over all ports.
    let mut many = Vec::new();
    for address in [served.flight, served.postgres, served.http].into_iter().cycle().take(3_000) {
        if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_secs(5), TcpStream::connect(address)).await {
            many.push(stream);
        }
    }
    assert!(many.len() > 2_000, "{}", many.len());
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let error = PgClient::connect(served.postgres, "ana", Some(&password)).await.err().unwrap();
    assert_eq!(error.code, "53300", "{error:?}");
    assert!(error.message.contains("280 connections have not said") && error.message.contains("try again later"));
    let error = tables(served.channel().await, &tokens[0]).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert!(error.get_details_retry_info().is_some() && error.message().contains("280 connections"), "{error:?}");
    let answer = served.post(&tokens[0], "{}").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.to_lowercase().contains("retry-after: 1"), "{answer}");
    // Those who were there are served meanwhile, and room that is given back is had.
    assert!(tables(channel, &tokens[0]).await.unwrap() > 0);
    assert_eq!(wire.simple("select 1").await.unwrap(), [[Some("1".to_owned())]]);
    drop(many);
    let began = Instant::now();
    while PgClient::connect(served.postgres, "ana", Some(&password)).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    served.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_principal_has_as_many_connections_as_its_roles_say_over_all_protocols() {
    let (shop, password, tokens) = shop_with_users();
    let flags = ["--users", "users.toml", "--connections-of-user-max", "2"];
    let served = Served::start(&shop, &flags, &[]);
    // Of the analyst's two, by the service; of the tool's three, by its role.
    let first = PgClient::connect(served.postgres, "ana", Some(&password)).await.unwrap();
    let mut by_password = FlightSqlServiceClient::new(served.channel().await);
    by_password.handshake("ana", &password).await.unwrap();
    by_password.execute("select 1".to_owned(), None).await.unwrap();
    let error = PgClient::connect(served.postgres, "ana", Some(&password)).await.err().unwrap();
    assert_eq!(error.code, "53300", "{error:?}");
    assert!(error.message.contains("2 of your connections are open"), "{error:?}");
    let mut kept = Vec::new();
    for _ in 0..3 {
        let channel = served.channel().await;
        assert!(tables(channel.clone(), &tokens[1]).await.unwrap() > 0);
        kept.push(channel);
    }
    let fourth = served.channel().await;
    let error = tables(fourth.clone(), &tokens[1]).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("3 of your connections are open"), "{error:?}");
    // Another may still come in over it.
    assert!(tables(fourth, &tokens[0]).await.unwrap() > 0);
    drop(first);
    let began = Instant::now();
    while PgClient::connect(served.postgres, "ana", Some(&password)).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    served.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_of_a_hundred_megabytes_is_refused_with_the_limit() {
    let (shop, password, tokens) = shop_with_users();
    let served = Served::start(&shop, &["--users", "users.toml"], &[]);
    let before = served.resident();
    let huge = format!("select '{}'", "x".repeat(100 << 20));
    let mut wire = PgClient::connect(served.postgres, "ana", Some(&password)).await.unwrap();
    let error = wire.simple(&huge).await.unwrap_err();
    assert_eq!(error.code, "54000", "{error:?}");
    assert!(error.message.contains("16777216 bytes, the limit"), "{error:?}");
    assert_eq!(wire.simple("select 1").await.unwrap(), [[Some("1".to_owned())]]);

    let mut client = FlightClient::new(served.channel().await);
    client.add_header("authorization", &format!("Bearer {}", tokens[0])).unwrap();
    let error = client.get_flight_info(FlightDescriptor::new_cmd(huge)).await.unwrap_err().to_string();
    assert!(error.contains("67108864"), "{error}");
    let two = format!("select '{}'", "x".repeat(2 << 20));
    let mut sql = FlightSqlServiceClient::new(served.channel().await);
    sql.set_token(tokens[0].clone());
    let error = sql.execute(two, None).await.unwrap_err().to_string();
    assert!(error.contains("may have 1048576"), "{error}");
    assert!(served.resident() < before + (128 << 20), "{} of {before}", served.resident());
    served.stop();
}
