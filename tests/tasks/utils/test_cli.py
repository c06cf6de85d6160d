from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.utils.cli import stage_main, user_errors
from tests.paths import PROJECT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text("student: {steps: 7}\n")
    (tmp_path / "other.yaml").write_text("student: {steps: 8}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "steps", "clip"),
    [
        ([], 7, 1.0),
        (["student.steps=9", "student.clip=2"], 9, 2.0),
        (["--params", "other.yaml"], 8, 1.0),
        (["student.clip=5e-1", "--params=other.yaml"], 8, 0.5),
    ],
)
def test_stage_gets_params_and_root(
    project: Path, argv: list[str], steps: int, clip: float
) -> None:
    got: list[tuple[Params, Path]] = []
    stage_main(lambda params, root: got.append((params, root)), argv)
    ((params, root),) = got
    assert (params.student.steps, params.student.clip) == (steps, clip)
    assert root == project


def fail_with(error: BaseException) -> object:
    def run(params: Params, root: Path) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("data/teacher: gone;\nrun that stage"), 2, "error: data/teacher: gone; run that stage\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)  # fmt: skip
def test_statuses(
    project: Path, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        stage_main(fail_with(error), [])  # type: ignore[arg-type]
    captured = capsys.readouterr()
    assert (ended.value.code, captured.err, captured.out) == (status, line, "")


def test_other_exceptions_pass_through(project: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        stage_main(fail_with(ZeroDivisionError()), [])  # type: ignore[arg-type]


def test_unknown_option_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        stage_main(fail_with(AssertionError("ran")), ["--stepz", "3"])  # type: ignore[arg-type]
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1
    assert lines[0].startswith("error: unrecognized arguments: --stepz") and lines[0].endswith(
        "--help"
    )


def test_user_errors_lets_success_and_values_pass() -> None:
    with user_errors():
        value = 3
    assert value == 3


def stage(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tasks.stages.dataset", *argv]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_help_explains(tmp_path: Path) -> None:
    ended = stage(tmp_path, "--help")
    assert ended.returncode == 0 and ended.stderr == ""
    for text in (
        "usage: python -m tasks.stages.dataset",
        "key=value",
        "data/dataset",
        "student.steps=600",
        "params.yaml",
    ):
        assert text in ended.stdout


@pytest.mark.parametrize(
    ("content", "argv", "line"),
    [
        ("{}\n", ["student.stepz=3"], "error: override student.stepz: unknown key, did you mean steps?"),
        ("dataset: {kind: mnist, size: 3}\n", [], "error: params.yaml: dataset.size = 3: expected a num"),
        ("dataset: [\n", [], "error: params.yaml, line 2, column 1: not valid YAML"),
        (None, [], "error: params.yaml: no such parameter file"),
        ("dataset: {kind: folder, path: gone}\n", [], "error: dataset.path: "),
    ],
)  # fmt: skip
def test_bad_input_through_the_real_command(
    tmp_path: Path, content: str | None, argv: list[str], line: str
) -> None:
    if content is not None:
        (tmp_path / "params.yaml").write_text(content)
    ended = stage(tmp_path, *argv)
    assert ended.returncode == 2 and ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith(line)
    assert not (tmp_path / "data" / "dataset").exists()
