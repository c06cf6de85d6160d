from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from flows.dvc import experiments
from flows.dvc import repro as pipeline
from flows.dvc import worktree as workspaces
from flows.dvc.params_file import write_preset
from flows.dvc.worktree import Workspace, _reason, git, workspace
from models.common.errors import InputError
from tasks.config.schema import load_params
from tasks.registry import registration, store, tracking
from tasks.utils.scratch import scratch_for
from tests.flows.project import REPOSITORY, make_project, python

RUN = "0123abcd-0000-4000-8000-000000000000"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    root = make_project(tmp_path / "project")
    monkeypatch.chdir(root)
    return root


def commit(root: Path, message: str = "change") -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, "commit", "-qam", message], cwd=root, check=True)
    return git(root, "rev-parse", "HEAD")


def repro(work: Workspace, *names: str) -> None:
    done = subprocess.run(
        ["dvc", "repro", "--quiet", *names], cwd=work.root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def set_steps(root: Path, steps: int) -> None:
    """Change the default preset, and params.yaml as a run would write it from that."""
    preset = root / "conf/preset/mnist-sigdeg.yaml"
    preset.write_text(f"# @package _global_\nstudent: {{steps: {steps}}}\n")
    write_preset(root, "mnist-sigdeg", [])


def test_a_run_at_a_commit_leaves_an_experiment_and_nothing_else(project: Path) -> None:
    head = git(project, "rev-parse", "HEAD")
    set_steps(project, 61)  # the user's unfinished change
    before = git(project, "status", "--porcelain")
    with workspace(project, "HEAD", RUN) as work:
        assert (
            work.root == project / ".fewstep/runs/0123abcd" and work.commit == head and work.apart
        )
        assert git(work.root, "status", "--porcelain") == ""
        assert load_params(work.root / "params.yaml").student.steps == 300
        assert workspaces.uncommitted(project) == ["conf/preset/mnist-sigdeg.yaml"]
        set_steps(work.root, 70)
        repro(work)
        saved = experiments.save(work, "run-1")
        assert experiments.push(work) == experiments.Push(
            "kept in this project's cache (no DVC remote is set)"
        )
    assert not work.root.exists() and git(project, "worktree", "list").count("\n") == 0
    assert git(project, "status", "--porcelain") == before and not (project / "data").exists()
    assert "steps: 70" in git(project, "show", f"{saved}:params.yaml")
    assert "data/evaluation" in git(project, "show", f"{saved}:dvc.lock")
    listed = subprocess.run(
        ["dvc", "exp", "list", "--name-only"], cwd=project, capture_output=True, text=True
    )
    assert listed.stdout.split() == ["run-1"]
    set_steps(project, 61)
    (project / "params.yaml").write_text(git(project, "show", f"{saved}:params.yaml") + "\n")
    assert (
        python(project, "-m", "flows.dvc.repro", "dataset").stdout == ""
    )  # the cache is shared: nothing is made again


def test_unfinished_work_and_registry_are_the_projects(project: Path) -> None:
    with workspace(project, "HEAD", RUN) as work:
        apart = scratch_for(work.root, "student", {"seed": 1})
        apart.mkdir(parents=True)
        assert (scratch_for(project, "student", {"seed": 1})).is_dir()
        params = load_params(work.root / "params.yaml")
        client = store.open_store(project, params)
        client.create_experiment(
            "before", artifact_location=str(store.local_folder(project) / "artifacts/before")
        )
        here = store.open_store(work.root, params).get_experiment_by_name("before")
        assert here is not None and here.artifact_location == str(
            project / "mlruns/artifacts/before"
        )
        repro(work)
        run = tracking.track_run(work.root, params)
        assert registration.register_student(work.root, params, run.run_id).number == "1"
        report = Path(tracking.logged_report(work.root, params, run.run_id))
    assert report.is_file() and report.is_relative_to(project / "mlruns")


def test_a_crashed_run_finds_its_worktree_again(project: Path) -> None:
    with pytest.raises(RuntimeError, match="crash"), workspace(project, "HEAD", RUN) as work:
        repro(work, "dataset")
        raise RuntimeError("crash")
    set_steps(project, 61)
    commit(project)
    with workspace(project, "HEAD", RUN) as again:
        assert again.commit == work.commit != git(project, "rev-parse", "HEAD")
        assert not pipeline.outdated(again.root, "dataset") and pipeline.outdated(
            again.root, "teacher"
        )
    assert not again.root.exists()


def test_a_half_made_worktree_is_made_anew(project: Path) -> None:
    with pytest.raises(RuntimeError), workspace(project, "HEAD", RUN) as work:
        raise RuntimeError("crash")
    (work.root / workspaces.MARK).unlink()
    (work.root / "params.yaml").unlink()
    with workspace(project, "HEAD", RUN) as again:
        assert (again.root / "params.yaml").is_file()
    shutil.rmtree(project / ".fewstep")  # `make clean` between a crash and the retry
    with workspace(project, "HEAD", RUN) as again:
        assert (again.root / "params.yaml").is_file()


def test_worktrees_of_a_week_ago_go(project: Path) -> None:
    with pytest.raises(RuntimeError), workspace(project, "HEAD", RUN) as work:
        raise RuntimeError("crash")
    assert workspaces.prune(project) == []
    os.utime(work.root / workspaces.MARK, (1, 1))
    assert workspaces.prune(project) == ["0123abcd"]
    assert not work.root.exists() and git(project, "worktree", "list").count("\n") == 0


def test_a_mistake_leaves_no_worktree(project: Path) -> None:
    with pytest.raises(InputError, match=r"^revision = no-such: no such commit, branch or tag"):
        workspace(project, "no-such", RUN).__enter__()
    with pytest.raises(InputError), workspace(project, "HEAD", RUN) as work:
        raise InputError("bad")
    assert not work.root.exists()
    shutil.rmtree(project / ".git")
    with pytest.raises(InputError, match="not the root of a git repository"):
        workspace(project, "HEAD", RUN).__enter__()


def test_inputs_that_git_lacks_are_named_or_brought(project: Path) -> None:
    (project / "images").mkdir()
    (project / "images/1.txt").write_text("1")
    with workspace(project, "HEAD", RUN) as work:
        experiments.check_inputs(
            work, {"teacher.path": "hub/name", "dataset.path": str(project / "images")}
        )
        with pytest.raises(
            InputError, match=r"^dataset.path = images: not in git at commit .* absolute path"
        ):
            experiments.check_inputs(work, {"dataset.path": "images"})
    subprocess.run(["dvc", "add", "--quiet", "images"], cwd=project, check=True)
    git(project, "add", "images.dvc", ".gitignore")
    commit(project)
    with workspace(project, "HEAD", RUN) as work:
        experiments.check_inputs(work, {"dataset.path": "images"})
        assert (work.root / "images/1.txt").read_text() == "1"
    shutil.rmtree(project / ".dvc/cache")
    lost = pytest.raises(InputError, match=r"^images: neither in DVC's cache nor on a remote")
    with lost, workspace(project, "HEAD", RUN) as work:
        experiments.check_inputs(work, {"dataset.path": "images"})


def test_a_remote_out_of_reach_is_caught_up_with(project: Path, tmp_path: Path) -> None:
    shelf = (
        tmp_path / "shelf"
    )  # relative to .dvc/config: right from the project, wrong from a worktree
    subprocess.run(
        ["dvc", "remote", "add", "-d", "shelf", "../shelf", "--quiet"], cwd=project, check=True
    )
    shelf.write_text("not a folder")
    commits = {}
    for number in (1, 2):
        with workspace(project, "HEAD", f"{number}{RUN}") as work:
            set_steps(work.root, 60 + number)
            repro(work)
            commits[number] = experiments.save(work, f"run-{number}")
            pushed = experiments.push(work)
        assert pushed.failed is (number == 1), pushed
        assert f"remote shelf ({shelf})" in pushed.line
        if number == 1:
            assert "the next run pushes it" in pushed.line and experiments.UNPUSHED in git(
                project, "for-each-ref"
            )
            shelf.unlink()
    assert experiments.UNPUSHED not in git(project, "for-each-ref")
    shutil.rmtree(project / ".dvc/cache")
    subprocess.run(["dvc", "pull", "--quiet", "--run-cache"], cwd=project, capture_output=True)
    for number, saved in commits.items():
        subprocess.run(
            ["git", "checkout", "-qf", saved, "--", "params.yaml", "dvc.lock"],
            cwd=project,
            check=True,
        )
        subprocess.run(["dvc", "pull", "--quiet"], cwd=project, check=True, capture_output=True)
        assert (
            json.loads((project / "data/student/student.json").read_text())["steps"] == 60 + number
        )


def test_names_are_fit_for_git() -> None:
    assert experiments.experiment_name("wise lynx..", RUN) == "wise-lynx-0123abcd"
    assert experiments.experiment_name("", RUN) == "run-0123abcd"


def test_what_git_says_is_wrong_is_told_not_what_it_is_doing() -> None:
    full = (
        "Preparing worktree (detached HEAD 663fa7a)\n"
        "error: unable to write file a.py: No space left on device\n"
        "fatal: Could not reset index file to revision 'HEAD'.\n"
    )
    assert _reason(full) == "unable to write file a.py: No space left on device"
    assert _reason("fatal: not a valid object name x") == "not a valid object name x"
    assert _reason("something else\n") == "something else"
    assert _reason("") == ""


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="^git rev-parse: [^;]*$"):
        git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setattr(workspaces, "FULL", 2**80)
    with pytest.raises(InputError, match="^git rev-parse: .*; no space left on the disk$"):
        git(tmp_path, "rev-parse", "HEAD")
