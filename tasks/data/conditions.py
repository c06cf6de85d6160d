"""Reading data/conditions: the encoded prompts of a text-to-image teacher.

A light module: teachers without prompts need neither torch nor anything else here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from models.common.errors import InputError
from tasks.data.shards import ShardSet
from tasks.utils.atomic import sha256_file
from tasks.utils.hashing import fingerprint

if TYPE_CHECKING:
    from models.teachers.stored_conditions import StoredConditions

ROWS, NULL, PROMPTS = "prompts", "null", "prompts.jsonl"
AGAIN = "run python -m tasks.stages.conditions again"
# what rows and embeddings are a function of; the rest of the manifest says where they come from
IDENTITY = ("sha256", "train", "holdout", "negative_prompt", "encoders", "dtype", "batch_size")


def open_shards(root: Path) -> ShardSet:
    """The published set; raises InputError if it is missing, damaged or without prompts."""
    shards = ShardSet(root / "data" / "conditions")
    if ROWS not in shards.splits:
        raise InputError(f"data/conditions has no prompts, this teacher takes some; {AGAIN}")
    return shards


def open_table(root: Path, teacher: str | None = None) -> StoredConditions:
    """The encoded prompts: rows of training, then those held out. Raises InputError as of
    :func:`open_shards`, and where they were encoded for another teacher than the one with this
    fingerprint.
    """
    import torch

    from models.teachers.conditioning import Condition
    from models.teachers.stored_conditions import StoredConditions

    shards = open_shards(root)
    if teacher not in (None, shards.meta["teacher"]):
        raise InputError(f"data/conditions was made for another teacher; {AGAIN}")
    views = {name: shards.array(ROWS, name) for name in shards.names(ROWS)}
    null = None
    if NULL in shards.splits:
        row = {name: shards.array(NULL, name)[:] for name in shards.names(NULL)}
        null = Condition({name: torch.from_numpy(value) for name, value in row.items()})
    return StoredConditions(views, null, int(shards.meta["train"]))


def conditions_name(root: Path) -> str | None:
    """A name (hex) of the table of data/conditions; None where there is no such table, as for
    teachers that take no prompts.
    """
    folder = root / "data" / "conditions"
    if not folder.is_dir():
        return None
    shards = ShardSet(folder)
    return name_of(shards.meta) if ROWS in shards.splits else None


def check_conditions(kind: str, made_with: Mapping[str, Any], root: Path) -> None:
    """Raise InputError unless data/trajectories, whose manifest says ``made_with``, has the prompts
    of data/conditions: its labels are numbers of their rows. ``kind``: the teacher's.
    """
    if kind == "prompts" and made_with.get("conditions") != conditions_name(root):
        raise InputError(
            "data/trajectories was made with other prompts; run python -m "
            "tasks.stages.trajectories (or dvc repro) again"
        )


def name_of(meta: Mapping[str, Any]) -> str:
    """The name (hex) of a table by its manifest: equal names, equal rows."""
    return fingerprint([meta[key] for key in IDENTITY])


def prompts_of_rows(root: Path, rows: Iterable[int]) -> list[str]:
    """The prompts of some rows of the table; raises InputError if their file was changed."""
    file, meta = root / "data" / "conditions" / PROMPTS, open_shards(root).meta
    if not file.is_file() or sha256_file(file) != meta["sha256"]:
        raise InputError(f"{file}: its checksum differs from manifest.json; {AGAIN}")
    return PromptFile(file)[rows]


class PromptFile:
    """The texts of prompts.jsonl by row number; what is not asked for is not kept."""

    def __init__(self, file: Path):
        self.file = file
        with file.open("rb") as lines:
            self.starts = np.cumsum([0, *map(len, lines)], dtype=np.int64)[:-1]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: Iterable[int]) -> list[str]:
        with self.file.open("rb") as lines:
            return [self._text(lines, row) for row in rows]

    def _text(self, lines: IO[bytes], row: int) -> str:
        lines.seek(int(self.starts[row]))
        return str(json.loads(lines.readline()))
