"""TLS by nginx of Debian's packages before Prefect's and MLflow's servers, with deploy/nginx.conf."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.paths import PROJECT
from tests.team.processes import Processes, free_ports, listens, program
from tests.team.services import Team

NAMES = ("prefect.example.org", "mlflow.example.org")
CLIENTS = """
import asyncio, os, tempfile, uuid
from pathlib import Path
from mlflow import MlflowClient
from prefect import get_client
from prefect.events import Event
from prefect.events.clients import PrefectEventsClient

with get_client(sync_client=True) as client:
    print("flows", len(client.read_flows()))

async def send():  # by a websocket, as heartbeats go
    async with PrefectEventsClient(checkpoint_every=1) as client:
        await client.emit(Event(event="tls.tried", resource={"prefect.resource.id": "tls"}))
        await client._checkpoint()
asyncio.run(send())
print("event sent")

store = MlflowClient(os.environ["MLFLOW"])
run = store.create_run("0").info.run_id
with tempfile.TemporaryDirectory() as folder:
    large = Path(folder) / "large.bin"
    large.write_bytes(os.urandom(3_000_000))  # more than nginx takes by default
    store.log_artifact(run, str(large))
    back = store.download_artifacts(run, "large.bin", folder)
    assert Path(back).read_bytes() == large.read_bytes()
print("artifact", len(store.list_artifacts(run)))
"""


@dataclass
class Proxy:
    """nginx; its addresses and its certificate, which it has signed itself."""

    prefect: str
    mlflow: str
    plain: str
    certificate: Path


def write_settings(team: Team, folder: Path, ports: list[int]) -> Path:
    """deploy/nginx.conf with places of this machine, within the least that nginx needs around it."""
    text = (PROJECT / "deploy/nginx.conf").read_text()
    for name, port in zip(NAMES, ports, strict=False):
        head, _, tail = text.partition(f"listen 443 ssl;\n    server_name {name};")
        assert tail, name
        text = f"{head}listen 127.0.0.1:{port} ssl;\n    server_name {name};{tail}"
    places = {
        "listen 80;": f"listen 127.0.0.1:{ports[2]};",
        "/etc/ssl/certs/fewstep.pem": f"{folder}/tls.pem",
        "/etc/ssl/private/fewstep.key": f"{folder}/tls.key",
        "http://127.0.0.1:4200": team.prefect,
        "http://127.0.0.1:5000": team.mlflow,
    }
    for example, place in places.items():
        assert example in text, example
        text = text.replace(example, place)
    (folder / "fewstep.conf").write_text(text)
    user = "user root;\n" if os.getuid() == 0 else ""  # pytest's folders are root's alone
    rooms = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = [f"{name}_temp_path {folder}/{name};" for name in rooms]
    around = folder / "nginx.conf"
    lines = "\n".join([*own, "access_log off;", f"include {folder}/fewstep.conf;"])
    around.write_text(f"{user}pid {folder}/pid;\nevents {{}}\nhttp {{\n{lines}\n}}\n")
    return around


@pytest.fixture(scope="module")
def proxy(services: Team, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    if (nginx := program("nginx") or program("/usr/sbin/nginx")) is None:
        pytest.skip("not on this machine: nginx (apt-get install nginx-light)")
    folder = tmp_path_factory.mktemp("nginx")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-keyout", "tls.key", "-out", "tls.pem", "-subj", "/CN=fewstep.test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    ports = free_ports(3)
    settings = write_settings(services, folder, ports)
    processes = Processes(folder)
    line = [nginx, "-e", "stderr", "-p", str(folder), "-c", str(settings), "-g", "daemon off;"]
    processes.start("nginx", line, {"PATH": os.environ["PATH"]})
    try:
        processes.wait("nginx", lambda: listens(ports[0]), 30)
        first, second, third = ports
        yield Proxy(
            f"https://127.0.0.1:{first}",
            f"https://127.0.0.1:{second}",
            f"http://127.0.0.1:{third}",
            folder / "tls.pem",
        )
    finally:
        processes.end_all()


def status(url: str, certificate: Path | None = None) -> int:
    """With which a server answers somebody without a password."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    context = ssl.create_default_context(cafile=certificate)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), Stay)
    try:
        return int(opener.open(url, timeout=30).status)
    except urllib.error.HTTPError as error:
        return error.code


def test_strangers_are_refused_through_it_too(proxy: Proxy) -> None:
    assert status(f"{proxy.prefect}/api/health", proxy.certificate) == 200
    assert status(f"{proxy.prefect}/api/admin/version", proxy.certificate) == 401
    artifacts = "api/2.0/mlflow-artifacts/artifacts"
    assert status(f"{proxy.mlflow}/{artifacts}", proxy.certificate) == 401
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        status(f"{proxy.prefect}/api/health")  # nobody known has signed it
    assert status(proxy.plain) == 301


def test_clients_work_through_it(proxy: Proxy, services: Team, tmp_path: Path) -> None:
    """Requests, the websocket of events, and artifacts beyond nginx's default size."""
    kept = ("PATH", "LANG", "OMP_NUM_THREADS")
    env = {name: os.environ[name] for name in kept if name in os.environ} | {
        "HOME": str(tmp_path),
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_API_URL": f"{proxy.prefect}/api",
        "PREFECT_API_AUTH_STRING": services.credentials["PREFECT_AUTH"],
        "MLFLOW": proxy.mlflow,
        "MLFLOW_TRACKING_USERNAME": "fewstep",
        "MLFLOW_TRACKING_PASSWORD": services.credentials["MLFLOW_PASSWORD"],
        # What docs/team.md names for a certificate that no public authority has signed.
        "SSL_CERT_FILE": str(proxy.certificate),
        "PREFECT_API_SSL_CERT_FILE": str(proxy.certificate),
        "REQUESTS_CA_BUNDLE": str(proxy.certificate),
    }
    done = subprocess.run(
        [sys.executable, "-c", CLIENTS],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "event sent" in done.stdout and "artifact 1" in done.stdout
