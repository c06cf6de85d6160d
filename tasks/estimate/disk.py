"""Bytes that a job leaves on disk: results of each stage, and unfinished work beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.methods.costs import Costs
from tasks.config.schema import Params
from tasks.estimate.blueprint import Blueprint
from tasks.estimate.data import Facts, Prompts
from tasks.estimate.networks import Networks
from tasks.methods.text_parts import CARRIED

NPY_HEADER = 128  # of every .npy file of such arrays
KEPT = {"images": 256, "series": 2000}  # of every sampler, in samples.npz
CODE = 80 * 2**10  # of a student's folder: code, card, history
# pages, tables and figures, as measured; pictures grow with the images' size
REPORT = {"images": 1.5 * 2**20, "series": 4 * 2**20}
COMPRESSED = 0.5  # of what the pictures in samples.npz are, as measured


@dataclass(frozen=True)
class Disk:
    """``result``: below data/STAGE; ``scratch``: below .fewstep while the stage works, beyond the
    result, whose files are links.
    """

    result: float = 0.0
    scratch: float = 0.0


def dataset_disk(facts: Facts | None) -> Disk:
    """Arrays of both splits; images are written twice while the stage works."""
    if facts is None:
        return Disk()
    rows = facts.train + facts.holdout
    return Disk(rows * facts.bytes_each + 4 * NPY_HEADER, rows * facts.bytes_each)


def teacher_disk(params: Params, plan: Blueprint) -> Disk:
    """The pipeline as it is saved: the network in its dtype, all else in float32."""
    parts = [*plan.encoders.values(), *([plan.vae] if plan.vae is not None else [])]
    others = 4 * sum(p.numel() for part in parts for p in part.parameters())
    weights = plan.parameters * plan.dtype.itemsize
    training = params.teacher.source == "train"
    return Disk(
        weights + others, _checkpoints(2, plan.parameters, plan.parameters, 1) if training else 0
    )


def conditions_disk(params: Params, plan: Blueprint, prompts: Prompts | None) -> Disk:
    """Embeddings of all prompts and of the null condition, and the texts."""
    if prompts is None:
        return Disk()
    settings, rows = params.conditions, prompts.train + prompts.holdout
    shards = -(-rows // settings.shard_size)
    each = condition_bytes(plan, np.dtype(settings.dtype).itemsize)
    null = 0 if getattr(plan.teacher, "null_prompt", None) is None else 1
    headers = (shards + null) * len(plan.condition) * NPY_HEADER
    return Disk((rows + null) * each + headers + prompts.bytes)


def condition_bytes(plan: Blueprint, number: int) -> int:
    """Of one row; ``number``: bytes of a stored number, whole numbers are int64."""
    sizes = [
        int(np.prod(shape)) * (number if kind.is_floating_point else 8)
        for shape, kind in plan.condition.values()
    ]
    return sum(sizes)


def trajectories_disk(params: Params, plan: Blueprint) -> Disk:
    """States at the coarse grid, and labels; path features are drawn again, not stored."""
    spec = params.trajectories
    each = (spec.intervals + 1) * plan.state * np.dtype(spec.dtype).itemsize + 8
    shards = sum(-(-count // spec.shard_size) for count in (spec.train, spec.validation))
    return Disk((spec.train + spec.validation) * each + 2 * shards * NPY_HEADER)


def student_disk(params: Params, plan: Blueprint, networks: Networks, costs: Costs) -> Disk:
    """The student's folder, in float32, with encoders up to 2 GiB; checkpoints of all networks,
    their optimizers and averages; the best weights so far.
    """
    whole, trained = networks.student_weights
    adapters = networks.trainable != "full"
    kept = trained if adapters else whole  # of a network around its teacher's weights its own
    vae = 0 if plan.vae is None else 4 * sum(p.numel() for p in plan.vae.parameters())
    text = 4 * sum(p.numel() for part in plan.encoders.values() for p in part.parameters())
    own = (
        CODE + 4 * plan.parameters + vae + (text if text <= CARRIED else 0)
    )  # adapters are folded in
    own += 4 * trained if adapters else 0  # and beside it in a file of their own
    own += plan.parameters * plan.dtype.itemsize if "frozen" in costs.copies else 0
    roles = len(costs.optimized) + ("target" in costs.copies)
    checkpoint = roles * 4 * kept + len(costs.optimized) * 8 * trained + 4 * trained
    # while one is written there is one more; two best ones at most
    return Disk(own, (params.student.keep_checkpoints + 1) * checkpoint + 2 * 4 * kept)


def evaluation_disk(params: Params, plan: Blueprint, samplers: int) -> Disk:
    """Pictures, and the report."""
    settings, kind = params.evaluation, params.dataset.data_kind
    kept = min(settings.samples, KEPT[kind])
    each = int(np.prod(plan.data_shape())) * (4 if kind == "series" else COMPRESSED)
    return Disk(REPORT[kind] + samplers * kept * each)


def _checkpoints(count: int, parameters: int, trained: int, averages: int) -> float:
    return count * (4.0 * parameters + 8.0 * trained + 4.0 * averages * trained)
