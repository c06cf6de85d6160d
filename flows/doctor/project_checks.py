"""Checks of the project's state: DVC remote, databases, locks, unfinished work, services,
worktrees.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import psutil

from flows.doctor.check import Finding, fail, ok, size, warn
from flows.dvc import repro as pipeline
from flows.services import daemons
from flows.services.services import NAMES
from tasks.utils.environment import STATE
from tasks.utils.git import find_checkout, run_git
from tasks.utils.redaction import redact
from tasks.utils.sqlite_files import revisions, script_heads

SCRATCH_LIMIT = 5 * 1024**3
REMOTE_SECONDS = 20.0


def project_checks(root: Path) -> list[tuple[str, Callable[[], Finding]]]:
    """All checks of this module, named."""
    return [
        ("commit", lambda: commit(root)),
        ("dvc remote", lambda: remote(root)),
        ("prefect database", lambda: prefect_database(root)),
        ("mlflow database", lambda: mlflow_database(root)),
        ("locks", lambda: locks(root)),
        ("unfinished work", lambda: scratch(root)),
        ("services", lambda: services(root)),
        ("worktrees", lambda: worktrees(root)),
    ]


def commit(root: Path) -> Finding:
    """Runs can record the commit that they are made from."""
    checkout = find_checkout(root)
    if checkout.top is not None:
        return ok("commit", f"recorded with each run, from {checkout.top}")
    if not checkout.why:
        return ok("commit", "none: the project is not under git")
    fix = "runs record no commit; make a repository of the project: git init, git add, git commit"
    if "ownership" in checkout.why:
        fix = f"runs record no commit: git config --global --add safe.directory {root.resolve()}"
    return warn("commit", checkout.why, fix)


def remote(root: Path) -> Finding:
    """The default DVC remote, if one is configured, answers."""
    url, problem = pipeline.probe_remote(root, REMOTE_SECONDS)
    if url is None:
        return ok("dvc remote", "none: results stay on this machine")
    if problem:
        fix = (
            "check the network and the credentials (docs/team.md), or: "
            "dvc remote modify NAME url URL"
        )
        return fail("dvc remote", f"{redact(url)} does not answer: {redact(problem)}", fix)
    return ok("dvc remote", f"{redact(url)} answers")


def prefect_database(root: Path) -> Finding:
    """Prefect's own sqlite database has the installed version's tables; another server's is its own
    affair.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        return ok("prefect database", f"that of the server at {redact(url)}")
    home = Path(os.environ.get("PREFECT_HOME") or root / STATE / "prefect")
    fix = "make up or make run does it, and keeps the former one as prefect.db.before-..."
    return _migrated(
        "prefect database", home / "prefect.db", "prefect", "server/database/_migrations", fix
    )


def mlflow_database(root: Path) -> Finding:
    """MLflow's sqlite database has the installed version's tables."""
    place = root / "mlruns" / "mlflow.db"
    return _migrated(
        "mlflow database",
        place,
        "mlflow",
        "store/db_migrations",
        "make up or make run does it, and keeps the former one as mlflow.db.before-...",
    )


def _migrated(check: str, database: Path, package: str, folder: str, fix: str) -> Finding:
    if not database.is_file():
        return ok(check, "none yet; made at the first use")
    wanted, found = script_heads(package, folder), revisions(database)
    if found == wanted:
        return ok(check, f"current ({', '.join(sorted(found))})")
    return warn(
        check,
        f"has {', '.join(sorted(found)) or 'no tables'}, wanted {', '.join(sorted(wanted))}",
        fix,
    )


def locks(root: Path) -> Finding:
    """No lock of DVC, and no owner's note beside a scratch folder, names a process that has
    gone.
    """
    stale = [
        f".dvc/tmp/rwlock (process {pid})"
        for pid in _rwlock_pids(root)
        if not psutil.pid_exists(pid)
    ]
    for note in sorted((root / STATE / "scratch").glob("*/*.owner")):
        text = note.read_text().strip()
        if text.isdigit() and not psutil.pid_exists(int(text)):
            stale.append(f"{note.relative_to(root)} (process {text})")
    if stale:
        fix = (
            "left by a killed run, and harmless: the next run takes them over; "
            "or delete these files"
        )
        return warn(
            "locks",
            "; ".join(stale[:4]) + (f" and {len(stale) - 4} more" if len(stale) > 4 else ""),
            fix,
        )
    return ok("locks", "none stale")


def _rwlock_pids(root: Path) -> list[int]:
    try:
        held = json.loads((root / ".dvc" / "tmp" / "rwlock").read_text() or "{}")
    except (OSError, ValueError):
        return []
    holders = [
        info
        for entry in held.values()
        for info in (*entry.get("read", []), entry.get("write") or {})
    ]
    return sorted({int(info["pid"]) for info in holders if "pid" in info})


def scratch(root: Path) -> Finding:
    """Unfinished shards and checkpoints; finished runs leave theirs, too, for a run with the same
    inputs.
    """
    place = root / STATE / "scratch"
    total = sum(
        path.stat().st_size for path in place.rglob("*") if path.is_file() and not path.is_symlink()
    )
    folders = sum(1 for path in place.glob("*/*") if path.is_dir())
    told = f"{size(total)} in {folders} folders of {STATE}/scratch"
    if total > SCRATCH_LIMIT:
        return warn(
            "unfinished work", told, f"if no run is to go on from there: rm -r {STATE}/scratch"
        )
    return ok("unfinished work", told)


def services(root: Path) -> Finding:
    """What `make up` has started still runs."""
    recorded = [daemon for name in NAMES if (daemon := daemons.recorded(root, name))]
    dead = [daemon.name for daemon in recorded if not daemon.alive()]
    if dead:
        logs = ", ".join(f"{daemons.FOLDER / name}.log" for name in dead)
        return warn(
            "services",
            f"{', '.join(dead)} ended by itself",
            f"make up starts it again; why: {logs}",
        )
    return ok("services", f"{len(recorded)} running" if recorded else "none started")


def worktrees(root: Path) -> Finding:
    """Deployments' runs remove their git worktrees; one that is left was killed, and may hold
    changes.
    """
    try:
        done = run_git(root, "worktree", "list", "--porcelain")
    except FileNotFoundError:
        return ok("worktrees", "git is not installed")
    if done.returncode:
        return ok("worktrees", "not under git")
    lines = done.stdout.splitlines()
    places = [
        Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")
    ]
    inside = [place for place in places if (root / STATE).resolve() in place.parents]
    left = [place for place in inside if not _at_work(place)]
    if not left:
        return ok(
            "worktrees", f"{len(inside)} in use, none left behind" if inside else "none left behind"
        )
    dirty = [place.name for place in left if not place.is_dir() or _dirty(place)]
    told = f"{len(left)} under {STATE}, {len(dirty)} with changes" + (
        f": {', '.join(dirty[:4])}" if dirty else ""
    )
    fix = (
        "prefect flow-run retry ID continues in one; unused for a week they are removed; "
        "now: git worktree remove --force PATH"
    )
    return warn("worktrees", told, fix)


def _at_work(place: Path) -> bool:
    """Whether a run holds the worktree: the note beside it names a live process."""
    try:
        return psutil.pid_exists(int(place.with_name(f"{place.name}.owner").read_text()))
    except (OSError, ValueError):
        return False


def _dirty(place: Path) -> bool:
    return bool(run_git(place, "status", "--porcelain", "--untracked-files=no").stdout.strip())
