"""A team's services on this machine: what deploy/compose.yaml starts, from Debian's packages and an
S3 server of PyPI.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.paths import PROJECT
from tests.team.compose import Service, services
from tests.team.processes import Processes, as_user, free_ports, listens, program

POSTGRES_USER = "postgres"  # of the system, as Debian's package makes it
S3_PORTS = ("master", "volume", "filer", "s3")
NEEDED = {
    "postgres": "apt-get install postgresql",
    "initdb": "apt-get install postgresql",
    "psql": "apt-get install postgresql",
    "redis-server": "apt-get install redis-server",
    "git": "apt-get install git",
    "make": "apt-get install make",
}


@dataclass
class Team:
    """The services, their ports and credentials; `venv` has the project's and the team's
    packages.
    """

    folder: Path
    venv: Path
    processes: Processes
    data: Path  # of Postgres, which works for a user of its own
    ports: dict[str, int]
    credentials: dict[str, str] = field(default_factory=dict)

    @cached_property
    def services(self) -> dict[str, Service]:
        """Those of compose.yaml, with addresses of this machine."""
        port = self.ports
        places = {
            "@postgres:5432": f"@127.0.0.1:{port['postgres']}",
            "@redis:6379": f"@127.0.0.1:{port['redis']}",
            "http://prefect:4200": self.prefect,
            "--host 0.0.0.0 --port 5000": f"--host 127.0.0.1 --port {port['mlflow']}",
            "/etc/fewstep/mlflow-auth.ini": str(PROJECT / "deploy/mlflow-auth.ini"),
        }
        return services(self.credentials | self.addresses, places)

    @property
    def addresses(self) -> dict[str, str]:
        """Variables of compose.yaml that are no secrets."""
        return {
            "S3_ENDPOINT": self.s3,
            "PREFECT_PUBLIC_URL": self.prefect,
            "MLFLOW_PUBLIC_URL": self.mlflow,
            "MLFLOW_PUBLIC_HOST": f"127.0.0.1:{self.ports['mlflow']}",
        }

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.ports['prefect']}"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def s3(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    def env(self, service: str, **more: str) -> dict[str, str]:
        """The environment of a service: compose.yaml's, and what containers would have by their
        names.
        """
        kept = ("HOME", "LANG", "TZ", "TMPDIR", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
        found = {name: os.environ[name] for name in kept if name in os.environ}
        found |= {"PATH": f"{self.venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        found |= self.services[service].env
        near = {
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1",
            "PREFECT_REDIS_MESSAGING_PORT": str(self.ports["redis"]),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.ports["postgres"]),
        }
        found |= {name: value for name, value in near.items() if name in found}
        return found | {"PREFECT_HOME": str(self.folder / f"prefect-{service}")} | more

    def start_postgres(self) -> None:
        self.processes.start(
            "postgres",
            as_user(
                POSTGRES_USER,
                [
                    str(program("postgres")),
                    *("-D", str(self.data)),
                    *("-p", str(self.ports["postgres"])),
                    *("-c", "listen_addresses=127.0.0.1"),
                    *("-c", "unix_socket_directories="),
                ],
            ),
            {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            cwd=self.data,
        )
        self.processes.wait("postgres", lambda: self.psql("select 1").returncode == 0, 60)

    def make_databases(self) -> None:
        """What the image does when its volume is new: the user, POSTGRES_DB, databases.sql."""
        env = self.services["postgres"].env
        password = self.data.with_name("password")
        password.touch(mode=0o600)
        password.write_text(env["POSTGRES_PASSWORD"])
        if os.getuid() == 0:
            for path in (self.data.parent, password):
                shutil.chown(path, POSTGRES_USER)
        command = [
            *(str(program("initdb")), "-D", str(self.data), "-A", "scram-sha-256", "-E", "UTF8"),
            *("--locale=C.UTF-8", "-U", env["POSTGRES_USER"], f"--pwfile={password}"),
        ]
        subprocess.run(
            as_user(POSTGRES_USER, command), cwd="/", check=True, stdout=subprocess.DEVNULL
        )
        password.unlink()
        self.start_postgres()
        for statement in (
            f"create database {env['POSTGRES_DB']}",
            *(PROJECT / "deploy/databases.sql").read_text().split("\n"),
        ):
            if statement and not statement.startswith("--"):
                done = self.psql(statement)
                assert done.returncode == 0, done.stderr

    def psql(self, statement: str, database: str = "postgres") -> subprocess.CompletedProcess[str]:
        """Run one SQL statement; rows come as lines of "a|b"."""
        command = [str(program("psql")), "-X", "-A", "-t", "-c", statement, "-h", "127.0.0.1"]
        command += ["-p", str(self.ports["postgres"]), "-U", "fewstep", "-d", database]
        env = os.environ | {"PGPASSWORD": self.credentials["POSTGRES_PASSWORD"]}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    def start_redis(self) -> None:
        """compose.yaml's command, on a port of its own and in a folder of its own."""
        shell, option, line = self.services["redis"].command
        place = f"redis-server --port {self.ports['redis']} --bind 127.0.0.1"
        folder = self.folder / "redis"
        folder.mkdir(exist_ok=True)
        self.processes.start(
            "redis", [shell, option, line.replace("redis-server", place)], self.env("redis"), folder
        )
        self.processes.wait("redis", lambda: listens(self.ports["redis"]), 60)

    def start_s3(self) -> None:
        """The S3 server, with one pair of keys, and its bucket."""
        keys = {"accessKey": self.credentials["S3_ACCESS_KEY"]}
        keys["secretKey"] = self.credentials["S3_SECRET_KEY"]
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "team", "credentials": [keys], "actions": rights}
        config = self.folder / "s3.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": [identity]}))
        (self.folder / "s3").mkdir(exist_ok=True)
        ports = [
            part
            for name in S3_PORTS
            for part in (
                *(f"-{name}.port", str(self.ports[name])),
                *(f"-{name}.port.grpc", str(self.ports[f"{name}.grpc"])),
            )
        ]
        command = [
            *(str(self.venv / "bin/weed"), "server", "-dir", str(self.folder / "s3"), "-s3"),
            *("-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-s3.config", str(config), *ports),
            *("-s3.port.iceberg", "0", "-s3.port.lance", "0", "-s3.iam=false"),
            *("-master.telemetry=false", "-master.volumeSizeLimitMB", "64", "-volume.max", "100"),
        ]
        self.processes.start("s3", command, {"PATH": os.environ["PATH"], "HOME": str(self.folder)})
        self.processes.wait("s3", self._bucket_is_there, 120)

    def _bucket_is_there(self) -> bool:
        with suppress(Exception):  # not up yet, in whatever way
            client = self.bucket()
            if "fewstep" not in [item["Name"] for item in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket="fewstep")
            return True
        return False

    def bucket(self, **more: Any) -> Any:
        """A client of the S3 server."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.s3,
            region_name="us-east-1",
            aws_access_key_id=self.credentials["S3_ACCESS_KEY"],
            aws_secret_access_key=self.credentials["S3_SECRET_KEY"],
            config=Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 1}),
            **more,
        )

    def start_prefect(self) -> None:
        """The API and pages, then the background services, two processes as in compose.yaml."""
        port = {"PREFECT_SERVER_API_PORT": str(self.ports["prefect"])}
        for name in ("prefect", "prefect-services"):
            self.processes.start(name, self.services[name].command, self.env(name, **port))
            if name == "prefect":
                self.processes.wait(name, lambda: self.answers(f"{self.prefect}/api/health"))

    def start_mlflow(self) -> None:
        env = self.env("mlflow", MLFLOW_WORKERS="2")  # to start four takes minutes of a busy core
        self.processes.start("mlflow", self.services["mlflow"].command, env)
        self.processes.wait("mlflow", lambda: self.answers(f"{self.mlflow}/health"))

    def start_worker(self, project: Path, **more: str) -> None:
        """The worker in a checkout, which in its container is /srv/fewstep."""
        path = f"{project / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "PWD": str(project), "PREFECT_WORKER_QUERY_SECONDS": "2"}
        env = self.env("worker", **(own | more))
        env.pop("PREFECT_HOME")  # the project's own, .fewstep/prefect
        self.processes.start("worker", self.services["worker"].command, env, project)
        self.processes.wait("worker", lambda: bool(self._workers()))

    def _workers(self) -> list[Any]:
        with suppress(OSError):
            listed = self.api("work_pools/local/workers/filter", {})
            return [worker for worker in listed if worker["status"] == "ONLINE"]
        return []

    def api(self, path: str, body: Any = None) -> Any:
        """Prefect's answer with the team's credentials: GET, or POST of `body`."""
        return self._ask(f"{self.prefect}/api/{path}", self.credentials["PREFECT_AUTH"], body)

    def registry(self, path: str, body: Any = None) -> Any:
        """The same of MLflow's server."""
        user = f"fewstep:{self.credentials['MLFLOW_PASSWORD']}"
        return self._ask(f"{self.mlflow}/api/2.0/mlflow/{path}", user, body)

    def _ask(self, url: str, user: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        headers["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers), timeout=60
        ) as reply:
            return json.load(reply)

    def answers(self, url: str) -> bool:
        with suppress(OSError):
            return bool(urllib.request.urlopen(url, timeout=10).status < 400)
        return False


def refusal(url: str, body: Any = None) -> int:
    """The status with which a server answers somebody without credentials."""
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        return int(urllib.request.urlopen(request, timeout=30).status)
    except urllib.error.HTTPError as error:
        return error.code


def missing(venv: Path) -> str:
    """Why the services cannot be started here; "" if they can."""
    lacking = {fix: name for name, fix in NEEDED.items() if program(name) is None}
    if lacking:
        told = ", ".join(f"{name} ({fix})" for fix, name in lacking.items())
        return f"not on this machine: {told}"
    if not (venv / "bin/weed").is_file() or find_spec("boto3") is None:
        return f"{venv} has no S3 server, or is not in use; `make team-test` makes and uses it"
    return ""


@contextmanager
def team(folder: Path, venv: Path, credentials: dict[str, str]) -> Iterator[Team]:
    """All services but the worker; ended, each by its id, when the block ends."""
    names = ["postgres", "redis", "prefect", "mlflow", *S3_PORTS, *(f"{n}.grpc" for n in S3_PORTS)]
    place = Path(tempfile.mkdtemp(prefix="fewstep-team-"))  # not below folders of root alone
    found = Team(
        folder,
        venv,
        Processes(folder),
        place / "postgres",
        dict(zip(names, free_ports(len(names)), strict=True)),
        credentials,
    )
    try:
        found.make_databases()
        found.start_redis()
        found.start_s3()
        found.start_prefect()
        found.start_mlflow()
        yield found
    finally:
        found.processes.end_all()
        shutil.rmtree(place, ignore_errors=True)
