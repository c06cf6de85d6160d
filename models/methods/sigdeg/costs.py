"""The calls of Sig-DEG: what models/methods/sigdeg/method.py does, counted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from models.common.random import generator_for
from models.methods.base import MethodContext
from models.methods.costs import Call, Costs, Updates, scaled
from models.methods.sigdeg.build import (
    MEAN_OF,
    SamplerGains,
    damps,
    history_length,
    input_channels,
    plans_of,
    window_length,
)
from models.methods.sigdeg.calibration import rounds_of, settings
from models.methods.sigdeg.config import SigDEGConfig


class SigDEGCosts(Costs):
    """Calibrated plans ask at other places than plain ones; where the limit on errors at high noise
    lies between the two, a damped step more or less is possible.
    """

    config: SigDEGConfig

    def __init__(self, context: MethodContext, real: bool = False):
        super().__init__(context, real)
        assert context.spec is not None, "Sig-DEG follows cached paths"
        config, teacher = self.config, self.teacher
        plans = plans_of(teacher, context.spec, config)
        limit = config.conditioning_limit if damps(teacher, config, plans) else None
        self.damped = {
            nfe: [limit is not None and step.sigma > limit * step.alpha for step in steps]
            for nfe, steps in plans.items()
        }
        # smaller than the teacher's own, or None
        self.sizes = {
            nfe: [teacher.shape[1] // s.reduction if s.reduction > 1 else None for s in steps]
            for nfe, steps in plans.items()
        }
        # levels where the teacher's errors at small sizes are measured
        self.small = {(s.reduction, s.t): s for p in plans.values() for s in p if s.reduction > 1}
        self.copies = ("frozen",) if limit is not None else ()
        self.channels = input_channels(config, teacher.shape[0], len(plans[config.nfe[0]][0].n))
        self._window = lru_cache(None)(self._updates_of)

    def updates(self, step: int, micro: int = 0) -> Updates:
        config = self.config
        nfe = config.nfe[step % len(config.nfe)]
        length = window_length(config, self.context.total_steps, step, nfe)
        # as the loss draws it, first of all
        generator = generator_for("cpu", self.context.seed, step, micro, 0, 0)
        first = int(torch.randint(nfe - length + 1, (1,), generator=generator))
        return self._window(nfe, first, length)

    def _updates_of(self, nfe: int, first: int, length: int) -> Updates:
        """Of a window of `length` steps of `nfe`, from step `first` on."""
        config = self.config
        calls: list[Call] = []
        for _ in range(2 if config.loss.score else 1):
            for i in range(max(0, first - history_length(config)), first):
                calls += self._at(nfe, i)
            for i in range(first, first + length):
                size = self.sizes[nfe][i]
                calls.append(Call("student", 1, "weights", size))
                if self.damped[nfe][i]:  # the first state of a window needs no gradient
                    calls.append(Call("frozen", 1, "none" if i == first else "input", size))
        if (config.loss.mmd or config.loss.features) and first + length == nfe:
            calls += [Call("teacher", 1, "input"), Call("teacher")]
            calls += [Call("teacher")] if config.loss.mmd and self.real else []
        return [("student", calls)]

    def sampling(self, nfe: int) -> Sequence[Call]:
        return [call for i in range(nfe) for call in self._at(nfe, i)]

    def figures(self, nfe: int) -> Sequence[Call]:
        return self.sampling(nfe)

    def building(self) -> Sequence[Call]:
        return [Call("teacher", MEAN_OF)]

    def preparation(self, count: int) -> Sequence[Call]:
        images = self.config.scales.samples
        sizes = (self.teacher.shape[1] // factor for factor, _ in self.small)
        checks = [Call("teacher", images, size=at) for size in sizes for at in (None, size)]
        if not self.config.calibrate:
            return checks
        candidates = len(settings(SamplerGains(self.config.look_ahead)))
        drawn = sum(samples for *_, samples in rounds_of(count, candidates))
        trials = [scaled(self.sampling(nfe), drawn) for nfe in self.config.nfe]
        return [*checks, *self.building(), *(call for each in trials for call in each)]

    def _at(self, nfe: int, i: int) -> list[Call]:
        """Those of step i of a rollout without gradient."""
        size = self.sizes[nfe][i]
        calls = [Call("student", size=size), Call("frozen", size=size)]
        return calls if self.damped[nfe][i] else calls[:1]
