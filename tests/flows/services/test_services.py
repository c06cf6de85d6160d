from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.services import daemons, ports, services
from flows.services.services import MLFLOW, NAMES, PREFECT, WORKER, Options
from models.common.errors import InputError
from tests.flows.project import REPOSITORY, make_project, python, runs
from tests.flows.served import free_port

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def options() -> Options:
    return Options(port=free_port(), mlflow_port=free_port())


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Options) -> Iterator[Path]:
    """A project whose services are small programs that answer everything with success."""
    commands = {
        PREFECT: [sys.executable, "-c", SERVER, str(options.port)],
        MLFLOW: [sys.executable, "-c", SERVER, str(options.mlflow_port)],
        WORKER: [sys.executable, "-c", "import time; time.sleep(60)"],
    }
    monkeypatch.setattr(services, "_commands", lambda root, options: commands)
    monkeypatch.setattr(services, "_ensure_database", lambda: None)
    monkeypatch.setattr(services, "_upgrade_store", lambda root: None)
    monkeypatch.setattr(services, "_set_up", lambda root, api: None)
    monkeypatch.setattr(services, "worker_reported", lambda server, since: True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefect.yaml").write_text("")
    yield tmp_path
    services.down(tmp_path)


def arguments(options: Options) -> list[str]:
    return ["up", "--port", str(options.port), "--mlflow-port", str(options.mlflow_port)]


def pids(root: Path) -> dict[str, int]:
    return {name: daemon.pid for name in NAMES if (daemon := daemons.running(root, name))}


def test_up_and_down(root: Path, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    assert services.main(arguments(options)) == 0
    told = capsys.readouterr().out
    assert (
        f"http://127.0.0.1:{options.port} " in told
        and f"http://127.0.0.1:{options.mlflow_port} " in told
    )
    before = pids(root)
    assert set(before) == set(NAMES)
    assert services.main(arguments(options)) == 0
    assert "running already" in capsys.readouterr().out and pids(root) == before
    assert services.main(["down"]) == 0
    assert capsys.readouterr().out.count("ended: ") == 3
    assert not any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"
        for pid in before.values()
    )
    assert services.main(["down"]) == 0
    assert capsys.readouterr().out == "nothing was running\n"


def test_listening_to_others_is_said(
    root: Path, options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    assert services.main([*arguments(options), "--host", "0.0.0.0"]) == 0
    told = capsys.readouterr().out
    assert (
        "listening on 0.0.0.0: whoever reaches it" in told
        and f"http://127.0.0.1:{options.port} " in told
    )


def test_only_what_is_missing_is_started_again(root: Path, options: Options) -> None:
    services.up(root, options)
    before = pids(root)
    os.kill(before[WORKER], 9)
    psutil.wait_procs([psutil.Process(before[WORKER])], timeout=5)
    assert [daemon.name for daemon in services.up(root, options)] == [WORKER]
    after = pids(root)
    assert after[WORKER] != before[WORKER] and after[PREFECT] == before[PREFECT]


@pytest.mark.parametrize("taken", ["PORT", "MLFLOW_PORT"])
def test_a_port_in_use_is_one_line_and_starts_nothing(
    root: Path, options: Options, taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = options.port if taken == "PORT" else options.mlflow_port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert services.main(arguments(options)) == 2
    out, said = capsys.readouterr()
    assert (
        out == ""
        and said.startswith(f"error: port {port} is in use by process {os.getpid()} (")
        and said.count("\n") == 1
    )
    assert said.endswith(f"make up {taken}={port + 10}\n")
    assert pids(root) == {} and not list((root / daemons.FOLDER).glob("*.json"))


def test_an_address_of_another_machine_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert services.main(["up", "--host", "192.0.2.1", "--port", str(free_port())]) == 2
    assert "cannot listen on 192.0.2.1" in capsys.readouterr().err


def test_one_that_fails_takes_the_others_with_it_and_shows_its_log(
    root: Path,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = services._commands(root, options) | {
        WORKER: [sys.executable, "-c", "raise SystemExit('no such pool')"]
    }
    monkeypatch.setattr(services, "_commands", lambda root, options: broken)
    monkeypatch.setattr(services, "worker_reported", lambda server, since: False)
    assert services.main(arguments(options)) == 1
    said = capsys.readouterr().err
    assert (
        "worker ended while starting" in said and "no such pool" in said and "ended again" in said
    )
    assert pids(root) == {} and not list((root / daemons.FOLDER).glob("*.json"))


def test_a_broken_database_is_told_and_nothing_is_left_running(
    root: Path,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(root)
    commands = {name: [sys.executable, "-c", "import time; time.sleep(60)"] for name in NAMES}
    monkeypatch.setattr(services, "_commands", lambda root, options: commands)
    monkeypatch.setattr(services, "_ensure_database", lambda: None)
    (root / "mlruns").mkdir()
    (root / "mlruns/mlflow.db").write_text("this is no database, " * 100)
    assert services.main(arguments(options)) == 1
    assert "mlruns/mlflow.db cannot be brought to this version of MLflow" in capsys.readouterr().err
    assert pids(root) == {}


def test_another_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert services.main(["up"]) == 2
    assert "no prefect.yaml here" in capsys.readouterr().err


def test_servers_listen_on_loopback_unless_told(tmp_path: Path) -> None:
    for name, command in services._commands(tmp_path, Options()).items():
        assert name == WORKER or command[command.index("--host") + 1] == "127.0.0.1"
    shown = (REPOSITORY / "Makefile").read_text()
    assert "LISTEN ?= 127.0.0.1" in shown and "0.0.0.0" not in shown


def test_dead_runs_are_watched_until_any_kind_of_end() -> None:
    """States with names of their own, which flows return, are ends too."""
    import re

    from flows.services import prefect_setup as server_setup

    automation = server_setup.zombie_automation()
    assert automation.trigger.after == {"prefect.flow-run.heartbeat"}
    assert automation.trigger.within == 3 * server_setup.timedelta(seconds=30)
    expected = {name.removeprefix("prefect.flow-run.") for name in automation.trigger.expect}
    assert (
        expected >= {"heartbeat", "Completed", "Failed", "Crashed", "Cancelled"}
        and "Running" not in expected
    )
    named = re.compile(r"\b(?:Completed|Failed|Cancelled)\((?:[^()]*\bname=)?\"(\w+)\"")
    own = {
        name
        for path in (REPOSITORY / "flows").glob("*.py")
        for name in named.findall(path.read_text())
    }
    assert own <= expected


def test_how_long_a_run_may_be_silent_is_set_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.services import prefect_setup as server_setup

    monkeypatch.setenv(server_setup.SILENCE_SECONDS, "300")
    automation = server_setup.zombie_automation()
    assert automation.trigger.within.total_seconds() == 300
    assert "No heartbeat for 300 s" in str(automation.actions[0].message)
    for wrong in ("59", "5 min", ""):
        monkeypatch.setenv(server_setup.SILENCE_SECONDS, wrong)
        assert server_setup.main() == 2  # before any server is asked
        assert f"FEWSTEP_SILENCE_SECONDS = {wrong}: expected a" in capsys.readouterr().err


def test_a_command_joins_the_running_server(
    root: Path, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.utils import environment

    services.up(root, options)
    for variable in ("PREFECT_API_URL", environment.MLFLOW_PAGES):
        monkeypatch.delenv(variable, raising=False)
    code = "import os; print(os.environ.get('PREFECT_API_URL'), os.environ.get('FEWSTEP_MLFLOW_PAGES'))"
    command = [sys.executable, "-m", "tasks.utils.environment", sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}

    def ask() -> str:
        return subprocess.run(
            command, cwd=root, env=env, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert ask() == f"http://127.0.0.1:{options.port}/api http://127.0.0.1:{options.mlflow_port}"
    services.down(root)
    assert ask() == "None None"


@pytest.mark.slow
def test_real_services_take_a_run_and_leave_nothing_behind(
    tmp_path: Path, options: Options
) -> None:
    root = make_project(tmp_path / "project")
    for name in ("flows", "tasks", "models"):
        (root / name).symlink_to(REPOSITORY / name)
    (root / "prefect.yaml").write_text((REPOSITORY / "prefect.yaml").read_text())
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    command = [sys.executable, "-m", "flows.services.services"]
    try:
        done = subprocess.run(
            [*command, *arguments(options)], cwd=root, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert ports.answers(f"http://127.0.0.1:{options.mlflow_port}/health")
        listed = python(
            root, "-m", "tasks.utils.environment", "prefect", "deployment", "ls", env=env
        ).stdout
        assert "distill/preset" in listed
        watched = python(
            root, "-m", "tasks.utils.environment", "prefect", "automation", "ls", env=env
        ).stdout
        assert "crash zombie" in " ".join(watched.split())
        told = python(root, "-m", "flows.distill", "student.steps=250", env=env)
        assert told.returncode == 0, told.stderr
        assert (
            f"Prefect at http://127.0.0.1:{options.port}" in told.stdout
            and runs(root)["evaluation"] == 1
        )
        again = subprocess.run(
            [*command, *arguments(options)], cwd=root, env=env, capture_output=True, text=True
        )
        assert again.returncode == 0 and "running already" in again.stdout
    finally:
        ended = subprocess.run(
            [*command, "down"], cwd=root, env=env, capture_output=True, text=True
        )
    assert ended.stdout.count("ended: ") == 3
    for port in (options.port, options.mlflow_port):
        ports.check_free("127.0.0.1", port, "PORT")


def test_check_free_names_the_mistake() -> None:
    with pytest.raises(InputError, match="expected a port number"):
        ports.check_free("127.0.0.1", 70000, "PORT")
