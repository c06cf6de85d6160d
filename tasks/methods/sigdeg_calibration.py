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

from models.methods.sigdeg.method import SamplerGains, SigDEGConfig, build_pipeline, coarse_steps
from models.sampling.trajectories import PathSpec
from models.teachers.base import Denoiser
from tasks.config.schema import Params
from tasks.evaluation.validation import ValidationKID
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
MIN_SAMPLES = 2  # samples of a score


def calibrate(
    params: Params, root: Path, teacher: Denoiser, spec: PathSpec, config: SigDEGConfig
) -> dict[str, Any]:
    """{"gains_by_nfe": {nfe: numbers}, "trials": [every score: nfe, gains, samples, kid]}, as JSON
    data for student.json.

    The plain setting, gain 1 at ``config.look_ahead``, stays to the last round: the result is no
    worse there.
    """
    validation_kid = ValidationKID(params, root, teacher)
    pipeline, _ = build_pipeline(teacher, spec, config)
    pipeline.unet.to(teacher.device).eval()
    if teacher.device.type == "cpu":
        pipeline.unet.to(memory_format=torch.channels_last)
    plain = SamplerGains(config.look_ahead)
    trials: list[dict[str, Any]] = []
    gains_by_nfe: dict[str, Any] = {}

    def features(nfe: int, gains: SamplerGains, low: int, high: int) -> Tensor:
        pipeline.set_plan(nfe, coarse_steps(spec, nfe, config, gains))
        return validation_kid.features(
            lambda x, condition, g: pipeline.rollout(x, None, condition, nfe, g)[0], nfe, low, high
        )

    candidates = settings(plain)
    with progress(
        "calibration", len(config.nfe) * sum(work for *_, work in _rounds(params, len(candidates)))
    ) as advance:
        for nfe in config.nfe:
            left, seen = candidates, {gains: torch.zeros(0) for gains in candidates}
            for low, high, keep, _ in _rounds(params, len(candidates)):
                kids = {}
                for gains in left:
                    seen[gains] = torch.cat([seen[gains], features(nfe, gains, low, high)])
                    kids[gains] = validation_kid.kid_of(seen[gains])
                    trials.append(
                        {"nfe": nfe, "gains": asdict(gains), "samples": high, "kid": kids[gains]}
                    )
                    advance(high - low)
                best = sorted(left, key=lambda gains: kids[gains])[:keep]
                left = best if keep == 1 or plain in best else [*best[:-1], plain]
            gains_by_nfe[str(nfe)] = asdict(left[0])
    return {"gains_by_nfe": gains_by_nfe, "trials": trials}


def settings(plain: SamplerGains) -> list[SamplerGains]:
    """The plain setting, then all others."""
    others = (
        SamplerGains(*numbers) for numbers in product(LOOK_AHEAD, GAIN, LAST_GAIN, NOISE_GAIN)
    )
    return [plain, *(gains for gains in others if gains != plain)]


def _rounds(params: Params, count: int) -> Iterator[tuple[int, int, int, int]]:
    """First and last sample, settings kept, and samples drawn for all settings, round by round."""
    low = 0
    for share, keep in ROUNDS:
        high = max(low + MIN_SAMPLES, round(share * params.student.validation_samples))
        yield low, high, keep, count * (high - low)
        low, count = high, keep
