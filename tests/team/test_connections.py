"""Storage that is slow, busy, full or refuses, and databases that go amid a run: rows of
docs/failures.md.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from tests.team.faulty import BUSY, CUT, FULL, PASS, SLOW, Faulty, for_seconds, in_front_of
from tests.team.machine import Machine
from tests.team.site import Site
from tests.team.test_faults import another_student

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


def test_worker_cut_off(site: Site) -> None:
    """Nothing passes between the worker and Prefect's server, while its run trains."""
    with in_front_of(site.team.ports["prefect"]) as place:
        site.team.processes.end("worker")
        api = {"PREFECT_API_URL": f"http://127.0.0.1:{place.port}/api"}
        site.team.start_worker(site.worker.root, **site.held, **api)
        run = site.start_run(steps=7, seed=3)
        with for_seconds(place, CUT, 120):
            pass
        assert completed(site, run, steps=7, seed=3) == "COMPLETED"
        site.team.processes.end("worker")
    site.team.start_worker(site.worker.root, **site.held)
