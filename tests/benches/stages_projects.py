"""The stages of a plan as projects of dbt and of SQLMesh, as their own users would write them: a model a stage, expectations as tests and audits."""

import re
import shutil

import stages_sql


def write_dbt(folder, plan, report, stages, moment, kept=False, changed=None):
    """A dbt project on DuckDB; `kept` leaves what it has built. With `changed`, a table of customers, models by customer are incremental: they work those out anew."""
    shutil.rmtree(folder / "models", ignore_errors=True)
    shutil.rmtree(folder / "tests", ignore_errors=True)
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("models", "tests", "macros"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "dbt_project.yml").write_text(
        "name: bench\nversion: 1.0.0\nprofile: bench\nmodels:\n  +materialized: table\n"
        "flags:\n  send_anonymous_usage_stats: false\n"
        "on-run-start:\n  - set integer_division = true\n  - set preserve_insertion_order = false\n"
        + "".join(f"  - create schema if not exists {schema}\n" for schema in sorted({name.split(".")[0] for name in plan["inputs"]}))
        + "".join(f"  - create or replace view {name} as select * from read_parquet('{path}')\n" for name, path in plan["inputs"].items())
    )
    (folder / "profiles.yml").write_text(
        f"bench:\n  target: dev\n  outputs:\n    dev:\n      type: duckdb\n      path: {folder / 'bench.duckdb'}\n      threads: 2\n"
        f"      settings:\n        threads: {plan['threads']}\n        integer_division: true\n        preserve_insertion_order: false\n"
    )
    # Schemas as they are named, without the target's in front.
    (folder / "macros/schema.sql").write_text("{% macro generate_schema_name(name, node) %}{{ name or target.schema }}{% endmacro %}\n")
    made = {stage["name"] for stage in plan["stages"]}
    for stage in plan["stages"]:
        schema, table = stage["name"].split(".")
        reads = next(known for known in stages if known.name == stage["name"]).reads
        depends = "".join(f"-- depends_on: {{{{ ref('{name.replace('.', '__')}') }}}}\n" for name in reads if name in made)
        sql, more = stage["sql"], ""
        if changed and stage["key"] == "customer_id":
            more = ", materialized='incremental', incremental_strategy='delete+insert', unique_key='customer_id'"
            only = f"{{% if is_incremental() %}}\nwhere customer_id in (select customer_id from {changed})\n{{% endif %}}"
            sql = f"select *\nfrom (\n{sql}\n) as made\n{only}"
        (folder / f"models/{schema}__{table}.sql").write_text(
            f"{{{{ config(schema='{schema}', alias='{table}'{more}) }}}}\n{depends}{sql}\n"
        )
        for told in rules(report[stage["name"]], moment):
            relation = f"{{{{ ref('{schema}__{table}') }}}}"
            (folder / f"tests/{schema}__{table}__{told['name']}.sql").write_text(
                f"{{{{ config(severity='{'error' if told['severity'] == 'fail' else 'warn'}') }}}}\n{broken(told, relation)}\n"
            )


def write_sqlmesh(folder, plan, report, stages, moment):
    """A SQLMesh project on DuckDB; it begins with nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "models").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"gateways:\n  duckdb:\n    connection:\n      type: duckdb\n      database: {folder / 'bench.duckdb'}\n      concurrent_tasks: 2\n"
        f"      connector_config:\n        threads: {plan['threads']}\n        integer_division: true\n        preserve_insertion_order: false\n"
        "default_gateway: duckdb\nmodel_defaults:\n  dialect: duckdb\n  start: 2026-01-01\n  cron: '@daily'\n"
        "disable_anonymized_analytics: true\nbefore_all:\n"
        + "".join(f"  - create schema if not exists {schema}\n" for schema in sorted({name.split(".")[0] for name in plan["inputs"]}))
        + "".join(f"  - create or replace view {name} as select * from read_parquet('{path}')\n" for name, path in plan["inputs"].items())
    )
    for stage in plan["stages"]:
        sql = aliased(stage["sql"])
        audits = []
        for told in rules(report[stage["name"]], moment):
            name = f"{stage['name'].replace('.', '__')}__{told['name']}"
            blocking = "" if told["severity"] == "fail" else ", blocking false"
            audits.append((name, f"AUDIT (name {name}{blocking});\n{broken(told, '@this_model')};\n"))
        names = ", ".join(name for name, _ in audits)
        (folder / f"models/{stage['name']}.sql").write_text(
            f"MODEL (name {stage['name']}, kind FULL{f', audits ({names})' if names else ''});\n\n{sql};\n\n"
            + "\n".join(text for _, text in audits)
        )


def aliased(sql):
    """The query with a name of its own for each table: `from core.orders as core_orders`. SQLMesh gives tables other names than their own."""
    for name in sorted(set(re.findall(rf"\b(?:from|join)\s+\(?\s*((?:{'|'.join(stages_sql.SCHEMAS)})\.\w+)", sql))):
        short, table = name.replace(".", "_"), name.split(".")[1]
        had = len(sql)
        sql = re.sub(rf"\b((?:from|join)\s+\(?\s*){re.escape(name)}\b(?!\.)(?!\s+as\b)", rf"\1{name} as {short}", sql)
        sql = re.sub(rf"\b{re.escape(name)}\.", f"{short}.", sql)
        if len(sql) != had and not re.search(rf"\b{table} as \(", sql):
            # Where the query says the table's name without its schema.
            sql = re.sub(rf"(?<![.\w']){table}\.(?=[\w*])", f"{short}.", sql)
    return sql


def rules(stage, moment):
    """Expectations that stop or warn, in DuckDB's SQL; that keys are unique is counted."""
    found = []
    for told in stage["expectations"]:
        if told["severity"] == "quarantine":
            continue
        condition = told["condition"]
        unique = re.fullmatch(r"no two rows have the same (.*)", condition)
        if unique:
            condition = None
        found.append({**told, "unique": unique and unique.group(1), "condition": condition and stages_sql.plain(condition, moment)})
    return found


def broken(told, relation):
    """A query for what breaks a rule: rows, or one row where the rule is about the table."""
    if told["unique"]:
        return f"select {told['unique']} from {relation} group by all having count(*) > 1"
    if re.search(r"\b(count|sum|min|max|avg)\(", told["condition"]):
        return f"select 1 as broken from (select {told['condition']} as held from {relation}) as told where not held"
    return f"select * from {relation} where not ({told['condition']})"
