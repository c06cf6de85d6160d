"""A run's own Prefect server: behind no proxy, and gone when the run is, however that ended."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.services import own_server, reachable
from models.common.errors import InputError
from tasks.config.schema import Params, load_params
from tests.flows.project import REPOSITORY
from tests.flows.served import free_port

RUN = """
import sys, time
from pathlib import Path
from tasks.utils import environment
environment.prepare(Path.cwd())
from prefect import get_client
from flows.services.own_server import prefect_api
with prefect_api(Path.cwd()) as url, get_client(sync_client=True) as client:
    print(url, client.api_healthcheck(), flush=True)
    time.sleep(float(sys.argv[1]))
"""
FLOW = """
import sys, time
from pathlib import Path
from tasks.utils import environment
environment.prepare(Path.cwd())
from prefect import flow, get_run_logger
from flows.services.own_server import prefect_api

@flow
def last_words():
    get_run_logger().info("the last line")

with prefect_api(Path.cwd()):
    last_words()
    ended = time.monotonic()
print("closed after", time.monotonic() - ended, flush=True)
"""
PROXIES = {
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
}


def start(root: Path, seconds: float) -> subprocess.Popen[str]:
    left_out = ("no_proxy", "NO_PROXY", "PREFECT_API_URL", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(seconds)],
        cwd=root,
        env=env | PROXIES | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )


def servers(parent: int) -> list[psutil.Process]:
    """Live servers of the run with that process id."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if own_server.__name__ in words and words[-1] == str(parent):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def gone(process: psutil.Process) -> bool:
    """Whether it has ended. One that is ending has no command line any more, and still runs."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.mark.parametrize("end", [signal.SIGKILL, None], ids=["kill -9", "its own end"])
def test_the_server_ends_with_its_run(end: signal.Signals | None, tmp_path: Path) -> None:
    """With proxies in the environment, none of which concerns loopback."""
    run = start(tmp_path, 0 if end is None else 600)
    assert run.stdout is not None
    url, error = run.stdout.readline().split()
    assert url.startswith("http://127.0.0.1:") and error == "None"
    before = servers(run.pid)
    if end is not None:
        assert len(before) == 1
        run.send_signal(end)
    run.wait(timeout=120)
    wait(lambda: servers(run.pid) == [] and all(map(gone, before)), 30)


def test_a_prefect_server_that_is_down_is_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    with pytest.raises(InputError) as told:
        reachable.check_prefect(url)
    line = str(told.value)
    assert line.startswith(f"PREFECT_API_URL = {url}: no Prefect server answers there (")
    assert line.endswith("unset PREFECT_API_URL so that the run starts its own")


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_a_tracking_server_that_is_down_is_one_line(scheme: str) -> None:
    params = with_tracking(f"{scheme}://127.0.0.1:{free_port()}")
    with pytest.raises(
        InputError, match="no MLflow server answers there .*; start it, or use null"
    ):
        reachable.check_tracking(params)


def test_a_database_that_listens_is_enough() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        reachable.check_tracking(with_tracking(f"postgresql://127.0.0.1:{server.getsockname()[1]}"))
    reachable.check_tracking(with_tracking("null"))


def test_nothing_starts_while_a_server_is_down(tmp_path: Path) -> None:
    """One line and exit status 2, before the first stage."""
    from tests.flows.project import make_project, python, runs

    root = make_project(tmp_path / "project")
    for name in ("prefect", "mlflow"):
        down = f"http://127.0.0.1:{free_port()}"
        api = f"{down}/api" if name == "prefect" else ""
        given = [f"registration.tracking_uri={down}"] if name == "mlflow" else []
        env = os.environ | {"PREFECT_API_URL": api, "PYTHONPATH": str(REPOSITORY)}
        done = python(root, "-m", "flows.distill", *given, env=env)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1 and f"{down}" in done.stderr
        assert "server answers there" in done.stderr
    assert set(runs(root).values()) == {0}


def with_tracking(uri: str) -> Params:
    return load_params(REPOSITORY / "params.yaml", [f"registration.tracking_uri={uri}"])


def test_the_last_lines_reach_the_server_before_it_goes(tmp_path: Path) -> None:
    """Nothing is left to send, so that the run ends at once and without a complaint."""
    left_out = ("PREFECT_API_URL", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    home = {"PYTHONPATH": str(REPOSITORY), "PREFECT_HOME": str(tmp_path / "prefect")}
    run = subprocess.run(
        [sys.executable, "-c", FLOW], cwd=tmp_path, env=env | home, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "Error logging to API" not in run.stderr and "closed after" in run.stdout
    logs = sqlite3.connect(tmp_path / "prefect" / "prefect.db").execute("select message from log")
    assert "the last line" in [message for (message,) in logs]
