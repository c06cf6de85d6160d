"""DVC's process killed, its cache and its notes damaged or locked, its remote missing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.dvc import experiments
from flows.dvc.worktree import workspace
from tests.chaos.checks import flip, one_error
from tests.chaos.disks import read_only
from tests.chaos.project import copy_until, environ, execute, result
from tests.chaos.test_ray import gone, wait_until
from tests.flows.served import free_port

REPRO = [
    sys.executable,
    "-m",
    "tasks.utils.environment",
    "dvc",
    "repro",
    "--single-item",
    "student",
]
PIPELINE = [sys.executable, "-m", "flows.dvc.repro", "student"]


@pytest.fixture
def project(halfway: Path, tmp_path: Path) -> Path:
    return copy_until(halfway, tmp_path / "project")


def test_dvc_killed(project: Path, made: Path) -> None:
    mark = project.parent / "mark"
    dvc = subprocess.Popen(
        REPRO, cwd=project, env=environ(project, hold="training.step:3"), stdout=subprocess.DEVNULL
    )
    wait_until(mark.exists, 400)
    orphan = int(mark.read_text().split()[1])
    assert orphan != dvc.pid
    dvc.send_signal(signal.SIGKILL)
    dvc.wait()
    again = execute(project, REPRO)
    assert again.returncode == 0, again.stderr
    assert gone(orphan) and "resumed at step 2 of 6" in again.stderr
    assert result(project) == result(made)


def test_orphan_waited_for(project: Path, made: Path) -> None:
    """A stage that goes on without DVC, as one started by hand: the next one waits and does nothing
    twice.
    """
    mark = project.parent / "mark"
    command = [sys.executable, "-m", "tasks.stages.student"]
    with (project.parent / "first.log").open("wb") as log:
        first = subprocess.Popen(
            command,
            cwd=project,
            env=environ(project, hold="training.step:3"),
            stdout=log,
            stderr=log,
        )
        wait_until(mark.exists, 400)
        second = subprocess.Popen(
            PIPELINE,
            cwd=project,
            env=environ(project),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert second.stderr is not None
        told = next(line for line in second.stderr if "waiting for process" in line)
        assert f"waiting for process {first.pid}," in told
        mark.with_name("mark.go").touch()
        assert first.wait(timeout=300) == 0
        rest = second.stderr.read()
        assert second.wait(timeout=300) == 0, rest
    assert "student: 6/6" not in rest
    assert result(project) == result(made)


def test_damaged_cache(recorded: Path, made: Path, tmp_path: Path) -> None:
    """The results are gone from data/, and the copy in the cache has one bit wrong."""
    root = copy_until(recorded, tmp_path / "project")
    weights = (root / "data/student/unet/diffusion_pytorch_model.safetensors").read_bytes()
    cached = next(
        path for path in root.glob(".dvc/cache/files/md5/*/*") if path.read_bytes() == weights
    )
    assert (
        execute(root, PIPELINE).returncode == 0
    )  # DVC has looked at the cache and noted what it holds
    flip(cached)
    os.utime(cached)
    for path in sorted((root / "data/student").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    again = execute(root, PIPELINE)
    assert again.returncode == 0 and "student: 6/6" in again.stderr, again.stderr
    assert result(root) == result(made)


def test_read_only_cache(project: Path, made: Path) -> None:
    with read_only(project / ".dvc/cache"):
        failed = execute(project, PIPELINE)
        assert failed.returncode == 1, failed.stderr
        assert "the file system is read-only: make it writable and run again" in one_error(
            failed.stderr
        )
    again = execute(project, PIPELINE)
    assert again.returncode == 0 and "student: 6/6" not in again.stderr, again.stderr
    assert result(project) == result(made)


def test_damaged_dvc_notes(project: Path, made: Path) -> None:
    """What a kill or a full disk leaves of DVC's own notes on who works where."""
    for name in ("rwlock", "lock"):
        (project / ".dvc/tmp" / name).write_text('{"half')
    again = execute(project, PIPELINE)
    assert again.returncode == 0, again.stderr
    assert result(project) == result(made)


def test_remote_missing(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remote's place is not there: the run's experiment stays here, and the next push takes it
    along.
    """
    project = copy_until(recorded, tmp_path / "project")
    (project / ".dvc/config.local").unlink()
    shelf = project.parent / "shelf"
    shelf.write_text("not a folder")
    dvc = [sys.executable, "-m", "tasks.utils.environment", "dvc"]
    for command in (
        ["git", "init", "-q"],
        [*dvc, "remote", "add", "-d", "shelf", str(shelf)],
        ["git", "add", "."],
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "start"],
    ):
        assert execute(project, command).returncode == 0
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(project / ".fewstep/dvc"))
    with workspace(project, "HEAD", "0123456789") as work:
        done = execute(work.root, [*dvc, "repro", "--quiet"])
        assert done.returncode == 0, done.stderr
        experiments.save(work, "run")
        first = experiments.push(work)
        assert (
            first.failed
            and first.line.count("\n") == 0
            and f"remote shelf ({shelf}) was not reached" in first.line
        )
        assert "kept in this project's cache, the next run pushes it" in first.line
        shelf.unlink()
        assert experiments.push(work) == experiments.Push(f"pushed to remote shelf ({shelf})")
        student = work.root / "data/student/unet/diffusion_pytorch_model.safetensors"
        assert student.read_bytes() in [
            path.read_bytes() for path in shelf.rglob("*") if path.is_file()
        ]


def test_port_in_use(before: Callable[[str], Path]) -> None:
    root = before("student")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        command = [
            sys.executable,
            "-m",
            "flows.services.services",
            "up",
            "--port",
            port,
            "--mlflow-port",
            str(free_port()),
        ]
        failed = execute(root, command)
    assert failed.returncode == 2 and f"port {port} is in use by process" in one_error(
        failed.stderr
    )
    assert not list((root / ".fewstep/services").glob("*.json"))
