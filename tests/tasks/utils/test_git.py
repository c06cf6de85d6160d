"""Which commit is a project's: never that of another repository."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tasks.registry.lineage import git_state
from tasks.utils import environment
from tasks.utils.git import LOCAL_VARIABLES, find_checkout


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def program(folder: Path) -> Path:
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks/x.py").write_text("# the program")
    (folder / "dvc.yaml").write_text("stages: {}\n")
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A repository with a commit of something else."""
    root = tmp_path / "other"
    root.mkdir()
    git(root, "init", "-q")
    (root / "letter.txt").write_text("something else")
    git(root, "add", ".")
    git(root, "commit", "-qm", "something else")
    return root


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A project in a repository of its own."""
    root = program(tmp_path / "own")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "own")
    return root


def test_an_archive_inside_another_repository_has_no_commit(
    other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for root in (program(other / "vendor/fewstep"), program(other / "second")):
        told = f"the repository {other} does not hold the project's files"
        assert git_state(root) == {"git.unknown": told}
    assert told in caplog.text
    program(other / "third")
    (other / "third/tasks").rename(other / "tasks")  # unpacked over the other one's own folder
    assert git_state(other) == {"git.unknown": told}


def test_a_project_committed_in_a_larger_repository_has_its_commit(other: Path) -> None:
    root = program(other / "fewstep")
    git(other, "add", ".")
    git(other, "commit", "-qm", "with the project")
    assert git_state(root) == {"git.commit": git(other, "rev-parse", "HEAD"), "git.dirty": "false"}


def test_variables_of_a_hook_do_not_count(
    own: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {"git.commit": git(own, "rev-parse", "HEAD"), "git.dirty": "false"}
    assert git_state(own) == expected
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    assert git_state(own) == expected
    assert find_checkout(own.parent).top is None
    environment.prepare(own)
    assert not {name for name in LOCAL_VARIABLES if name in os.environ}


def test_the_variables_are_those_that_git_names(own: Path) -> None:
    assert set(git(own, "rev-parse", "--local-env-vars").split()) <= set(LOCAL_VARIABLES)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_told(own: Path) -> None:
    for path in (own, *own.rglob("*")):
        os.chown(path, 1234, 1234)
    (why,) = git_state(own).values()
    assert why.startswith("detected dubious ownership in repository")


def test_new_files_of_the_program_make_it_dirty(own: Path) -> None:
    (own / "notes.txt").write_text("not the program")
    (own / "dvc.lock").write_text("written by every run")
    assert git_state(own)["git.dirty"] == "false"
    (own / "tasks/new.py").write_text("")
    assert git_state(own)["git.dirty"] == "true"


def test_without_commit_or_repository(tmp_path: Path) -> None:
    root = program(tmp_path / "new")
    assert git_state(root) == {}
    git(root, "init", "-q")
    assert git_state(root) == {"git.unknown": "no commit yet"}
