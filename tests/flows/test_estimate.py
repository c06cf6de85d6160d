"""The command `fewstep estimate`, and the look at the machine before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows import distill, estimate
from models.common.errors import InputError
from tasks.estimate import fits
from tests.paths import PROJECT


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


def test_a_table_of_all_stages_without_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    before = (PROJECT / "params.yaml").read_text()
    assert estimate.main(["--preset", "tiny", "student.steps=2"]) == 0
    told = capsys.readouterr().out
    names = [line.split()[0] for line in told.splitlines()[:8]]
    assert names == [
        "stage", "dataset", "teacher", "conditions", "trajectories", "student", "evaluation", "all",
    ]  # fmt: skip
    assert "1.1 M weights, from data/pretrained/mnist16" in told
    assert "timed calls on this CPU" in told and "does not fit" not in told
    assert (PROJECT / "params.yaml").read_text() == before


def test_a_named_device_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert estimate.main(["--preset", "tiny", "--device", "h100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "H100 at 40 % of its peak" in found["told"] and found["misfits"] == []
    stages = found["stages"]
    # 2 windows of up to 4 and of 2 steps, of 8 samples, in 2 steps each
    assert stages["student"]["trained"] > 0 and stages["teacher"]["evaluations"] == 2
    assert stages["trajectories"]["evaluations"] == (64 + 96 + 32) * 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "h999"], "error: device = h999: expected one of H200, H100"),
        (["--preset", "tinny"], "error: preset = tinny: no such preset, did you mean tiny?"),
        (["--preset", "text-to-image"], "error: teacher.path = my-teacher: not here, and its"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert estimate.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(message) and told.count("\n") == 1


def test_a_run_that_does_not_fit_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked: list[Any] = []

    def refuse(params: Any, root: Path) -> None:
        looked.append(params.teacher.path)
        raise InputError("no GPU here")

    def server(root: Path) -> Any:
        raise InputError("a server was started")

    monkeypatch.setattr(fits, "check_hardware", refuse)
    monkeypatch.setattr(distill, "prefect_api", server)
    monkeypatch.setattr(distill, "_leave_in_order", lambda: None)
    assert distill.main(["--preset", "sd15"]) == 2
    assert capsys.readouterr().err == "error: no GPU here\n" and len(looked) == 1
    for arguments in (["--preset", "sd15", "--anyway"], ["--preset", "tiny"]):
        assert distill.main(arguments) == 2
        assert capsys.readouterr().err == "error: a server was started\n"
    assert len(looked) == 1
