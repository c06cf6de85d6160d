"""DVC's settings, cache and remote: shared by worktrees, and where results go."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from flows.pipeline import open_repository, reason


def share_settings(project: Path, root: Path) -> None:
    """Give the worktree `root` the project's DVC settings and its cache; relative remote addresses stay right."""
    from dvc.config import Config

    with open_repository(project) as repository:
        cache = repository.cache.local_cache_dir
    merged = Config(str(project / ".dvc")).read()  # paths are absolute here, and relative to their file when written
    with Config(str(root / ".dvc")).edit("local") as local:
        for section in ("core", "cache", "remote"):
            local[section] = merged.get(section, {})
        local["cache"]["dir"] = str(cache)
    (root / ".dvc/config.local").chmod(0o600)  # a remote's settings may hold credentials


def default_remote(root: Path) -> tuple[str, str] | None:
    """Name and address of DVC's default remote, or None."""
    from dvc.config import Config

    config = Config(str(root / ".dvc"))
    name = config["core"].get("remote")
    return (name, str(config["remote"].get(name, {}).get("url", ""))) if name else None


def push(root: Path, commits: list[str]) -> None:
    """Push the data of the workspace and of `commits` (hex), and the run cache, to the default remote.

    Raises RuntimeError with the reason in one line.
    """
    from dvc.exceptions import DvcException

    speaker = logging.getLogger("dvc_objects")  # it would name every file that was not transferred
    level = speaker.level
    try:
        with open_repository(root) as repository:
            speaker.setLevel(logging.CRITICAL)
            repository.push(revs=commits or None, run_cache=True)
    except (DvcException, OSError) as error:
        raise RuntimeError(reason(error)) from error
    finally:
        speaker.setLevel(level)


def forget(root: Path) -> None:
    """Remove what DVC keeps about the worktree `root` outside of it."""
    try:
        with open_repository(root) as repository:
            place = repository.site_cache_dir
    except Exception:  # a half-made worktree is not a repository yet
        return
    shutil.rmtree(place, ignore_errors=True)
