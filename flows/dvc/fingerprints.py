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
    """Overrides that make files of the user an input of their stages: ["dataset.digest=..."].

    DVC watches what dvc.yaml names; a folder that only params.yaml points at is watched by this
    key.
    """
    found = []
    for key, paths in _pointed_at(params).items():
        there = [root / path for path in paths if (root / path).exists()]
        named, _ = storage.stage_inputs(root)
        if there and not all(path in named for path in paths):
            hashes = [storage.content_hash(project, path) for path in there]
            found.append(f"{key}={hashes[0] if len(hashes) == 1 else fingerprint(hashes)}")
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
    for section, part in (
        ("dataset", "data"),
        ("teacher", "teacher"),
        ("conditions", "data"),
        ("evaluation", "data"),
    ):
        if isinstance(params.get(section), Mapping):
            own = {key: value for key, value in params[section].items() if _is_digest(key)}
            parts[part] |= {f"{section}.{key}": value for key, value in own.items()}
            params[section] = {
                key: value for key, value in params[section].items() if key not in own
            }
    for key in [key for key in params if key.startswith("evaluation.") and _is_digest(key)]:
        parts["data"][key] = params.pop(key)
    parts["params"] = params
    return {f"{PREFIX}{part}": fingerprint(content) for part, content in parts.items()}


def changed(new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    """The parts whose names differ."""
    return [part for part in PARTS if new.get(f"{PREFIX}{part}") != old.get(f"{PREFIX}{part}")]


def _is_digest(key: str) -> bool:
    return key.rpartition(".")[2] == DIGEST or key.endswith(f"_{DIGEST}")


def _pointed_at(params: Params) -> dict[str, list[str]]:
    """Paths of the user by the parameter that holds their digest."""
    dataset, evaluation = params.dataset, params.evaluation
    extractors = (evaluation.features, *evaluation.more_features)
    named = {
        "dataset.digest": [getattr(dataset, "path", None), *getattr(dataset, "packs", ())],
        "teacher.digest": [
            getattr(params.teacher, key, None) for key in ("path", "config", "lora")
        ],
        "conditions.digest": [params.conditions.path],
        "evaluation.digest": [
            getattr(evaluation.reference, "path", None),
            *evaluation.rivals,
            *(getattr(evaluation.clip, key, None) for key in ("path", "aesthetic")),
        ],
        "evaluation.features_digest": [getattr(each, "path", None) for each in extractors],
    }
    found = {key: [path for path in paths if path] for key, paths in named.items()}
    return {key: paths for key, paths in found.items() if paths}
