"""Idle OpenMP threads spin while the process has its cores for itself, and sleep while it shares
them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.utils import environment, spinning
from tasks.utils.cpus import affinity
from tests.paths import PROJECT

needs_schedstat = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists() or len(affinity()) < 2,
    reason="the kernel does not say how long threads wait, or there is one CPU",
)


def test_what_threads_waited_is_read(tmp_path: Path) -> None:
    for task, line in (("7", "900 250000000 3"), ("8", "10 0 1")):
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(line + "\n")
    assert spinning.waited_seconds(tmp_path) == {"7": 0.25, "8": 0.0}
    (tmp_path / "9").mkdir()  # a kernel that does not say it
    assert spinning.waited_seconds(tmp_path) is None
    assert spinning.waited_seconds(tmp_path / "none") is None


def test_cores_count_as_shared_at_once_and_as_free_after_a_while() -> None:
    watch = spinning.CoreWatch()
    seen = [watch.see(waited) for waited in (0.01, 0.15, 0.6, 0.15, 0.01, 0.01, 0.15)]
    assert seen == [False, False, True, True, True, True, True]
    assert [watch.see(0.01) for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("team", "cpus", "teams"), [(2, 2, 1), (2, 4, 3), (4, 4, 1), (4, 8, 2), (64, 128, 2), (2, 1, 1)]
)
def test_spare_teams_make_more_threads_than_cpus(team: int, cpus: int, teams: int) -> None:
    assert spinning.teams_to_hold(team, cpus) == teams
    assert team + teams * (team - 1) > cpus
    assert teams == 1 or team + (teams - 1) * (team - 1) <= cpus


SPINS = """
import time, torch
from tasks.utils.spinning import SpareTeams

def burnt():  # seconds of processor time while nothing is done
    torch.ones(1 << 20).add_(1.0)
    before = time.process_time()
    time.sleep(0.1)
    return time.process_time() - before

teams = SpareTeams()
torch.ones(1 << 20).add_(1.0)
alone = burnt()
teams.hold()
held = burnt()
sums = torch.linspace(0, 1, 1 << 20).sum()
teams.release()
assert not teams.held and torch.equal(sums, torch.linspace(0, 1, 1 << 20).sum())
print(alone, held, burnt())
teams.hold()  # and the end of the process is as without
"""


@needs_schedstat
def test_a_spare_team_ends_the_spinning() -> None:
    env = os.environ | {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": str(10**9)}
    env.pop("OMP_WAIT_POLICY", None)
    pair = sorted(affinity())[:2]
    code = f"import os; os.sched_setaffinity(0, {pair})\n" + SPINS
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    alone, held, again = map(float, done.stdout.split())
    assert alone > 0.02 and again > 0.02
    assert held < alone / 3 and held < again / 3


WATCHED = """
import threading, time, torch
from tasks.utils import spinning
spinning.SECONDS = 0.1
states = []
see = spinning.CoreWatch.see
spinning.CoreWatch.see = lambda *a: states.append(see(*a)) or states[-1]
spinning.watch_cores()
spinning.watch_cores()
end = time.monotonic() + 60
while not any(states) and time.monotonic() < end:
    torch.ones(1 << 20).add_(1.0)
print(sum(t.name == "core-watch" for t in threading.enumerate()), any(states))
"""


@needs_schedstat
def test_another_program_on_its_cores_is_noticed() -> None:
    """Both have one pair of CPUs, and the other program keeps two threads busy."""
    pair = sorted(affinity())[:2]
    pinned = f"import os; os.sched_setaffinity(0, {pair})\n"
    busy = pinned + "os.fork()\nwhile os.getppid() != 1: pass"
    other = subprocess.Popen([sys.executable, "-c", busy], start_new_session=True)
    try:
        env = os.environ | {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": environment.SPINS}
        done = subprocess.run(
            [sys.executable, "-c", pinned + WATCHED],
            cwd=PROJECT, env=env, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "True"]


@pytest.mark.parametrize("spins", [None, "6000"])
def test_threads_of_a_users_own_policy_are_left_alone(spins: str | None) -> None:
    env = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    env |= {"GOMP_SPINCOUNT": spins} if spins else {}
    code = "import threading; from tasks.utils import spinning; spinning.watch_cores()"
    code += "; print(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=env, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1"], done.stderr
