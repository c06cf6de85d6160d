"""Deployments against a server and a process worker, as docs/operations.md tells it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.dvc.worktree import git
from tests.flows.served import Served, serve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("prefect")) as served:
        yield served


@pytest.fixture
def served(server: Served, tmp_path: Path) -> Served:
    server.project(tmp_path / "project")
    return server


def experiments(root: Path) -> dict[str, str]:
    """params.yaml of every experiment, by its name."""
    refs = git(root, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    return {
        ref.rpartition("/")[2]: git(root, "show", f"{ref}:params.yaml")
        for ref in refs
        if "/exec/" not in ref
    }


def test_a_deployment_runs_to_its_end(served: Served) -> None:
    overrides = 'overrides={"student": {"steps": 250}}'
    told = served.prefect(
        "deployment", "run", "distill/preset", "-p", overrides, "--watch", timeout=240
    )
    for wrong, reason in (
        ('overrides=["student.step=5"]', "is not of type 'object'"),
        ('overrides={"student": {"step": 5}}', "'step' was unexpected"),
        ("preset=mnist-sigdog", "is not one of"),
        ('overrides={"student": {"steps": -1}}', "less than the minimum of 0"),
        ("steps=1", "not found"),
    ):
        refused = served.prefect("deployment", "run", "distill/preset", "-p", wrong, status=1)
        assert reason in " ".join(refused.split()), refused
    root = served.root
    assert "Completed" in told, told + served.log()
    assert "steps: 250" not in (root / "params.yaml").read_text() and not (root / "data").exists()
    (params,) = experiments(root).values()
    assert "steps: 250" in params
    assert git(root, "worktree", "list").count("\n") == 0


def test_two_runs_at_once_do_not_disturb_each_other(served: Served) -> None:
    for stage in ("trajectories", "student"):  # long enough that they meet
        path = served.root / f"stages/{stage}.py"
        path.write_text(path.read_text() + "\ntime.sleep(4)\n")
    git(
        served.root,
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "commit",
        "-qam",
        "slower",
    )
    both = [
        served.start("distill/preset", overrides={"student": {"steps": steps}})
        for steps in (101, 102)
    ]
    first, second = served.wait(*both)
    assert first["state"]["type"] == second["state"]["type"] == "COMPLETED", served.log()
    assert max(first["start_time"], second["start_time"]) < min(
        first["end_time"], second["end_time"]
    )
    saved = experiments(served.root)
    for run, steps in ((first, 101), (second, 102)):
        assert f"steps: {steps}" in saved[f"{run['name']}-{run['id'][:8]}"]
        assert "version" in run["state"]["message"]


def test_ten_waiting_runs_end_in_order(served: Served) -> None:
    runs = []
    for _ in range(10):
        runs.append(served.start("retrain/manual"))
        time.sleep(0.1)
    ended = served.wait(*runs, seconds=800)
    assert all(run["state"]["type"] == "COMPLETED" for run in ended), served.log()
    assert [run["state"]["name"] for run in ended[1:]] == ["NothingChanged"] * 9
    starts, ends = ([run[key] for run in ended] for key in ("start_time", "end_time"))
    assert starts == sorted(starts), json.dumps(starts)
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert max(run["total_run_time"] for run in ended[1:]) < 30


def test_a_nightly_run_gives_way_to_one_at_work(served: Served) -> None:
    path = served.root / "stages/student.py"
    path.write_text(path.read_text() + "\ntime.sleep(8)\n")
    git(
        served.root,
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "commit",
        "-qam",
        "slower",
    )
    first = served.start("retrain/nightly")
    while served.run(first)["state"]["type"] != "RUNNING":
        time.sleep(0.5)
    second = served.start("retrain/nightly")
    ended = served.wait(first, second)
    assert [run["state"]["type"] for run in ended] == ["COMPLETED", "CANCELLED"], served.log()


def test_news_of_data_starts_a_run_and_rollback_brings_the_champion_back(served: Served) -> None:
    asked = {"deployments": {"id": {"any_": [served.api("deployments/name/retrain/manual")["id"]]}}}
    before = {run["id"] for run in served.api("flow_runs/filter", asked)}
    served.prefect("event", "emit", "data.updated", "--resource-id", "fewstep.data")
    started: set[str] = set()
    for _ in range(60):
        if started := {run["id"] for run in served.api("flow_runs/filter", asked)} - before:
            break
        time.sleep(1)
    (run,) = served.wait(*started)
    assert run["state"]["message"].startswith("version 1 is the first champion"), run["state"]
    (better,) = served.wait(
        served.start("distill/preset", overrides={"student": {"steps": 500}})
    )  # its KID is 1 / steps
    assert better["state"]["message"].startswith("version 2 replaces version 1"), better["state"]
    (back,) = served.wait(served.start("rollback/manual"))
    assert (
        back["state"]["message"]
        == "fewstep-mnist16: version 1 is champion again, in place of version 2"
    ), back
    (refused,) = served.wait(served.start("rollback/manual"))
    assert (
        refused["state"]["type"] == "FAILED"
        and "no earlier champion" in refused["state"]["message"]
    )
