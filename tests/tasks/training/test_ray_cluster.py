"""Ray on this machine, whatever else of Ray is or was there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.common.errors import InputError
from tasks.training import ray_cluster
from tasks.utils import environment
from tests.paths import PROJECT

USE = """
from tasks.training.ray_cluster import connect
with connect(1):
    import os, ray
    seen = ray.get(ray.remote(lambda: (os.environ["GOMP_SPINCOUNT"], os.environ["OMP_NUM_THREADS"])).remote())
    print("seen", *seen, ray.cluster_resources()["CPU"])
"""


STRANGER = """
import os, subprocess, sys
from tasks.training.ray_cluster import connect
join = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print('in')"
with connect(1):
    import ray
    address = ray.get_runtime_context().gcs_address
    for left_out in (("RAY_AUTH_TOKEN",), ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"), ()):
        env = {name: value for name, value in os.environ.items() if name not in left_out}
        env |= {"RAY_AUTH_TOKEN": "f" * 64} if left_out == ("RAY_AUTH_TOKEN",) else {}
        env |= {"RAY_AUTH_MODE": "disabled"} if len(left_out) == 2 else {}
        told = subprocess.run(
            [sys.executable, "-c", join, address], env=env, capture_output=True, text=True
        )
        print("asked", told.stdout.strip() == "in", "uthenticat" in told.stderr)
    commands = subprocess.run(["ps", "-ax", "-o", "args"], capture_output=True, text=True).stdout
    print("shown", os.environ["RAY_AUTH_TOKEN"] in commands)
"""


def use(tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    left_out = (
        "RAY_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_TMPDIR",
        "TMPDIR",
        "GOMP_SPINCOUNT",
        "OMP_WAIT_POLICY",
    )
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    code = settings.pop("code", USE)
    env |= {"PYTHONPATH": str(PROJECT), **settings}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["address file", "long TMPDIR"])
def test_a_cluster_of_its_own(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("r")
    settings = {"TMPDIR": str(place / ("x" * 60))}
    Path(settings["TMPDIR"]).mkdir()
    if kind == "address file":  # what `ray start --head` leaves, even after it was killed
        short = Path("/tmp") / f"r{os.getpid()}"
        (short / "ray").mkdir(parents=True)
        (short / "ray/ray_current_cluster").write_text("127.0.0.1:6399")
        settings = {"RAY_TMPDIR": str(short)}
    done = use(place, **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-4:] == ["seen", environment.SPINS, "1", "1.0"]


@pytest.mark.slow
def test_its_own_cluster_lets_nobody_in_without_the_token(tmp_path: Path) -> None:
    """Nobody with another token, nobody with none; whoever has it may; no process list shows it."""
    done = use(tmp_path, code=STRANGER)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("asked", "shown"))]
    assert lines == ["asked False True", "asked False True", "asked True False", "shown False"]


def test_a_named_cluster_that_is_down_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(address: str, **_: object) -> None:
        assert address == "127.0.0.1:6399"
        raise ConnectionError("Failed to connect to Ray cluster\nand more")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6399")
    with (
        pytest.raises(InputError, match=r"no Ray cluster answers there \(Failed to connect .*\); "),
        ray_cluster.connect(1),
    ):
        pass


def test_short_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/scratch/job-1")
    assert ray_cluster.temporary_place() is None
    monkeypatch.setenv("TMPDIR", "/scratch/" + "long/" * 12)
    place = ray_cluster.temporary_place()
    assert place is not None and len(str(place)) <= ray_cluster.LONGEST_PLACE
    monkeypatch.setattr(ray_cluster, "SHORT_PLACES", ("/nowhere",))
    with pytest.raises(InputError, match="set RAY_TMPDIR to a short folder"):
        ray_cluster.temporary_place()


def test_a_lost_head_is_one_line() -> None:
    """The watch alone: a port that stops listening."""
    program = """
import socket, time
from tasks.training import ray_cluster
ray_cluster.HEAD_SECONDS = 0.6
head = socket.create_server(("127.0.0.1", 0))
place = f"127.0.0.1:{head.getsockname()[1]}"
with ray_cluster._head_watched("auto", place):
    time.sleep(1.5)
    print("the head is there", flush=True)
    head.close()
    time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and done.stdout == "the head is there\n"
    assert done.stderr.startswith("error: the Ray cluster at 127.0.0.1:")
    assert done.stderr.count("\n") == 1 and "(RAY_ADDRESS = auto) has lost its head" in done.stderr
