from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flows import cli
from tests.paths import PROJECT


def fewstep(*arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    env = {"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_presets_are_listed_with_a_line_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    assert cli.main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= {"mnist-sigdeg", "mnist-swd", "tiny", "emoji-swd"}
    assert [line.split()[0] for line in lines if "(default)" in line] == ["mnist-sigdeg"]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in (*cli.MODULES, *cli.OWN))


def test_mistakes_are_one_line_and_status_2(tmp_path: Path) -> None:
    for arguments, told in (
        (("rnu",), "error: fewstep rnu: no such command, expected one of run, stage"),
        (("stage", "studnt"), "error: fewstep stage: got studnt, expected one of dataset"),
        (("stage", "student", "student.step=5"), "error: override student.step: unknown key"),
        (("run", "--preset", "tinny"), "error: preset = tinny: no such preset, did you mean tiny?"),
    ):
        done = fewstep(*arguments)
        assert done.returncode == 2 and done.stderr.startswith(told), done.stderr
        assert done.stderr.count("\n") == 1
    outside = fewstep("presets", cwd=tmp_path)
    assert outside.returncode == 2 and "expected the project's root folder" in outside.stderr


def test_params_are_written_without_a_run(tmp_path: Path) -> None:
    for name in ("conf", "dvc.yaml", "flows"):  # its own code is the linked one
        (tmp_path / name).symlink_to(PROJECT / name)
    first = fewstep("params", "--preset", "mnist-swd", "student.seed=3", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    text = (tmp_path / "params.yaml").read_text()
    assert "fewstep run --preset mnist-swd student.seed=3`" in text and "  seed: 3\n" in text
    again = fewstep("params", "student.seed=3", "--preset", "mnist-swd", cwd=tmp_path)
    assert again.stdout == "params.yaml is as it was\n"
    assert (tmp_path / "params.yaml").read_text() == text


def test_the_package_names_the_command_and_what_requirements_in_has() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"fewstep": "flows.cli:main"}
    listed = [line.strip() for line in (PROJECT / "requirements.in").read_text().splitlines()]
    wanted = {line for line in listed if line and not line.startswith("#")} - {
        "setuptools",
        "wheel",
    }
    assert set(project["dependencies"]) | set(project["optional-dependencies"]["dev"]) == wanted
    team = (PROJECT / "deploy/requirements-team.txt").read_text()
    names = {
        item.partition(">")[0].partition("=")[0]
        for item in project["optional-dependencies"]["team"]
    }
    assert all(f"\n{name}==" in team for name in names)
