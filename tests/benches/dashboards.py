#!/usr/bin/env python3
"""Fifty questions of dashboards, to `holdfast serve` by ADBC Flight SQL and to DuckDB over the same Delta tables.

    python tests/benches/dashboards.py --holdfast target/debug/holdfast --lake demo/lake --identity-key demo/identity.key

Both read the newest published run's tables from the same files on the same disk (DuckDB by `delta_scan`, which also finds the newest version,
as views that are made once). Each question is asked of both in turn, once to warm and then `--times` times; the best of each counts, as Arrow
tables in the client. Both answers are compared first. Prints each question's times, and the ratio of the sums and of the geometric means. From
PyPI: duckdb, duckdb-ext-delta, adbc-driver-flightsql, pyarrow.
"""

import argparse
import decimal
import json
import math
import pathlib
import re
import signal
import subprocess
import time

import adbc_driver_flightsql.dbapi
import duckdb

from measure import machine

ROOT = pathlib.Path(__file__).resolve().parents[2]
SINCE = "timestamp '2025-07-01 00:00:00'"
QUESTIONS = [
    "select count(*) from core.orders",
    "select count(distinct customer_id) from core.orders",
    "select sum(paid_amount), avg(cast(paid_amount as double)), min(paid_amount), max(paid_amount) from core.orders",
    "select status, count(*) as n from core.orders group by status order by status",
    "select channel, sum(paid_amount) as paid from core.orders group by channel order by channel",
    "select channel, status, count(*) as n, sum(paid_amount) as paid from core.orders group by channel, status order by 1, 2",
    f"select count(*), sum(paid_amount) from core.orders where ordered_at >= {SINCE}",
    "select date_trunc('month', ordered_at) as month, count(*) as n, sum(paid_amount) as paid from core.orders group by 1 order by 1",
    "select date_trunc('day', ordered_at) as day, count(*) as n from core.orders group by 1 order by 1 desc limit 30",
    "select date_part('dow', ordered_at) as dow, count(*) as n from core.orders group by 1 order by 1",
    "select coupon_code is not null as used, count(*) as n, avg(cast(discount_amount as double)) as discount from core.orders group by 1 order by 1",
    "select province, count(*) as n, sum(paid_amount) as paid from core.orders group by province order by n desc, province limit 10",
    "select customer_id, sum(paid_amount) as paid from core.orders group by customer_id order by paid desc, customer_id limit 20",
    "select count(*) from (select customer_id from core.orders group by customer_id having count(*) > 3) as often",
    "select orders, count(*) as customers from (select customer_id, count(*) as orders from core.orders group by customer_id) as c group by orders order by orders limit 20",
    "select category, sum(line_amount) as amount, sum(quantity) as pieces from core.order_lines group by category order by amount desc, category limit 15",
    "select brand, count(distinct customer_id) as customers from core.order_lines group by brand order by customers desc, brand limit 15",
    "select category, brand, sum(line_amount) as amount from core.order_lines group by category, brand order by amount desc, 1, 2 limit 25",
    f"select category, count(*) as n from core.order_lines where ordered_at >= {SINCE} group by category order by n desc, category",
    "select product_key, sum(quantity) as pieces from core.order_lines group by product_key order by pieces desc, product_key limit 20",
    "select event_type, count(*) as n from core.events group by event_type order by event_type",
    "select channel, device_type, count(*) as n from core.events group by channel, device_type order by 1, 2",
    "select date_trunc('day', occurred_at) as day, count(distinct session_id) as sessions from core.events group by 1 order by 1 desc limit 30",
    "select event_name, count(*) as n, count(distinct customer_id) as customers from core.events group by event_name order by n desc, 1 limit 20",
    "select category, count(*) as n from core.events where event_type = 'view' and category is not null group by category order by n desc, 1 limit 10",
    "select channel, avg(pages) as pages, avg(dwell_ms) as dwell from core.sessions group by channel order by channel",
    f"select count(*), sum(cart_adds), sum(checkouts), sum(orders) from core.sessions where started_at >= {SINCE}",
    "select date_trunc('week', started_at) as week, count(*) as n from core.sessions group by 1 order by 1 desc limit 20",
    "select topic, count(*) as n, avg(csat) as csat from core.tickets group by topic order by topic",
    "select status, is_complaint, count(*) as n from core.tickets group by status, is_complaint order by 1, 2",
    "select stars, count(*) as n from core.reviews group by stars order by stars",
    "select product_key, avg(stars) as stars, count(*) as n from core.reviews group by product_key having count(*) > 2 order by stars, n desc, 1 limit 10",
    "select method, status, count(*) as n, sum(amount) as amount from core.payments group by method, status order by 1, 2",
    "select reason, count(*) as n, sum(amount) as amount from core.refunds group by reason order by reason",
    "select carrier, count(*) as n, sum(case when delivered_at > promised_at then 1 else 0 end) as late from core.shipments group by carrier order by carrier",
    "select store_code, sum(line_amount) as amount from core.receipts group by store_code order by amount desc, 1 limit 10",
    "select date_trunc('month', sold_at) as month, sum(line_amount) as amount from core.receipts group by 1 order by 1",
    "select tender, count(*) as n from core.receipts group by tender order by tender",
    "select lifecycle_stage, count(*) as n from profile.lifecycle group by lifecycle_stage order by lifecycle_stage",
    "select risk_band, count(*) as n, avg(churn_probability) as p from risk.churn_score group by risk_band order by risk_band",
    "select floor(churn_probability * 10) as decile, count(*) as n from risk.churn_score group by 1 order by 1",
    "select customer_id, churn_probability from risk.churn_score order by churn_probability desc, customer_id limit 50",
    "select avg(purchases_90d) as purchases, avg(spend_365d) as spend, avg(sessions_30d) as sessions from features.churn_v1",
    "select l.lifecycle_stage, avg(s.churn_probability) as p, count(*) as n from profile.lifecycle l join risk.churn_score s on l.customer_id = s.customer_id group by 1 order by 1",
    "select s.risk_band, sum(f.spend_365d) as spend from risk.churn_score s join features.churn_v1 f on s.customer_id = f.customer_id group by 1 order by 1",
    "select c.member_tier, count(*) as n, sum(o.paid_amount) as paid from core.orders o join core.contacts c on o.customer_id = c.customer_id group by 1 order by 1",
    "select c.province, avg(s.churn_probability) as p from risk.churn_score s join core.contacts c on s.customer_id = c.customer_id group by 1 order by p desc, 1 limit 10",
    "select o.channel, count(*) as n from core.orders o join core.tickets t on o.customer_id = t.customer_id where t.is_complaint group by 1 order by 1",
    "select count(*) from core.orders o where exists (select 1 from core.refunds r where r.order_id = o.order_id)",
    "select count(*) from core.contacts c where not exists (select 1 from core.orders o where o.customer_id = c.customer_id)",
]


def plain(table):
    """Rows that can be compared: sums of floats are added in another order by everybody."""

    def value(cell):
        if isinstance(cell, (float, decimal.Decimal)):
            return float(f"{float(cell):.9g}")
        if hasattr(cell, "isoformat"):
            return cell.isoformat().replace("+00:00", "")[:10]
        return int(cell) if isinstance(cell, bool) else cell

    return [tuple(value(cell) for cell in row.values()) for row in table.to_pylist()]


def peer(lake):
    import duckdb_ext

    folders = [pathlib.Path(folder) for folder in duckdb_ext.__path__]
    (extension,) = [file for folder in folders for file in folder.glob("extensions/*/*/delta.duckdb_extension")]
    connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    connection.execute(f"load '{extension}'")
    connection.execute("set timezone = 'UTC'")
    for schema, table in sorted({tuple(name.split(".")) for query in QUESTIONS for name in re.findall(r"\b(?:core|profile|risk|features)\.\w+", query)}):
        connection.execute(f"create schema if not exists {schema}")
        connection.execute(f"create view {schema}.{table} as select * from delta_scan('{lake}/{schema}/{table}')")
    return connection


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--holdfast", type=pathlib.Path, required=True)
    parser.add_argument("--lake", type=pathlib.Path, required=True)
    parser.add_argument("--identity-key", type=pathlib.Path, required=True)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    lake = options.lake.resolve()
    command = [options.holdfast.resolve(), "--project", ROOT, "--lake", lake, "--identity-key", options.identity_key.resolve()]
    process = subprocess.Popen([*command, "serve", "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True)
    address = next(filter(None, (re.search(r"grpc://([0-9.:]+)", line) for line in process.stderr))).group(1)
    results = []
    try:
        duck = peer(lake)
        with adbc_driver_flightsql.dbapi.connect(f"grpc://{address}", autocommit=True) as connection, connection.cursor() as cursor:

            def ours(query):
                cursor.execute(query)
                return cursor.fetch_arrow_table()

            def theirs(query):
                found = duck.execute(query)
                return found.to_arrow_table() if hasattr(found, "to_arrow_table") else found.fetch_arrow_table()

            for number, query in enumerate(QUESTIONS, 1):
                same = plain(ours(query)) == plain(theirs(query))
                best = [math.inf, math.inf]
                for _ in range(options.times):
                    for place, ask in enumerate((ours, theirs)):
                        began = time.perf_counter()
                        ask(query)
                        best[place] = min(best[place], time.perf_counter() - began)
                results.append({"query": query, "holdfast_ms": best[0] * 1000, "duckdb_ms": best[1] * 1000, "same": same})
                print(f"{number:>3} {best[0] * 1000:>9.1f} {best[1] * 1000:>9.1f} {best[1] / best[0]:>6.2f}x {'' if same else 'OTHER ROWS '}{query[:90]}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    print(machine())
    ours_ms, theirs_ms = (sum(result[name] for result in results) for name in ("holdfast_ms", "duckdb_ms"))
    ratios = [result["duckdb_ms"] / result["holdfast_ms"] for result in results]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"{len(results)} questions: holdfast {ours_ms:.0f} ms, DuckDB {theirs_ms:.0f} ms: {theirs_ms / ours_ms:.2f}x; geometric mean {mean:.2f}x")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    assert all(result["same"] for result in results), "the answers differ"


if __name__ == "__main__":
    main()
