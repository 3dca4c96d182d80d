//! Queries written by hand: one for each rule, and one for each shape that looks right and is not.

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::ScalarValue;
use holdfast_types::TableName;

use super::{Dice, Refreshed, Row, changed, derived, random_tables, refresh, schema};
use crate::increment::Reach;

/// How often each shape is refreshed.
const TRIALS: u64 = 6;

const SEED: u64 = 5;

fn schemas() -> Vec<(&'static str, SchemaRef)> {
    use DataType::{Boolean, Float64, Int32, Int64, Utf8};
    vec![
        ("core.a", schema(&[("k", Int64), ("x", Int64), ("s", Utf8)])),
        ("core.b", schema(&[("k", Int64), ("x", Int64), ("s", Utf8)])),
        ("core.c", schema(&[("k", Int32), ("x", Int64), ("s", Utf8)])),
        ("core.n", schema(&[("k!", Int64), ("x!", Int64), ("f", Float64)])),
        ("core.m", schema(&[("k!", Int64), ("x!", Int64)])),
        ("raw.orders", schema(&[("id", Int64), ("token", Utf8), ("batch!", Int64), ("amount", Int64)])),
        ("identity.ids", schema(&[("token", Utf8), ("customer", Utf8), ("shared", Boolean)])),
        ("core.products", schema(&[("code", Utf8), ("product", Utf8), ("system", Int64)])),
    ]
}

/// Key, query, tables that it reads.
const ACCEPTED: &[(&str, &str, &str)] = &[
    // One row at a time.
    ("k", "select k, x + 1 as y from core.a where x > 1 and k is not null", "core.a"),
    ("u", "select upper(trim(s)) as u, x from core.a", "core.a"),
    ("n", "select cast(s as bigint) as n, x from core.a where s in ('1', '2')", "core.a"),
    ("k", "select k, unnest(make_array(x, 7)) as y from core.a", "core.a"),
    ("y", "select k, unnest(make_array(x, 7)) as y from core.a", "core.a"),
    ("k", "select k, x from core.a union all select x, k from core.b", "core.a core.b"),
    ("k", "select k, x from core.a order by x", "core.a"),
    (
        "t",
        "select 'a' as t, count(*) as n from core.a group by s union all select 'b', count(*) from core.b group by s",
        "core.a core.b",
    ),
    ("k", "select k, x from core.a union all (values (1, 2), (null, 3))", "core.a"),
    (
        "k",
        "select k, count(*) filter (where x > date_part('year', now()) - 2025) as n from core.a group by k",
        "core.a",
    ),
    // Groups, windows, distinct rows.
    ("k", "select k, sum(x) as n, count(*) as m from core.a group by k", "core.a"),
    ("k", "select k, s, sum(x) as n from core.a group by k, s having count(*) > 1", "core.a"),
    ("u", "select upper(s) as u, sum(x) as n from core.a group by upper(s)", "core.a"),
    ("t", "select cast(k as varchar) as t, sum(x) as n from core.a group by k", "core.a"),
    ("k", "select k, s, count(*) as n from core.a group by grouping sets ((k, s), (k))", "core.a"),
    ("k", "select k, x, row_number() over (partition by k order by x, s) as r from core.a", "core.a"),
    ("k", "select k, x, s from core.a qualify row_number() over (partition by k order by x desc, s) = 1", "core.a"),
    (
        "k",
        "select k, x, sum(x) over (partition by s, k order by x range between 1 preceding and current row) as r from core.a",
        "core.a",
    ),
    ("u", "select upper(s) as u, x, sum(x) over (partition by upper(s)) as r from core.a", "core.a"),
    ("k", "select distinct k, s from core.a", "core.a"),
    ("k", "select distinct on (k) k, x, s from core.a order by k, x, s", "core.a"),
    ("k", "select k, max(n) as n from (select k, s, count(*) as n from core.a group by k, s) group by k", "core.a"),
    // The last row of the other side that is not later.
    (
        "k",
        "select a.k, a.x, a.s, b.x as y, b.s as t from core.a as a asof join core.b as b match_condition (a.x >= b.x) on a.k = b.k",
        "core.a core.b",
    ),
    (
        "k",
        "select a.k, a.x, b.x as y from core.a as a asof join core.b as b match_condition (a.x < b.x) on a.s = b.s and a.k = b.k",
        "core.a core.b",
    ),
    // Joins of sides that carry the key.
    ("k", "select a.k, a.x, b.x as y from core.a as a inner join core.b as b on a.k = b.k", "core.a core.b"),
    (
        "k",
        "select b.k, a.x, b.x as y from core.a as a inner join core.b as b on a.k = b.k and a.x < b.x",
        "core.a core.b",
    ),
    ("k", "select a.k, a.x, b.x as y from core.a as a, core.b as b where a.k = b.k", "core.a core.b"),
    (
        "k",
        "select a.k, b.x, c.x as y from core.a as a, core.b as b, core.c as c where a.k = b.k and b.k = c.k",
        "core.a core.b core.c",
    ),
    ("k", "select k, a.x, b.x as y from core.a as a join core.b as b using (k)", "core.a core.b"),
    ("k", "select a.k, a.x, b.x as y from core.a as a left join core.b as b on a.k = b.k and b.x > 1", "core.a core.b"),
    (
        "k",
        "select a.k, a.x, b.x as y from core.a as a left join core.b as b on a.k is not distinct from b.k",
        "core.a core.b",
    ),
    ("k", "select a.k, a.x, b.x as y from core.b as b right join core.a as a on a.k = b.k", "core.a core.b"),
    (
        "k",
        "select a.k, b.n from core.a as a left join (select k, count(*) as n from core.b group by k) as b on b.k = a.k",
        "core.a core.b",
    ),
    ("k", "select b.k, a.x from core.a as a left join core.b as b on a.k = b.k where b.k is not null", "core.a core.b"),
    ("k", "select a.k, a.x, c.x as y from core.a as a left join core.c as c on c.k = a.k", "core.a core.c"),
    (
        "k",
        "select c.k, a.x, c.x as y from core.c as c left join (select k, max(x) as x from core.a group by k) as a on c.k = a.k",
        "core.a core.c",
    ),
    (
        "k",
        "select coalesce(a.k, b.k) as k, a.x, b.x as y from core.a as a full join core.b as b on a.k = b.k",
        "core.a core.b",
    ),
    (
        "k",
        "select nvl(b.k, a.k) as k, a.x, b.x as y from core.a as a full join core.b as b on a.k = b.k and a.x = b.x",
        "core.a core.b",
    ),
    (
        "k",
        "select coalesce(a.k, b.k, n.k) as k, a.x, b.x as y, n.x as z from core.a as a full join core.b as b on a.k = b.k full join core.n as n on n.k = coalesce(a.k, b.k)",
        "core.a core.b core.n",
    ),
    (
        "k",
        "select coalesce(b.k, a.k) as k, a.x, b.x as y from core.a as a left join core.b as b on a.k = b.k",
        "core.a core.b",
    ),
    (
        "k",
        "select k, sum(n) as n from (select coalesce(a.k, b.k) as k, 1 as n from core.a as a full join core.b as b on a.k = b.k) group by k",
        "core.a core.b",
    ),
    (
        "k",
        "select a.k, a.x from core.a as a inner join core.b as b on a.k = b.k qualify row_number() over (partition by b.k order by a.x, b.x) = 1",
        "core.a core.b",
    ),
    (
        "k",
        "select a.k, a.x, b.x as y from core.a as a inner join (select k, x from core.b order by x, k limit 3) as b on a.k = b.k",
        "core.a",
    ),
    ("k", "select coalesce(a.k, b.x) as k, a.x from core.a as a inner join core.b as b on a.k = b.k", "core.a core.b"),
    // Sides that are joined by something else.
    ("k", "select a.k, a.x, b.s as t from core.a as a inner join core.b as b on a.x = b.x", "core.a core.b"),
    (
        "k",
        "select b.k, a.x, b.s as t from core.a as a inner join core.b as b on a.x = b.x and a.s = b.s",
        "core.a core.b",
    ),
    (
        "k",
        "select a.k, count(b.k) as n from core.a as a left join core.b as b on a.x = b.x group by a.k",
        "core.a core.b",
    ),
    (
        "k",
        "select a.k, a.x, b.n from core.a as a left join (select x, count(*) as n from core.b group by x) as b on b.x = a.x",
        "core.a core.b",
    ),
    (
        "k",
        "select a.k, a.x, b.n from core.a as a left join (select s, x, count(*) as n from core.b group by s, x) as b on b.x = a.x and b.s = a.s",
        "core.a core.b",
    ),
    (
        "k",
        "select a.k, a.x, b.n from core.a as a left join (select s, max(x) as n from core.b group by s) as b on b.n = a.x and b.s = a.s",
        "core.a core.b",
    ),
    ("k", "select a.k, a.x from core.a as a where a.x in (select x from core.b)", "core.a core.b"),
    (
        "k",
        "select a.k, a.x from core.a as a where exists (select 1 from core.b as b where b.k = a.k and b.x > 1)",
        "core.a core.b",
    ),
    (
        "k",
        "select a.k, a.x from core.a as a where not exists (select 1 from core.b as b where b.x = a.x)",
        "core.a core.b",
    ),
    ("k", "select a.k, a.x from core.a as a where a.k in (select k from core.b) and a.x > 0", "core.a core.b"),
    ("k", "select n.k, n.x from core.n as n where n.k not in (select k from core.m)", "core.n core.m"),
    ("k", "select a.k, a.x from core.a as a left join core.b as b on a.k = b.k where b.k is null", "core.a core.b"),
    ("k", "select a.k, a.x, (select max(b.x) from core.b as b where b.k = a.k) as y from core.a as a", "core.a core.b"),
    ("k", "select a.k, a.x, (select count(*) from core.b as b where b.x = a.x) as y from core.a as a", "core.a core.b"),
    ("k", "select k from core.a except select k from core.b", "core.a core.b"),
    ("k", "select k, x from core.a intersect select k, x from core.b", "core.a core.b"),
    ("k", "select a.k, b.x from core.a as a inner join core.a as b on a.x = b.k", "core.a"),
    (
        "k",
        "select a.k, b.n from core.a as a inner join (select x, sum(k) as n from core.a group by x) as b on a.x = b.x",
        "core.a",
    ),
    // A change of what is read whole is a full refresh; of the rest, keys.
    ("k", "select a.k, a.x, t.n from core.a as a cross join (select count(*) as n from core.b) as t", "core.a"),
    ("k", "select a.k, a.x from core.a as a where a.x > (select avg(x) from core.b)", "core.a"),
    ("k", "select a.k, a.x from core.a as a where a.k not in (select k from core.b)", "core.a"),
    ("k", "select a.k, a.x, b.x as y from core.a as a inner join core.b as b on a.x < b.x", "core.a"),
    // As the shipped stages are written.
    (
        "id",
        "with latest as (select *, upper(token) as t from raw.orders where id is not null qualify row_number() over (partition by id order by batch desc, amount, token) = 1) select ids.customer as customer, latest.id as id, latest.amount as amount from latest left join identity.ids as ids on ids.token = latest.t",
        "raw.orders identity.ids",
    ),
    (
        "id",
        "with latest as (select *, upper(token) as t from raw.orders where id is not null qualify row_number() over (partition by id order by batch desc, amount, token) = 1) select ids.customer as customer, latest.id as id, latest.amount as amount from latest left join identity.ids as ids on ids.token = latest.t and not coalesce(ids.shared, false) where latest.amount > 0",
        "raw.orders identity.ids",
    ),
    (
        "id",
        "select o.id, o.token as code, p.product, ids.customer from raw.orders as o left join core.products as p on p.system = 1 and p.code = upper(trim(o.token)) left join identity.ids as ids on ids.token = o.token",
        "raw.orders core.products identity.ids",
    ),
    (
        "id",
        "select o.id, lower(o.token) as t, ids.shared from raw.orders as o left join identity.ids as ids on ids.token = trim(lower(o.token)) and ids.customer <> 'b'",
        "raw.orders identity.ids",
    ),
    (
        "id",
        "with keyed as (select *, trim(lower(token)) as t from raw.orders) select keyed.id, lower(keyed.token) as code, ids.shared, p.product from core.products as p right join (identity.ids as ids right join keyed on keyed.t = ids.token) on p.code = keyed.t",
        "raw.orders identity.ids core.products",
    ),
    (
        "id",
        "select o.id, o.token as code, ids.shared from (select o.id, case when o.batch > 2 then 'b' else o.token end as token, first_value(o.token) over (partition by o.id order by o.batch, o.token) as w from raw.orders as o) as o left join identity.ids as ids on ids.token = concat(o.token, substr(o.w, 2))",
        "raw.orders identity.ids",
    ),
    (
        "id",
        "select o.id, p.n, ids.customer as c1, other.customer as c2 from raw.orders as o left join identity.ids as ids on ids.token = upper(o.token) left join identity.ids as other on other.token = lower(o.token) left join (select product, count(*) as n from core.products group by product) as p on p.product = ids.customer",
        "raw.orders core.products identity.ids",
    ),
    (
        "id",
        "select id, customer from (select o.id, ids.customer from raw.orders as o left join identity.ids as ids on ids.token = o.token union all select x, s from core.a)",
        "raw.orders identity.ids core.a",
    ),
    (
        "id",
        "select o.id, ids.customer, lead(o.batch) over (partition by o.id order by o.batch, o.amount, o.token, ids.customer, ids.shared) as next from raw.orders as o left join identity.ids as ids on ids.token = o.token",
        "raw.orders identity.ids",
    ),
    (
        "id",
        "select o.id, ids.customer from raw.orders as o left join identity.ids as ids on ids.token = o.token where ids.customer is null or ids.customer <> 'a'",
        "raw.orders identity.ids",
    ),
    (
        "id",
        "select id, customer from (select o.id, ids.customer, row_number() over (partition by o.id order by o.batch, o.amount, o.token, ids.customer) as r from raw.orders as o left join identity.ids as ids on ids.token = o.token) where r = 1",
        "raw.orders identity.ids",
    ),
    (
        "id",
        "select o.id, newest.batch, ids.customer from (select token, max(batch) as batch from raw.orders group by token) as newest inner join raw.orders as o on o.token = newest.token and o.batch = newest.batch left join identity.ids as ids on ids.token = o.token",
        "raw.orders identity.ids",
    ),
    (
        "p",
        "select 'o/' || cast(o.id as varchar) as p, o.amount, l.n from raw.orders as o left join (select k, count(*) as n from core.a group by k) as l on l.k = o.id union all select 'a/' || s, max(x), count(*) from core.a group by s",
        "raw.orders core.a",
    ),
];

/// Key, query, what the author is told.
const REFUSED: &[(&str, &str, &str)] = &[
    ("missing", "select k from core.a", "no column"),
    ("f", "select f, k from core.n", "of type Float64"),
    ("t", "select cast(f as varchar) as t, count(*) as n from core.n group by f", "floating point"),
    ("n", "select count(*) as n from core.a", "whatever their key"),
    ("k", "select max(k) as k, s from core.a group by s", "grouped without"),
    ("k", "select k, s, count(*) as n from core.a group by grouping sets ((k, s), (s))", "grouped without"),
    ("k", "select k, count(*) as n from core.a group by rollup (k)", "several ways"),
    ("k", "select k, count(*) as n from core.a group by grouping sets ((k), ())", "all rows"),
    ("k", "select k, s, count(*) as n from core.a group by cube (k, s)", "several ways"),
    ("k", "select k, row_number() over (order by x) as r from core.a", "not partitioned by"),
    (
        "k",
        "select k, sum(x) over (partition by k) as r, sum(x) over (partition by s) as q from core.a",
        "not partitioned by",
    ),
    (
        "k",
        "select k, x from core.a qualify row_number() over (partition by upper(s), x order by k) = 1",
        "not partitioned by",
    ),
    (
        "k",
        "select a.k, a.x from core.a as a left join core.b as b on a.k = b.k qualify row_number() over (partition by b.k order by a.x) = 1",
        "not partitioned by",
    ),
    ("k", "select distinct on (s) s, k from core.a order by s, k", "distinct on"),
    ("k", "select k, x from core.a order by x limit 3", "the first"),
    ("k", "select k, x from (select k, x from core.a limit 3)", "the first"),
    (
        "k",
        "select coalesce(k, 0) as k, n from (select k, count(*) as n from core.a group by s, k) qualify row_number() over (partition by n order by k) = 1",
        "not partitioned by",
    ),
    ("k", "select b.k, a.x from core.a as a left join core.b as b on a.k = b.k", "may have no row"),
    ("k", "select a.k, a.x, b.x as y from core.a as a full join core.b as b on a.k = b.k", "full join"),
    ("k", "select k, a.x, b.x as y from core.a as a full join core.b as b using (k)", "full join"),
    ("k", "select coalesce(a.k, b.k, 0) as k, a.x from core.a as a full join core.b as b on a.k = b.k", "full join"),
    ("k", "select coalesce(a.k, b.k) as k, a.x from core.a as a full join core.b as b on a.x = b.x", "full join"),
    ("k", "select coalesce(a.k, b.x) as k, a.x from core.a as a left join core.b as b on a.k = b.k", "may have no row"),
    (
        "k",
        "select coalesce(a.x, b.x) as k, a.x from core.a as a inner join core.b as b on a.k = b.k",
        "not joined by the key",
    ),
    ("k", "select k, x from core.a union all select max(k), x from core.b group by x", "grouped without"),
    ("k", "select k, random() as r from core.a", "another at every call"),
    ("k", "select k from core.a where x > random()", "another at every call"),
    (
        "k",
        "select a.k from core.a as a where exists (select 1 from core.b as b where b.k = a.k and b.x > random())",
        "another at every call",
    ),
    ("value", "select value from generate_series(1, 3)", "table function"),
    (
        "k",
        "select a.k, g.value from core.a as a cross join generate_series(1, cast(date_part('year', now()) as bigint)) as g",
        "table function",
    ),
    (
        "k",
        "with recursive r as (select k, x from core.a union all select k, x + 1 from r where x < 3) select k, x from r",
        "own result",
    ),
    ("n", "select (select max(x) from core.b) as n, count(*) as m from core.a group by k", "subquery"),
    (
        "n",
        "select cast(s as bigint) as n, r from (select s, row_number() over (partition by s order by x) as r from core.a) where s in ('1', '2')",
        "leaves out",
    ),
];

fn tables_of(read: &str) -> Vec<TableName> {
    read.split(' ').map(|name| name.parse().unwrap()).collect()
}

#[tokio::test]
async fn accepted_shapes_are_by_key_what_they_are_in_full() {
    let mut dice = Dice(SEED);
    let (mut differing, mut in_full) = (0, Vec::new());
    for (key, sql, read) in ACCEPTED {
        for _ in 0..TRIALS {
            let old = random_tables(&schemas(), &mut dice);
            let (new, changes) = changed(&old, &tables_of(read), &mut dice);
            match refresh(sql, key, &old, &new, &changes, &mut dice).await {
                Ok(Refreshed::ByKey { differing: rows, .. }) => differing += rows,
                Ok(Refreshed::InFull) => in_full.push(*sql),
                Err(error) => panic!("seed {SEED}: {sql}\n{error}"),
            }
        }
    }
    assert!(in_full.is_empty(), "refreshed in full: {in_full:#?}");
    assert!(differing > 300, "only {differing} rows differed: the changes are too tame (seed {SEED})");
}

#[tokio::test]
async fn refused_shapes_say_what_stops_them() {
    let tables = random_tables(&schemas(), &mut Dice(SEED));
    for (key, sql, told) in REFUSED {
        match derived(&tables, sql, key).await {
            Ok(_) => panic!("accepted: {sql}"),
            Err(refused) => assert!(refused.to_string().contains(told), "{sql}\n{refused}"),
        }
    }
}

#[tokio::test]
async fn what_stops_a_stage_has_a_place() {
    let tables = random_tables(&schemas(), &mut Dice(SEED));
    let refused =
        derived(&tables, "select k,\n    sum(x) over (partition by s) as n\nfrom core.a", "k").await.unwrap_err();
    assert_eq!(refused.place.map(|(line, _)| line), Some(2), "{refused}");
}

#[tokio::test]
async fn each_input_reaches_the_key_in_its_way() {
    let tables = random_tables(&schemas(), &mut Dice(SEED));
    let own = |columns: &[&str]| Reach::Own { columns: columns.iter().map(|name| (*name).to_owned()).collect() };
    let left = "select o.id, o.token, ids.customer from raw.orders as o left join identity.ids as ids";
    for (sql, expected) in [
        (format!("{left} on ids.token = o.token"), own(&["token"])),
        (format!("{left} on ids.token = upper(trim(o.token))"), own(&["token"])),
        ("select o.id, lower(o.token) as t, ids.customer from raw.orders as o left join identity.ids as ids on ids.token = trim(lower(o.token))".to_owned(), own(&["t"])),
        ("select o.id, ids.customer from raw.orders as o left join identity.ids as ids on ids.token = o.token".to_owned(), own(&["customer"])),
        // What decides about rows, or is not shown as it is, is looked up in the input.
        (format!("{left} on ids.token = o.token where not ids.shared"), Reach::Join),
        (format!("{left} on ids.token = o.token where ids.customer <> o.token"), Reach::Join),
        (format!("select * from ({left} on ids.token = o.token) where upper(customer) <> 'A'"), Reach::Join),
        (format!("select distinct id, customer from ({left} on ids.token = o.token)"), Reach::Join),
        ("select o.id, upper(ids.customer) as c from raw.orders as o left join identity.ids as ids on ids.token = o.token".to_owned(), Reach::Join),
        ("select o.id, ids.customer from raw.orders as o inner join identity.ids as ids on ids.token = o.token".to_owned(), Reach::Join),
        ("select o.id, ids.customer from raw.orders as o left join (select token, min(customer) as customer from identity.ids group by token) as ids on ids.token = o.token".to_owned(), Reach::Join),
        ("select id, customer from (select o.id, ids.customer, row_number() over (partition by o.id order by o.batch) as r from raw.orders as o left join identity.ids as ids on ids.token = o.token) where r = 1".to_owned(), Reach::Join),
    ] {
        let plan = derived(&tables, &sql, "id").await.unwrap_or_else(|refused| panic!("{sql}\n{refused}"));
        let reach = plan.reach();
        assert_eq!(reach[&"raw.orders".parse().unwrap()], Reach::Key, "{sql}");
        assert_eq!(reach[&"identity.ids".parse().unwrap()], expected, "{sql}");
    }
    for sql in [
        "select a.k from core.a as a where a.k not in (select k from core.b)",
        "select a.k from core.a as a cross join core.b as b",
        "select a.k from core.a as a inner join core.b as b on a.x < b.x",
        "select a.k from core.a as a left join (select x from core.b order by x limit 1) as b on b.x = a.x",
        "select a.k from core.a as a where a.x > (select avg(x) from core.b)",
    ] {
        let plan = derived(&tables, sql, "k").await.unwrap_or_else(|refused| panic!("{sql}\n{refused}"));
        let reach = plan.reach();
        assert!(matches!(reach[&"core.b".parse().unwrap()], Reach::Full { .. }), "{sql} {reach:?}");
        assert_eq!(reach[&"core.a".parse().unwrap()], Reach::Key, "{sql}");
    }
}

#[tokio::test]
async fn inputs_of_rows_that_a_condition_leaves_out_concern_no_key() {
    let mut tables = random_tables(&schemas(), &mut Dice(SEED));
    let name: TableName = "core.m".parse().unwrap();
    let number = |value: i64| ScalarValue::Int64(Some(value));
    let old = tables.clone();
    let added = vec![number(77), number(0)];
    tables.get_mut(&name).unwrap().rows.push(added.clone());
    let changes = [(name, (Vec::new(), vec![added]))].into();
    let sql = "select k, count(*) as n from core.m where x > 0 group by k";
    let refreshed = refresh(sql, "k", &old, &tables, &changes, &mut Dice(SEED)).await;
    assert_eq!(refreshed, Ok(Refreshed::ByKey { keys: 0, differing: 0 }));
}

/// One order of a token, and what was known of the token before, is known now, and was told of the change in between.
async fn refreshed_order(on: &str, [old, new, removed, added]: [Vec<Row>; 4]) -> Vec<Refreshed> {
    let (orders, ids): (TableName, TableName) = ("raw.orders".parse().unwrap(), "identity.ids".parse().unwrap());
    let number = |value: i64| ScalarValue::Int64(Some(value));
    let mut before = random_tables(&schemas(), &mut Dice(SEED));
    before.get_mut(&orders).unwrap().rows = vec![vec![number(1), text("a"), number(1), number(1)]];
    before.get_mut(&ids).unwrap().rows = old;
    let mut after = before.clone();
    after.get_mut(&ids).unwrap().rows = new;
    let changes = [(ids, (removed, added))].into();
    let sql = format!("select o.id, ids.customer from raw.orders as o left join identity.ids as ids on {on}");
    let mut refreshed = Vec::new();
    // With and without rows in quarantine.
    for seed in 0..4 {
        refreshed.push(refresh(&sql, "id", &before, &after, &changes, &mut Dice(seed)).await.unwrap());
    }
    refreshed
}

fn text(value: &str) -> ScalarValue {
    ScalarValue::Utf8(Some(value.to_owned()))
}

fn identifier(customer: &str, is_shared: bool) -> Row {
    vec![text("a"), text(customer), ScalarValue::Boolean(Some(is_shared))]
}

#[tokio::test]
async fn rows_that_came_and_went_hide_no_row_that_came_to_stay() {
    // The token's first customer is in neither version.
    let (went, stays) = (identifier("went", false), identifier("stays", false));
    let refreshed =
        refreshed_order("ids.token = o.token", [vec![], vec![stays.clone()], vec![went.clone()], vec![went, stays]])
            .await;
    assert!(refreshed.iter().all(|found| *found == Refreshed::ByKey { keys: 1, differing: 2 }), "{refreshed:?}");
}

#[tokio::test]
async fn rows_that_meet_the_condition_of_a_join_only_now_are_joined() {
    let (shared, own) = (identifier("all", true), identifier("one", false));
    let on = "ids.token = o.token and not ids.shared";
    let refreshed = refreshed_order(on, [vec![shared.clone()], vec![own.clone()], vec![shared], vec![own]]).await;
    assert!(refreshed.iter().all(|found| *found == Refreshed::ByKey { keys: 1, differing: 2 }), "{refreshed:?}");
}

#[tokio::test]
async fn tokens_of_two_customers_are_found_by_the_one_that_stays() {
    let (stays, comes) = (identifier("stays", false), identifier("comes", false));
    let new = vec![stays.clone(), comes.clone()];
    let refreshed = refreshed_order("ids.token = o.token", [vec![stays], new, vec![], vec![comes]]).await;
    assert!(refreshed.iter().all(|found| *found == Refreshed::ByKey { keys: 1, differing: 1 }), "{refreshed:?}");
}
