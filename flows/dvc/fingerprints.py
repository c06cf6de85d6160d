"""What a run is made from, as four names: code, params, data and teacher. Equal names, equal
results.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.dvc import storage
from tasks.config.schema import Params
from tasks.utils.hashing import fingerprint

PARTS = ("code", "params", "data", "teacher")
PREFIX = "inputs."  # of the tags that a registered version gets
DIGEST = "digest"


def digests(project: Path, root: Path, params: Params) -> list[str]:
    """Overrides that make files of the user an input of their stage: ["dataset.digest=..."].

    DVC watches what dvc.yaml names; a folder that only params.yaml points at is watched by this
    key.
    """
    found = []
    for section, paths in _pointed_at(params).items():
        there = [root / path for path in paths if (root / path).exists()]
        named, _ = storage.stage_inputs(root)
        if there and not all(path in named for path in paths):
            hashes = [storage.content_hash(project, path) for path in there]
            found.append(
                f"{section}.{DIGEST}={hashes[0] if len(hashes) == 1 else fingerprint(hashes)}"
            )
    return found


def inputs_of(root: Path) -> dict[str, str]:
    """Names (hex) by tag, {"inputs.code": ..., "inputs.params": ...}, of what the results in `root`
    are made from.
    """
    files, params = storage.stage_inputs(root)
    teacher = params.get("teacher", {})
    parts: dict[str, Any] = {part: {} for part in PARTS}
    for path, content in files.items():
        part = (
            "code"
            if not path.startswith("data/")
            else "teacher"
            if path == teacher.get("path")
            else "data"
        )
        parts[part][path] = content
    for section, part in (("dataset", "data"), ("teacher", "teacher")):
        if isinstance(params.get(section), Mapping):
            parts[part][DIGEST] = params[section].get(DIGEST)
            params[section] = {
                key: value for key, value in params[section].items() if key != DIGEST
            }
    parts["params"] = params
    return {f"{PREFIX}{part}": fingerprint(content) for part, content in parts.items()}


def changed(new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    """The parts whose names differ."""
    return [part for part in PARTS if new.get(f"{PREFIX}{part}") != old.get(f"{PREFIX}{part}")]


def _pointed_at(params: Params) -> dict[str, list[str]]:
    dataset, teacher = params.dataset, params.teacher
    named = {
        "dataset": [getattr(dataset, "path", None), *getattr(dataset, "packs", ())],
        "teacher": [getattr(teacher, "path", None)],
    }
    return {
        section: [path for path in paths if path] for section, paths in named.items() if any(paths)
    }
