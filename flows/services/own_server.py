"""The Prefect server of one run in place: it starts with the run and ends with it, however that
ends.

Prefect's own temporary server outlives a run that was killed. As a program: `python -m
flows.services.own_server PORT PARENT` serves the API on loopback until process PARENT has gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.services.ports import LOOPBACK, answers, any_free_port
from flows.services.reachable import check_prefect
from tasks.utils import environment
from tasks.utils.parent_death import exit_with_parent

START_SECONDS = 300.0  # a busy machine; a server that ends is noticed at once
SEND_SECONDS = 20.0
ATTEMPTS = 3  # another program may take the port first
SETTINGS = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",  # no schedules, no automations
    "PREFECT__SERVER_FINAL": "1",
}


class ServerFailed(RuntimeError):
    """The server did not start; the message ends with its last line."""


@contextmanager
def prefect_api(root: Path) -> Iterator[str]:
    """An API for a run of the block: the configured one if it answers, else a server of its own.

    Yields its address. Raises InputError if the configured one does not answer, ServerFailed if the
    own one does not start.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if configured := PREFECT_API_URL.value():
        check_prefect(configured)
        yield configured
        return
    with own_server(root) as url, temporary_settings({PREFECT_API_URL: url}):
        try:
            yield url
        finally:
            _send_what_waits()


def _send_what_waits() -> None:
    """Hand the server the logs and events of the run that are still queued: once it has gone,
    Prefect would try to reach it for a minute at exit, and complain.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=SEND_SECONDS, at_exit=False)


@contextmanager
def own_server(root: Path) -> Iterator[str]:
    """Start a server with the database in PREFECT_HOME; yields the API's address."""
    from flows.services.prefect_database import ensure_database

    ensure_database()
    process, port = _start(root)
    try:
        yield f"http://{LOOPBACK}:{port}/api"
    finally:
        _stop(process)


def _start(root: Path) -> tuple[subprocess.Popen[bytes], int]:
    log = root / environment.STATE / "prefect-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        port = any_free_port()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, str(port), str(os.getpid())],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the run's alone, which then ends its server
            )
        deadline = time.monotonic() + START_SECONDS
        try:
            while process.poll() is None and time.monotonic() < deadline:
                if answers(f"http://{LOOPBACK}:{port}/api/health", seconds=5):
                    return process, port
                time.sleep(0.1)
        except BaseException:
            _stop(process)
            raise
        _stop(process)
    lines = log.read_text(errors="replace").strip().splitlines()
    raise ServerFailed(f"Prefect's server did not start: {lines[-1] if lines else 'no answer'}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(argv: list[str]) -> int:
    """Serve until the parent has gone; returns the exit status."""
    port, parent = (int(argument) for argument in argv)
    exit_with_parent(parent=parent)
    os.environ.update(SETTINGS)
    os.environ.pop("PREFECT_API_URL", None)
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host=LOOPBACK,
        port=port,
        log_level="error",
        lifespan="on",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
