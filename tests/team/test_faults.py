"""A team's services break amid a run, or refuse it: rows of docs/failures.md."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time

import pytest

from tasks.utils.failpoints import HOLD_AT, MARK, release
from tests.team.machine import Machine
from tests.team.site import MODEL, Site, wait


@pytest.fixture(scope="module")
def trained(site: Site, ana: Machine) -> Machine:
    """The second person's machine with finished results, which nobody has registered."""
    ana.shell("make run PRESET=tiny ARGS='registration.promote=false'")
    return ana


def another_student(machine: Machine) -> None:
    """Results that differ by a line in the student's record, as DVC's present ones."""
    path = machine.root / "data/student/history.csv"
    text = path.read_text()
    path.unlink()  # a link into DVC's cache
    path.write_text(text + "7,0.1,\n")
    machine.shell(".venv/bin/python -m tasks.utils.environment dvc commit --force")


def registered_amid(site: Site, machine: Machine, service: str) -> str:
    """Register another student while a service goes; what the command says, its exit status 1.

    Then bring the service back and register again: there is one version more, of the same MLflow
    run's figures.
    """
    another_student(machine)
    before = site.versions()
    mark = site.mark.with_name(f"mark-{service}")
    held = {HOLD_AT: "tracking.created", MARK: str(mark), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
    process = subprocess.Popen(
        [machine.root / ".venv/bin/python", "-m", "flows.register"],
        cwd=machine.root,
        env=machine.env | held,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait(mark.exists, 300, lambda: str(process.poll()))
    site.team.processes.end(service, kill=True)
    release(mark)
    told, _ = process.communicate(timeout=900)
    getattr(site.team, f"start_{service}")()
    assert process.returncode == 1, told
    assert site.versions() == before
    assert f"version {len(before) + 1} (registered)" in machine.shell(
        ".venv/bin/python -m flows.register"
    )
    assert "registered before" in machine.shell(".venv/bin/python -m flows.register")
    assert len(site.versions()) == len(before) + 1
    return told


def test_s3_gone(site: Site, trained: Machine) -> None:
    told = registered_amid(site, trained, "s3")
    assert "error: the server" in told and "Traceback" not in told, told
    lost = site.team.processes
    lost.end("s3", kill=True)
    try:
        doctor = trained.shell("make doctor", status=2)
        assert "s3://fewstep/dvc does not answer" in doctor
        shutil.rmtree(trained.root / ".dvc/cache/files")
        shutil.rmtree(trained.root / "data/dataset")
        made = trained.shell(".venv/bin/python -m flows.dvc.repro dataset")
        assert "of scikit-learn" in made  # made here, since the remote has it but is away
    finally:
        site.team.start_s3()


def test_mlflow_gone(site: Site, trained: Machine) -> None:
    told = registered_amid(site, trained, "mlflow")
    assert "error: the server" in told and "Traceback" not in told, told


def test_credentials_expired(site: Site, ana: Machine) -> None:
    """Each is one line, before any work."""
    run = "make run PRESET=tiny"
    refused = ana.shell(run, status=2, PREFECT_API_AUTH_STRING="fewstep:old")
    assert "the server refuses these credentials; set PREFECT_API_AUTH_STRING" in refused
    refused = ana.shell(run, status=2, MLFLOW_TRACKING_PASSWORD="old-password")
    assert "the server refuses these credentials; set MLFLOW_TRACKING_USERNAME" in refused
    told = ana.shell("make doctor", status=2, AWS_SECRET_ACCESS_KEY="old")
    assert "s3://fewstep/dvc does not answer: Forbidden" in told
    assert "Traceback" not in refused + told


def test_promotions_at_once(site: Site, ana: Machine) -> None:
    """Two machines make two versions champion at the same moment, eight times."""
    command = """
import sys, time
from pathlib import Path
from tasks.config.presets import compose
from tasks.registry import promotion
promotion.try_version = lambda *_: None  # so that they meet
params = compose(Path.cwd(), "tiny", [])
time.sleep(max(0, float(sys.argv[2]) - time.time()))
for _ in range(8):
    promotion.promote(Path.cwd(), params, sys.argv[1], force=True)
"""
    numbers = [version["version"] for version in site.versions()][:2]
    assert len(numbers) == 2
    start = time.time() + 45
    both = [
        subprocess.Popen(
            [machine.root / ".venv/bin/python", "-c", command, number, str(start)],
            cwd=machine.root,
            env=ana.env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for machine, number in zip((site.worker, ana), numbers, strict=True)
    ]
    for process in both:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
    (model,) = site.team.registry(f"registered-models/search?filter=name%3D'{MODEL}'")[
        "registered_models"
    ]
    tags = {tag["key"]: tag["value"] for tag in model["tags"]}
    assert not [name for name in tags if name.startswith(("champion.claim", "champion.pending"))]
    champions = [*json.loads(tags["champion.history"]), site.champion()]
    pairs = itertools.pairwise(champions)
    assert all(one != other for one, other in pairs), champions  # none was lost or came twice
    assert set(champions[-2:]) == set(numbers)
