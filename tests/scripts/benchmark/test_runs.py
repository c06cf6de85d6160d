"""Runs of a project whose stages only write little files, by the real worktrees and DVC."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.dvc import storage
from scripts.benchmark import __main__ as program
from scripts.benchmark import runs, timing
from scripts.benchmark.plan import Run, read_plan, runs_of
from tests.flows.project import REPOSITORY, make_project
from tests.flows.project import runs as counts
from tests.scripts.benchmark.test_plan import SMALL

STAGES = ["dataset", "teacher", "conditions", "trajectories", "student", "evaluation"]
IDENTITY = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
PLAN = SMALL.replace("seeds: [0, 3]", "seeds: [0]").replace("[kid]", "[kid, frechet]")
PLAN = PLAN[: PLAN.index("      sfd:")]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    root = make_project(tmp_path / "project")
    (root / "conf" / "benchmark.yaml").write_text(PLAN)
    (root / "docs").mkdir()
    # the small project's student has a pipeline of its own, and there is nothing to time
    monkeypatch.setattr(runs, "student_calls", lambda root: {"10": 10, "5": 5})
    monkeypatch.setattr(timing, "time_domain", lambda *arguments: None)
    commit(root)
    monkeypatch.chdir(root)
    return root


def commit(root: Path) -> str:
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    subprocess.run(["git", *IDENTITY, "commit", "-qm", "change"], cwd=root, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    return done.stdout.strip()


def watch(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None] = lambda stage: None
) -> list[str]:
    """The stages whose programs run from now on, in order; DVC restores others from its cache."""
    seen: list[str] = []
    real = runs.run_stage

    def run_stage(root: Path, stage: str) -> None:
        before(stage)
        times = counts(root)[stage]
        real(root, stage)
        seen.extend([stage] * (counts(root)[stage] - times))

    monkeypatch.setattr(runs, "run_stage", run_stage)
    return seen


def run_of(project: Path, job: str) -> Run:
    return next(r for r in runs_of(read_plan(project / "conf/benchmark.yaml")) if r.job == job)


def record(project: Path, job: str) -> dict[str, object]:
    return dict(json.loads((run_of(project, job).folder(project) / runs.RECORD).read_text()))


def test_an_interrupted_run_goes_on_and_a_finished_one_is_not_done_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ["--only", "small/sigdeg"]

    def interrupt(stage: str) -> None:
        if stage == "student":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        first = watch(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            program.main(only)
    assert first == STAGES[:4]
    assert not run_of(project, "sigdeg").folder(project).exists()  # whole or not at all

    with monkeypatch.context() as patch:
        second = watch(patch)
        assert program.main(only) == 0
    assert second == STAGES[4:]
    made = record(project, "sigdeg")
    assert made["seed"] == 0 and made["commit"] == commit_of(project)
    folder = run_of(project, "sigdeg").folder(project)
    assert {path.name for path in folder.iterdir()} == {
        "history.csv", "metrics.json", "params.yaml", "result.json", "student", "table.csv",
    }  # fmt: skip
    assert not list((project / ".fewstep/runs").glob("*/dvc.yaml"))  # no worktree is left

    third = watch(monkeypatch)
    assert program.main(only) == 0
    assert third == [] and record(project, "sigdeg") == made
    page = (project / "docs/benchmark.md").read_text()
    assert "- *not run*: Untrained, seed 0" in page and "| Sig-DEG, 1 seed | - | - |" in page

    # other code: the result is named as stale, and made again only when asked for
    stage = project / "stages/student.py"
    stage.write_text(stage.read_text() + "\n# changed\n")
    new = commit(project)
    assert program.main(["--page-only"]) == 0 and third == []
    page = (project / "docs/benchmark.md").read_text()
    assert f"*stale*: Sig-DEG, seed 0, measured at commit {str(made['commit'])[:10]}" in page
    assert "with other code" in page
    assert program.main(only) == 0
    assert third == STAGES[4:5] and record(project, "sigdeg")["commit"] == new
    assert "*stale*" not in (project / "docs/benchmark.md").read_text()


def commit_of(project: Path) -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_failure_does_not_keep_other_jobs_from_running(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = project / "stages/student.py"
    text = 'if params["student"]["steps"] == 7:\n    sys.exit("out of memory")\n'
    stage.write_text(stage.read_text() + text)
    plan = project / "conf/benchmark.yaml"
    plan.write_text(plan.read_text().replace("seeds: [0]}", "overrides: [student.steps=7]}"))
    commit(project)
    assert program.main([]) == 1
    error = "error: small/rivals, seed 0: stage student ended with status 1: out of memory"
    assert error in capsys.readouterr().err
    assert record(project, "sigdeg")["seed"] == 0
    page = (project / "docs/benchmark.md").read_text()
    assert "- *failed*: Untrained, seed 0: stage student ended with status 1" in page


def test_data_that_are_in_no_commit_are_seen_by_the_worktree(project: Path, tmp_path: Path) -> None:
    packs = project / "data" / "icons" / "pack"
    packs.mkdir(parents=True)
    (packs / "icons.json").write_text("{}")
    work = runs.Workspace(project, tmp_path / "tree", "0" * 40)
    work.root.mkdir()
    runs._link(work, "data/icons/pack")
    runs._link(work, "data/icons/none")
    runs._link(work, "data/icons/pack")  # again, after an interruption
    seen = work.root / "data/icons/pack"
    assert (seen / "icons.json").read_text() == "{}"
    # a run's inputs name what is in it, not the link
    assert storage.content_hash(project, seen) == storage.content_hash(project, packs)
    assert not (work.root / "data/icons/none").exists()
    shutil.rmtree(work.root)
    assert packs.is_dir()
