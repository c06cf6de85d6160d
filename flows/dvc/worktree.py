"""A git worktree per run: a deployment works on a commit and never in the user's files.

Worktrees share the project's DVC cache, unfinished work and model registry, so equal work is done
once. A run that ends well leaves no worktree; that of a crashed one is found again by `prefect
flow-run retry ID`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from flows.dvc import storage
from models.common.errors import InputError
from tasks.utils.atomic import atomic_write_json
from tasks.utils.git import find_checkout, run_git
from tasks.utils.locks import scratch_lock

RUNS = Path(".fewstep/runs")
SHARED = (
    Path(".fewstep/scratch"),
    Path(".fewstep/ray"),
    Path(".fewstep/measurements"),
    Path("mlruns"),
)
MARK = Path(".fewstep/run.json")  # written last: a worktree without it is not whole
KEEP_SECONDS = 7 * 24 * 3600.0
FULL = 2**24  # bytes that are free on a disk that is as good as full


@dataclass(frozen=True)
class Workspace:
    """Where a run works. `root` is `project` for a run in place, else a worktree at `commit`
    (hex).
    """

    project: Path
    root: Path
    commit: str | None = None

    @property
    def apart(self) -> bool:
        return self.root != self.project


@contextmanager
def workspace(project: Path, revision: str | None, run_id: str) -> Iterator[Workspace]:
    """The project itself if `revision` is None, else a worktree of run `run_id` at that revision.

    The same id finds the same worktree, at the commit of its first time. It is removed when the
    block ends well or with an InputError, and kept after any other failure. Raises InputError for a
    revision that is none.
    """
    if revision is None:
        yield Workspace(project, project)
        return
    root = project / RUNS / run_id[:8]
    with scratch_lock(root, wait_seconds=60), _modules_apart(root):
        commit = _set_up(project, root, revision)
        try:
            yield Workspace(project, root, commit)
        except InputError:
            _remove(project, root)
            raise
        _remove(project, root)


def prune(project: Path) -> list[str]:
    """Remove worktrees that no run has touched for a week; returns their names."""
    removed = []
    for root in sorted(path for path in (project / RUNS).glob("*") if path.is_dir()):
        try:
            with FileLock(root.with_name(f"{root.name}.lock"), timeout=0):
                mark = root / MARK
                if time.time() - (mark if mark.exists() else root).stat().st_mtime > KEEP_SECONDS:
                    _remove(project, root)
                    removed.append(root.name)
        except (Timeout, FileNotFoundError):  # at work, or removed by another run just now
            continue
    for lock in (project / RUNS).glob("????????.lock"):
        if not lock.with_suffix("").exists() and time.time() - lock.stat().st_mtime > KEEP_SECONDS:
            lock.unlink(missing_ok=True)
    return removed


def uncommitted(project: Path) -> list[str]:
    """Tracked files that differ from the last commit; dvc.lock and params.yaml, which every run
    writes, do not count.
    """
    written = (":(exclude)dvc.lock", ":(exclude)params.yaml")
    changes = git(project, "status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    return [line[3:] for line in changes.splitlines()]


def git(folder: Path, *arguments: str) -> str:
    """Output of a git command, stripped at its end; raises InputError with the first line in which
    git says what is wrong if it fails.
    """
    try:
        done = run_git(folder, *arguments)
    except FileNotFoundError:
        raise InputError(
            "git not found: expected it for a run at a revision; install git"
        ) from None
    if done.returncode:
        reason = _reason(done.stderr) or f"status {done.returncode}"
        if shutil.disk_usage(folder).free < FULL:  # git says no more than that it cannot write
            reason += "; no space left on the disk"
        raise InputError(f"git {arguments[0]}: {reason}")
    return done.stdout.rstrip()


def _reason(errors: str) -> str:
    """The first complaint among git's lines, which also say what it is doing."""
    lines = errors.strip().splitlines()
    complaints = [line for line in lines if line.startswith(("fatal: ", "error: "))]
    return next(iter([*complaints, *lines]), "").removeprefix("fatal: ").removeprefix("error: ")


def _set_up(project: Path, root: Path, revision: str) -> str:
    prune(project)
    mark = root / MARK
    if mark.is_file():
        _share(project, root)
        mark.touch()
        return str(json.loads(mark.read_text())["commit"])
    commit = resolve(project, revision)
    _remove(project, root)
    with _serial(project):
        git(project, "worktree", "add", "--detach", str(root), commit)
    _share(project, root)
    atomic_write_json(mark, {"commit": commit, "revision": revision})
    return commit


def resolve(project: Path, revision: str) -> str:
    """The commit (hex) that `revision` names; InputError outside a repository or if there is
    none.
    """
    checkout = find_checkout(project)
    if checkout.top is None or checkout.top.resolve() != project.resolve():
        why = f" ({checkout.why})" if checkout.why else ""
        raise InputError(
            f"revision = {revision}: {project} is not the root of a git repository{why}, which "
            "runs at a revision need; run `git init` and commit, or work in place with `make run`"
        )
    try:
        return git(
            project,
            "rev-parse",
            "--verify",
            "--quiet",
            "--end-of-options",
            f"{revision}^{{commit}}",
        )
    except InputError:
        raise InputError(
            f"revision = {revision}: no such commit, branch or tag in {project}; see `git log "
            "--oneline --all`"
        ) from None


def _share(project: Path, root: Path) -> None:
    """Let the worktree use the project's DVC settings and cache, unfinished work and registry."""
    for path in SHARED:
        (project / path).mkdir(parents=True, exist_ok=True)
        link = root / path
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to((project / path).resolve(), target_is_directory=True)
    storage.share_settings(project, root)


def _remove(project: Path, root: Path) -> None:
    with _serial(project):
        if root.exists():
            storage.forget(root)
            shutil.rmtree(root)  # links to what is shared go, what they point at stays
        with suppress(InputError):
            git(project, "worktree", "prune")


@contextmanager
def _serial(project: Path) -> Iterator[None]:
    """One change of the repository's list of worktrees at a time."""
    (project / RUNS).mkdir(parents=True, exist_ok=True)
    with FileLock(project / RUNS / "worktrees.lock"):
        yield


@contextmanager
def _modules_apart(root: Path) -> Iterator[None]:
    """diffusers copies every student's pipeline.py to one place; runs at once must not see each
    other's.
    """
    name = "HF_MODULES_CACHE"
    before = os.environ.get(name)
    os.environ[name] = str(root / ".fewstep/hf_modules")
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
