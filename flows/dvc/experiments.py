"""What a run at a revision leaves: a DVC experiment in the project, and its data on the remote if
there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass

from filelock import FileLock

from flows.dvc import storage
from flows.dvc.worktree import RUNS, Workspace, git
from models.common.errors import InputError


@dataclass(frozen=True)
class Push:
    """What became of a push, in one line; `failed`: the remote was not reached."""

    line: str
    failed: bool = False


UNPUSHED = "refs/fewstep/unpushed"  # refs are shared by all worktrees and survive `make clean`


def experiment_name(run_name: str, run_id: str) -> str:
    """A name that git takes for a ref: the run's own, and the start of its id since names come
    again.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", run_name).strip("-")
    return f"{plain or 'run'}-{run_id[:8]}"


def save(work: Workspace, name: str) -> str:
    """Keep the worktree's parameters, dvc.lock and metrics as the experiment `name`; returns its
    commit (hex).

    A later save of the same name replaces the former. Raises RuntimeError with DVC's reason.
    """
    command = [sys.executable, "-m", "dvc", "exp", "save", "--quiet", "--force", "--name", name]
    with FileLock(
        work.project / RUNS / "experiments.lock"
    ):  # DVC's refs for this are shared by all worktrees
        done = subprocess.run(
            command, cwd=work.root, capture_output=True, text=True, errors="replace", check=False
        )
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line] or [
            f"status {done.returncode}"
        ]
        raise RuntimeError(f"experiment {name} was not saved: {lines[0].removeprefix('ERROR: ')}")
    commit = _commit(work, name)
    if storage.default_remote(work.root):
        git(work.root, "update-ref", f"{UNPUSHED}/{name}", commit)
    return commit


def push(work: Workspace) -> Push:
    """Push data and run cache of this run, and of earlier ones that could not be; returns one line
    on what happened.

    A remote that cannot be reached is no failure: everything stays here, and the next run pushes
    it.
    """
    remote = storage.default_remote(work.root)
    if remote is None:
        return Push("kept in this project's cache (no DVC remote is set)")
    name, address = remote
    waiting = _waiting(work)
    try:
        storage.push(work.root, sorted(set(waiting.values())))
    except RuntimeError as error:
        then = "kept in this project's cache, the next run pushes it"
        return Push(f"remote {name} ({address}) was not reached: {error}; {then}", failed=True)
    for ref in waiting:
        git(work.root, "update-ref", "-d", ref)
    return Push(f"pushed to remote {name} ({address})")


def _commit(work: Workspace, name: str) -> str:
    listed = git(work.root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps")
    found = [line.split()[0] for line in listed.splitlines() if line.endswith(f"/{name}")]
    if not found:
        raise RuntimeError(f"experiment {name} was not saved: DVC left no ref of it")
    return found[-1]


def _waiting(work: Workspace) -> dict[str, str]:
    """Commits (hex) of experiments that are not pushed yet, by ref; those whose experiment was
    removed are dropped.
    """
    listed = git(work.root, "for-each-ref", "--format=%(refname) %(objectname)", UNPUSHED)
    waiting: dict[str, str] = {}
    for ref, commit in (line.split() for line in listed.splitlines()):
        try:
            _commit(work, ref.rpartition("/")[2])
            waiting[ref] = commit
        except RuntimeError:
            git(work.root, "update-ref", "-d", ref)
    return waiting


def check_inputs(work: Workspace, paths: dict[str, str]) -> None:
    """Bring files that `dvc add` tracks into the run's worktree; `paths` by key, as params.yaml
    names them.

    Raises InputError for a path that is in the project, but not in git at the run's commit.
    """
    storage.restore_inputs(work.root, paths.values())
    for key, path in paths.items():
        if not (work.root / path).exists() and (work.project / path).exists():
            raise InputError(
                f"{key} = {path}: not in git at commit {str(work.commit)[:10]}, which this run "
                "works on: commit it, "
                f"`dvc add` it and commit {path}.dvc, or give an absolute path"
            )
