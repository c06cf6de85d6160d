"""Threads follow affinity and quota."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.utils import cpus, environment
from tests.paths import PROJECT


def group(top: Path, line: str, **files: str) -> Path:
    """A file like /proc/self/cgroup; `files` by path below `top`, "__" for "/"."""
    for name, content in files.items():
        path = top / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    membership = top / "membership"
    membership.write_text(line + "\n")
    return membership


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/", {"cpu_dot_max": "150000 100000"}, 1.5),
        ("0::/", {"cpu_dot_max": "max 100000"}, math.inf),
        ("0::/a/b", {"a__cpu_dot_max": "50000 100000", "a__b__cpu_dot_max": "max 100000"}, 0.5),
        ("0::/a", {"a__cpu_dot_max": "max 100000", "cpu_dot_max": "400000 100000"}, 4.0),
        (
            "4:cpu,cpuacct:/job",
            {
                "cpu__job__cpu_dot_cfs_quota_us": "300000",
                "cpu__job__cpu_dot_cfs_period_us": "100000",
            },
            3.0,
        ),
        (
            "1:cpu:/",
            {"cpu__cpu_dot_cfs_quota_us": "-1", "cpu__cpu_dot_cfs_period_us": "100000"},
            math.inf,
        ),
        ("2:memory:/", {}, math.inf),
    ],
)
def test_quota(line: str, files: dict[str, str], expected: float, tmp_path: Path) -> None:
    assert cpus.cpu_quota(tmp_path, group(tmp_path, line, **files)) == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert cpus.cpu_quota(tmp_path, tmp_path / "none") == math.inf


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [({0, 1, 2, 3}, math.inf, 2), ({0, 1, 2, 3}, 1.5, 1), ({0}, 8.0, 1), ({0, 2}, 0.3, 1)],
)
def test_threads(
    affinity: set[int],
    quota: float,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CPUs 0 and 2, and 1 and 3, are the two threads of a core each."""
    for cpu in range(4):
        place = tmp_path / f"cpu{cpu}/topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    own = cpus._cores
    monkeypatch.setattr(cpus, "affinity", lambda: affinity)
    monkeypatch.setattr(cpus, "_cores", lambda cpus: own(cpus, tmp_path))
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    assert cpus.usable_cores() == (1 if affinity == {0, 2} else expected)


def test_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.thread_settings({})["GOMP_SPINCOUNT"] == environment.SPINS
    assert "GOMP_SPINCOUNT" not in environment.thread_settings({"OMP_WAIT_POLICY": "active"})


PROGRAM = """
import os, sys
from pathlib import Path
from tasks.utils import environment
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
environment.prepare(Path(sys.argv[1]))
import torch
print(torch.get_num_threads(), os.environ["GOMP_SPINCOUNT"])
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity here")
def test_torch_follows_the_affinity(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=PROJECT, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1", environment.SPINS]


@pytest.mark.parametrize(
    "stage",
    [
        "dataset",
        "teacher",
        "conditions",
        "trajectories",
        "student",
        "evaluation",
        "champion_challenger",
    ],
)
def test_every_stage_prepares_before_torch_is_imported(stage: str) -> None:
    text = (PROJECT / f"tasks/stages/{stage}.py").read_text()
    before, call, _ = text.partition("environment.prepare(Path.cwd())")
    assert call and "import torch" not in before and "from models" not in before
