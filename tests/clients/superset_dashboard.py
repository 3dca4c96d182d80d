#!/usr/bin/env python3
"""Superset, as it comes from PyPI, over `holdfast serve`: a database, a dataset, a chart and a dashboard by its REST API, seen in a browser.

    python3 -m venv superset && superset/bin/pip install apache-superset flask-caching==2.3.1 cachetools rich pillow psycopg2-binary
    holdfast serve --lake demo/lake --pg-listen 127.0.0.1:5432 &
    python3 tests/clients/superset_dashboard.py --superset superset/bin/superset --postgresql postgresql://me@127.0.0.1:5432/holdfast

Run by hand and not among the tests: Superset is 1.5 GB of packages. Needs chromium on the path (Debian: chromium) for the last step; without it
the dashboard's data are asked for, and no picture is made. Ends with an error at the first thing that is not as it should be.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

CONFIG = """
SECRET_KEY = "only for this run, which ends with its folder"
SQLALCHEMY_DATABASE_URI = "sqlite:///{folder}/superset.db"
WTF_CSRF_ENABLED = False
TALISMAN_ENABLED = False
RATELIMIT_ENABLED = False


def FLASK_APP_MUTATOR(app):
    # The browser logs in nowhere: whoever comes is the administrator.
    @app.before_request
    def come_in():
        from flask import g
        from flask_login import current_user, login_user

        user = app.appbuilder.sm.find_user("admin")
        if user and not current_user.is_authenticated:
            login_user(user)
            g.user = user
"""


class Superset:
    """A Superset of its own, in a folder that goes with it."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        (folder / "superset_config.py").write_text(CONFIG.replace("{folder}", str(folder)))
        self.env = {**os.environ, "SUPERSET_CONFIG_PATH": str(folder / "superset_config.py"), "FLASK_APP": "superset"}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.token = None

    def command(self, *arguments):
        done = subprocess.run([self.program, *arguments], env=self.env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"superset {' '.join(arguments)}: {done.stderr[-3000:]}")

    def __enter__(self):
        self.command("db", "upgrade")
        self.command("fab", "create-admin", "--username", "admin", "--password", "admin", "--firstname", "a", "--lastname", "b", "--email", "a@b.c")
        self.command("init")
        with (self.folder / "log").open("wb") as log:
            command = [self.program, "run", "--port", str(self.port), "--with-threads"]
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5)
                break
            time.sleep(0.5)
        body = {"username": "admin", "password": "admin", "provider": "db", "refresh": False}
        self.token = self.call("POST", "security/login", body)["access_token"]
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def call(self, method, path, body=None):
        headers = {"content-type": "application/json"}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/v1/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            log = (self.folder / "log").read_text()[-4000:]
            sys.exit(f"{method} {path}: {error.code} {error.read().decode()[:2000]}\n{log}")


def seen(url, picture):
    """The text of a page when its charts are there, from a browser."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        return None
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        command += ["--window-size=1400,900", "--virtual-time-budget=90000"]
        subprocess.run([*command, f"--screenshot={picture}", url], capture_output=True, timeout=240)
        return subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=240).stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--superset", required=True, help="the program `superset`")
    parser.add_argument("--postgresql", required=True, help="where holdfast serves, as postgresql://user:password@host:port/holdfast")
    parser.add_argument("--schema", default="risk")
    parser.add_argument("--table", default="churn_score")
    parser.add_argument("--picture", default="dashboard.png", help="where the picture of the dashboard goes")
    options = parser.parse_args()
    program = str(pathlib.Path(options.superset).resolve())

    with tempfile.TemporaryDirectory() as folder, Superset(program, pathlib.Path(folder)) as superset:
        uri = options.postgresql.replace("postgresql://", "postgresql+psycopg2://", 1)
        database = superset.call("POST", "database/", {"database_name": "holdfast", "sqlalchemy_uri": uri, "expose_in_sqllab": True})["id"]
        schemas = superset.call("GET", f"database/{database}/schemas/")["result"]
        assert options.schema in schemas, schemas
        tables = superset.call("GET", f"database/{database}/tables/?q=(schema_name:{options.schema})")["result"]
        assert options.table in [table["value"] for table in tables], tables
        print(f"{len(schemas)} schemas, {len(tables)} tables in {options.schema}")

        dataset = superset.call("POST", "dataset/", {"database": database, "schema": options.schema, "table_name": options.table})["id"]
        columns = superset.call("GET", f"dataset/{dataset}")["result"]["columns"]
        types = {column["column_name"]: column["type"] for column in columns}
        assert types and all(types.values()), types
        described = sum(1 for column in columns if column.get("description"))
        print(f"a dataset of {len(types)} columns, {described} with comments")

        count = {"expressionType": "SQL", "sqlExpression": "count(*)", "label": "customers"}
        params = {"viz_type": "big_number_total", "datasource": f"{dataset}__table", "metric": count, "adhoc_filters": [], "subheader": "scored customers"}
        chart = superset.call(
            "POST",
            "chart/",
            {"slice_name": "Scored customers", "viz_type": "big_number_total", "datasource_id": dataset, "datasource_type": "table", "params": json.dumps(params)},
        )["id"]
        asked = {"datasource": {"id": dataset, "type": "table"}, "queries": [{"metrics": [count], "columns": [], "filters": [], "row_limit": 10}], "result_format": "json", "result_type": "full"}
        rows = superset.call("POST", "chart/data", asked)["result"][0]["data"]
        (row,) = rows
        number = row["customers"]
        print(f"a chart of one number: {number}")
        by_bucket = {"datasource": {"id": dataset, "type": "table"}, "queries": [{"metrics": [count], "columns": ["customer_bucket"] if "customer_bucket" in types else [], "filters": [], "orderby": [], "row_limit": 100}], "result_format": "json", "result_type": "full"}
        groups = superset.call("POST", "chart/data", by_bucket)["result"][0]["data"]
        assert sum(group["customers"] for group in groups) == number

        position = {
            "DASHBOARD_VERSION_KEY": "v2",
            "ROOT_ID": {"type": "ROOT", "id": "ROOT_ID", "children": ["GRID_ID"]},
            "GRID_ID": {"type": "GRID", "id": "GRID_ID", "children": ["ROW-1"], "parents": ["ROOT_ID"]},
            "ROW-1": {"type": "ROW", "id": "ROW-1", "children": ["CHART-1"], "parents": ["ROOT_ID", "GRID_ID"], "meta": {"background": "BACKGROUND_TRANSPARENT"}},
            "CHART-1": {"type": "CHART", "id": "CHART-1", "children": [], "parents": ["ROOT_ID", "GRID_ID", "ROW-1"], "meta": {"chartId": chart, "width": 6, "height": 50, "sliceName": "Scored customers"}},
        }
        dashboard = superset.call("POST", "dashboard/", {"dashboard_title": "Churn", "slug": "churn", "published": True, "position_json": json.dumps(position)})["id"]
        superset.call("PUT", f"chart/{chart}", {"dashboards": [dashboard]})
        charts = superset.call("GET", f"dashboard/{dashboard}/charts")["result"]
        assert [found["id"] for found in charts] == [chart], charts
        page = seen(f"http://127.0.0.1:{superset.port}/superset/dashboard/churn/?standalone=1", options.picture)
        if page is None:
            print("a dashboard; there is no chromium to look at it with")
            return
        shown = {str(number), f"{number:,}", f"{number / 1000:.2f}k", f"{number / 1000:.1f}k"}
        assert "Scored customers" in page, page[-2000:]
        assert any(form in page for form in shown), f"none of {shown} is on the page"
        print(f"a dashboard that shows it in a browser: {options.picture}")


if __name__ == "__main__":
    main()
