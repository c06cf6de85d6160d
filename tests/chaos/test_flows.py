"""The flow's engine, the worker and the server are killed in the middle of a run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.services import daemons
from tasks.utils.failpoints import release
from tests.chaos.forkserver import ForkServer
from tests.chaos.project import copy_until, environ, result
from tests.flows.served import free_port

HOLD = "training.step:3"
QUICK_CRASH = """
from datetime import timedelta
from prefect import get_client
from flows.services import prefect_setup
prefect_setup.SILENCE = timedelta(seconds=35)
with get_client(sync_client=True) as client:
    prefect_setup.create_automation(client)
"""


@dataclass
class Site:
    """A project with its own services; `env` is theirs: the first training to reach its third step
    is held.
    """

    root: Path
    env: dict[str, str]
    ports: tuple[int, int]

    @property
    def mark(self) -> Path:
        return Path(self.env["FEWSTEP_KILL_MARK"])

    def python(self, *arguments: str, timeout: float = 600) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=self.root, env=self.env, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def services(self, *arguments: str) -> str:
        return self.python("-m", "flows.services.services", *arguments)

    def up(self) -> None:
        self.services("up", "--port", str(self.ports[0]), "--mlflow-port", str(self.ports[1]))

    def ask(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[0]}/api/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        for left in reversed(range(10)):  # as Prefect's own client: 503 means "busy, ask again"
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503 or not left:
                    raise
            time.sleep(1)

    def start_run(self, seed: int) -> str:
        (found,) = [item for item in self.ask("deployments/filter") if item["name"] == "preset"]
        wanted = {"overrides": {"student": {"seed": seed}}}
        return str(self.ask(f"deployments/{found['id']}/create_flow_run", parameters=wanted)["id"])

    def state(self, run: str) -> str:
        (found,) = self.ask("flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        return str(found["state"]["name"])

    def log(self, run: str) -> str:
        lines = self.ask("logs/filter", logs={"flow_run_id": {"any_": [run]}}, limit=200)
        return "\n".join(line["message"] for line in lines)

    def forget_hold(self) -> None:
        for path in (self.mark, self.mark.with_name("mark.go")):
            path.unlink(missing_ok=True)

    def registered(self) -> list[dict[str, bytes]]:
        """The students in MLflow's store."""
        folders = [
            path
            for path in self.root.glob("mlruns/artifacts/**/student")
            if (path / "unet").is_dir()
        ]
        return [
            {
                name: (folder / name).read_bytes()
                for name in ("student.json", "history.csv", WEIGHTS)
            }
            for folder in folders
        ]


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def wait(ready: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return found


def gone(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.fixture(scope="module")
def site(halfway: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """All that comes before the student is done and committed; services with short times run."""
    root = copy_until(halfway, tmp_path_factory.mktemp("site") / "project")
    with (root / "prefect.yaml").open() as file:
        assert yaml.safe_load(file)["definitions"]["two_at_once"]["limit"] == 2
    text = (root / "prefect.yaml").read_text()
    (root / "prefect.yaml").write_text(text.replace("limit: 2", "limit: 1"))
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    (root / ".dvc/config.local").unlink()
    shutil.copytree(root / "data/pretrained", root / "kept")
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "start"], cwd=root, check=True)
    short = {
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PWD": str(root),
    }
    env = {
        n: v
        for n, v in environ(root, hold=HOLD).items()
        if not n.startswith(("PREFECT", "DVC_SITE"))
    } | short
    place = Site(root, env, (free_port(), free_port()))
    try:
        place.up()
        api = {"PREFECT_API_URL": f"http://127.0.0.1:{place.ports[0]}/api"}
        subprocess.run([sys.executable, "-c", QUICK_CRASH], cwd=root, env=env | api, check=True)
        yield place
    finally:
        place.services("down")


@pytest.fixture
def expected(
    made: Path, tmp_path: Path, forkserver: ForkServer
) -> Callable[[int], dict[str, bytes]]:
    """The student of an uninterrupted run with another seed."""

    def student(seed: int) -> dict[str, bytes]:
        root = copy_until(made, tmp_path / f"seed{seed}", "student")
        params = yaml.safe_load((root / "params.yaml").read_text())
        params["student"]["seed"] = seed
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        done = forkserver.run(root, ["student"])
        assert done.returncode == 0, done.stdout
        return result(root)

    return student


def test_engine_killed(site: Site, made: Path) -> None:
    command = [sys.executable, "-m", "flows.distill"]
    engine = subprocess.Popen(command, cwd=site.root, env=site.env, stdout=subprocess.DEVNULL)
    wait(site.mark.exists, 400, "training")
    stage = int(site.mark.read_text().split()[1])
    engine.kill()
    engine.wait()
    wait(lambda: gone(stage), 90, "the stage's end")
    output = site.python("-m", "flows.distill")
    assert "resumed at step 2 of 6" in output and "version 1" in output
    assert result(site.root) == result(made)


def test_worker_killed(site: Site, expected: Callable[[int], dict[str, bytes]]) -> None:
    site.forget_hold()
    first = site.start_run(seed=3)
    wait(site.mark.exists, 400, "training")
    second = site.start_run(seed=3)
    worker = daemons.recorded(site.root, "worker")
    assert worker is not None
    stage = int(site.mark.read_text().split()[1])
    family = psutil.Process(worker.pid).children(recursive=True)
    engines = [
        item for item in family if "flows.dvc.repro" not in item.cmdline() and item.pid != stage
    ]
    os.kill(worker.pid, signal.SIGKILL)
    for engine in engines:
        with contextlib.suppress(psutil.NoSuchProcess):
            engine.kill()
    wait(lambda: gone(stage), 90, "the stage's end")
    assert site.state(first) == "Running"
    wait(lambda: site.state(first) == "Crashed", 300, "the crash of the dead run")
    site.up()
    wait(
        lambda: site.state(second) in ("Completed", "Failed", "Crashed"),
        500,
        "the end of the next run",
    )
    assert site.state(second) == "Completed", site.log(second)
    assert "resumed at step 2 of 6" in site.log(second)
    assert expected(3) in site.registered()


def test_server_killed(site: Site, expected: Callable[[int], dict[str, bytes]]) -> None:
    site.forget_hold()
    run = site.start_run(seed=5)
    wait(site.mark.exists, 400, "training")
    server = daemons.recorded(site.root, "prefect")
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    wait(lambda: gone(server.pid), 90, "the server's end")
    site.up()
    release(site.mark)
    wait(lambda: site.state(run) in ("Completed", "Failed", "Crashed"), 500, "the run's end")
    assert site.state(run) == "Completed", site.log(run)
    assert expected(5) in site.registered()
