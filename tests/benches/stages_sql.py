"""The stages of a project in the SQL of other engines: what a benchmark gives its peers to run.

Stages are written in DataFusion's SQL. The rewrites to DuckDB's are these, all of them textual, and nothing else is changed:

    now()                                timestamp '…', the moment that the run is for
    x at time zone '+08:00'              x + interval '8 hours': peers are given their timestamps without a zone, in UTC
    arrow_cast(x, '…')                   x
    identifier_token('phone', x)         _token_1, a column that peers are given: the hash is keyed, and its secret is ours
    make_array(…), named_struct('a', 1)  […], {'a': 1}
    last_value(x order by y)             last(x order by y)
    raw.events.*                         events.*
    1.5                                  1.5e0: decimal to DuckDB, a float to DataFusion
    cast(a - b as bigint) of epochs      cast(trunc(a - b) as bigint): DuckDB rounds
    i.valid_from is null or t >= i.…     coalesce(t, '-infinity') >= coalesce(i.valid_from, '-infinity'), likewise valid_to: a left join on a
                                         token *and* on an `or` is a nested loop to DuckDB, 50 times as slow as what it makes of this

Rows that an expectation sets aside (`quarantine`) are left out by a condition around the query. Sums of whole numbers are HUGEINT to DuckDB,
which Parquet has no type for: they are cast back to bigint around the query.

Spark's SQL is made of DuckDB's by sqlglot; what sqlglot does not translate is rewritten before (`spark`).
"""

import dataclasses
import re

SCHEMAS = ("raw", "peer", "identity", "core", "profile", "features", "risk", "metric")


@dataclasses.dataclass
class Stage:
    name: str
    sql: str  # As it stands in the file, without comments.
    key: str | None

    @property
    def reads(self):
        found = re.findall(rf"\b(?:from|join)\s+\(?\s*((?:{'|'.join(SCHEMAS)})\.\w+)", self.sql)
        return sorted(set(found))


def read(folder):
    """The stages below a folder, in an order in which each comes after those that it reads."""
    stages = {}
    for path in sorted(folder.glob("*/*.sql")):
        text = path.read_text()
        key = re.search(r"^-- @stage\s+incremental key\((\w+)\)", text, re.M)
        name = f"{path.parent.name}.{path.stem}"
        if path.parent.name in SCHEMAS:
            stages[name] = Stage(name, without_comments(text), key and key.group(1))
    ordered = {}
    while len(ordered) < len(stages):
        ready = [s for s in stages.values() if s.name not in ordered and all(r in ordered for r in s.reads if r in stages)]
        ordered.update((stage.name, stage) for stage in ready)
    return list(ordered.values())


def without_comments(text):
    """The text without what stands behind two dashes, except within quotes."""
    return re.sub(r"('(?:[^']|'')*')|--[^\n]*", lambda found: found.group(1) or "", text).strip()


def tokens(stage):
    """What a stage hashes: the raw table, and its calls in the order of their columns _token_1, _token_2, …"""
    calls = []
    for start, end in spans(stage.sql, "identifier_token"):
        call = re.sub(r"\bexported\.", "", stage.sql[start:end])
        if call not in calls:
            calls.append(call)
    raw = [name for name in stage.reads if name.startswith("raw.")]
    if calls and len(raw) != 1:
        raise SystemExit(f"{stage.name} hashes identifiers of {raw}, where one table is expected")
    return (raw[0], calls) if calls else (None, [])


def duckdb(stage, as_of, conditions=()):
    """The stage in DuckDB's SQL, without the rows for which a condition is false."""
    sql = stage.sql
    raw, calls = tokens(stage)
    if calls:
        sql = replaced(
            sql,
            "identifier_token",
            lambda arguments: f"_token_{calls.index(re.sub(r'exported[.]', '', f'identifier_token({arguments})')) + 1}",
        )
        sql = sql.replace(raw, raw.replace("raw.", "peer."))
    sql = replaced(sql, "arrow_cast", lambda arguments: parts(arguments)[0])
    sql = replaced(sql, "make_array", lambda arguments: f"[{arguments}]")
    sql = replaced(sql, "named_struct", struct)
    sql = replaced(sql, "cast", whole_seconds)
    sql = re.sub(r"\blast_value\(", "last(", sql)
    for column, sign, end in (("valid_from", ">=", "-infinity"), ("valid_to", "<", "infinity")):
        sql = re.sub(
            rf"\((\w+\.{column}) is null or ([\w.]+) {sign} \1\)",
            rf"coalesce(\2, timestamp '-infinity') {sign} coalesce(\1, timestamp '{end}')",
            sql,
        )
    sql = re.sub(r"\b\w+\.(\w+)\.\*", r"\1.*", sql)
    sql = plain(sql, as_of)
    return restricted(sql, [plain(condition, as_of) for condition in conditions])


def plain(sql, as_of):
    """The rewrites that hold anywhere, also in conditions of expectations."""
    sql = sql.replace("now()", f"timestamp '{as_of:%Y-%m-%d %H:%M:%S}'")
    sql = sql.replace("at time zone '+08:00'", "+ interval '8 hours'")
    # Outside of quotes.
    return re.sub(r"('(?:[^']|'')*')|\b(\d+\.\d+)\b", lambda found: found.group(1) or f"{found.group(2)}e0", sql)


def restricted(sql, conditions):
    if not conditions:
        return sql
    held = " and ".join(f"coalesce(({condition}), true)" for condition in conditions)
    return f"select *\nfrom (\n{sql}\n) as made\nwhere {held}"


def narrowed(sql, columns):
    """The query with its HUGEINT columns as bigint; `columns` are those of the query, name and type as DuckDB describes them."""
    wide = [name for name, kind in columns if kind == "HUGEINT"]
    if not wide:
        return sql
    listed = ", ".join(f'cast("{name}" as bigint) as "{name}"' if name in wide else f'"{name}"' for name, _ in columns)
    return f"select {listed}\nfrom (\n{sql}\n) as made"


def struct(arguments):
    pieces = parts(arguments)
    return "{" + ", ".join(f"{name}: {value}" for name, value in zip(pieces[::2], pieces[1::2])) + "}"


def whole_seconds(arguments):
    epochs = re.fullmatch(r"(date_part\('epoch', .*\) - date_part\('epoch', .*\)) as bigint", arguments)
    return f"cast(trunc({epochs.group(1)}) as bigint)" if epochs else f"cast({arguments})"


def spark(sql):
    """A query in DuckDB's SQL as Spark's. Needs the package sqlglot."""
    import sqlglot
    from sqlglot import expressions

    sql = replaced(sql, "date_part", spark_part)
    sql = re.sub(r"\blast\((\w+) order by ([\w, ]+)\)", r"max_by(\1, struct(\2))", sql)
    # Spark 4.0 fails on listagg(distinct …) beside count(distinct …).
    sql = re.sub(r"\bstring_agg\(distinct (\w+), ('[^']*') order by \1\)", r"array_to_string(array_sort(collect_set(\1)), \2)", sql)
    tree = sqlglot.parse_one(sql, read="duckdb")

    def is_date(node):
        if isinstance(node, expressions.Window):
            node = node.this
        if isinstance(node, expressions.Lag):
            node = node.this
        if isinstance(node, expressions.Cast):
            return node.to.this == expressions.DataType.Type.DATE
        return isinstance(node, expressions.Column) and node.name.endswith("_date")

    for difference in list(tree.find_all(expressions.Sub)):
        if is_date(difference.left) and is_date(difference.right):
            call = expressions.Anonymous(this="datediff", expressions=[difference.left.copy(), difference.right.copy()])
            difference.replace(expressions.cast(call, "bigint"))
    # sqlglot would keep the condition of `qualify` as one more column of `select *`.
    for select in list(tree.find_all(expressions.Select)):
        condition = select.args.get("qualify")
        if condition and select.expressions == [expressions.Star()]:
            select.set("qualify", None)
            inner = select.copy().select(expressions.alias_(condition.this.copy(), "_kept"))
            outer = expressions.select(expressions.Star(**{"except_": [expressions.to_identifier("_kept")]}))
            select.replace(outer.from_(inner.subquery("qualified")).where("_kept"))
    # Spark has no filter before `over`.
    for window in list(tree.find_all(expressions.Window)):
        kept = window.this
        if isinstance(kept, expressions.Filter):
            call = kept.this.copy()
            call.set("this", expressions.case().when(kept.expression.this.copy(), call.this.copy()))
            window.set("this", call)
    return tree.sql(dialect="spark", pretty=True)


def spark_part(arguments):
    part, moment = parts(arguments)
    if part == "'epoch'":
        return f"(unix_micros(cast({moment} as timestamptz)) / 1e6)"
    return f"(dayofweek({moment}) - 1)" if part == "'dow'" else f"extract({part[1:-1]} from {moment})"


def replaced(sql, name, change):
    """The text with every call of a function as `change` makes it of what stands between its parentheses, inner calls first."""
    calls = spans(sql, name)
    for start, end in reversed(calls):
        inside = sql[start + len(name) + 1 : end - 1]
        if spans(inside, name):
            inside = replaced(inside, name, change)
        sql = sql[:start] + change(inside) + sql[end:]
    return sql


def spans(sql, name):
    """Where the outermost calls of a function begin and end."""
    found, at = [], 0
    for call in re.finditer(rf"\b{name}\(", sql):
        if call.start() >= at:
            at = closing(sql, call.end()) + 1
            found.append((call.start(), at))
    return found


def closing(sql, at):
    """Where the parenthesis ends that was opened before `at`."""
    depth = 1
    quoted = False
    while True:
        if sql[at] == "'":
            quoted = not quoted
        elif not quoted and sql[at] in "([{":
            depth += 1
        elif not quoted and sql[at] in ")]}":
            depth -= 1
            if depth == 0:
                return at
        at += 1


def parts(arguments):
    """Arguments of a call, one by one."""
    found, depth, quoted, begun = [], 0, False, 0
    for at, letter in enumerate(arguments):
        if letter == "'":
            quoted = not quoted
        elif not quoted and letter in "([{":
            depth += 1
        elif not quoted and letter in ")]}":
            depth -= 1
        elif letter == "," and not quoted and depth == 0:
            found.append(arguments[begun:at].strip())
            begun = at + 1
    return [*found, arguments[begun:].strip()]
