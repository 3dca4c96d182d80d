//! What tells what there is, and no rows of it, is in the audit log as what tells rows is, and does not drown it.

use std::collections::BTreeMap;

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetTables};
use arrow_flight::{Action, Criteria, FlightDescriptor};
use futures::TryStreamExt;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::connections::shop_with_users;
use crate::pg_client::PgClient;
use crate::served::Served;

fn of<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn path() -> FlightDescriptor {
    FlightDescriptor::new_path(vec!["features".to_owned(), "spend".to_owned()])
}

async fn action(channel: Channel, token: &str, name: &str, body: &str) -> Result<(), Status> {
    let request = of(token, Action::new(name.to_owned(), body.to_owned()));
    let told = FlightServiceClient::new(channel).do_action(request).await?;
    told.into_inner().try_collect::<Vec<_>>().await.map(drop)
}

async fn metadata(channel: Channel, token: &str, is_of_tables: bool) -> Result<(), arrow_flight::error::FlightError> {
    let mut sql = FlightSqlServiceClient::new(channel);
    sql.set_token(token.to_owned());
    let info = match is_of_tables {
        true => sql.get_tables(CommandGetTables::default()).await?,
        false => sql.get_db_schemas(CommandGetDbSchemas::default()).await?,
    };
    sql.do_get(info.endpoint[0].ticket.clone().unwrap()).await?.try_collect::<Vec<_>>().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_list_leaves_a_row_and_the_same_again_leaves_none() {
    let (shop, password, [token, _]) = shop_with_users();
    let served = Served::start(&shop, &["--users", "users.toml", "--audit", "required"], &[]);
    let channel = served.channel().await;
    let mut flight = FlightServiceClient::new(channel.clone());
    let mut wire = PgClient::connect(served.postgres, "ana", Some(&password)).await.unwrap();
    for _ in 0..3 {
        let flights = flight.list_flights(of(&token, Criteria::default())).await.unwrap();
        flights.into_inner().try_collect::<Vec<_>>().await.unwrap();
        flight.get_flight_info(of(&token, path())).await.unwrap();
        flight.get_schema(of(&token, path())).await.unwrap();
        let nothing = FlightDescriptor::new_path(vec!["features".to_owned(), "nothing".to_owned()]);
        flight.get_flight_info(of(&token, nothing)).await.unwrap_err();
        metadata(channel.clone(), &token, true).await.unwrap();
        metadata(channel.clone(), &token, false).await.unwrap();
        action(channel.clone(), &token, "list_features", "").await.unwrap();
        action(channel.clone(), &token, "describe_features", "spend").await.unwrap();
        action(channel.clone(), &token, "get_dataset", "").await.unwrap();
        let mut sql = FlightSqlServiceClient::new(channel.clone());
        sql.set_token(token.clone());
        sql.prepare("select spend from features.spend".to_owned(), None).await.unwrap();
        wire.simple("show all").await.unwrap();
        wire.simple("show holdfast.run").await.unwrap();
        assert!(!wire.simple("select relname from pg_catalog.pg_class").await.unwrap().is_empty());
        assert_eq!(wire.described("select spend from features.spend").await.unwrap(), ["spend"]);
    }
    wire.simple("select spend from features.spend").await.unwrap();
    served.stop();

    let rows = shop.query(
        "select principal, protocol, action, outcome, array_to_string(tables, ' ') as tables, count(*) as n \
         from audit.accesses where action <> 'authenticate' group by 1, 2, 3, 4, 5",
    );
    let found: BTreeMap<String, (String, i64)> = rows
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let key = ["principal", "protocol", "action", "outcome"].map(text).join(" ");
            (key, (text("tables"), row["n"].as_i64().unwrap()))
        })
        .collect();
    for (expected, tables) in [
        ("bo flight list:flights ok", ""),
        ("bo flight list:table ok", "features.spend"),
        ("bo flight list:table not_found", ""),
        ("bo flight list:tables ok", ""),
        ("bo flight list:schemas ok", ""),
        ("bo flight list:features ok", ""),
        ("bo flight list:feature ok", ""),
        ("bo flight list:datasets ok", ""),
        ("bo flight list:statement ok", "features.spend"),
        ("ana postgresql list:setting ok", ""),
        ("ana postgresql statement begun", "features.spend"),
        ("ana postgresql statement ok", "features.spend"),
    ] {
        assert_eq!(found.get(expected), Some(&(tables.to_owned(), 1)), "{expected}: {found:#?}");
    }
    let catalog = rows.iter().filter(|row| row["protocol"] == "postgresql" && row["action"] == "list:statement");
    let mut catalog: Vec<_> =
        catalog.map(|row| (row["tables"].as_str().unwrap_or_default(), row["n"].clone())).collect();
    catalog.sort_by_key(|(tables, _)| *tables);
    // The columns of a statement, and the system tables.
    assert!(catalog.len() == 2 && catalog[0].0.is_empty(), "{catalog:?}");
    assert!(catalog[1].0.contains("pg_catalog.pg_class"), "{catalog:?}");
    assert!(catalog.iter().all(|(_, n)| n == 1), "{catalog:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_listed_where_it_must_be_written_down_and_cannot_be() {
    let (shop, password, [token, _]) = shop_with_users();
    // No table can be made where there is a file.
    shop.write("lake/audit", "in the way");
    let served = Served::start(&shop, &["--users", "users.toml", "--audit", "required"], &[]);
    let channel = served.channel().await;
    let mut flight = FlightServiceClient::new(channel.clone());
    let (mut by_flight, mut by_schema) = (flight.clone(), flight.clone());
    let mut sql = FlightSqlServiceClient::new(channel.clone());
    sql.set_token(token.clone());
    let connect = async || PgClient::connect(served.postgres, "ana", Some(&password)).await.unwrap();
    let (mut setting, mut described, mut catalog) = (connect().await, connect().await, connect().await);
    let said = tokio::join!(
        async { flight.list_flights(of(&token, Criteria::default())).await.unwrap_err().to_string() },
        async { by_flight.get_flight_info(of(&token, path())).await.unwrap_err().to_string() },
        async { by_schema.get_schema(of(&token, path())).await.unwrap_err().to_string() },
        async { action(channel.clone(), &token, "list_features", "").await.unwrap_err().to_string() },
        async { action(channel.clone(), &token, "get_dataset", "").await.unwrap_err().to_string() },
        async { metadata(channel.clone(), &token, true).await.unwrap_err().to_string() },
        async { sql.prepare("select 1".to_owned(), None).await.err().unwrap().to_string() },
        async { setting.simple("show holdfast.run").await.unwrap_err().message },
        async { described.described("select spend from features.spend").await.unwrap_err().message },
        async { catalog.simple("select relname from pg_catalog.pg_class").await.unwrap_err().message },
    );
    let said: [String; 10] = said.into();
    for said in said {
        assert!(said.contains("accesses must be written down"), "{said}");
    }
}
