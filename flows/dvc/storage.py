"""DVC's settings, cache and remote: shared by worktrees, and where results go."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flows.dvc.repro import open_repository, reason
from models.common.errors import InputError
from tasks.utils.redaction import redact


def share_settings(project: Path, root: Path) -> None:
    """Give the worktree `root` the project's DVC settings and its cache; relative remote addresses
    stay right.
    """
    from dvc.config import Config

    with open_repository(project) as repository:
        cache = repository.cache.local_cache_dir
    merged = Config(
        str(project / ".dvc")
    ).read()  # paths are absolute here, and relative to their file when written
    with Config(str(root / ".dvc")).edit("local") as local:
        for section in ("core", "cache", "remote"):
            local[section] = merged.get(section, {})
        local["cache"]["dir"] = str(cache)
    (root / ".dvc/config.local").chmod(0o600)  # a remote's settings may hold credentials


def default_remote(root: Path) -> tuple[str, str] | None:
    """Name and address (to show: without credentials) of DVC's default remote, or None."""
    from dvc.config import Config

    config = Config(str(root / ".dvc"))
    name = config["core"].get("remote")
    return (name, redact(str(config["remote"].get(name, {}).get("url", "")))) if name else None


def push(root: Path, commits: list[str]) -> None:
    """Push the data of the workspace and of `commits` (hex), and the run cache, to the default
    remote.

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
        raise RuntimeError(redact(reason(error))) from error
    finally:
        speaker.setLevel(level)


def restore_inputs(root: Path, paths: Iterable[str]) -> None:
    """Bring inputs that are tracked by `PATH.dvc` files from the cache, or else from the remote,
    into the worktree.

    Raises InputError for one that neither holds.
    """
    from dvc.exceptions import DvcException

    wanted = [
        path for path in paths if (root / f"{path}.dvc").is_file() and not (root / path).exists()
    ]
    if not wanted:
        return
    targets = [str(root / f"{path}.dvc") for path in wanted]
    with open_repository(root) as repository:
        try:
            if default_remote(root):
                repository.fetch(targets=targets)
            repository.checkout(targets=targets)
        except (DvcException, OSError) as error:
            which = ", ".join(wanted)
            raise InputError(
                f"{which}: neither in DVC's cache nor on a remote ({reason(error)}); `dvc push` "
                "it where it is"
            ) from error


def forget(root: Path) -> None:
    """Remove what DVC keeps about the worktree `root` outside of it."""
    try:
        with open_repository(root) as repository:
            place = repository.site_cache_dir
    except Exception:  # a half-made worktree is not a repository yet
        return
    shutil.rmtree(place, ignore_errors=True)


def content_hash(project: Path, path: Path) -> str:
    """A name (hex) for the content of a file or folder; what has not changed since the last call is
    not read again.
    """
    from dvc.fs import localfs
    from dvc_data.hashfile.build import build

    with open_repository(project) as repository:
        _, _, found = build(repository.cache.local, str(path), localfs, "md5", dry_run=True)
    return str(found.hash_info.value).removesuffix(".dir")


def stage_inputs(root: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """What the stages are made from: hashes (hex) of files by path, commands among them, and
    parameters by section.

    Results of other stages are left out. Raises InputError for a file that is missing.
    """
    from dvc.dependency import ParamsDependency

    files: dict[str, str] = {}
    params: dict[str, Any] = {}
    with open_repository(root) as repository:
        made = {out.def_path for stage in repository.index.stages for out in stage.outs}
        for stage in repository.index.stages:
            files[f"command of {stage.name}"] = str(stage.cmd)
            for dep in stage.deps:
                if isinstance(dep, ParamsDependency):
                    params.update(dep.read_params())
                elif dep.def_path not in made:
                    if not dep.exists:
                        raise InputError(
                            f"{dep.def_path}: missing in {root}, but stage {stage.name} reads it"
                        )
                    files[dep.def_path] = str(dep.get_hash().value)
    return files, params
