"""Idle OpenMP threads spin while this process has its cores for itself, and sleep soon while it
shares them.

A thread that waits for the others of its team spins. Alone on a machine that saves the time of
waking it: half of a training step of a small network. Beside another program it keeps a core from
the very thread that it waits for: such a step takes five times as long, on some machines 20 times.
libgomp spins less when more OpenMP threads exist than CPUs: 100 times instead of GOMP_SPINCOUNT
(libgomp's manual, GOMP_SPINCOUNT). So while others want this process's cores a second team is kept
here. It does no work. The number of threads of a sum stays, and with it every result's bytes.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from pathlib import Path

from tasks.utils.cpus import affinity
from tasks.utils.environment import SPINS

TASKS = Path("/proc/self/task")
SECONDS = 0.5  # between two looks
# Seconds that threads of this process waited for a CPU, per second. Two on two cores: 0.003 to 0.05
# alone, 0.6 to 1.0 beside one busy core, whether they spin or sleep.
SHARED, ALONE = 0.2, 0.1
QUIET_LOOKS = 4  # below ALONE, one after the other, before threads spin again
ELEMENTS = 1 << 18  # of a sum that torch divides among threads


def watch_cores() -> None:
    """From now on let this process's idle OpenMP threads sleep soon while other programs want its
    cores; twice a second. Once a process is enough, and more does no harm.

    Does nothing where the user has chosen how threads wait, and where the kernel does not say how
    long they waited for a CPU (no /proc/self/task/*/schedstat).
    """
    if os.environ.get("GOMP_SPINCOUNT") != SPINS or waited_seconds() is None:
        return
    if any(thread.name == _NAME for thread in threading.enumerate()):
        return
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(over,), name=_NAME, daemon=True)
    thread.start()

    def end() -> None:
        """A thread amid torch's code when the interpreter ends aborts the process."""
        over.set()
        thread.join()

    atexit.register(end)


def waited_seconds(tasks: Path = TASKS) -> dict[str, float] | None:
    """Thread id: seconds it was ready to run and had no CPU, since it began. None if the kernel
    does not say.
    """
    found = {}
    try:
        for task in tasks.iterdir():
            try:
                found[task.name] = int((task / "schedstat").read_text().split()[1]) * 1e-9
            except (FileNotFoundError, ProcessLookupError):
                if task.exists():
                    return None
    except (OSError, ValueError, IndexError):
        return None
    return found or None


class CoreWatch:
    """Whether this process shares its cores, from how long its threads waited for one."""

    def __init__(self) -> None:
        self.shared = False
        self._quiet = 0

    def see(self, waited: float) -> bool:
        """Take in one look: `waited` seconds of all threads per second. Returns `shared`."""
        self._quiet = self._quiet + 1 if waited < ALONE else 0
        if waited > SHARED:
            self.shared = True
        elif self._quiet >= QUIET_LOOKS:
            self.shared = False
        return self.shared


class SpareTeams:
    """OpenMP teams that do nothing but be there, as many as make more threads than CPUs."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def held(self) -> bool:
        return bool(self._threads)

    def hold(self) -> None:
        """Make the teams, and return when they are there."""
        import torch

        team = torch.get_num_threads()
        if self.held or team < 2:
            return
        self._over.clear()
        for _ in range(teams_to_hold(team, len(affinity()))):
            ready = threading.Event()
            thread = threading.Thread(target=self._keep, args=(ready,), daemon=True)
            thread.start()
            ready.wait()
            self._threads.append(thread)

    def release(self) -> None:
        """End the teams: the CPUs are enough again."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _keep(self, ready: threading.Event) -> None:
        import torch

        torch.ones(ELEMENTS).add_(1.0)  # a thread's first divided work makes its team
        ready.set()
        self._over.wait()


def teams_to_hold(team: int, cpus: int) -> int:
    """How many teams of `team` threads, beside one at work, make more threads than `cpus`.

    A team's first thread is not one that libgomp has made, so each adds `team` - 1.
    """
    return max(0, cpus - team) // (team - 1) + 1


_NAME = "core-watch"


def _watch(over: threading.Event) -> None:
    watch, teams = CoreWatch(), SpareTeams()
    before, then = waited_seconds() or {}, time.monotonic()
    while not over.wait(SECONDS):
        waited, now = waited_seconds() or {}, time.monotonic()
        # A thread that is new since the last look has waited nothing before.
        total = sum(seconds - before.get(task, 0.0) for task, seconds in waited.items())
        shared = watch.see(total / (now - then))
        before, then = waited, now
        if "torch" in sys.modules and shared != teams.held:
            (teams.hold if shared else teams.release)()
    teams.release()
