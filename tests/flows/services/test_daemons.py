from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flows.services import daemons
from flows.services.daemons import Daemon
from tests.flows.test_subprocess_stream import gone, wait_for

SLEEP = "import time; time.sleep(60)"
PARENT = """
    import pathlib, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    pathlib.Path("child").write_text(str(child.pid))
    time.sleep(60)
"""


def start(root: Path, code: str, name: str = "service") -> Daemon:
    return daemons.start(
        root, name, [sys.executable, "-c", textwrap.dedent(code)], "http://127.0.0.1:1", os.environ
    )


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_service_is_found_again_and_ended(tmp_path: Path) -> None:
    daemon = start(tmp_path, "print('hello', flush=True)\n" + SLEEP)
    assert daemons.running(tmp_path, "service") == daemon and daemon.alive()
    assert (
        daemons.wait_until(
            daemon, lambda: daemons.last_lines(daemon) == ["hello"], time.monotonic() + 20
        )
        is None
    )
    assert daemons.end(tmp_path, daemon) == 1
    assert not daemon.alive() and daemons.recorded(tmp_path, "service") is None
    assert gone(daemon.pid)


def test_a_recycled_process_id_is_left_alone(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    daemon = start(tmp_path, SLEEP)
    record = tmp_path / daemons.FOLDER / "service.json"
    content = json.loads(record.read_text())
    record.write_text(
        json.dumps(content | {"pid": bystander.pid})
    )  # another process has the number now
    found = daemons.recorded(tmp_path, "service")
    assert found is not None and not found.alive() and daemons.running(tmp_path, "service") is None
    assert not replace(daemon, started=daemon.started - 60).alive()
    assert daemons.end(tmp_path, replace(found, mark="other")) == 0
    assert bystander.poll() is None
    assert daemons.end(tmp_path, daemon) == 1


def test_children_of_a_killed_service_are_ended_too(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    daemon = start(tmp_path, PARENT)
    child = wait_for(tmp_path / "child")
    os.kill(daemon.pid, 9)
    while daemon.alive():
        time.sleep(0.05)
    assert not gone(child)
    assert daemons.end(tmp_path, daemon) == 1
    assert gone(child) and bystander.poll() is None


def test_a_child_in_a_group_of_its_own_ends_with_its_service(tmp_path: Path) -> None:
    daemon = start(tmp_path, PARENT)
    child = wait_for(tmp_path / "child")
    assert daemons.end(tmp_path, daemon) == 2
    assert gone(child) and gone(daemon.pid)


def test_one_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('up', 'w').write('1')\n"
        + SLEEP
    )
    daemon = start(tmp_path, code)
    wait_for(tmp_path / "up")
    before = time.monotonic()
    assert daemons.end(tmp_path, daemon, grace=0.3) == 1
    assert gone(daemon.pid) and time.monotonic() - before < 5


def test_waiting_tells_a_dead_service_from_a_silent_one(tmp_path: Path) -> None:
    dead = start(tmp_path, "raise SystemExit('no memory')", "dead")
    assert (
        daemons.wait_until(dead, lambda: False, time.monotonic() + 20)
        == "dead ended while starting"
    )
    assert daemons.last_lines(dead) == ["no memory"]
    silent = start(tmp_path, SLEEP, "silent")
    reason = daemons.wait_until(silent, lambda: False, time.monotonic() + 0.2)
    assert reason == "silent does not answer at http://127.0.0.1:1"
    daemons.end(tmp_path, silent)
