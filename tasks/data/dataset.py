"""Reading data/dataset."""

from __future__ import annotations

from models.common.errors import InputError
from pathlib import Path
from tasks.utils.atomic import sha256_file
from typing import Any
from typing import Literal
import json
import numpy as np

SPLITS = ("train", "holdout")


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


def load_split(root: Path, split: Literal["train", "holdout"]) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (n, C, S, S), memory-mapped read-only; labels int64 (n,), -1 for none).

    Checksums are compared with the manifest; raises InputError naming the file that is missing or
    differs. """
    if split not in SPLITS:
        raise ValueError(f"split = {split!r}: expected one of {SPLITS}")
    sums = load_manifest(root)["sha256"]
    files = [root / "data" / "dataset" / f"{split}_{part}.npy" for part in ("images", "labels")]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: missing; run python -m tasks.stages.dataset again")
        if sha256_file(file) != sums.get(file.name):
            raise InputError(f"{file}: its checksum differs from manifest.json; run python -m tasks.stages.dataset again")
    return np.load(files[0], mmap_mode="r", allow_pickle=False), np.load(files[1], allow_pickle=False)
