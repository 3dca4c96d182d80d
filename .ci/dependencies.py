#!/usr/bin/env python3
"""Checks what is depended on against deny.toml, without the network: licences, sources, banned crates, one copy of what must agree, exact
pins. With a copy of RustSec's advisory database, advisories, too.

    python3 .ci/dependencies.py [--advisories DIR]

`cargo deny check` says the same and more where it is installed. It is not required, since building it takes longer than all these checks.
The advisory database is a git repository, https://github.com/rustsec/advisory-db: clone it anywhere and name it. Without one, advisories are
not looked at, and that is said.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Types of these travel between crates: two versions would be two worlds.
ONE_COPY = ["arrow", "arrow-flight", "datafusion", "deltalake-core", "object_store", "parquet", "prost", "rustls", "tokio", "tonic"]


def satisfied(expression, allowed):
    """Whether an SPDX expression can be met with these licences. Crates of old write `/` for OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    at = 0

    def either():
        nonlocal at
        met = both()
        while at < len(tokens) and tokens[at] == "OR":
            at += 1
            met = both() or met
        return met

    def both():
        nonlocal at
        met = one()
        while at < len(tokens) and tokens[at] == "AND":
            at += 1
            met = one() and met
        return met

    def one():
        nonlocal at
        token = tokens[at]
        at += 1
        if token == "(":
            met = either()
            at += 1
            return met
        if at < len(tokens) and tokens[at] == "WITH":
            token = f"{token} WITH {tokens[at + 1]}"
            at += 2
        return token in allowed

    return either()


def version(text):
    """A version that can be compared; what is before a release comes before it."""
    bare, _, pre = text.split("+")[0].partition("-")
    numbers = ([int(part) for part in bare.split(".")] + [0, 0])[:3]
    return (*numbers, pre == "", [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in pre.split(".")])


def meets(text, requirement):
    """Whether a version meets a requirement of an advisory, such as `>= 1.2.3, < 2` or `^0.5.3`."""
    found = version(text)
    for part in requirement.split(","):
        operator, number = re.fullmatch(r"\s*(>=|<=|>|<|=|\^|~)?\s*([0-9][^\s]*)\s*", part).groups()
        wanted = version(number)
        if operator in (None, "^", "~"):
            numbers = [int(piece) for piece in number.split("-")[0].split(".")]
            if operator == "~":
                place = min(len(numbers) - 1, 1)
            else:
                place = next((place for place, value in enumerate(numbers) if value), len(numbers) - 1)
            above = version(".".join(str(value) for value in [*numbers[:place], numbers[place] + 1]))
            if not wanted <= found < above:
                return False
        elif not {">=": found >= wanted, "<=": found <= wanted, ">": found > wanted, "<": found < wanted, "=": found == wanted}[operator]:
            return False
    return True


def advisories(folder):
    """Those of crates, by the crate's name."""
    by_crate = {}
    for file in sorted(folder.glob("crates/*/*.md")):
        text = file.read_text(encoding="utf-8")
        described = tomllib.loads(text.split("```toml", 1)[1].split("```", 1)[0])
        title = next((line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), "")
        by_crate.setdefault(described["advisory"]["package"], []).append((described, title))
    return by_crate


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--advisories", type=pathlib.Path, default=os.environ.get("HOLDFAST_ADVISORIES"), help="a clone of RustSec's advisory-db")
    options = parser.parse_args()
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--offline"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    packages = [package for package in metadata["packages"] if package["source"]]
    problems = []

    exceptions = {rule["crate"]: rule["allow"] for rule in rules["licenses"]["exceptions"]}
    allowed = set(rules["licenses"]["allow"])
    registries = {f"registry+{url}" for url in rules["sources"]["allow-registry"]}
    banned = {rule["crate"]: rule["reason"] for rule in rules["bans"]["deny"]}
    for package in packages:
        name = f"{package['name']} {package['version']}"
        licence = package["license"]
        if not licence:
            problems.append(f"{name}: it has no licence")
        elif not satisfied(licence, allowed | set(exceptions.get(package["name"], []))):
            problems.append(f"{name}: its licence, {licence}, is not among those of deny.toml")
        if package["source"] not in registries:
            problems.append(f"{name}: it comes from {package['source']}")
        if package["name"] in banned:
            problems.append(f"{name}: {banned[package['name']]}")
    for unused in exceptions.keys() - {package["name"] for package in packages}:
        problems.append(f"deny.toml has an exception for {unused}, which is not depended on")
    for name in ONE_COPY:
        versions = {package["version"] for package in packages if package["name"] == name}
        if len(versions) != 1:
            problems.append(f"{name}: there must be one copy, and there are {len(versions)} ({', '.join(sorted(versions))})")
    for name, dependency in tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["dependencies"].items():
        wanted = dependency if isinstance(dependency, str) else dependency.get("version", "")
        if "path" not in dependency and not wanted.startswith("="):
            problems.append(f"{name}: `{wanted}` is no exact version: write `={wanted or 'x.y.z'}`")

    if options.advisories:
        known = advisories(options.advisories)
        if not known:
            sys.exit(f"{options.advisories} is no advisory database: clone https://github.com/rustsec/advisory-db")
        ignored = {rule["id"]: rule["reason"] for rule in rules["advisories"]["ignore"]}
        met = set()
        for package in packages:
            for described, title in known.get(package["name"], []):
                advisory, versions = described["advisory"], described.get("versions", {})
                is_safe = any(meets(package["version"], text) for text in versions.get("patched", []) + versions.get("unaffected", []))
                if is_safe or "withdrawn" in advisory:
                    continue
                met.add(advisory["id"])
                if advisory["id"] not in ignored:
                    kind = advisory.get("informational", "vulnerability")
                    problems.append(f"{package['name']} {package['version']}: {advisory['id']} ({kind}): {title}")
        for unused in ignored.keys() - met:
            problems.append(f"deny.toml ignores {unused}, which is about nothing that is depended on")
        count = sum(len(of_crate) for of_crate in known.values())
        print(f"looked at {count} advisories, of {datetime.date.today()} at most")
    else:
        print("advisories were not looked at: give --advisories a clone of https://github.com/rustsec/advisory-db")

    for problem in sorted(set(problems)):
        print(problem, file=sys.stderr)
    print(f"{len(packages)} crates, {len(set(problems))} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
