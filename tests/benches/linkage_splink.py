"""Splink 5 on DuckDB with the model its documentation gives for a set; prints one JSON document. Run by linkage.py.

    python linkage_splink.py febrl3 2 febrl3.csv
"""

import json
import logging
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import duckdb
import splink.comparison_library as cl
from splink import DuckDBAPI, Linker, SettingsCreator, block_on

logging.getLogger("splink").setLevel(logging.ERROR)

# So many that its best one is among them.
THRESHOLDS = (0.5, 0.9, 0.95, 0.99)


def febrl_model(names_by_frequency):
    name = lambda column: cl.NameComparison(column).configure(term_frequency_adjustments=names_by_frequency)
    exact = lambda column: cl.ExactMatch(column).configure(term_frequency_adjustments=True)
    birth = cl.DateOfBirthComparison(
        "date_of_birth", input_is_string=True, datetime_format="%Y%m%d", invalid_dates_as_null=names_by_frequency
    )
    return name, exact, birth


def dedupe_febrl():
    name, exact, birth = febrl_model(False)
    return {
        "link_type": "dedupe_only",
        "blocking": [block_on(key) for key in ("soc_sec_id", "given_name", "surname", "date_of_birth", "postcode")],
        "comparisons": [
            name("given_name"),
            name("surname"),
            birth,
            cl.DamerauLevenshteinAtThresholds("soc_sec_id", [2]),
            exact("street_number"),
            exact("postcode"),
        ],
        "deterministic": [block_on("soc_sec_id"), block_on("given_name", "surname", "date_of_birth")],
        "recall": 0.9,
        "pairs": 1e6,
        "training": [block_on("date_of_birth"), block_on("postcode")],
    }


def link_febrl():
    name, exact, birth = febrl_model(True)
    return {
        "link_type": "link_only",
        "blocking": [
            block_on("given_name", "surname"),
            "l.given_name = r.surname and l.surname = r.given_name",
            block_on("date_of_birth"),
            block_on("soc_sec_id"),
            block_on("state", "address_1"),
            block_on("street_number", "address_1"),
            block_on("postcode"),
        ],
        "comparisons": [
            name("given_name"),
            name("surname"),
            birth,
            cl.DamerauLevenshteinAtThresholds("soc_sec_id", [1, 2]),
            exact("street_number"),
            cl.DamerauLevenshteinAtThresholds("postcode", [1, 2]).configure(term_frequency_adjustments=True),
        ],
        "deterministic": [block_on("soc_sec_id"), block_on("given_name", "surname", "date_of_birth")],
        "recall": 0.8,
        "pairs": 1e6,
        "training": [block_on("date_of_birth"), block_on("postcode")],
    }


def dedupe_large():
    """The comparisons for a FEBRL set with narrower blocking and training: a name or a postcode alone joins too many of a million records."""
    narrow = {"blocking": link_febrl()["blocking"][:-1], "training": [block_on("date_of_birth"), block_on("soc_sec_id")]}
    return dedupe_febrl() | narrow


def dedupe_with_email():
    """The same with an e-mail address, of which two are one person's for certain."""
    large, email = dedupe_large(), block_on("email")
    address = cl.ExactMatch("email").configure(term_frequency_adjustments=True)
    return large | {
        "blocking": [email, *large["blocking"]],
        "comparisons": [*large["comparisons"], address],
        "deterministic": [email, *large["deterministic"]],
    }


def historical():
    first = lambda column, count: f"substr({column},1,{count})"
    exact = lambda column: cl.ExactMatch(column).configure(term_frequency_adjustments=True)
    return {
        "link_type": "dedupe_only",
        "blocking": [
            block_on(first("first_name", 3), first("surname", 4)),
            block_on("surname", "dob"),
            block_on("first_name", "dob"),
            block_on("postcode_fake", "first_name"),
            block_on("postcode_fake", "surname"),
            block_on("dob", "birth_place"),
            block_on(first("postcode_fake", 3), "dob"),
            block_on(first("postcode_fake", 3), "first_name"),
            block_on(first("postcode_fake", 3), "surname"),
            block_on(first("first_name", 2), first("surname", 2), first("dob", 4)),
        ],
        "comparisons": [
            cl.ForenameSurnameComparison(
                "first_name", "surname", forename_surname_concat_col_name="first_name_surname_concat"
            ),
            cl.DateOfBirthComparison("dob", input_is_string=True),
            cl.PostcodeComparison("postcode_fake"),
            exact("birth_place"),
            exact("occupation"),
        ],
        "deterministic": [
            block_on("first_name", "surname", "dob"),
            block_on(first("first_name", 2), "surname", first("postcode_fake", 2)),
            block_on("dob", "postcode_fake"),
        ],
        "recall": 0.6,
        "pairs": 1e7,
        "training": [block_on("first_name", "surname"), block_on("dob")],
    }


MODELS = {"febrl2": dedupe_febrl, "febrl3": dedupe_febrl, "febrl4": link_febrl, "hist50k": historical, "synthetic": dedupe_large, "synthetic with email": dedupe_with_email}


def main():
    name, threads, *files = sys.argv[1:]
    model = MODELS[name]()
    connection = duckdb.connect()
    connection.sql(f"set threads = {int(threads)}")
    is_historical = name == "hist50k"
    key = "unique_id" if is_historical else "rec_id"
    tables = [read(connection, file, is_historical) for file in files]

    began = time.perf_counter()
    database = DuckDBAPI(connection=connection)
    settings = SettingsCreator(
        unique_id_column_name=key,
        link_type=model["link_type"],
        blocking_rules_to_generate_predictions=model["blocking"],
        comparisons=model["comparisons"],
    )
    registered = [database.register(table) for table in tables]
    linker = Linker(registered if len(registered) > 1 else registered[0], settings)
    linker.training.estimate_probability_two_random_records_match(model["deterministic"], recall=model["recall"])
    linker.training.estimate_u_using_random_sampling(max_pairs=model["pairs"], seed=2)
    for rule in model["training"]:
        linker.training.estimate_parameters_using_expectation_maximisation(rule)
    trained = time.perf_counter()
    predictions = linker.inference.predict(threshold_match_probability=0.01)
    predicted = time.perf_counter()

    for at, table in enumerate(tables):
        connection.register(f"source_{at}", table)
    sources = " union all ".join(f"select {key} id, cluster from source_{at}" for at in range(len(tables)))
    connection.sql(f"create temp table truth as {sources}")
    pairs = predictions.as_duckdbpyrelation()
    connection.sql("create temp table scored as select * from pairs")
    one = lambda query: connection.sql(query).fetchall()[0]
    known = int(one("select sum(n * (n - 1) / 2) from (select count(*) n from truth group by cluster)")[0])

    results = []
    for threshold in THRESHOLDS:
        right, said = one(f"""
            select coalesce(sum((l.cluster = r.cluster)::int), 0), count(*)
            from scored join truth l on l.id = {key}_l join truth r on r.id = {key}_r
            where match_probability >= {threshold}""")
        from_here = time.perf_counter()
        clusters = linker.clustering.cluster_pairwise_predictions_at_threshold(
            predictions, threshold_match_probability=threshold
        )
        seconds = time.perf_counter() - from_here
        assigned = clusters.as_duckdbpyrelation()  # DuckDB finds it by its name here.
        connection.sql(f"create or replace temp table found as select {key} id, cluster_id from assigned")
        results.append({"label": f"p ≥ {threshold}", "cluster_s": seconds} | edges(right, said, known) | quality(one, known))
    report = {
        "records": one("select count(*) from truth")[0],
        "true_pairs": known,
        "train_s": trained - began,
        "predict_s": predicted - trained,
        "results": results,
    }
    print(json.dumps(report))


def read(connection, file, is_historical):
    if is_historical:
        query = f"select *, first_name || ' ' || surname first_name_surname_concat from read_csv('{file}', all_varchar = true)"
        return connection.sql(query).to_arrow_table()
    fields = ["rec_id", "given_name", "surname", "street_number", "address_1", "postcode", "state", "date_of_birth", "soc_sec_id"]
    source = connection.sql(f"from read_csv('{file}', header = true, all_varchar = true, strict_mode = false)")
    names = {column.strip(): column for column in source.columns}
    fields += ["email"] if "email" in names else []
    columns = ", ".join(f"nullif(trim(\"{names[field]}\"), '') {field}" for field in fields)
    person = f"regexp_extract(trim(\"{names['rec_id']}\"), '^([^-]+-[^-]+)', 1) cluster"
    return connection.sql(f"select {columns}, {person} from source").to_arrow_table()


def edges(right, said, known):
    return ratios("edge", right, said, known)


def ratios(name, right, said, known):
    precision, recall = right / max(said, 1), right / known
    return {
        f"{name}_p": precision,
        f"{name}_r": recall,
        f"{name}_f1": 2 * precision * recall / max(precision + recall, 1e-9),
    }


def quality(one, known):
    said = one("select sum(n * (n - 1) / 2) from (select count(*) n from found group by cluster_id)")[0]
    right = one("""
        select sum(n * (n - 1) / 2)
        from (select count(*) n from found join truth using (id) group by cluster_id, cluster)""")[0]
    precision, recall = one("""
        with common as (select cluster_id, cluster, count(*) n from found join truth using (id) group by all),
        sizes as (select cluster_id, sum(n) size from common group by 1),
        people as (select cluster, sum(n) size from common group by 1)
        select sum(n * n / sizes.size) / sum(n), sum(n * n / people.size) / sum(n)
        from common join sizes using (cluster_id) join people using (cluster)""")
    largest = one("select max(n) from (select count(*) n from found group by cluster_id)")[0]
    b_cubed = 2 * precision * recall / (precision + recall)
    return ratios("cluster", int(right), int(said), known) | {"b3_f1": b_cubed, "largest": largest}


if __name__ == "__main__":
    main()
