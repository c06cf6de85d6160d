from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from models.common.errors import InputError
from tests.flows.project import make_project, runs


def ask(question: Any) -> Any:
    """The answer of Prefect's server to `question(client)`."""
    from prefect import get_client

    async def answer() -> Any:
        async with get_client() as client:
            return await question(client)

    return asyncio.run(answer())


def last_run() -> Any:
    from prefect.client.schemas.sorting import FlowRunSort

    return ask(
        lambda client: client.read_flow_runs(limit=1, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    )[0]


def task_names(flow_run_id: Any) -> dict[str, int]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    found = ask(lambda client: client.read_task_runs(flow_run_filter=chosen))
    return {run.name: run.run_count for run in found}


def artifacts_of(flow_run_id: Any) -> dict[str, Any]:
    found = ask(lambda client: client.read_artifacts(limit=50))
    return {item.key: item.data for item in found if item.flow_run_id == flow_run_id}


def test_stages_run_once_and_leave_a_model_and_artifacts(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.artifacts import show
    from flows.distill import distill

    result = distill(overrides={"student": {"steps": 200}})
    assert runs(project) == dict.fromkeys(
        ("dataset", "teacher", "conditions", "trajectories", "student", "evaluation"), 1
    )
    assert result["model"]["version"] == "1" and result["model"]["created"]
    assert result["verdict"] == "version 1 is the first champion"
    run = last_run()
    assert run.state.is_completed()
    assert set(task_names(run.id)) >= {
        "dataset",
        "teacher",
        "conditions",
        "trajectories",
        "student",
        "evaluation",
    }
    found = artifacts_of(run.id)
    assert [row["sampler"] for row in json.loads(found["samplers"])] == ["student", "real"]
    assert found["samples"].startswith("data:image/png;base64,")
    assert "`data/evaluation/report.html`" in found["report"] and "`make up`" in found["report"]
    assert result["report"] == str(project / "data/evaluation/report.html")
    assert (
        "| student   | 10              | 0.005 |" in found["report"]
        and "file://" not in found["report"]
    )
    capsys.readouterr()

    again = distill(overrides={"student": {"steps": 200}})
    assert runs(project)["student"] == 1 and runs(project)["dataset"] == 1
    assert again["model"]["version"] == "1" and not again["model"]["created"]
    assert again["model"]["run_id"] == result["model"]["run_id"]
    assert "student: up to date" in capsys.readouterr().out
    show(again)
    told = " ".join(capsys.readouterr().out.split())
    assert "0.005" in told and str(project / "data/evaluation/report.html") in told.replace(" ", "")
    assert "fewstep-mnist16 version 1 (registered before)" in told


def test_a_mistake_in_the_input_fails_at_once_with_its_line(project: Path) -> None:
    from flows.distill import distill

    (project / "refuse").touch()
    with pytest.raises(InputError, match=r"^teacher.path: no such folder$"):
        distill()
    assert runs(project)["teacher"] == 1 and runs(project)["trajectories"] == 0
    run = last_run()
    assert run.state.is_failed() and "teacher.path: no such folder" in run.state.message


def test_a_crashed_stage_is_tried_again(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    from flows.distill import distill

    (project / "crash-once").touch()
    with caplog.at_level(logging.INFO):
        distill()
    counts = runs(project)
    assert (counts["teacher"], counts["trajectories"], counts["student"]) == (1, 2, 1)
    assert "out of memory" in caplog.text
    assert task_names(last_run().id)["trajectories"] == 2


def test_bad_params_end_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows import distill

    root = make_project(tmp_path / "project", git=False)
    monkeypatch.chdir(root)
    monkeypatch.setattr(distill, "distill", lambda *given: pytest.fail("the flow was started"))
    before = (root / "params.yaml").read_bytes()
    start = time.monotonic()
    assert distill.main(["student.step=5"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith(
        "error: override student.step: unknown key"
    )
    assert (root / "params.yaml").read_bytes() == before and time.monotonic() - start < 5


def test_results_of_dvc_repro_are_registered_without_prefect(project: Path) -> None:
    import subprocess

    from flows.register import register_results
    from tasks.config.schema import load_params

    params = load_params(project / "params.yaml")
    with pytest.raises(
        InputError,
        match="out of date: dataset, teacher, conditions, trajectories, student, evaluation",
    ):
        register_results(project, params)
    subprocess.run(["dvc", "repro", "--quiet"], cwd=project, check=True, capture_output=True)
    line = register_results(project, params)
    assert line == "fewstep-mnist16 version 1 (registered); version 1 is the first champion"
