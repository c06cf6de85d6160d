"""The place of a stage's unfinished work."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from tasks.utils.hashing import fingerprint
from tasks.utils.resource_usage import note

TOP = Path(__file__).resolve().parents[2]
ALL_CODE = ("models", "tasks")


def scratch_for(root: Path, stage: str, *inputs: Any) -> Path:
    """The stage's own place for unfinished work, outside DVC's outs, named by a hash of all its
    inputs.

    The code that makes its result is one of them, as dvc.yaml lists it: what an earlier version
    left there must not pass for this one's work, and what a change elsewhere cannot touch stays.
    A place that is there already is noted as `resumed` in the stage's measurement.
    """
    plain = [i.model_dump(mode="json") if isinstance(i, BaseModel) else i for i in inputs] + [
        code_fingerprint(TOP, stage)
    ]
    place = root / ".fewstep" / "scratch" / stage / fingerprint(plain)[:16]
    if place.exists():
        note(resumed=True)
    return place


@cache
def code_fingerprint(top: Path, stage: str) -> str:
    """sha256 (hex) of the code below `top` that the stage depends on, subfolders included."""
    digest = hashlib.sha256()
    for file in code_of(top, stage):
        digest.update(f"{file.relative_to(top).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def code_of(top: Path, stage: str) -> list[Path]:
    """The files that dvc.yaml names for the stage outside data/, without those that DVC ignores;
    all of models/ and tasks/ where there is no dvc.yaml (an installed package).
    """
    pipeline = top / "dvc.yaml"
    named: list[str] = list(ALL_CODE)
    if pipeline.is_file():
        deps = yaml.safe_load(pipeline.read_text())["stages"].get(stage, {}).get("deps", ALL_CODE)
        named = [dep for dep in deps if not dep.startswith("data/")]
    return sorted({file for dep in named for file in _files(top / dep)} - set(_ignored(top)))


def _files(path: Path) -> Iterator[Path]:
    found = [path] if path.is_file() else path.rglob("*")
    return (file for file in found if file.is_file() and "__pycache__" not in file.parts)


def _ignored(top: Path) -> Iterator[Path]:
    """Files that .dvcignore names from the top ("/models/common/config.py")."""
    ignore = top / ".dvcignore"
    lines = ignore.read_text().split() if ignore.is_file() else []
    patterns = [line[1:] for line in lines if line.startswith("/") and line.endswith(".py")]
    files = [file for folder in ALL_CODE for file in _files(top / folder)]
    for file in files:
        name = file.relative_to(top).as_posix()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            yield file
