"""Choosing the free numbers of a Sig-DEG schedule before any gradient step.

Coarse steps lose contrast: what happens inside an interval is only partly known to the network. How
far along the path the network is asked, how strongly earlier answers are extrapolated, there and in
the last step, and how much noise there is, are four numbers per schedule
(models/methods/sigdeg/integrator.py). They act on one another, so that moving one at a time stops
in a poor place (docs/LOG.md); all combinations are tried, by successive halving (Jamieson and
Talwalkar, arXiv
1502.07943): many settings on few samples, fewer settings on more. The score is the rolled-out KID
against training
images, on held-out noise that all settings share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.methods.sigdeg.method import SigDEGConfig, Tuning, build_pipeline, coarse_steps
from models.sampling.trajectories import PathSpec
from models.teachers.base import Teacher
from tasks.config.schema import Params
from tasks.evaluation.validation import Judge
from tasks.utils.progress import progress

LOOK_AHEAD = (0.0, 0.12, 0.25)
GAIN = (1.0, 1.4, 1.8)
LAST_GAIN = (0.0, 0.15)
NOISE_GAIN = (1.0, 1.03)
ROUNDS = (
    (0.25, 10),
    (1.0, 3),
    (3.0, 1),
)  # samples, in student.validation_samples; settings that go on
LEAST = 2  # samples of a score


def calibrate(
    params: Params, root: Path, teacher: Teacher, spec: PathSpec, config: SigDEGConfig
) -> dict[str, Any]:
    """{"tuned": {nfe: numbers}, "trials": [every score: nfe, tuning, samples, kid]}, as JSON data
    for student.json.

    The plain setting, gain 1 at ``config.look_ahead``, stays to the last round: the result is no
    worse there.
    """
    judge = Judge(params, root, teacher)
    pipeline, _ = build_pipeline(teacher, spec, config)
    pipeline.unet.to(teacher.device).eval()
    if teacher.device.type == "cpu":
        pipeline.unet.to(memory_format=torch.channels_last)
    plain = Tuning(config.look_ahead)
    trials: list[dict[str, Any]] = []
    tuned: dict[str, Any] = {}

    def features(nfe: int, tuning: Tuning, low: int, high: int) -> Tensor:
        pipeline.set_plan(nfe, coarse_steps(spec, nfe, config, tuning))
        return judge.features(
            lambda x, labels, g: pipeline.rollout(x, None, labels, nfe, g)[0], nfe, low, high
        )

    candidates = settings(plain)
    with progress(
        "calibration", len(config.nfe) * sum(work for *_, work in _rounds(params, len(candidates)))
    ) as advance:
        for nfe in config.nfe:
            left, seen = candidates, {tuning: torch.zeros(0) for tuning in candidates}
            for low, high, keep, _ in _rounds(params, len(candidates)):
                kids = {}
                for tuning in left:
                    seen[tuning] = torch.cat([seen[tuning], features(nfe, tuning, low, high)])
                    kids[tuning] = judge.kid_of(seen[tuning])
                    trials.append(
                        {"nfe": nfe, "tuning": asdict(tuning), "samples": high, "kid": kids[tuning]}
                    )
                    advance(high - low)
                best = sorted(left, key=lambda tuning: kids[tuning])[:keep]
                left = best if keep == 1 or plain in best else [*best[:-1], plain]
            tuned[str(nfe)] = asdict(left[0])
    return {"tuned": tuned, "trials": trials}


def settings(plain: Tuning) -> list[Tuning]:
    """The plain setting, then all others."""
    others = (Tuning(*numbers) for numbers in product(LOOK_AHEAD, GAIN, LAST_GAIN, NOISE_GAIN))
    return [plain, *(tuning for tuning in others if tuning != plain)]


def _rounds(params: Params, count: int) -> Iterator[tuple[int, int, int, int]]:
    """First and last sample, settings kept, and samples drawn for all settings, round by round."""
    low = 0
    for share, keep in ROUNDS:
        high = max(low + LEAST, round(share * params.student.validation_samples))
        yield low, high, keep, count * (high - low)
        low, count = high, keep
