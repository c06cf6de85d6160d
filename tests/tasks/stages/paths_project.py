"""A tiny teacher's trajectories, made by their stage, and all that they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tasks.config.schema import Params
from tasks.config.trajectories import Trajectories
from tasks.data.shards import ShardSet
from tasks.data.trajectories import open_trajectories
from tasks.stages.trajectories import run

SMALL = {
    "train": 10,
    "validation": 5,
    "steps": 12,
    "intervals": 4,
    "lane": 4,
    "shard_size": 4,
    "batch_size": 8,
}


SMALL |= {"grid": {"kind": "index"}}


def settings(**changes: Any) -> Params:
    section = Trajectories.model_validate(SMALL | changes)
    return Params().model_copy(
        update={"trajectories": section}
    )  # without checks against the student's keys


def make(root: Path, **changes: Any) -> ShardSet:
    run(settings(**changes), root)
    return open_trajectories(root)


def content(shards: ShardSet) -> dict[str, np.ndarray]:
    """All arrays, those that are drawn again, too."""
    names = {split: (*shards.names(split), "xi") for split in shards.splits}
    return {f"{s}/{n}": shards.array(s, n)[:] for s in shards.splits for n in names[s]}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        x.dtype == b[name].dtype and x.tobytes() == b[name].tobytes() for name, x in a.items()
    )


def files(root: Path) -> dict[str, bytes]:
    folder = root / "data" / "trajectories"
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def scratch_shards(root: Path) -> list[Path]:
    return sorted((root / ".fewstep" / "scratch" / "trajectories").glob("*/*/*-*"))
