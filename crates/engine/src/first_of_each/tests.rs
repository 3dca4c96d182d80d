use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::util::pretty::pretty_format_batches;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionContext;

use crate::session::{SessionSettings, session_with};

/// Numbers that look random and are the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Rows whose keys occur once, some times or often, with nulls everywhere; `id` tells them apart.
fn table(seed: u64, rows: usize) -> Arc<dyn TableProvider> {
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let some = |numbers: &mut Numbers, bound: u64| {
        let value = i64::try_from(numbers.below(bound)).unwrap();
        (numbers.below(9) > 0).then_some(value)
    };
    let mut partitions = vec![Vec::new(), Vec::new(), Vec::new()];
    let mut id = 0_i64;
    while usize::try_from(id).unwrap() < rows {
        let length = 1 + numbers.below(200);
        let mut columns: [Vec<Option<i64>>; 5] = Default::default();
        for _ in 0..length {
            columns[0].push(some(&mut numbers, 40));
            columns[1].push(some(&mut numbers, rows as u64));
            columns[2].push(some(&mut numbers, 12));
            columns[3].push(some(&mut numbers, 7));
            columns[4].push(Some(id));
            id += 1;
        }
        let [few, many, text, when, id] = columns;
        let texts = |values: &[Option<i64>]| -> StringArray {
            values
                .iter()
                .map(|value| value.map(|value| format!("{}{value}", "x".repeat(usize::try_from(value % 30).unwrap()))))
                .collect()
        };
        let arrays: Vec<(&str, ArrayRef)> = vec![
            ("few", Arc::new(Int64Array::from(few))),
            ("many", Arc::new(texts(&many))),
            ("text", Arc::new(texts(&text))),
            ("at", Arc::new(TimestampMicrosecondArray::from(when.clone()))),
            ("amount", Arc::new(Decimal128Array::from_iter(when.iter().map(|value| value.map(i128::from))))),
            ("id", Arc::new(Int64Array::from(id))),
        ];
        let batch =
            RecordBatch::try_from_iter_with_nullable(arrays.into_iter().map(|(name, array)| (name, array, true)));
        let place = usize::try_from(numbers.below(3)).unwrap();
        partitions[place].push(batch.unwrap());
    }
    let schema = partitions.iter().flatten().next().unwrap().schema();
    Arc::new(MemTable::try_new(schema, partitions).unwrap())
}

fn context(settings: &SessionSettings, runtime: &Arc<RuntimeEnv>, table: &Arc<dyn TableProvider>) -> SessionContext {
    let tables = ["core.t", "core.u"].map(|name| (name.parse().unwrap(), Arc::clone(table)));
    session_with(settings, runtime, 1, tables).unwrap()
}

async fn plan_of(context: &SessionContext, sql: &str) -> String {
    let plan = context.sql(&format!("explain {sql}")).await.unwrap().collect().await.unwrap();
    pretty_format_batches(&plan).unwrap().to_string()
}

async fn rows_of(context: &SessionContext, sql: &str) -> Vec<String> {
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    let text = pretty_format_batches(&batches).unwrap().to_string();
    let mut lines: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.retain(|line| !line.starts_with('+'));
    lines.sort();
    lines
}

/// Queries whose orders leave no two rows equal, and which the rule is for.
const FIRST_ROWS: [&str; 16] = [
    "select * from t qualify row_number() over (partition by few order by id) = 1",
    "select * from t qualify row_number() over (partition by many order by at desc, id desc) = 1",
    "select * from t qualify row_number() over (partition by many, text order by at nulls last, id) = 1",
    "select * from t qualify row_number() over (partition by text order by amount desc nulls last, text, id desc) = 1",
    "select * from t qualify row_number() over (partition by at order by many nulls first, id) < 2",
    "select * from t where few > 3 and id % 7 <> 0 qualify 1 >= row_number() over (partition by many order by id) and id % 2 = 0",
    "select many, n + 1 as m from (select many, row_number() over (partition by many order by id) as n from t) where n = 1",
    "select id from (select *, row_number() over (partition by upper(many) order by id % 5, id) as n from t where many is not null) as x where x.n <= 1",
    "with k as (select *, concat(many, '/', text) as k, md5(many) as h from t), l as (select * from k qualify row_number() over (partition by k order by id desc) = 1) select k, h, id from l",
    "with l as (select * from t qualify row_number() over (partition by many order by id desc) = 1) select l.id, u.id as other from l join u on u.id = l.id",
    "with l as (select *, md5(many) as h from t qualify row_number() over (partition by many order by id desc) = 1) select l.many, count(*) as n, max(h) as h from l left join u on u.many = l.many group by l.many",
    "select sum(id) as total, count(*) as n from (select * from t qualify row_number() over (partition by many order by id desc) = 1) where at is not null",
    "select * from (select * from t where few < 20 union all select * from u where few >= 15) qualify row_number() over (partition by many order by few, id, at) = 1",
    "select few, count(*) as n from (select * from t qualify row_number() over (partition by few, many order by id) = 1) group by few",
    "select * from t where false qualify row_number() over (partition by few order by id) = 1",
    "with l as (select * from t qualify row_number() over (partition by many order by id) = 1) select * from l qualify row_number() over (partition by few order by id desc) = 1",
];

/// Queries that it must leave alone, because they are about other rows.
const LEFT_ALONE: [&str; 8] = [
    "select * from t qualify row_number() over (partition by few order by id) = 2",
    "select * from t qualify row_number() over (partition by few order by id) <= 2",
    "select * from t qualify row_number() over (partition by few order by id) > 1",
    "select * from t qualify rank() over (partition by few order by id) = 1",
    "select * from t qualify row_number() over (order by id) = 1",
    "select id, row_number() over (partition by few order by id) as n from t",
    "select * from t qualify row_number() over (partition by cast(few as double) order by id) = 1",
    "select few, id, total from (select few, id, sum(id) over (partition by few) as total, row_number() over (partition by few order by id) as n from t) where n = 1",
];

#[tokio::test]
async fn first_rows_are_those_of_the_plan_that_sorts() {
    let runtime = Arc::new(RuntimeEnv::default());
    let (quick, sorting) =
        (SessionSettings::default(), SessionSettings { is_frugal: true, ..SessionSettings::default() });
    for seed in 1..=3 {
        for (rows, target_partitions) in [(60, 4), (2_000, 1), (2_000, 4)] {
            let table = table(seed, rows);
            let quick = context(&SessionSettings { target_partitions, ..quick.clone() }, &runtime, &table);
            let sorting = context(&sorting, &runtime, &table);
            for sql in FIRST_ROWS {
                let (ours, theirs) = (rows_of(&quick, sql).await, rows_of(&sorting, sql).await);
                assert_eq!(ours, theirs, "seed {seed}, {rows} rows, {target_partitions} partitions: {sql}");
            }
        }
    }
    let table = table(1, 2_000);
    let (quick, sorting) = (context(&quick, &runtime, &table), context(&sorting, &runtime, &table));
    for sql in FIRST_ROWS {
        let plan = plan_of(&quick, sql).await;
        let is_empty = sql.contains("where false");
        assert_eq!(plan.contains("FirstOfEachExec"), !is_empty, "{sql}: {plan}");
        // What is above first rows is worked out from them, and not twice.
        let sorts = usize::from(sql.matches("qualify").count() == 2);
        assert_eq!(plan.matches("SortExec").count(), sorts, "{sql}: {plan}");
        assert!(!plan_of(&sorting, sql).await.contains("FirstOfEachExec"), "{sql}");
    }
    for sql in LEFT_ALONE {
        let plan = plan_of(&quick, sql).await;
        assert!(!plan.contains("FirstOfEachExec"), "{sql}: {plan}");
        assert_eq!(rows_of(&quick, sql).await, rows_of(&sorting, sql).await, "{sql}");
    }
}

#[tokio::test]
async fn columns_that_are_too_many_to_keep_are_read_again() {
    let table = table(5, 20_000);
    let sorting = SessionSettings { is_frugal: true, ..SessionSettings::default() };
    let sorting = context(&sorting, &Arc::new(RuntimeEnv::default()), &table);
    // Hashes and winners fit in, the columns that decide do not.
    let pool = Arc::new(GreedyMemoryPool::new(700 << 10));
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().unwrap();
    let quick = context(&SessionSettings::default(), &runtime, &table);
    for sql in [FIRST_ROWS[0], FIRST_ROWS[3], FIRST_ROWS[4]] {
        assert_eq!(rows_of(&quick, sql).await, rows_of(&sorting, sql).await, "{sql}");
    }
    assert_eq!(runtime.memory_pool.reserved(), 0);
}

#[tokio::test]
async fn one_of_equal_rows_is_the_first() {
    let table = table(3, 2_000);
    let context = context(&SessionSettings::default(), &Arc::new(RuntimeEnv::default()), &table);
    let sql = "select count(*) as n, count(distinct few) as keys from (select * from t qualify row_number() over (partition by few order by at) = 1)";
    // Rows without a key are one key more.
    assert_eq!(rows_of(&context, sql).await, ["| 41 | 40 |", "| n | keys |"]);
}

#[tokio::test]
async fn a_query_whose_keys_do_not_fit_into_memory_fails_as_others_do() {
    let table = table(5, 20_000);
    let pool = Arc::new(GreedyMemoryPool::new(100 << 10));
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().unwrap();
    let context = context(&SessionSettings::default(), &runtime, &table);
    let error = context.sql(FIRST_ROWS[1]).await.unwrap().collect().await.unwrap_err();
    assert!(error.to_string().contains("FirstOfEach"), "{error}");
    assert!(crate::EngineError::execution("t")(error).is_out_of_memory());
}

#[tokio::test]
async fn a_plan_that_is_run_again_gives_its_rows_again() {
    let table = table(4, 2_000);
    let context = context(&SessionSettings::default(), &Arc::new(RuntimeEnv::default()), &table);
    let plan = context.sql(FIRST_ROWS[1]).await.unwrap().create_physical_plan().await.unwrap();
    let mut counts = Vec::new();
    for _ in 0..3 {
        let batches = datafusion::physical_plan::collect(Arc::clone(&plan), context.task_ctx()).await.unwrap();
        counts.push(batches.iter().map(RecordBatch::num_rows).sum::<usize>());
    }
    assert!(counts[0] > 0 && counts.iter().all(|count| *count == counts[0]), "{counts:?}");
}
