"""Programs of this machine that a test starts, waits for, and ends by their ids."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_SECONDS = 900.0  # two cores, shared with others: MLflow took 240 s at a load of 13


@dataclass
class Processes:
    """Running programs by name; their output is in `folder`/NAME.log."""

    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        """Start a program in a session of its own."""
        assert name not in self.running, name
        with (self.folder / f"{name}.log").open("ab") as output:
            self.running[name] = subprocess.Popen(
                list(command),
                cwd=cwd or self.folder,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, name: str, ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Wait until `ready()`; AssertionError with the end of its log if it ends or is late."""
        deadline = time.monotonic() + seconds
        while not ready():
            ended = self.running[name].poll()
            assert ended is None, f"{name} ended with status {ended}\n{self.log(name)}"
            assert time.monotonic() < deadline, f"{name} is not ready\n{self.log(name)}"
            time.sleep(0.3)

    def end(self, name: str, kill: bool = False, seconds: float = 30.0) -> None:
        """End a program and all it has started; `kill` asks none of them."""
        process = self.running.pop(name)
        try:
            family = psutil.Process(process.pid).children(recursive=True)
            family.append(psutil.Process(process.pid))
        except psutil.NoSuchProcess:
            family = []
        for member in family[-1:] if not kill else family:
            _signal(member, kill)
        _, left = psutil.wait_procs(family, timeout=seconds)
        for member in left:
            _signal(member, True)
        process.wait()

    def end_all(self) -> None:
        for name in reversed(list(self.running)):
            self.end(name)

    def log(self, name: str, lines: int = 40) -> str:
        text = (self.folder / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def _signal(process: psutil.Process, kill: bool) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill() if kill else process.terminate()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nothing listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()


def listens(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0


def program(name: str) -> str | None:
    """Where a program is: on PATH, or where Debian keeps those of Postgres."""
    if found := shutil.which(name):
        return found
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(places[-1]) if places else None


def as_user(name: str, command: Sequence[str]) -> list[str]:
    """The command, run by that user where this is root (Postgres refuses to work for root)."""
    if os.getuid() != 0:
        return list(command)
    return ["setpriv", f"--reuid={name}", f"--regid={name}", "--clear-groups", *command]
