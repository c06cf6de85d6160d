"""Machines, shells and folders in which the project runs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from flows.services.reachable import check_prefect, check_tracking
from tasks.config.schema import load_params
from tasks.registry.lineage import git_state
from tasks.training.ray_cluster import LONGEST_PLACE, temporary_place
from tasks.utils.cpus import cpu_quota
from tasks.utils.environment import check_place, thread_settings
from tasks.utils.proxies import spare_loopback
from tasks.utils.streams import tolerate_encodings
from tests.inputs.rows import Row
from tests.paths import PROJECT

TITLE = "Environments"
CLOSED = "127.0.0.1:9"  # nothing listens there


def proxy(name: str, value: str, lines: int = 0) -> Callable[[Path], None]:
    """A proxy in the environment: a client can be made, and reaches loopback directly."""

    def run(root: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for other in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
                patch.delenv(other, raising=False)
                patch.delenv(other.lower(), raising=False)
            patch.setenv(name, value)
            assert len(spare_loopback(os.environ)) == lines
            assert urllib.request.proxy_bypass("127.0.0.1")
            with httpx.Client() as client:
                address = httpx.URL("http://127.0.0.1:4200/api")
                assert client._transport_for_url(address) is client._transport

    return run


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def repository(root: Path, name: str) -> Path:
    folder = root / name
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks/x.py").write_text(name)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", name)
    return folder


def archive(root: Path) -> None:
    other = root / "other"
    (other / "fewstep/tasks").mkdir(parents=True)
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "something else")
    assert set(git_state(other / "fewstep")) == {"git.unknown"}


def hook(root: Path) -> None:
    own, other = repository(root, "own"), repository(root, "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_DIR", str(other / ".git"))
        found = git_state(own)
    assert found == {"git.commit": git(own, "rev-parse", "HEAD"), "git.dirty": "false"}


def folder(name: str) -> Callable[[Path], None]:
    return lambda root: check_place(root / name)


def tracking(root: Path) -> None:
    override = f"registration.tracking_uri=http://{CLOSED}"
    check_tracking(load_params(PROJECT / "params.yaml", [override]))


def quota(root: Path) -> None:
    (root / "cpu.max").write_text("150000 100000")
    (root / "membership").write_text("0::/\n")
    assert cpu_quota(root, root / "membership") == 1.5


def policy(root: Path) -> None:
    assert "GOMP_SPINCOUNT" not in thread_settings({"OMP_WAIT_POLICY": "PASSIVE"})


def long_place(root: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_TMPDIR", raising=False)
        patch.setenv("TMPDIR", str(root / ("x" * 80)))
        place = temporary_place()
    assert place is not None and len(str(place)) <= LONGEST_PLACE


def latin(root: Path) -> None:
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="latin-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        tolerate_encodings()
        print("✓ caf\xe9", flush=True)
    assert raw.getvalue() == b"\\u2713 caf\xe9\n"


ROWS = (
    Row("env-socks", "`ALL_PROXY=socks5://...`", proxy("ALL_PROXY", "socks5://proxy.example:1080"),
        taken="used for other machines; loopback goes past it"),
    Row("env-socks-desktop", "`all_proxy=socks://...`, as desktops write it",
        proxy("all_proxy", "socks://proxy.example:1080/"), taken="as `socks5://...`"),
    Row("env-socks4", "`ALL_PROXY=socks4://...`", proxy("ALL_PROXY", "socks4://proxy.example", 1),
        taken="ignored, with one line on stderr"),
    Row("env-http-proxy", "`http_proxy` without `no_proxy`",
        proxy("http_proxy", "http://proxy.example:3128"),
        taken="used for other machines; loopback goes past it"),
    Row("env-archive", "an archive unpacked inside another repository", archive,
        taken="no commit is recorded", warned="the repository other does not hold the project's files"),
    Row("env-git-dir", "`GIT_DIR`, as in a git hook", hook, taken="the project's own commit is recorded"),
    Row("env-at", "a project below `me@corp.example`", folder("me@corp.example"), taken="as any other"),
    Row("env-space", "a project below `my work #1`", folder("my work #1"), taken="as any other"),
    Row("env-percent", "a project below `50%`", folder("50%"),
        refused="50%: '%': MLflow's addresses of files read %41 as a letter: move or rename the folder"),
    Row("env-braces", "a project below `{old}`", folder("{old}"),
        refused="{old}: '{': DVC puts values between braces; '}': DVC puts values between braces: move or "
        "rename the folder"),
    Row("env-question", "a project below `what?`", folder("what?"),
        refused="what?: '?': addresses of databases end there: move or rename the folder"),
    Row("env-colon", "a project below `a:b`", folder("a:b"),
        refused="a:b: ':': separates the folders of PATH: move or rename the folder"),
    Row("env-prefect-down", "`PREFECT_API_URL` of a server that is down",
        lambda root: check_prefect(f"http://{CLOSED}/api"),
        refused=f"PREFECT_API_URL = http://{CLOSED}/api: no Prefect server answers there ([Errno 111] "
        "Connection refused); start it, or unset PREFECT_API_URL so that the run starts its own"),
    Row("env-mlflow-down", "`registration.tracking_uri` of a server that is down", tracking,
        refused=f"registration.tracking_uri = http://{CLOSED}: no MLflow server answers there ([Errno 111] "
        "Connection refused); start it, or use null for the project's own store"),
    Row("env-quota", "a container with a quota of 1.5 CPUs", quota, taken="one thread"),
    Row("env-policy", "`OMP_WAIT_POLICY`, `GOMP_SPINCOUNT`, `OMP_NUM_THREADS`", policy,
        taken="kept; without them threads follow affinity and quota, and idle ones sleep soon while cores are shared"),
    Row("env-tmpdir", "a `TMPDIR` too long for sockets", long_place, taken="Ray uses `/tmp/ray-UID`"),
    Row("env-encoding", "a terminal in Latin-1 or ASCII", latin,
        taken="what it lacks is written as an escape"),
)  # fmt: skip
