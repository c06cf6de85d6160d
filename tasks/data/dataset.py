"""Reading data/dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.common.errors import InputError
from tasks.data.kinds import DataKind, kind_of
from tasks.data.splits import SPLITS, Split
from tasks.utils.atomic import sha256_file


def load_manifest(root: Path) -> dict[str, Any]:
    """data/dataset/manifest.json; raises InputError if it is missing or damaged."""
    path = root / "data" / "dataset" / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(manifest["sha256"], dict):
            raise TypeError
    except FileNotFoundError:
        raise InputError(f"{path}: missing; run python -m tasks.stages.dataset first") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: damaged; run python -m tasks.stages.dataset again") from None
    return manifest


def has_data(root: Path) -> bool:
    """Whether there are images or series; dataset.kind = none has none."""
    return load_manifest(root).get("params", {}).get("kind") != "none"


def data_kind(root: Path) -> DataKind:
    """Whether data/dataset holds images or series, and how they are read."""
    return kind_of(load_manifest(root))


def load_split(root: Path, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(data as stored, memory-mapped read-only; labels int64 (n,), -1 for none): images uint8
    (n, C, S, S) or series float32 (n, C, L); ``data_kind(root).to_float`` makes tensors of them.

    Checksums are compared with the manifest; raises InputError naming the file that is missing or
    differs.
    """
    if not has_data(root):
        raise InputError(
            "dataset.kind = none: there are no images, which this setting needs; choose a dataset, "
            "or settings that take the teacher's own images"
        )
    data = _checked(root, split, f"{data_kind(root).name}.npy")
    labels = _checked(root, split, "labels.npy")
    stored = np.load(data, mmap_mode="r", allow_pickle=False)
    return stored, np.load(labels, allow_pickle=False)


def load_captions(root: Path, split: Split) -> list[list[str]] | None:
    """The captions of every image of a split, in its order; None if the source had none.

    Checks and errors as of `load_split`.
    """
    if not load_manifest(root).get("captions"):
        return None
    captions: list[list[str]] = json.loads(_checked(root, split, "captions.json").read_text())
    return captions


def _checked(root: Path, split: Split, part: str) -> Path:
    """A file of data/dataset whose checksum is that of the manifest."""
    if split not in SPLITS:
        raise ValueError(f"split = {split!r}: expected one of {SPLITS}")
    file = root / "data" / "dataset" / f"{split}_{part}"
    sums = load_manifest(root)["sha256"]
    if not file.is_file():
        raise InputError(f"{file}: missing; run python -m tasks.stages.dataset again")
    if sha256_file(file) != sums.get(file.name):
        raise InputError(
            f"{file}: its checksum differs from manifest.json; run python -m tasks.stages.dataset "
            "again"
        )
    return file
