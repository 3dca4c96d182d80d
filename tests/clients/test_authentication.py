"""How people and tools come in, from end to end: passwords, tokens, client certificates and tokens of an issuer, over TLS."""

import base64
import contextlib
import json
import pathlib
import shutil
import signal
import subprocess
import time

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import adbc_driver_manager
import psycopg
import pyarrow.flight
import pytest
from conftest import ROOT, environment
from services import free_ports

POLICY = """
[roles.reader]
tables = ["risk.*"]
"""
QUESTION = "select count(*) from risk.churn_score"


def openssl(folder, *arguments, data=None):
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl")
    return subprocess.run([program, *map(str, arguments)], cwd=folder, check=True, capture_output=True, input=data).stdout


def certificate(folder, name, subject, issuer=None, san=None):
    """A key and a certificate of the issuer, or of itself."""
    openssl(folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}")
    extensions = folder / f"{name}.ext"
    extensions.write_text("basicConstraints=CA:TRUE\n" if issuer is None else f"subjectAltName={san or 'DNS:' + subject}\nbasicConstraints=CA:FALSE\n")
    signed = ["-signkey", f"{name}.key"] if issuer is None else ["-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key", "-CAcreateserial"]
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-days", "2", "-out", f"{name}.pem", "-extfile", extensions.name, *signed)
    return folder / f"{name}.pem"


def text(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer:
    """Signs tokens as a company's identity provider would, and may change its key."""

    def __init__(self, folder):
        self.folder, self.jwks = folder, folder / "keys.json"
        self.keys = {}

    def new_key(self, name, keeps_others=False):
        openssl(self.folder, "genrsa", "-out", f"{name}.rsa", "2048")
        modulus = openssl(self.folder, "rsa", "-in", f"{name}.rsa", "-noout", "-modulus").decode().strip().split("=")[1]
        published = self.keys if keeps_others else {}
        published[name] = {"kty": "RSA", "kid": name, "alg": "RS256", "use": "sig", "n": text(bytes.fromhex(modulus)), "e": "AQAB"}
        self.keys = published
        self.jwks.write_text(json.dumps({"keys": list(published.values())}))

    def token(self, key, **claims):
        claims = {"iss": "https://login.test", "aud": "holdfast", "sub": "jo", "roles": ["reader"], "exp": time.time() + 300, **claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        claims["exp"] = int(claims["exp"]) if "exp" in claims else None
        claims = {name: value for name, value in claims.items() if value is not None}
        body = f"{text(json.dumps({'alg': 'RS256', 'kid': key}).encode())}.{text(json.dumps(claims).encode())}"
        return f"{body}.{text(openssl(self.folder, 'dgst', '-sha256', '-sign', f'{key}.rsa', data=body.encode()))}"


class Served:
    pass


@pytest.fixture(scope="module")
def served(lake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("authentication")
    binary = pathlib.Path(environment("HOLDFAST_BIN")).resolve()
    shutil.copytree(ROOT / "pipelines", folder / "pipelines")
    (folder / "sql").symlink_to(ROOT / "sql")
    (folder / "holdfast.toml").write_text("")
    (folder / "pipelines/churn/policy.toml").write_text(POLICY)
    certificate(folder, "ca", "test authority")
    certificate(folder, "other", "another authority")
    certificate(folder, "service", "localhost", "ca", "DNS:localhost,IP:127.0.0.1")
    certificate(folder, "machine", "machine", "ca")
    certificate(folder, "stranger", "stranger", "ca")
    certificate(folder, "foreign", "machine", "other")
    issuer = Issuer(folder)
    issuer.new_key("one")
    command = [binary, "--project", folder, "--lake", lake, "--identity-key", lake.parent / "identity.key"]

    def access(*arguments):
        done = subprocess.run([*command, "access", *arguments, "--users", folder / "users.toml"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    served = Served()
    served.password = access("user", "add", "ana", "--role", "reader", "--make-password")
    access("user", "add", "machine", "--role", "reader", "--certificate", folder / "machine.pem")
    served.token = access("token", "add", "tool", "--role", "reader")
    with (folder / "users.toml").open("a") as users:
        users.write(
            '\n[issuers.company]\nissuer = "https://login.test"\naudience = "holdfast"\njwks = "keys.json"\n'
            'roles_claim = "roles"\nroles = { "reader" = "reader" }\n'
        )
    ports = free_ports(2)
    serve = [*command, "serve", "--audit", "off", "--users", folder / "users.toml", "--listen", f"127.0.0.1:{ports[0]}", "--pg-listen", f"127.0.0.1:{ports[1]}"]
    serve += ["--tls-certificate", folder / "service.pem", "--tls-key", folder / "service.key", "--tls-client-issuers", folder / "ca.pem"]
    serve += ["--reload-interval-ms", "100"]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(serve, stderr=log)
    for attempt in range(600):
        if "Serving run" in (folder / "log").read_text():
            break
        assert process.poll() is None and attempt < 599, (folder / "log").read_text()[-3000:]
        time.sleep(0.1)
    served.folder, served.issuer, served.access = folder, issuer, access
    served.flight_port, served.pg_port = ports
    yield served
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    log.close()
    said = (folder / "log").read_text()
    assert served.password not in said and served.token not in said


def client(served, scheme="grpc+tls", authority="ca", **options):
    roots = (served.folder / f"{authority}.pem").read_bytes()
    if scheme == "grpc+tls":
        options["tls_root_certs"] = roots
    return pyarrow.flight.connect(f"{scheme}://localhost:{served.flight_port}", **options)


def count(connection, *headers):
    options = pyarrow.flight.FlightCallOptions(timeout=20, headers=list(headers))
    descriptor = pyarrow.flight.FlightDescriptor.for_path("risk", "churn_score")
    info = connection.get_flight_info(descriptor, options)
    return connection.do_get(info.endpoints[0].ticket, options).read_all().num_rows


def bearer(token):
    return (b"authorization", f"Bearer {token}".encode())


def test_passwords_and_tokens_over_tls(served):
    with client(served) as connection:
        header = connection.authenticate_basic_token("ana", served.password)
        assert count(connection, header) > 0
        assert count(connection, bearer(served.token)) > 0
        for wrong in (bearer("hf_wrong"), bearer(served.token[:-1]), (b"authorization", b"Basic AAAA"), (b"x", b"y")):
            with pytest.raises(pyarrow.flight.FlightUnauthenticatedError):
                count(connection, wrong)
        with pytest.raises(pyarrow.flight.FlightUnauthenticatedError):
            connection.authenticate_basic_token("ana", "wrong")
    options = {
        "username": "ana",
        "password": served.password,
        adbc_driver_flightsql.DatabaseOptions.TLS_ROOT_CERTS.value: (served.folder / "ca.pem").read_text(),
    }
    with adbc_driver_flightsql.dbapi.connect(f"grpc+tls://localhost:{served.flight_port}", db_kwargs=options, autocommit=True) as adbc:
        with adbc.cursor() as cursor:
            cursor.execute(QUESTION)
            assert cursor.fetchone()[0] > 0
    with psycopg.connect(host="localhost", port=served.pg_port, user="ana", password=served.password, dbname="holdfast", sslmode="verify-full", sslrootcert=str(served.folder / "ca.pem")) as pg:
        assert pg.execute(QUESTION).fetchone()[0] > 0


def test_an_earlier_run_shows_what_the_policy_shows_over_each_protocol(served):
    roots = (served.folder / "ca.pem").read_text()
    options = {"username": "ana", "password": served.password, adbc_driver_flightsql.DatabaseOptions.TLS_ROOT_CERTS.value: roots}
    with (
        psycopg.connect(host="localhost", port=served.pg_port, user="ana", password=served.password, dbname="holdfast", sslmode="require", autocommit=True) as pg,
        adbc_driver_flightsql.dbapi.connect(f"grpc+tls://localhost:{served.flight_port}", db_kwargs=options, autocommit=True) as adbc,
        adbc.cursor() as cursor,
    ):
        (run,) = pg.execute("show holdfast.run").fetchone()
        earlier = f"select count(*) from as_of('risk.churn_score', {run})"
        cursor.execute(earlier)
        assert pg.execute(QUESTION).fetchone() == pg.execute(earlier).fetchone() == cursor.fetchone()
        for hidden in ("core.orders", "core.no_such_table"):
            refused = f"select * from as_of('{hidden}', {run})"
            with pytest.raises(psycopg.Error, match=f"run {run} has no table `{hidden}`"):
                pg.execute(refused)
            with pytest.raises(adbc_driver_manager.Error, match=f"run {run} has no table `{hidden}`"):
                cursor.execute(refused)
                cursor.fetchall()


def test_nobody_comes_in_without_tls_or_past_a_foreign_authority(served):
    with client(served, scheme="grpc") as connection, pytest.raises(pyarrow.flight.FlightError):
        count(connection, bearer(served.token))
    with client(served, authority="other") as connection, pytest.raises(pyarrow.flight.FlightError):
        count(connection, bearer(served.token))
    with pytest.raises(psycopg.OperationalError, match="TLS|SSL|ssl"):
        psycopg.connect(host="localhost", port=served.pg_port, user="ana", password=served.password, dbname="holdfast", sslmode="disable")


def test_a_client_certificate_is_who_somebody_is(served):
    def shown(name):
        return {"cert_chain": (served.folder / f"{name}.pem").read_bytes(), "private_key": (served.folder / f"{name}.key").read_bytes()}

    with client(served, **shown("machine")) as connection:
        assert count(connection) > 0
    # Of the right authority, but nobody that is known.
    with client(served, **shown("stranger")) as connection:
        with pytest.raises(pyarrow.flight.FlightUnauthenticatedError):
            count(connection)
        assert count(connection, bearer(served.token)) > 0
    with client(served, **shown("foreign")) as connection, pytest.raises(pyarrow.flight.FlightError):
        count(connection)


def test_tokens_of_an_issuer_come_in_and_its_keys_may_change(served):
    issuer = served.issuer
    with client(served) as connection:
        first = issuer.token("one")
        assert count(connection, bearer(first)) > 0
        for wrong in (
            issuer.token("one", exp=time.time() - 120),
            issuer.token("one", exp=None),
            issuer.token("one", aud="another"),
            issuer.token("one", iss="https://elsewhere.test"),
            issuer.token("one", nbf=int(time.time()) + 600),
            first[:-4] + "AAAA",
            first.split(".")[0] + "." + text(json.dumps({"iss": "https://login.test", "aud": "holdfast", "sub": "boss", "exp": 9999999999}).encode()) + "." + first.split(".")[2],
            text(b'{"alg":"none"}') + "." + first.split(".")[1] + ".",
            text(b'{"alg":"HS256","kid":"one"}') + "." + first.split(".")[1] + "." + text(b"x" * 32),
        ):
            with pytest.raises(pyarrow.flight.FlightUnauthenticatedError):
                count(connection, bearer(wrong))
        # Without a role of ours nothing is there.
        with pytest.raises((pyarrow.flight.FlightError, KeyError, pyarrow.ArrowException)):
            count(connection, bearer(issuer.token("one", roles=["other"])))

        issuer.new_key("two")
        for attempt in range(60):
            # A key that is not known is looked for, no oftener than every ten seconds.
            with contextlib.suppress(pyarrow.flight.FlightUnauthenticatedError):
                assert count(connection, bearer(issuer.token("two"))) > 0
                break
            assert attempt < 59, "the new key was never read"
            time.sleep(0.5)
        with pytest.raises(pyarrow.flight.FlightUnauthenticatedError):
            count(connection, bearer(issuer.token("one")))


def test_who_is_taken_away_is_out_with_the_next_call(served):
    token = served.access("token", "add", "leaver", "--role", "reader")
    with client(served) as connection:
        for attempt in range(50):
            with contextlib.suppress(pyarrow.flight.FlightUnauthenticatedError):
                assert count(connection, bearer(token)) > 0
                break
            assert attempt < 49
            time.sleep(0.1)
        served.access("token", "remove", "leaver")
        for attempt in range(50):
            try:
                count(connection, bearer(token))
            except pyarrow.flight.FlightUnauthenticatedError:
                break
            assert attempt < 49, "it still comes in"
            time.sleep(0.1)


def test_wrong_passwords_must_wait(served):
    with client(served) as connection:
        for attempt in range(10):
            try:
                connection.authenticate_basic_token("nobody-of-this-name", "wrong")
            except pyarrow.flight.FlightUnauthenticatedError as error:
                assert attempt < 9 and "the user name or the password is wrong" in str(error)
            except pyarrow.ArrowInvalid as error:
                assert attempt >= 5 and "too many wrong passwords: try again in" in str(error)
                break
    with pytest.raises(adbc_driver_manager.Error):
        with adbc_driver_flightsql.dbapi.connect(f"grpc+tls://localhost:{served.flight_port}", autocommit=True) as adbc:
            adbc.adbc_get_table_types()
