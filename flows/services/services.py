"""The project's services on this machine: Prefect's server and worker, and MLflow's server.

`python -m flows.services.services {up,down,status}`; `make up`, `make down`. They listen on
loopback unless set otherwise, keep their state in .fewstep/ and mlruns/, their records and logs in
.fewstep/services/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from flows.console import complain, say
from flows.services import daemons
from flows.services.daemons import Daemon
from flows.services.ports import LOOPBACK, answers, check_free, reachable, worker_reported
from models.common.errors import InputError
from tasks.utils import environment
from tasks.utils.cli import INPUT_ERROR, INTERRUPTED
from tasks.utils.sqlite_files import MigrationFailed

PREFECT, WORKER, MLFLOW = "prefect", "worker", "mlflow"
NAMES = (PREFECT, WORKER, MLFLOW)  # ended in the order worker, MLflow, Prefect
START_SECONDS = 180.0
TABLES = (("prefect", "Prefect server"), ("worker", "Prefect worker"), ("mlflow", "MLflow server"))


class StartFailed(RuntimeError):
    """A service did not come up; the message says which and ends with its log's last lines."""


@dataclass(frozen=True)
class Options:
    """Where the servers listen: an address of this machine and two ports."""

    host: str = LOOPBACK
    port: int = 4200
    mlflow_port: int = 5000

    def url(self, port: int) -> str:
        return f"http://{reachable(self.host)}:{port}"


def up(root: Path, options: Options, seconds: float = START_SECONDS) -> list[Daemon]:
    """Start what is not running yet and wait until it answers; returns the services started now.

    Raises InputError if a port is taken (nothing is started then), StartFailed if a service does
    not come up: those started now are ended again.
    """
    found = _running(root, options)
    if any(daemon is None for daemon in found.values()):
        say(
            "starting the Prefect server, its worker and the MLflow server (about half a minute) "
            "..."
        )
    for name in NAMES:
        if found[name] is None and (left := daemons.recorded(root, name)):
            daemons.end(root, left)  # its process was killed; its children may not have been
    started: list[Daemon] = []
    try:
        _start_all(root, options, found, started, time.monotonic() + seconds)
    except BaseException:
        for daemon in reversed(started):
            daemons.end(root, daemon)
        raise
    return started


def _running(root: Path, options: Options) -> dict[str, Daemon | None]:
    """What runs already; InputError if the port of something else is taken."""
    found = {name: daemons.running(root, name) for name in NAMES}
    for name, port in ((PREFECT, options.port), (MLFLOW, options.mlflow_port)):
        if found[name] is None:
            check_free(options.host, port, "PORT" if name == PREFECT else "MLFLOW_PORT")
    return found


def _start_all(
    root: Path,
    options: Options,
    found: Mapping[str, Daemon | None],
    started: list[Daemon],
    deadline: float,
) -> None:
    def ensure(name: str, command: list[str], address: str, settings: dict[str, str]) -> Daemon:
        if (there := found[name]) is not None:
            return there
        started.append(daemons.start(root, name, command, address, os.environ | settings))
        return started[-1]

    def answer(daemon: Daemon, ready: Callable[[], bool]) -> None:
        if reason := daemons.wait_until(daemon, ready, deadline):
            lines = "\n  ".join(daemons.last_lines(daemon))
            raise StartFailed(f"{reason}; the end of {daemon.log}:\n  {lines}")

    commands, server_url, pages_url = (
        _commands(root, options),
        options.url(options.port),
        options.url(options.mlflow_port),
    )
    listen = {"PREFECT_SERVER_API_HOST": options.host, "PREFECT_SERVER_API_PORT": str(options.port)}
    own = {"PREFECT_API_URL": f"{server_url}/api", "PREFECT_UI_API_URL": f"{server_url}/api"}
    if found[PREFECT] is None:
        _ensure_database()
    server = ensure(PREFECT, commands[PREFECT], server_url, listen | own)
    _upgrade_store(root)
    pages = ensure(MLFLOW, commands[MLFLOW], pages_url, {})
    answer(server, lambda: answers(f"{server.address}/api/health"))
    api = {"PREFECT_API_URL": f"{server.address}/api", environment.MLFLOW_PAGES: pages.address}
    _set_up(root, api)
    since = time.time()
    worker = ensure(WORKER, commands[WORKER], server.address, api)
    answer(worker, lambda: worker not in started or worker_reported(server.address, since))
    answer(pages, lambda: answers(f"{pages.address}/health"))


def _commands(root: Path, options: Options) -> dict[str, list[str]]:
    """How each service is started."""
    from tasks.registry.store import local_uri

    python = [sys.executable, "-m"]
    prefect_place = ["--host", options.host, "--port", str(options.port)]
    mlflow_place = ["--host", options.host, "--port", str(options.mlflow_port), "--workers", "1"]
    stores = [
        *("--backend-store-uri", local_uri(root)),
        *("--artifacts-destination", str(root / "mlruns" / "artifacts")),
    ]
    return {
        PREFECT: [*python, "prefect", "server", "start", *prefect_place],
        WORKER: [
            *python,
            "prefect",
            "worker",
            "start",
            "--pool",
            "local",
            "--type",
            "process",
            "--name",
            "local",
        ],
        MLFLOW: [*python, "mlflow", "server", *mlflow_place, *stores],
    }


def _ensure_database() -> None:
    from flows.services.prefect_database import ensure_database

    try:
        ensure_database()
    except MigrationFailed as error:
        raise StartFailed(str(error)) from error


def _upgrade_store(root: Path) -> None:
    from tasks.registry.store import upgrade_store  # imports MLflow, which takes seconds

    try:
        upgrade_store(root)
    except Exception as error:  # SQLAlchemy's, MLflow's, the disk's
        reason = " ".join(str(error).split())[:300]
        raise StartFailed(
            f"mlruns/mlflow.db cannot be brought to this version of MLflow: {reason}"
        ) from error


def _set_up(root: Path, api: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "flows.services.prefect_setup"]
    done = subprocess.run(
        command,
        cwd=root,
        env=os.environ | api,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = "\n  ".join((done.stdout + done.stderr).splitlines()[-daemons.SHOWN_LINES :])
        raise StartFailed(f"the deployments of prefect.yaml were not applied:\n  {lines}")


def down(root: Path) -> list[tuple[Daemon, int]]:
    """End every recorded service with all its children; returns each with the number of processes
    ended.
    """
    ended = []
    for name in (WORKER, MLFLOW, PREFECT):
        if daemon := daemons.recorded(root, name):
            ended.append((daemon, daemons.end(root, daemon)))
    return ended


def show(root: Path) -> None:
    """Print what runs, at which address, and where its log is."""
    for name, title in TABLES:
        daemon = daemons.recorded(root, name)
        if daemon is None:
            say(f"  {title:<15} not running")
        elif not daemon.alive():
            say(
                f"  {title:<15} has ended (was process {daemon.pid}); its log: "
                f"{_short(root, daemon.log)}"
            )
        else:
            say(
                f"  {title:<15} {daemon.address}  (process {daemon.pid}, log "
                f"{_short(root, daemon.log)})"
            )


def _short(root: Path, path: str) -> str:
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status (0, 1 a service failed, 2 mistake in the input, 130
    interrupted).
    """
    root = Path.cwd().resolve()
    try:
        arguments = _parser().parse_args(argv)
        if not (root / "prefect.yaml").is_file():
            raise InputError(
                f"{root}: no prefect.yaml here: expected the project's root folder; change into it"
            )
        environment.prepare(root)
        environment.check_place(root)
        if arguments.command == "status":
            show(root)
            return 0
        with _alone(root):
            return _down(root) if arguments.command == "down" else _up(root, arguments)
    except InputError as error:
        complain(str(error))
        return INPUT_ERROR
    except StartFailed as error:
        complain(f"{error}\nwhat was started has been ended again")
        return 1
    except KeyboardInterrupt:
        complain("interrupted; what was started has been ended again")
        return INTERRUPTED


def _up(root: Path, arguments: argparse.Namespace) -> int:
    options = Options(arguments.host, arguments.port, arguments.mlflow_port)
    if options.host not in (LOOPBACK, "localhost"):
        say(f"listening on {options.host}: whoever reaches it can start runs; there is no password")
    started = up(root, options)
    say("services:" if started else "running already:")
    show(root)
    if started:
        say("deployments: .venv/bin/python -m tasks.utils.environment prefect deployment ls")
        say(
            "start one:   .venv/bin/python -m tasks.utils.environment prefect deployment run "
            "'distill/preset' --watch"
        )
        say("end all:     make down")
    return 0


def _down(root: Path) -> int:
    ended = down(root)
    for daemon, count in ended:
        title = dict(TABLES)[daemon.name]
        say(f"ended: {title} at {daemon.address}" if count else f"had ended before: {title}")
    if not ended:
        say("nothing was running")
    return 0


def _alone(root: Path) -> FileLock:
    folder = root / daemons.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / ".lock").acquire(timeout=0).lock
    except Timeout:
        raise InputError(
            "another `make up` or `make down` is at work here: wait for it to end"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.services.services", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start what is not running")
    start.add_argument(
        "--host", default=LOOPBACK, help="address to listen on (default: loopback only)"
    )
    start.add_argument(
        "--port", type=int, default=4200, help="of the Prefect server (default: 4200)"
    )
    start.add_argument(
        "--mlflow-port", type=int, default=5000, help="of the MLflow server (default: 5000)"
    )
    commands.add_parser("down", help="end what was started")
    commands.add_parser("status", help="what runs, and where")
    return parser


if __name__ == "__main__":
    sys.exit(main())
