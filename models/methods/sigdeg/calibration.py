"""Choosing the free numbers of a Sig-DEG schedule before any gradient step.

Coarse steps lose contrast: what happens inside an interval is only partly known to the network. How
far along the path the network is asked, how strongly earlier answers are extrapolated, there and in
the last step, and how much noise there is, are four numbers per schedule
(models/methods/sigdeg/integrator.py). They act on one another, so that moving one at a time stops
in a poor place (docs/LOG.md); all combinations are tried, by successive halving (Jamieson and
Talwalkar, arXiv 1502.07943): many settings on few samples, fewer settings on more. The score is the
rolled-out KID against training images, on held-out noise that all settings share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
from torch import Tensor

from models.methods.base import MethodContext, Validation
from models.methods.sigdeg.build import SamplerGains, build_pipeline, coarse_steps
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.sigdeg.pipeline import SigDEGPipeline
from models.methods.sigdeg.scales import at_scales
from models.sampling.trajectories import PathSpec
from models.teachers.base import Denoiser

LOOK_AHEAD = (0.0, 0.12, 0.25)
GAIN = (1.0, 1.4, 1.8)
LAST_GAIN = (0.0, 0.15)
NOISE_GAIN = (1.0, 1.03)
ROUNDS = ((0.25, 10), (1.0, 3), (3.0, 1))  # samples, in Validation.count; settings that go on
MIN_SAMPLES = 2  # of a score


def calibrate(context: MethodContext, spec: PathSpec) -> dict[str, Any]:
    """{"gains_by_nfe": {nfe: numbers}, "trials": [every score: nfe, gains, samples, kid]}, as JSON
    data for student.json.

    The plain setting, gain 1 at ``config.look_ahead``, stays to the last round: the result is no
    worse there.
    """
    assert context.tools is not None, "calibration needs training images"
    teacher, config, tools = context.teacher, context.config, context.tools
    validation = tools.validation()
    pipeline = build_pipeline(teacher, spec, config)
    pipeline.unet.to(teacher.device).eval()
    if teacher.device.type == "cpu":
        pipeline.unet.to(memory_format=torch.channels_last)
    plain = SamplerGains(config.look_ahead)
    candidates = settings(plain)
    rounds = list(rounds_of(validation.count, len(candidates)))
    chosen: dict[str, Any] = {}
    trials: list[dict[str, Any]] = []
    with tools.progress("calibration", len(config.nfe) * sum(r[-1] for r in rounds)) as advance:
        for nfe in config.nfe:
            search = _Search(pipeline, spec, config, validation, nfe, candidates, teacher)
            for low, high, keep, _ in rounds:
                for trial in search.round(low, high, keep, plain):
                    trials.append(trial)
                    advance(high - low)
            chosen[str(nfe)] = asdict(search.left[0])
    return {"gains_by_nfe": chosen, "trials": trials}


class _Search:
    """Successive halving for one number of steps; ``left``: settings still in it, the best
    first after a round.
    """

    def __init__(
        self,
        pipeline: SigDEGPipeline,
        spec: PathSpec,
        config: SigDEGConfig,
        validation: Validation,
        nfe: int,
        candidates: Sequence[SamplerGains],
        teacher: Denoiser,
    ):
        self.teacher = teacher
        self.pipeline, self.spec, self.config = pipeline, spec, config
        self.validation, self.nfe = validation, nfe
        self.left = list(candidates)
        self.seen = {gains: torch.zeros(0) for gains in candidates}

    def round(
        self, low: int, high: int, keep: int, plain: SamplerGains
    ) -> Iterator[dict[str, Any]]:
        """Score what is left on samples low to high - 1 more; keep the best, and ``plain``."""
        kids = {}
        for gains in self.left:
            self.seen[gains] = torch.cat([self.seen[gains], self._features(gains, low, high)])
            kids[gains] = self.validation.kid_of(self.seen[gains])
            yield {
                "nfe": self.nfe,
                "gains": asdict(gains),
                "samples": high,
                "kid": kids[gains],
            }
        best = sorted(self.left, key=lambda gains: kids[gains])[:keep]
        self.left = best if keep == 1 or plain in best else [*best[:-1], plain]

    def _features(self, gains: SamplerGains, low: int, high: int) -> Tensor:
        nfe = self.nfe
        steps = coarse_steps(self.spec, nfe, self.config, gains)
        self.pipeline.set_plan(nfe, at_scales(steps, self.spec, self.config, self.teacher))
        return self.validation.features(
            lambda x, condition, g: self.pipeline.rollout(x, None, condition, nfe, g)[0],
            nfe,
            low,
            high,
        )


def settings(plain: SamplerGains) -> list[SamplerGains]:
    """The plain setting, then all others."""
    others = (
        SamplerGains(*numbers) for numbers in product(LOOK_AHEAD, GAIN, LAST_GAIN, NOISE_GAIN)
    )
    return [plain, *(gains for gains in others if gains != plain)]


def rounds_of(samples: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """First and last sample, settings kept, and samples drawn for all settings, round by round."""
    low = 0
    for share, keep in ROUNDS:
        high = max(low + MIN_SAMPLES, round(share * samples))
        yield low, high, keep, count * (high - low)
        low, count = high, keep
