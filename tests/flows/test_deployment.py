"""`prefect deployment run` against a server and a process worker, as docs/operations.md tells it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.workspace import git
from tests.flows.project import REPOSITORY, make_project

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


@contextlib.contextmanager
def background(root: Path, env: dict[str, str], log: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program in its own process group that is ended, with all it started, when the block ends."""
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


def wait_until_up(url: str) -> None:
    for _ in range(480):
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"no answer from {url}")


def test_a_deployment_runs_to_its_end(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project")
    for name in ("flows", "tasks", "models"):  # the run's entry point is a path inside the project
        (root / name).symlink_to(REPOSITORY / name)
    (root / "prefect.yaml").write_text((REPOSITORY / "prefect.yaml").read_text())
    port = free_port()
    env = os.environ | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PYTHONPATH": str(REPOSITORY),  # stages run in worktrees, which lack the links above
        "PWD": str(root),  # prefect.yaml takes the project folder from the shell
    }

    def prefect(*arguments: str, timeout: float = 120, status: int = 0) -> str:
        command = [str(BIN / "prefect"), "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    with background(root, env, "server.log", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)):
        wait_until_up(f"http://127.0.0.1:{port}/api/health")
        prefect("work-pool", "create", "local", "--type", "process")
        prefect("deploy", "--all")
        with background(root, env, "worker.log", "prefect", "worker", "start", "--pool", "local"):
            told = prefect(
                "deployment",
                "run",
                "distill/sigdeg",
                "-p",
                'overrides=["student.steps=250"]',
                "--watch",
                timeout=240,
            )
        for wrong, reason in (
            ('overrides=["studnt.steps=1"]', "does not match"),
            ('overrides={"student": {"steps": -1}}', "less than the minimum of 0"),
            ("method=none", "is not one of"),
            ("steps=1", "not found"),
        ):
            refused = prefect("deployment", "run", "distill/sigdeg", "-p", wrong, status=1)
            assert reason in " ".join(refused.split()), refused
    assert "Completed" in told, told + (root / "worker.log").read_text()
    assert "steps: 250" not in (root / "params.yaml").read_text() and not (root / "data").exists()
    saved = git(root, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    (name,) = (ref for ref in saved if "/exec/" not in ref)
    assert "steps: 250" in git(root, "show", f"{name}:params.yaml")
    assert git(root, "worktree", "list").count("\n") == 0
