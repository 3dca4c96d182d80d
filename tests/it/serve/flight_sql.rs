//! Flight SQL of the service: transactions, sessions, cancelling, earlier runs, metadata, parameters.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_reads_the_run_that_was_newest_when_it_began() {
    let service = Service::start().await;
    let mut sql = service.sql();
    let query = "select max(churn_probability) as top from risk.churn_score".to_owned();
    let transaction = sql.begin_transaction().await.unwrap();
    let mut prepared = sql.prepare(query.clone(), Some(transaction.clone())).await.unwrap();
    service.lake.write("risk.churn_score", &scores(0.05), ChangeKind::ReplaceAll, 2).await;
    service.lake.publish(2).await;
    // Who begins now reads what was just published, though the service has not looked yet.
    let newer = sql.begin_transaction().await.unwrap();
    for (transaction, expected) in [(Some(transaction.clone()), "0.90"), (Some(newer), "0.95"), (None, "0.95")] {
        let info = sql.execute(query.clone(), transaction).await.unwrap();
        assert_eq!(top(&service.fetch(&info).await.unwrap()), expected);
    }
    let info = prepared.execute().await.unwrap();
    assert_eq!(top(&service.fetch(&info).await.unwrap()), "0.90", "prepared in the first one");

    sql.end_transaction(transaction.clone(), EndTransaction::Rollback).await.unwrap();
    let mut altered = transaction.to_vec();
    altered[0] ^= 1;
    for wrong in [altered, b"made by hand".to_vec()] {
        let command = CommandStatementQuery { query: query.clone(), transaction_id: Some(wrong.into()) };
        let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
        let error = service.flight().get_flight_info(descriptor).await.map_err(status).unwrap_err();
        assert!(error.message().contains("a transaction that this lake's service did not make"), "{error}");
    }
    service.shut_down().await;
}

/// Session options of one text each, as `Flight.proto` has them.
#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(map = "string, message", tag = "1")]
    of: HashMap<String, OptionText>,
}

#[derive(Clone, PartialEq, Message)]
struct OptionText {
    #[prost(string, tag = "1")]
    text: String,
}

/// Which options were refused, and why.
#[derive(Clone, PartialEq, Message)]
struct OptionErrors {
    #[prost(map = "string, message", tag = "1")]
    of: HashMap<String, OptionError>,
}

#[derive(Clone, PartialEq, Message)]
struct OptionError {
    #[prost(int32, tag = "1")]
    value: i32,
}

const INVALID_NAME: i32 = 1;
const INVALID_VALUE: i32 = 2;

/// A client that sends its cookie back.
struct Visitor<'a> {
    service: &'a Service,
    cookie: String,
}

impl Visitor<'_> {
    async fn action(&mut self, name: &str, body: Vec<u8>) -> Vec<u8> {
        let mut request = tonic::Request::new(Action::new(name.to_owned(), body));
        if !self.cookie.is_empty() {
            request.metadata_mut().insert("cookie", self.cookie.parse().unwrap());
        }
        let response = FlightServiceClient::new(self.service.channel.clone()).do_action(request).await.unwrap();
        if let Some(cookie) = response.metadata().get("set-cookie") {
            self.cookie = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
        }
        response.into_inner().message().await.unwrap().unwrap().body.to_vec()
    }

    async fn set(&mut self, name: &str, text: &str) -> Option<i32> {
        let of = HashMap::from([(name.to_owned(), OptionText { text: text.to_owned() })]);
        let body = self.action("SetSessionOptions", Options { of }.encode_to_vec()).await;
        OptionErrors::decode(body.as_slice()).unwrap().of.get(name).map(|error| error.value)
    }

    async fn option(&mut self, name: &str) -> String {
        let body = self.action("GetSessionOptions", Vec::new()).await;
        Options::decode(body.as_slice()).unwrap().of[name].text.clone()
    }

    async fn select(&self, query: &str) -> RecordBatch {
        let mut client = self.service.flight();
        if !self.cookie.is_empty() {
            client.add_header("cookie", &self.cookie).unwrap();
        }
        let info = client.get_flight_info(statement(query)).await.unwrap();
        // The ticket says all: whoever fetches needs no cookie.
        self.service.fetch(&info).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_its_run_and_its_schema_in_a_cookie() {
    let service = Service::start().await;
    let mut visitor = Visitor { service: &service, cookie: String::new() };
    let query = "select max(churn_probability) as top from risk.churn_score";
    assert_eq!(visitor.option("run").await, "follow");
    assert_eq!(visitor.set("run", "latest").await, None);
    assert_eq!(visitor.option("run").await, "1");

    service.lake.write("risk.churn_score", &scores(0.05), ChangeKind::ReplaceAll, 2).await;
    service.lake.publish(2).await;
    service.action("refresh").await;
    assert_eq!(top(&visitor.select(query).await), "0.90");
    assert_eq!(top(&service.select(query).await.unwrap()), "0.95", "who has no session follows");
    for (name, value, expected) in [
        ("run", "follow", "0.95"),
        ("run", "run-1", "0.90"),
        ("run", "2", "0.95"),
        ("run", "1", "0.90"),
        ("run", "", "0.95"),
    ] {
        assert_eq!(visitor.set(name, value).await, None, "{name} {value}");
        assert_eq!(top(&visitor.select(query).await), expected, "{name} {value}");
    }
    assert_eq!(visitor.set("as_of", "2026-02-01").await, None);
    assert_eq!(visitor.option("run").await, "2");
    assert_eq!(visitor.option("as_of").await, "2026-01-31T08:00:00+00:00");

    assert_eq!(visitor.set("schema", "risk").await, None);
    assert_eq!(visitor.option("schema").await, "risk");
    assert_eq!(top(&visitor.select("select max(churn_probability) from churn_score").await), "0.95");
    assert_eq!(visitor.set("catalog", "holdfast").await, None);
    for (name, value, error) in [
        ("run", "99", INVALID_VALUE),
        ("run", "no-such-run", INVALID_VALUE),
        ("as_of", "2025-01-01", INVALID_VALUE),
        ("as_of", "yesterday", INVALID_VALUE),
        ("schema", "nowhere", INVALID_VALUE),
        ("catalog", "other", INVALID_VALUE),
        ("colour", "red", INVALID_NAME),
    ] {
        assert_eq!(visitor.set(name, value).await, Some(error), "{name} {value}");
    }
    assert_eq!(visitor.option("schema").await, "risk", "what is refused changes nothing");

    // A session that was altered is told; its options can be set anew, and it can be closed.
    visitor.cookie.push('A');
    let mut client = service.flight();
    client.add_header("cookie", &visitor.cookie).unwrap();
    let error = client.get_flight_info(statement(query)).await.map_err(status).unwrap_err();
    assert!(error.message().contains("a session that this lake's service did not make"), "{error}");
    assert_eq!(visitor.set("run", "1").await, None);
    assert_eq!(top(&visitor.select(query).await), "0.90");
    visitor.action("CloseSession", Vec::new()).await;
    assert_eq!(visitor.option("run").await, "follow");
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_is_cancelled_ends_and_another_of_the_same_text_goes_on() {
    let service = Service::start().await;
    let mut client = service.flight();
    let (one, other) = (
        client.get_flight_info(statement(ENDLESS)).await.unwrap(),
        client.get_flight_info(statement(ENDLESS)).await.unwrap(),
    );
    let mut streams = Vec::new();
    for info in [&one, &other] {
        let mut stream = service.flight().do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
        stream.next().await.unwrap().unwrap();
        streams.push(stream);
    }
    let cancelled = client.cancel_flight_info(CancelFlightInfoRequest::new(one.clone())).await.unwrap();
    assert_eq!(cancelled.status(), CancelStatus::Cancelled);
    let error = loop {
        match streams[0].next().await.expect("the stream ends with an error") {
            Ok(_) => {}
            Err(error) => break status(error),
        }
    };
    assert_eq!(error.code(), Code::Cancelled, "{}", error.message());
    for _ in 0..10 {
        streams[1].next().await.unwrap().unwrap();
    }
    // What has ended cannot be cancelled; the older action does the same.
    let again = client.cancel_flight_info(CancelFlightInfoRequest::new(one)).await.unwrap();
    assert_eq!(again.status(), CancelStatus::NotCancellable);
    let request = ActionCancelQueryRequest { info: other.encode_to_vec().into() };
    let action = Action::new("CancelQuery", request.as_any().encode_to_vec());
    let results: Vec<_> = client.do_action(action).await.unwrap().try_collect().await.unwrap();
    let result: ActionCancelQueryResult = Any::decode(results[0].as_ref()).unwrap().unpack().unwrap().unwrap();
    assert_eq!(result.result, CancelStatus::Cancelled as i32);
    drop(streams);
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_of_reads_a_table_as_an_earlier_run_left_it() {
    let service = Service::start().await;
    service.lake.write("risk.churn_score", &scores(0.05), ChangeKind::ReplaceAll, 2).await;
    service.lake.publish(2).await;
    service.action("refresh").await;
    for (run, expected) in
        [("1", "0.90"), ("'run-1'", "0.90"), ("2", "0.95"), ("timestamp '2026-01-31 08:00:00'", "0.95")]
    {
        let query = format!("select max(churn_probability) as top from as_of('risk.churn_score', {run})");
        assert_eq!(top(&service.select(&query).await.unwrap()), expected, "{run}");
    }
    let compared = service
        .select(
            "with before as (select * from as_of('risk.churn_score', 1) b) select count(*) as n from risk.churn_score s \
             join before using (customer_id) where s.churn_probability > before.churn_probability \
             and exists (select 1 from as_of('features.churn_v1', 1) f where f.customer_id = s.customer_id)",
        )
        .await
        .unwrap();
    assert_eq!(numbers(&compared, "n"), [Some(CUSTOMERS)]);
    // In prepared statements as well.
    let query =
        "select customer_id from as_of('risk.churn_score', 1) where churn_probability > ? order by 1".to_owned();
    let mut prepared = service.sql().prepare(query, None).await.unwrap();
    prepared.set_parameters(row(vec![Arc::new(Float64Array::from(vec![0.85]))])).unwrap();
    let info = prepared.execute().await.unwrap();
    assert_eq!(texts(&service.fetch(&info).await.unwrap(), "customer_id"), ["c18", "c19"]);

    for (wrong, expected) in [
        ("as_of('risk.churn_score', 99)", "there is no published run 99"),
        ("as_of('risk.churn_score', 'nightly')", "there is no published run called `nightly`"),
        ("as_of('risk.churn_score', '2025-01-01')", "no published run is of 2025-01-01"),
        ("as_of('risk.nothing', 1)", "run 1 has no table `risk.nothing`"),
        ("as_of('churn_score', 1)", "run 1 has no table `core.churn_score`"),
        ("as_of('risk.churn_score')", "takes the name of a table and a run"),
        ("as_of('risk.churn_score', 1 + 1)", "takes the name of a table and a run"),
        ("as_of('Risk/..', 1)", "as_of: "),
    ] {
        let error = service.select(&format!("select * from {wrong}")).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{wrong}: {}", error.message());
        assert!(error.message().contains(expected), "{wrong}: {}", error.message());
    }
    for run in 3..=13 {
        service.lake.publish(run).await;
    }
    let many: Vec<String> =
        (1..=11).map(|run| format!("select count(*) from as_of('risk.churn_score', {run})")).collect();
    let error = service.select(&many.join(" union all ")).await.unwrap_err();
    assert!(error.message().contains("more than 10 earlier runs"), "{}", error.message());
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_find_catalogs_schemas_tables_and_columns() {
    let service = Service::start().await;
    let mut sql = service.sql();
    let catalogs = sql.get_catalogs().await.unwrap();
    assert_eq!(texts(&service.fetch(&catalogs).await.unwrap(), "catalog_name"), ["holdfast"]);
    let schemas = sql.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
    assert_eq!(texts(&service.fetch(&schemas).await.unwrap(), "db_schema_name"), ["features", "risk"]);
    let types = sql.get_table_types().await.unwrap();
    assert_eq!(texts(&service.fetch(&types).await.unwrap(), "table_type"), ["TABLE"]);

    let request = CommandGetTables {
        table_name_filter_pattern: Some("churn%".to_owned()),
        db_schema_filter_pattern: Some("f%".to_owned()),
        include_schema: true,
        ..CommandGetTables::default()
    };
    let tables = sql.get_tables(request).await.unwrap();
    let tables = service.fetch(&tables).await.unwrap();
    assert_eq!(texts(&tables, "table_name"), ["churn_v1"]);
    let bytes = tables.column_by_name("table_schema").unwrap().as_binary::<i32>().value(0).to_vec();
    let schema = Schema::try_from(IpcMessage(bytes.into())).unwrap();
    let orders = schema.field_with_name("orders_90d").unwrap();
    assert_eq!(orders.metadata()["ARROW:FLIGHT:SQL:REMARKS"], "Orders of the last 90 days");
    assert_eq!(orders.metadata()["ARROW:FLIGHT:SQL:TYPE_NAME"], "BIGINT");

    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_info_has_every_item_of_the_type_that_the_specification_gives_it() {
    let service = Service::start().await;
    let infos = service.sql().get_sql_info(Vec::new()).await.unwrap();
    let infos = service.fetch(&infos).await.unwrap();
    let values = infos.column(1).as_any().downcast_ref::<UnionArray>().unwrap();
    let names = infos.column(0).as_primitive::<UInt32Type>().values();
    let value =
        |info: SqlInfo| names.iter().position(|name| *name == info as u32).map(|row| values.value(row)).unwrap();
    let type_of = |info: SqlInfo| value(info).data_type().clone();
    for text in [SqlInfo::FlightSqlServerName, SqlInfo::SqlIdentifierQuoteChar, SqlInfo::SqlProcedureTerm] {
        assert_eq!(type_of(text), DataType::Utf8, "{text:?}");
    }
    for flag in [SqlInfo::FlightSqlServerReadOnly, SqlInfo::SqlTransactionsSupported, SqlInfo::SqlSavepointsSupported] {
        assert_eq!(type_of(flag), DataType::Boolean, "{flag:?}");
    }
    for limit in [SqlInfo::SqlMaxColumnsInTable, SqlInfo::SqlMaxStatementLength, SqlInfo::SqlMaxUsernameLength] {
        assert_eq!(type_of(limit), DataType::Int64, "{limit:?}");
    }
    // ADBC takes the transactions for an int32 without a look at the type.
    for mask in [SqlInfo::FlightSqlServerTransaction, SqlInfo::SqlSupportedUnions, SqlInfo::SqlNullOrdering] {
        assert_eq!(type_of(mask), DataType::Int32, "{mask:?}");
    }
    let functions = value(SqlInfo::SqlStringFunctions).as_list::<i32>().value(0);
    let functions: Vec<Option<&str>> = functions.as_string::<i32>().iter().collect();
    assert!(functions.contains(&Some("upper")) && !functions.contains(&Some("abs")), "{functions:?}");
    let conversions = value(SqlInfo::SqlSupportsConvert);
    assert_eq!(conversions.as_map().keys().len(), 18);

    // Those that are asked for, and no others.
    let some = vec![SqlInfo::FlightSqlServerReadOnly, SqlInfo::SqlKeywords];
    let some = service.sql().get_sql_info(some).await.unwrap();
    let some = service.fetch(&some).await.unwrap();
    assert_eq!(some.column(0).as_primitive::<UInt32Type>().values(), &[3, 508]);
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_have_types_and_take_values() {
    let service = Service::start().await;
    let mut sql = service.sql();
    let query = "select customer_id, orders_90d from features.churn_v1 \
                 where orders_90d >= $1 and customer_id <> $2 order by 1 limit $3";
    let mut prepared = sql.prepare(query.to_owned(), None).await.unwrap();
    let asked = prepared.parameter_schema().unwrap().clone();
    let types: Vec<&DataType> = asked.fields().iter().map(|field| field.data_type()).collect();
    assert_eq!(types, [&DataType::Int64, &DataType::Utf8, &DataType::Int64]);
    assert_eq!(prepared.dataset_schema().unwrap().field(1).data_type(), &DataType::Int64);
    for (least, other, expected) in [
        (15, "c16", vec!["c15", "c17"]),
        (18, "", vec!["c18", "c19"]),
        (100, "", vec![]),
        // Text is a value, whatever is in it.
        (18, "' or true --", vec!["c18", "c19"]),
    ] {
        prepared.set_parameters(row(vec![number(least), text(Some(other)), number(2)])).unwrap();
        let info = prepared.execute().await.unwrap();
        assert_eq!(texts(&service.fetch(&info).await.unwrap(), "customer_id"), expected);
        // The schema of what is bound, by its handle.
        let handle = info.flight_descriptor.clone().unwrap();
        let schema = service.flight().get_schema(handle).await.unwrap();
        assert_eq!(schema, info.clone().try_decode_schema().unwrap());
    }

    // Without numbers, as most drivers write them, and of a type that the statement does not tell.
    let mut prepared = sql.prepare("select ? as value".to_owned(), None).await.unwrap();
    assert_eq!(prepared.parameter_schema().unwrap().field(0).data_type(), &DataType::Utf8);
    for value in [Some("it's"), Some("汉字"), Some(""), None] {
        prepared.set_parameters(row(vec![text(value)])).unwrap();
        let rows = service.fetch(&prepared.execute().await.unwrap()).await.unwrap();
        assert_eq!(rows.column(0).as_string::<i32>().iter().next().unwrap(), value);
    }
    // A value is not cut to the type of what it is compared with.
    let mut prepared = sql
        .prepare("select customer_id from features.churn_v1 where orders_90d > ? order by 1".to_owned(), None)
        .await
        .unwrap();
    prepared.set_parameters(row(vec![Arc::new(Float64Array::from(vec![17.5]))])).unwrap();
    let rows = service.fetch(&prepared.execute().await.unwrap()).await.unwrap();
    assert_eq!(texts(&rows, "customer_id"), ["c18", "c19"]);

    // By names, in whatever order the columns come.
    let query = "select customer_id from features.churn_v1 where orders_90d between $low and $high order by 1";
    let mut prepared = sql.prepare(query.to_owned(), None).await.unwrap();
    let named = RecordBatch::try_from_iter([("low", number(3)), ("high", number(4))]).unwrap();
    prepared.set_parameters(named).unwrap();
    let rows = service.fetch(&prepared.execute().await.unwrap()).await.unwrap();
    assert_eq!(texts(&rows, "customer_id"), ["c03", "c04"]);
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_runs_once_for_each_row_of_values_in_their_order() {
    let service = Service::start().await;
    let mut sql = service.sql();
    let query = "select customer_id, $2 as asked from features.churn_v1 where orders_90d >= $1 order by 1 desc limit 2";
    let mut prepared = sql.prepare(query.to_owned(), None).await.unwrap();
    let least: ArrayRef = Arc::new(Int64Array::from(vec![Some(18), Some(100), None, Some(3)]));
    let asked: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some("b"), Some("c"), None]));
    prepared.set_parameters(row(vec![least, asked])).unwrap();
    let info = prepared.execute().await.unwrap();
    let rows = service.fetch(&info).await.unwrap();
    assert_eq!(rows.schema().fields(), info.clone().try_decode_schema().unwrap().fields());
    assert_eq!(texts(&rows, "customer_id"), ["c19", "c18", "c19", "c18"]);
    let asked: Vec<Option<&str>> = rows.column(1).as_string::<i32>().iter().collect();
    assert_eq!(asked, [Some("a"), Some("a"), None, None]);

    // A row that fails ends the answer where it is.
    let mut prepared = sql.prepare("select 10 / $1 as share".to_owned(), None).await.unwrap();
    prepared.set_parameters(row(vec![Arc::new(Int64Array::from(vec![5, 0]))])).unwrap();
    let info = prepared.execute().await.unwrap();
    let error = service.fetch(&info).await.unwrap_err();
    assert!(error.message().to_lowercase().contains("divide by zero"), "{}", error.message());
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_do_not_fit_are_refused_with_what_to_do() {
    let settings = ServeSettings { max_parameter_bytes: 4 << 10, ..ServeSettings::default() };
    let service = Service::start_with(settings).await;
    let mut sql = service.sql();
    let prepared = sql.prepare("select $1 as a, $2 as b".to_owned(), None).await.unwrap();
    let error = prepared.clone().execute().await.unwrap_err().to_string();
    assert!(error.contains("2 parameters of the statement have no values"), "{error}");
    let error = service.select("select ?").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{}", error.message());

    let long = "x".repeat(8 << 10);
    let many: ArrayRef = Arc::new(Int64Array::from(vec![1; 1_001]));
    for (values, expected) in [
        (row(vec![number(1)]), "has 2 parameters, and 1 values are bound"),
        (row(vec![number(1), number(2), number(3)]), "has 2 parameters, and 3 values are bound"),
        (row(vec![Arc::clone(&many), many]), "more than 1000 rows of values came"),
        (row(vec![number(1), number(2)]).slice(0, 0), "no values came"),
        (row(vec![number(1), text(Some(&long))]), "may have 4096"),
    ] {
        let mut prepared = prepared.clone();
        prepared.set_parameters(values).unwrap();
        let error = prepared.execute().await.unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    for (query, expected) in [
        ("select ?, $1", "in one way"),
        ("select $1, $name", "in one way"),
        ("select $2000", "may have 1000"),
        ("select $0", "zero is not a valid index"),
    ] {
        let error = sql.prepare(query.to_owned(), None).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{query}: {error}");
    }
    // Who binds to what is no handle is told so.
    let command = CommandPreparedStatementQuery { prepared_statement_handle: "made by hand".into() };
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    let error = service.flight().get_flight_info(descriptor).await.map_err(status).unwrap_err();
    assert!(error.message().contains("this lake's service did not make"), "{}", error.message());
    service.shut_down().await;
}
