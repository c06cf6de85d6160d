"""Background processes with a record on disk: started apart, found again later, ended with all
their children.

A process is known by its id, its start time and a random mark in its environment, so that one to
which the system has given the id since is never mistaken for it. Children inherit the mark: so also
those are found that a killed service has left behind, or that have moved to a process group of
their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tasks.utils.atomic import atomic_write_json
from tasks.utils.environment import private_folder

FOLDER = Path(".fewstep/services")
MARK = "FEWSTEP_SERVICE"
GRACE_SECONDS = 20.0
SHOWN_LINES = 12


@dataclass(frozen=True)
class Daemon:
    """A started service: `started` is the process's start time (s since 1970), `address` what it
    answers at.
    """

    name: str
    pid: int
    started: float
    mark: str
    address: str
    log: str

    def alive(self) -> bool:
        """Whether that very process still runs."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 0.02 and _mark(process) == self.mark
        except psutil.NoSuchProcess:
            return False


def start(
    root: Path, name: str, command: Sequence[str], address: str, env: Mapping[str, str]
) -> Daemon:
    """Start `command` in `root`, in a process group of its own, with its output in a log file, and
    record it.
    """
    folder = root / FOLDER
    private_folder(folder)
    log, mark = folder / f"{name}.log", f"{name}-{secrets.token_hex(8)}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command),
            cwd=root,
            env={**env, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    daemon = Daemon(
        name, process.pid, psutil.Process(process.pid).create_time(), mark, address, str(log)
    )
    atomic_write_json(_record(root, name), asdict(daemon))
    return daemon


def recorded(root: Path, name: str) -> Daemon | None:
    """The service as recorded, alive or not; None if there is no (readable) record."""
    try:
        return Daemon(**json.loads(_record(root, name).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def running(root: Path, name: str) -> Daemon | None:
    """The recorded service if its process is alive."""
    daemon = recorded(root, name)
    return daemon if daemon is not None and daemon.alive() else None


def end(root: Path, daemon: Daemon, grace: float = GRACE_SECONDS) -> int:
    """End the service and every process that carries its mark, then forget it; returns how many
    were ended.

    The group is asked first (SIGTERM); what is left after `grace` seconds is killed.
    """
    family = _family(daemon)
    if daemon.alive():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(daemon.pid, signal.SIGTERM)
    for process in family:
        if not daemon.alive() or _group(process) != daemon.pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
    psutil.wait_procs(family, timeout=grace)
    # those it started meanwhile, and one that was just being started: its mark could not be read
    late = _family(daemon)
    for process in late:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs([*family, *late], timeout=5)
    _record(root, daemon.name).unlink(missing_ok=True)
    return len({process.pid for process in (*family, *late)})


def wait_until(daemon: Daemon, ready: Callable[[], bool], deadline: float) -> str | None:
    """Wait until `ready()`; returns None, or why not: the process ended, or `deadline` (monotonic
    s) has passed.
    """
    while not ready():
        if not daemon.alive():
            return f"{daemon.name} ended while starting"
        if time.monotonic() > deadline:
            return f"{daemon.name} does not answer at {daemon.address}"
        time.sleep(0.3)
    return None


def last_lines(daemon: Daemon, count: int = SHOWN_LINES) -> list[str]:
    """The end of the service's log."""
    try:
        return Path(daemon.log).read_text(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def _record(root: Path, name: str) -> Path:
    return root / FOLDER / f"{name}.json"


def _family(daemon: Daemon) -> list[psutil.Process]:
    """All live processes with the service's mark; the service itself, if alive, is one of them."""
    return [process for process in psutil.process_iter() if _mark(process) == daemon.mark]


def _mark(process: psutil.Process) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE or process.create_time() == 0:
            return None
        return process.environ().get(MARK)
    except (psutil.Error, OSError):  # another user's, or just gone
        return None


def _group(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return -1
