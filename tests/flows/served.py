"""A Prefect server and a process worker of their own, for tests of deployments."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.flows.project import REPOSITORY, make_project

BIN = Path(sys.executable).parent
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Served:
    """The server at `url`; `root` is the project whose deployments are applied."""

    folder: Path
    url: str
    env: dict[str, str]
    root: Path = Path()

    def project(self, root: Path) -> Path:
        """A fresh project, its deployments applied in place of the former one's."""
        self.root = make_project(root)
        for name in (
            "flows",
            "tasks",
            "models",
        ):  # a run's entry point is a path inside the project
            (root / name).symlink_to(REPOSITORY / name)
        (root / "prefect.yaml").write_text((REPOSITORY / "prefect.yaml").read_text())
        command = [sys.executable, "-m", "flows.services.prefect_setup"]
        done = subprocess.run(
            command, cwd=root, env=self.env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return root

    def prefect(self, *arguments: str, timeout: float = 120, status: int = 0) -> str:
        """Run a prefect command in the project; returns what it printed."""
        env = self.env | {
            "PWD": str(self.root)
        }  # prefect.yaml takes the project folder from the shell
        command = [str(BIN / "prefect"), "--no-prompt", *arguments]
        done = subprocess.run(
            command, cwd=self.root, env=env, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The server's answer: GET, or POST of `body`."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/{path}", data, {"Content-Type": "application/json"}
        )
        for _ in range(60):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                if error.code != 503:  # the server's database is busy
                    raise
            time.sleep(0.5)
        raise AssertionError(f"{path}: the server stays busy")

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run of "flow/name"; returns its id."""
        found = self.api(f"deployments/name/{deployment}")
        return str(
            self.api(f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"]
        )

    def run(self, run_id: str) -> dict[str, Any]:
        return dict(self.api(f"flow_runs/{run_id}"))

    def wait(self, *run_ids: str, seconds: float = 280) -> list[dict[str, Any]]:
        """The runs, once all have ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [self.run(run_id) for run_id in run_ids]
            if all(run["state"]["type"] in FINAL for run in found):
                return found
            time.sleep(1)
        raise AssertionError(f"still running: {[run['state'] for run in found]}\n{self.log()}")

    def log(self) -> str:
        """The end of the worker's output."""
        return (self.folder / "worker.log").read_text()[-6000:]


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Server and worker, ended with all they started when the block ends."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = os.environ | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
        "PYTHONPATH": str(REPOSITORY),  # stages run in worktrees, which lack the project's links
    }
    place = ["--host", "127.0.0.1", "--port", str(port)]
    with background(folder, env, "server.log", "prefect", "server", "start", *place) as server:
        wait_until_up(f"{url}/health", server)
        with background(
            folder,
            env,
            "worker.log",
            "prefect",
            "worker",
            "start",
            "--pool",
            "local",
            "--type",
            "process",
        ):
            yield Served(folder, url, env)


@contextlib.contextmanager
def background(
    root: Path, env: dict[str, str], log: str, *command: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in its own process group that is ended, with all it started, when the block
    ends.
    """
    with (root / log).open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=root,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait, two minutes at most, for an answer from `url`; AssertionError if its process ends
    before.
    """
    for _ in range(480):
        assert server.poll() is None, f"the server of {url} ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"no answer from {url}")
