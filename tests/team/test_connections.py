"""Storage that is slow, busy, full or refuses, and databases that go amid a run: rows of
docs/failures.md.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.utils.failpoints import release
from tests.team.clock import ahead
from tests.team.faulty import BUSY, CUT, FULL, PASS, SLOW, Faulty, for_seconds, in_front_of
from tests.team.machine import Machine
from tests.team.site import Site, wait
from tests.team.test_faults import another_student

CLOCKS = "clocks"  # a model of its own: the one that runs make is counted by other tests
TOGETHER = """
import sys, time
from pathlib import Path
from tasks.config.presets import compose
from tasks.registry import promotion
name, number, own, other = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
promotion.try_version = lambda *_: None  # so that they meet
params = compose(Path.cwd(), "tiny", [f"registration.name={name}"])
own.touch()
while not other.exists():
    time.sleep(0.05)
print(time.time())
for _ in range(8):
    promotion.promote(Path.cwd(), params, number, force=True)
"""
ON = ".venv/bin/python -m tasks.utils.environment dvc"


@pytest.fixture(scope="module")
def finished(site: Site, ana: Machine) -> Machine:
    """The second person's machine with finished and registered results."""
    ana.shell("make run PRESET=tiny")
    return ana


@pytest.fixture
def storage(site: Site, finished: Machine) -> Iterator[Faulty]:
    """A place for faults between that machine and S3."""
    with in_front_of(site.team.ports["s3"]) as place:
        local = finished.root / ".dvc/config.local"
        before = local.read_bytes() if local.exists() else None
        finished.shell(
            f"{ON} remote modify --local store endpointurl http://127.0.0.1:{place.port}"
        )
        yield place
        local.unlink()
        if before is not None:
            local.write_bytes(before)


def keys(site: Site) -> set[str]:
    """What is on the DVC remote."""
    pages = site.team.bucket().get_paginator("list_objects_v2")
    found = pages.paginate(Bucket="fewstep", Prefix="dvc/")
    return {item["Key"] for page in found for item in page.get("Contents", ())}


def test_s3_busy(site: Site, finished: Machine, storage: Faulty) -> None:
    """503 for a minute, then slow: the same push succeeds."""
    another_student(finished)
    before = keys(site)
    with for_seconds(storage, BUSY, 60):
        told = finished.shell(f"{ON} push")
    assert storage.answered > 3, told
    assert keys(site) > before
    another_student(finished)
    before = keys(site)
    storage.mode = SLOW
    finished.shell(f"{ON} push")
    assert keys(site) > before


def test_s3_full(site: Site, finished: Machine, storage: Faulty) -> None:
    another_student(finished)
    before = keys(site)
    storage.mode = FULL
    told = finished.shell(f"{ON} push", status=None)
    assert "ERROR" in told and storage.answered > 0 and keys(site) == before, told
    storage.mode = PASS
    finished.shell(f"{ON} push")
    assert keys(site) > before


def test_s3_wrong_keys(site: Site, finished: Machine) -> None:
    """The run computes what it cannot fetch, and says why."""
    shutil.rmtree(finished.root / ".dvc/cache/files")
    shutil.rmtree(finished.root / "data/dataset")
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong-secret-key"}
    told = finished.shell(".venv/bin/python -m flows.dvc.repro dataset", **wrong)
    assert "warning: the DVC remote was not reached" in told and "of scikit-learn" in told, told
    assert "Traceback" not in told and wrong["AWS_SECRET_ACCESS_KEY"] not in told


def completed(site: Site, run: str, **student: object) -> str:
    """The run's last state, once a version is registered: by it, or by another after a Crash."""
    before = len(site.versions())
    state = site.end_of(run, 1800)
    if state["type"] != "COMPLETED":
        assert state["type"] == "CRASHED" and "No heartbeat" in state["message"], site.told(run)
        again = site.end_of(site.submit(**student), 1800)
        assert again["type"] == "COMPLETED", again
    assert len(site.versions()) == before + 1
    return str(state["type"])


def test_postgres_restarted(site: Site) -> None:
    run = site.start_run(steps=7, seed=1)
    site.team.processes.end("postgres", kill=True)
    time.sleep(20)
    site.team.start_postgres()
    assert completed(site, run, steps=7, seed=1) == "COMPLETED"


def test_redis_gone(site: Site) -> None:
    run = site.start_run(steps=7, seed=2)
    site.team.processes.end("redis", kill=True)
    time.sleep(20)
    site.team.start_redis()
    assert completed(site, run, steps=7, seed=2) == "COMPLETED"


@contextmanager
def worker_behind(site: Site) -> Iterator[Faulty]:
    """Between the worker and Prefect's server is a place for faults."""
    with in_front_of(site.team.ports["prefect"]) as place:
        site.team.processes.end("worker")
        api = {"PREFECT_API_URL": f"http://127.0.0.1:{place.port}/api"}
        site.team.start_worker(site.worker.root, **site.held, **api)
        try:
            yield place
        finally:
            site.team.processes.end("worker")
    site.team.start_worker(site.worker.root, **site.held)


def test_worker_cut_off(site: Site) -> None:
    """Nothing passes between the worker and Prefect's server, while its run trains."""
    with worker_behind(site) as place:
        run = site.start_run(steps=7, seed=3)
        with for_seconds(place, CUT, 120):
            pass
        assert completed(site, run, steps=7, seed=3) == "COMPLETED"


def test_worker_cut_off_for_long(site: Site) -> None:
    """The same for 10 minutes, in which the training ends: the run counts as dead, its work does not."""
    before = len(site.versions())
    with worker_behind(site) as place:
        run = site.start_run(steps=7, seed=4)
        with for_seconds(place, CUT, 600):
            release(site.mark)

            def crashed() -> bool:
                return bool(site.team.api(f"flow_runs/{run}")["state"]["type"] == "CRASHED")

            wait(crashed, 570, lambda: site.told(run))
        state = site.end_of(site.submit(steps=7, seed=4), 1800)
        assert state["type"] == "COMPLETED", site.told(run)
        first = site.team.api(f"flow_runs/{run}")["state"]["type"]
        assert first in ("CRASHED", "COMPLETED"), first
    assert len(site.versions()) == before + 1


def test_clocks_apart(site: Site, ana: Machine, tmp_path: Path) -> None:
    """A machine whose clock is five minutes ahead promotes beside one whose clock is right."""
    site.team.registry("registered-models/create", {"name": CLOCKS})
    run = site.team.registry("runs/create", {"experiment_id": "0"})["run"]["info"]
    for number in ("1", "2"):
        asked = {
            "name": CLOCKS,
            "run_id": run["run_id"],
            "source": f"{run['artifact_uri']}/student",
        }
        made = site.team.registry("model-versions/create", asked)
        assert made["model_version"]["version"] == number
    marks = [str(tmp_path / "right"), str(tmp_path / "ahead")]
    given = ((site.worker, "1", {}, marks), (ana, "2", ahead(tmp_path, 300), marks[::-1]))
    both = [
        subprocess.Popen(
            [machine.root / ".venv/bin/python", "-c", TOGETHER, CLOCKS, number, *order],
            cwd=machine.root,
            env=ana.env | clock,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for machine, number, clock, order in given
    ]
    told = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    right, fast = (float(output.split()[-1]) for output, _ in told)
    assert fast - right > 240, told
    check_champions(site)


def check_champions(site: Site) -> None:
    """No claim or unfinished move is left; of the promotions none was lost or came twice."""
    path = f"registered-models/get?name={CLOCKS}"
    model = site.team.registry(path)["registered_model"]
    tags = {tag["key"]: tag["value"] for tag in model["tags"]}
    assert not [name for name in tags if name.startswith(("champion.claim", "champion.pending"))]
    (champion,) = [item["version"] for item in model["aliases"] if item["alias"] == "champion"]
    champions = [*json.loads(tags["champion.history"]), champion]
    assert all(one != other for one, other in itertools.pairwise(champions)), champions
    assert len(champions) > 2  # they met: one alone makes its version champion once
