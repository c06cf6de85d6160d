"""Where the present results come from: DVC's hashes, the git commit, and what a student was
evaluated on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.utils.git import find_checkout, run_git
from tasks.utils.hashing import fingerprint
from tasks.utils.stage_names import STAGES

TRACKED = (".", *(f":(exclude){name}" for name in ("dvc.lock", "params.yaml")))  # pathspecs
PROGRAM = ("models", "tasks", "flows")

logger = logging.getLogger(__name__)


def stage_hashes(root: Path) -> dict[str, str]:
    """DVC's hash of each stage's result folder, from dvc.lock: {"dataset": "0a1b....dir", ...}.

    Raises InputError if the lock file or a stage's entry is missing, that is, before the stages
    have run.
    """
    path = root / "dvc.lock"
    if not path.is_file():
        raise InputError(
            f"{path} not found: expected the record of finished stages; run `make run` or `make "
            "repro` first"
        )
    stages = (yaml.safe_load(path.read_text()) or {}).get("stages", {})
    missing = [name for name in STAGES if not stages.get(name, {}).get("outs")]
    if missing:
        raise InputError(
            f"dvc.lock has no results of {', '.join(missing)}: run `make run` or `make repro` first"
        )
    return {name: _hash_of(stages[name]["outs"], f"data/{name}") for name in STAGES}


def run_fingerprint(hashes: dict[str, str]) -> str:
    """One name (hex) for a finished distillation: equal results give equal names."""
    return fingerprint({name: hashes[name] for name in STAGES})


def evaluation_set(
    params: Params, hashes: dict[str, str], content: Mapping[str, str] | None = None
) -> str:
    """One name (hex) for what quality is measured against; figures are comparable only if it is
    equal.

    `content`: the digests that the evaluation recorded of the real images and of the extractor.
    Where there are none, the dataset's hash, the paths and their digests in the params stand for
    them.
    """
    of_number = params.evaluation.model_dump(mode="json", include={"samples", "neighbours", "seed"})
    if content:
        measured = {name: content[name] for name in ("real", "features") if name in content}
        return fingerprint(of_number | measured)
    keys = {"features", "reference", "digest", "features_digest"}
    named = params.evaluation.model_dump(mode="json", include=keys)
    return fingerprint({"dataset": hashes["dataset"], **of_number, **named})


def git_state(root: Path) -> dict[str, str]:
    """{"git.commit": hex, "git.dirty": "true"|"false"} of the repository that holds the project.

    {} where there is none; {"git.unknown": reason} where git cannot tell, or where the repository
    around the project does not hold its files. Changes of tracked files and new files of the
    program count as dirty; dvc.lock and params.yaml, which every run writes, do not: the record
    holds all params.
    """
    checkout = find_checkout(root)
    if checkout.top is None:
        return _unknown(root, checkout.why) if checkout.why else {}
    head = run_git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if head.returncode:
        return _unknown(root, "no commit yet")
    tracked = run_git(root, "status", "--porcelain", "--untracked-files=no", "--", *TRACKED)
    new = run_git(root, "status", "--porcelain", "--untracked-files=all", "--", *PROGRAM)
    failed = tracked if tracked.returncode else new
    if failed.returncode:
        return _unknown(root, next(iter(failed.stderr.splitlines()), "git status failed"))
    dirty = bool(tracked.stdout or new.stdout)
    return {"git.commit": head.stdout.strip(), "git.dirty": "true" if dirty else "false"}


def _unknown(root: Path, why: str) -> dict[str, str]:
    logger.warning("no commit is recorded for %s: %s", root, why)
    return {"git.unknown": why}


def _hash_of(outs: list[dict[str, Any]], path: str) -> str:
    for out in outs:
        if out.get("path") == path:
            return str(out["md5"])
    raise InputError(f"dvc.lock has no hash of {path}: run `make run` or `make repro` first")


def stage_sums(root: Path) -> dict[str, str]:
    """DVC's hashes of the stages that are finished, from dvc.lock; {} without one."""
    import yaml

    path = root / "dvc.lock"
    stages: dict[str, Any] = (
        (yaml.safe_load(path.read_text()) or {}).get("stages", {}) if path.is_file() else {}
    )
    return {
        f"{out['path']} (dvc)": str(out["md5"])
        for name, stage in stages.items()
        if name != "evaluation"
        for out in stage.get("outs", [])
        if "md5" in out
    }
