"""What samples are compared with: real data, or the teacher's own images where there are none.

The teacher's images are the ends of its cached paths. Students are chosen by those of the training
paths, and measured against validation paths that no sampler is started from: a sample with the
start noise of its own reference would look closer than it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.teachers.base import Denoiser
from tasks.data.dataset import data_kind, has_data, load_split
from tasks.data.shards import ShardSet
from tasks.data.trajectories import open_trajectories

DECODED = 64  # states at once


def training_sample(root: Path, teacher: Denoiser, count: int) -> Tensor:
    """At most ``count`` of the training split, or of the teacher's images, as codecs decode them:
    (n, C, H, W) in [-1, 1], or series in their units. Always the same ones.
    """
    if not has_data(root):
        shards = open_trajectories(root)
        rows = _some(shards.rows("train"), count)
        return decoded_ends(shards, "train", rows, teacher)
    stored, _ = load_split(root, "train")
    return data_kind(root).to_float(stored[_some(len(stored), count)])


def _some(there: int, count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(there)[:count])


@torch.no_grad()
def decoded_ends(shards: ShardSet, split: str, rows: np.ndarray, teacher: Denoiser) -> Tensor:
    """Images (n, C, H, W) at the ends of cached paths, on the CPU."""
    Y = shards.array(split, "Y")
    parts = []
    for low in range(0, len(rows), DECODED):
        ends = torch.from_numpy(Y[rows[low : low + DECODED], -1]).float()
        parts.append(teacher.decode(ends.to(teacher.device)).float().cpu())
    return torch.cat(parts)


def teacher_reference(root: Path, teacher: Denoiser, samples: int) -> Tensor:
    """The teacher's images of validation paths beyond the first ``samples``, which samplers start
    from, and of the same prompts. Raises InputError where there are none.
    """
    shards = open_trajectories(root)
    labels = np.asarray(shards.array("validation", "labels")[:])
    rows = np.flatnonzero(np.isin(labels, labels[:samples]) & (np.arange(len(labels)) >= samples))
    if len(rows) < 2:
        raise InputError(
            f"trajectories.validation = {len(labels)}: of its paths after the first "
            f"evaluation.samples = {samples} {len(rows)} have one of their prompts; expected many, "
            "since they are what samples are compared with; raise trajectories.validation to "
            f"{2 * samples}, or lower conditions.holdout"
        )
    return decoded_ends(shards, "validation", rows, teacher)


def to_bytes(images: Tensor) -> np.ndarray:
    """Images in [-1, 1] as uint8, rounded to nearest."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
