"""What a trained model is worth on the generator's shop, whose truth it never sees.

    python tests/benches/churn.py --holdfast target/debug/holdfast --customers 10000 --days 730 --dir churn-demo

Makes a demo lake (or takes the one that is in --dir), trains and promotes the shipped model, then looks at the moment that judged it as if it were today (`run --as-of`,
`score`) and holds the scores against

* what customers did: no purchase in the horizon, from core.purchases of the whole lake;
* the generator's truth: whether a customer was gone for good (customers.csv, churned_on) by the end of the horizon;

beside recency, the scorecard, and three observers who know the generator:

* `filter` knows its rules, and of each customer what a shop can know: in which week they bought and looked around. It weighs every way in which the customer may have left,
  every rate at which they may buy and every curiosity by the generator's own chances (Bayes), and says the chance that nothing is bought in the horizon. This is the ceiling:
  what the best of models could say of purchases and visits, up to what weeks in the place of days take away. Campaigns, baskets, ratings and complaints are not in it.
* `filter_with_traits` knows beside that what nobody tells a shop: how often each customer means to buy, how curious, content and thrifty they are.
* `oracle` knows who is gone and who has begun to leave. Nobody can.

Prints one JSON document. Everything in it is of made-up data. Needs numpy.
"""

import argparse
import csv
import datetime
import io
import json
import math
import pathlib
import subprocess
import tempfile

import numpy


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--holdfast", required=True)
    parser.add_argument("--project", default=str(pathlib.Path(__file__).parents[2]))
    parser.add_argument("--customers", type=int, default=8000)
    parser.add_argument("--days", type=int, default=730)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--dir", help="the demo's folder; one of its own without")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        print(json.dumps(measure(options, pathlib.Path(options.dir or own)), indent=2))


def measure(options, folder):
    lake = ["--project", options.project, "--lake", str(folder / "lake"), "--identity-key", str(folder / "identity.key")]

    def holdfast(*arguments):
        command = [options.holdfast, "--quiet", *lake, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def rows(sql):
        return list(csv.DictReader(io.StringIO(holdfast("sql", "--output", "csv", sql))))

    if not (folder / "sources/generation.json").is_file():
        subprocess.run(
            [options.holdfast, "--quiet", "--project", options.project, "demo", "--no-serve", "--dir", str(folder)]
            + ["--customers", str(options.customers), "--days", str(options.days), "--seed", str(options.seed)],
            check=True,
            capture_output=True,
        )
    made = json.loads((folder / "sources/generation.json").read_text(encoding="utf-8"))["options"]
    trained = json.loads(holdfast("train", "--model", "churn", "--as-of", made["end"], "--json"))
    if trained["outcome"] == "unchanged":
        trained = json.loads(holdfast("models", "show", "churn", "--json"))
        moment = trained["moments"]["test"][0]
    else:
        moment = trained["test_moments"][0]
    holdfast("models", "promote", "churn", str(trained["version"]))
    holdfast("run", "--as-of", moment)
    scored = json.loads(holdfast("score", "--model", "churn", "--json"))

    at = datetime.datetime.fromisoformat(moment.replace("Z", "+00:00"))
    begins, ends = at + datetime.timedelta(days=7), at + datetime.timedelta(days=97)
    scores = rows(
        "select p.customer_id, p.probability, p.probability_raw, s.churn_probability as scorecard, "
        "f.days_since_purchase as recency, c.member_no "
        "from risk.churn_probability p "
        "inner join features.churn_v1 f on f.customer_id = p.customer_id "
        "left join risk.churn_score s on s.customer_id = p.customer_id "
        "left join (select customer_id, min(member_no) as member_no from core.contacts group by customer_id) c "
        "on c.customer_id = p.customer_id"
    )
    stamp = "timestamp '{:%Y-%m-%dT%H:%M:%S}Z'"
    came_back = {
        row["customer_id"]
        for row in rows(
            "select distinct customer_id from core.purchases where not is_return and customer_id is not null "
            f"and purchased_at > {stamp.format(begins)} and purchased_at <= {stamp.format(ends)}"
        )
    }
    truth = {}
    with open(folder / "sources/truth/customers.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in ("member_no", "second_member_no"):
                if row[name]:
                    truth[digits(row[name])] = row
    known = [(row, truth[digits(row["member_no"])]) for row in scores if digits(row["member_no"] or "") in truth]

    def day(text):
        return datetime.datetime.fromisoformat(text + "T00:00:00+00:00") if text else None

    def oracle(person):
        rate = float(person["purchases_a_year"]) / 365
        gone, declines = day(person["churned_on"]), day(person["decline_began_on"])
        if gone and gone <= at:
            return 1.0
        quiet = math.exp(-rate * 90)
        return max(quiet, 0.5 + quiet / 2) if declines and declines <= at else quiet

    quiet = [row["customer_id"] not in came_back for row, _ in known]
    gone = [bool(day(person["churned_on"]) and day(person["churned_on"]) <= ends) for _, person in known]
    observed = weeks(rows, known, made, at)
    columns = {
        "model": [float(row["probability"]) for row, _ in known],
        "scorecard": [float(row["scorecard"] or 0.5) for row, _ in known],
        "recency": [float(row["recency"]) for row, _ in known],
        "filter": observer(observed, made, at, traits=False),
        "filter_with_traits": observer(observed, made, at, traits=True),
        "oracle": [oracle(person) for _, person in known],
    }
    measures = {
        f"{label}": {name: round(auc(values, labels), 4) for name, values in columns.items()}
        for label, labels in (("no_purchase_in_horizon", quiet), ("gone_for_good_by_its_end", gone))
    }
    of = {
        row["measure"]: row
        for row in trained["measures"]
        if row["judged_on"] == "out_of_time" and row["baseline"] == "recency"
    }
    return {
        "customers": made["customers"],
        "days": made["days"],
        "seed": made["seed"],
        "judged_at": moment,
        "train_rows": trained.get("rows"),
        "scored": scored["customers"] if scored["outcome"] == "made" else None,
        "matched_to_truth": len(known),
        "base_rate": round(sum(quiet) / len(quiet), 4),
        "gone_rate": round(sum(gone) / len(gone), 4),
        "auc": measures,
        "below_ceiling": round(ceiling_gap(columns, quiet), 4),
        "below_ceiling_interval": [round(value, 4) for value in gap_interval(columns, quiet)],
        "filter_brier": round(float(numpy.mean((numpy.array(columns["filter"]) - numpy.array(quiet)) ** 2)), 4),
        "filter_mean": round(float(numpy.mean(columns["filter"])), 4),
        "per_customer_r": round(pearson(columns["model"], [float(label) for label in quiet]), 4),
        "measures_out_of_time": {
            name: {key: row[key] and round(row[key], 4) for key in ("value", "low", "high", "baseline_value")}
            for name, row in of.items()
        },
        "majority_accuracy": round(of["auc"]["majority_accuracy"], 4),
    }


def ceiling_gap(columns, labels, rows=None):
    picked = range(len(labels)) if rows is None else rows
    of = lambda name: auc([columns[name][row] for row in picked], [labels[row] for row in picked])
    return of("filter") - of("model")


def gap_interval(columns, labels, resamples=200):
    """95 %, customers drawn again and again, seeded."""
    random = numpy.random.default_rng(0)
    drawn = [ceiling_gap(columns, labels, random.integers(0, len(labels), len(labels))) for _ in range(resamples)]
    return numpy.quantile(drawn, [0.025, 0.975])


# The generator's rules, from crates/synth/src/life.rs, by the week.
HORIZON_WEEKS, GAP_WEEKS = 13, 1
BASE_HAZARD = 0.0015 * 7
LUNAR = {2023: (1, 22), 2024: (2, 10), 2025: (1, 29), 2026: (2, 17)}


def season(day):
    """How busy a day is, against 1.0 (crates/synth/src/calendar.rs)."""
    weekly = {4: 1.08, 5: 1.22, 6: 1.22}.get(day.weekday(), 0.92)
    month, of = day.month, day.day
    festival = 1.0
    if month == 6:
        festival = 2.4 if 16 <= of <= 18 else 1.3 if of <= 15 else 0.8 if of >= 20 else 1.0
    elif month == 11:
        festival = 3.0 if of in (1, 10, 11) else 1.4 if 2 <= of <= 9 else 0.8 if 13 <= of <= 25 else 1.0
    elif month == 12 and of in (11, 12):
        festival = 1.8
    elif month == 3 and 6 <= of <= 8:
        festival = 1.3
    lunar = 1.0
    if day.year in LUNAR:
        since = (day - datetime.date(day.year, *LUNAR[day.year])).days
        lunar = 1.6 if -18 <= since <= -4 else 0.45 if -3 <= since <= 6 else 0.8 if 7 <= since <= 12 else 1.0
    return weekly * festival * lunar


def weeks(rows, known, made, at):
    """Purchases and visits of each customer by the week before `at`, the last one last; and the truth about them."""
    end = datetime.datetime.fromisoformat(made["end"])
    first = end - datetime.timedelta(days=made["days"])
    count = (at - first).days // 7
    begins = at - datetime.timedelta(days=7 * count)
    place = {row["customer_id"]: number for number, (row, _) in enumerate(known)}
    stamp = "timestamp '{:%Y-%m-%dT%H:%M:%S}Z'"

    def table(name, time, condition):
        found = numpy.zeros((len(known), count), numpy.float32)
        week = f"floor((extract(epoch from {time}) - extract(epoch from {stamp.format(begins)})) / 604800)"
        asked = (
            f"select customer_id, cast({week} as bigint) as week, count(*) as n from {name} where customer_id is not null and {condition} "
            f"and {time} > {stamp.format(begins)} and {time} < {stamp.format(at)} group by 1, 2"
        )
        for row in rows(asked):
            if row["customer_id"] in place and 0 <= int(row["week"]) < count:
                found[place[row["customer_id"]], int(row["week"])] += float(row["n"])
        return found

    joined = [(datetime.datetime.fromisoformat(person["joined_at"].replace("Z", "+00:00")) - begins).days // 7 for _, person in known]
    trait = lambda name: numpy.array([float(person[name]) for _, person in known])
    return {
        "weeks": count,
        "begins": begins,
        "purchases": table("core.purchases", "purchased_at", "not is_return"),
        "visits": table("core.sessions", "started_at", "orders = 0 and checkouts = 0"),
        "joined": numpy.array(joined),
        "traits": {name: trait(name) for name in ("purchases_a_year", "curiosity", "contentment", "price_sensitivity")},
    }


def observer(observed, made, at, traits):
    """Of each customer the chance, by Bayes and the generator's rules, that the horizon brings no purchase."""
    count, people = observed["weeks"], len(observed["joined"])
    # Weeks before the moment, then those of gap and horizon.
    total = count + GAP_WEEKS + HORIZON_WEEKS
    days = [[(observed["begins"] + datetime.timedelta(days=7 * week + day)).date() for day in range(7)] for week in range(total)]
    of_season = numpy.array([numpy.mean([season(day) for day in week]) for week in days])
    of_visits = numpy.array([numpy.mean([season(day) ** 0.5 for day in week]) for week in days])

    # Ways to leave: never within sight, abruptly or by a decline of eight weeks, beginning in any week; and away for a while, back later.
    week = numpy.arange(total)
    curves = [(numpy.ones(total), numpy.ones(total), None, "stays")]
    for begins in range(total):
        for kind, length, share in (("abruptly", 0, 0.18), ("declines", 8, 0.82)):
            progress = numpy.clip((week + 0.5 - begins) / length, 0, 1) if length else (week >= begins).astype(float)
            ramp = lambda start, end, depth=0.85: depth * numpy.clip((progress - start) / (end - start), 0, 1)
            gone = week >= begins + length
            buys = numpy.where(gone, 0.003, 1 - 0.8 * ramp(0.5, 1.0)) if length else numpy.where(gone, 0.003, 1.0)
            looks = numpy.where(gone, 0.012, 1 - 0.85 * ramp(0.0, 0.45)) if length else numpy.where(gone, 0.012, 1.0)
            curves.append((buys, looks, begins, share))
    for since in range(1, 9):
        # A spell of 18 to 60 days: on average so much of it is left.
        left = max((60 - 7 * since) / 2, 3) / 7
        away = (week >= count - since) & (week < count + left)
        curves.append((numpy.where(away, 0.02, 1.0), numpy.where(away, 0.03, 1.0), count - since, "away"))
    buys = numpy.array([curve[0] for curve in curves])
    looks = numpy.array([curve[1] for curve in curves])

    # What coupons and campaigns add to both, and what identity takes away, is one factor for all.
    truth = observed["traits"]
    here = week[None, :count] >= numpy.maximum(observed["joined"], 0)[:, None]
    eager = numpy.sqrt(truth["purchases_a_year"] / 9.7)
    expected = (truth["purchases_a_year"] / 52.14)[:, None] * of_season[:count] * here
    looked = (5.2 / 52.14 * truth["curiosity"] * eager)[:, None] * of_visits[:count] * here
    recent = slice(max(count - 26, 0), count)
    busy = observed["purchases"][:, recent].sum(1) > 0
    lift = observed["purchases"][busy, recent].sum() / expected[busy, recent].sum()
    lift_visits = observed["visits"][busy, recent].sum() / looked[busy, recent].sum()

    if traits:
        grid = [(None, None, None, 1.0)]
    else:
        # Equal shares of the generator's own distributions: gamma(0.95, 10) and log-normal(1.0, 0.45); what pulls away is spread by 0.52.
        random = numpy.random.default_rng(1)
        drawn = numpy.sort(numpy.clip(random.gamma(0.95, 10.0, 240_000), 0.7, 90.0)).reshape(24, -1).mean(1)
        curious = numpy.sort(numpy.exp(0.45 * random.standard_normal(100_000))).reshape(8, -1).mean(1)
        pulls = [(-0.9, 1 / 6), (0.0, 2 / 3), (0.9, 1 / 6)]
        grid = [(rate, curiosity, pull, weight) for rate in drawn for curiosity in curious for pull, weight in pulls]

    bought = observed["purchases"]
    seen = observed["visits"]
    log_buys, log_looks = numpy.log(buys[:, :count]), numpy.log(looks[:, :count])
    ends = slice(count + GAP_WEEKS, total)
    answer = numpy.zeros(people)
    bought_before = numpy.cumsum(bought, 1)
    for person in range(people):
        joined = max(int(observed["joined"][person]), 0)
        live = numpy.arange(count) >= joined
        # Sums that do not depend on the rates.
        own, own_visits = of_season[:count] * live, of_visits[:count] * live
        told = log_buys @ bought[person] + log_looks @ seen[person]
        mass, mass_visits = buys[:, :count] @ own, looks[:, :count] @ own_visits
        ahead = buys[:, ends] @ of_season[ends]
        many, looks_many = bought[person].sum(), seen[person].sum()
        if traits:
            rate = numpy.array([truth["purchases_a_year"][person]])
            curiosity = numpy.array([truth["curiosity"][person]])
            pull = numpy.array([1.3 * (truth["price_sensitivity"][person] - 0.42) - truth["contentment"][person]])
            weight = numpy.ones(1)
        else:
            rate, curiosity, pull, weight = (numpy.array(column) for column in zip(*grid))
            pull = pull - 0.35
        buying = rate / 52.14 * lift
        looking = 5.2 / 52.14 * curiosity * numpy.sqrt(rate / 9.7) * lift_visits
        engagement = numpy.log(numpy.clip(curiosity * rate / 8, 0.1, 6.0))
        # The chance of beginning to leave in a week, by how many purchases there were and how long the customer is one.
        purchases = numpy.concatenate([bought_before[person], numpy.full(total - count, bought_before[person][-1])])
        tenure = numpy.arange(total) - joined
        newcomer = observed["joined"][person] >= 0
        stage = numpy.where(newcomer & (purchases <= 1) & (tenure < 11), 5.0, numpy.where(newcomer & (purchases <= 3) & (tenure < 21), 2.4, numpy.where(purchases >= 10, 0.55, 1.0)))
        hazard = numpy.minimum(BASE_HAZARD * stage[None, :] * numpy.exp(pull - 0.3 * engagement)[:, None], 0.2)
        hazard[:, :joined] = 0
        stays = numpy.cumsum(numpy.log1p(-hazard), 1)
        before = numpy.concatenate([numpy.zeros((len(rate), 1)), stays[:, :-1]], 1)
        prior = numpy.empty((len(rate), len(curves)))
        for place, (_, _, begins, share) in enumerate(curves):
            if share == "stays":
                prior[:, place] = stays[:, -1]
            elif share == "away":
                since = count - begins
                prior[:, place] = stays[:, -1] + math.log(0.2 / 52.14 * max(min((60 - 7 * since) / 42, 1.0), 0.02))
            else:
                prior[:, place] = before[:, begins] + numpy.log(hazard[:, begins] + 1e-12) + math.log(share)
        likelihood = (
            prior
            + told[None, :]
            + (many * numpy.log(buying) + looks_many * numpy.log(looking))[:, None]
            - buying[:, None] * mass[None, :]
            - looking[:, None] * mass_visits[None, :]
            + numpy.log(weight)[:, None]
        )
        likelihood = numpy.exp(likelihood - likelihood.max())
        answer[person] = (likelihood * numpy.exp(-buying[:, None] * ahead[None, :])).sum() / likelihood.sum()
    return answer.tolist()


def digits(text):
    return "".join(character for character in text.upper() if character.isalnum())


def auc(scores, labels):
    """The chance that a positive's score is above a negative's, ties counted half."""
    order = sorted(zip(scores, labels))
    ranks, index = 0.0, 0
    while index < len(order):
        end = index
        while end < len(order) and order[end][0] == order[index][0]:
            end += 1
        ranks += sum(label for _, label in order[index:end]) * (index + 1 + end) / 2
        index = end
    positives = sum(labels)
    negatives = len(labels) - positives
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def pearson(left, right):
    mean_left, mean_right = sum(left) / len(left), sum(right) / len(right)
    both = sum((a - mean_left) * (b - mean_right) for a, b in zip(left, right))
    return both / math.sqrt(sum((a - mean_left) ** 2 for a in left) * sum((b - mean_right) ** 2 for b in right))


if __name__ == "__main__":
    main()
