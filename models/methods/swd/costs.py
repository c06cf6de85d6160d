"""The calls of SwD: what models/methods/swd/method.py and gate.py do, counted.

The gate is not known beforehand: DMD is counted at every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from models.methods.base import MethodContext
from models.methods.costs import Call, Costs, Updates, guided
from models.methods.swd.build import MEAN_OF
from models.methods.swd.config import SwDConfig
from models.methods.swd.gate import REFERENCE, schedule_of
from models.methods.swd.levels import share_below
from models.methods.swd.schedule import alternating, level_of, scale_index


class SwDCosts(Costs):
    """A schedule of kind auto follows from the data; every step is counted at full size then."""

    config: SwDConfig
    recomputes = "block"

    def __init__(self, context: MethodContext, real: bool = False):
        super().__init__(context, real)
        config = self.config
        self.schedule = schedule_of(config, self.teacher.shape[1], self.teacher.stride)
        self.sizes = [scale.size for scale in self.schedule]
        self.full = self.teacher.shape[1]
        self.critic = config.gan.weight > 0
        self.fake = self.critic or config.dmd.weight > 0
        self.optimized = ("student", *(["fake"] if self.fake else []))
        self._at = lru_cache(None)(self._updates_at)

    def updates(self, step: int, micro: int = 0) -> Updates:
        return self._at(scale_index(step, len(self.sizes)))

    def _updates_at(self, i: int) -> Updates:
        counts = {
            "fake": self.config.fake_updates if self.fake else 0,
            "discriminator": self.config.gan.updates if self.critic else 0,
        }
        calls = {"fake": self._fake, "discriminator": self._discriminator}
        turns = [(role, calls[role](i)) for role in alternating(counts)]
        return [*turns, ("student", self._student(i))]

    def sampling(self, nfe: int) -> Sequence[Call]:
        return [Call("student", size=size) for size in self.sizes]

    def building(self) -> Sequence[Call]:
        """Mean images of the damped steps."""
        limit = self.config.conditioning_limit
        if not self.teacher.predicts_noise or limit is None:
            return ()
        levels = [(level_of(self.teacher, scale.sigma), scale.size) for scale in self.schedule]
        return [
            Call("teacher", MEAN_OF, size=size)
            for (_, alpha, sigma), size in levels
            if sigma > limit * alpha
        ]

    def preparation(self, count: int) -> Sequence[Call]:
        dmd = self.config.dmd
        if not (dmd.weight and dmd.gate == "on"):
            return ()
        # as many of the teacher's images are reduced as it makes at every size
        reduced = min(dmd.samples, REFERENCE)
        calls = []
        for size in sorted(set(self.sizes)):
            calls.append(Call("teacher", dmd.samples * dmd.steps * guided(self.context), size=size))
            calls += [call._replace(rows=reduced) for call in self._shrunk(size)]
            if self.teacher.codec.latent:
                calls.append(Call("decode", dmd.samples + reduced, size=size))
        return calls

    def _student(self, i: int) -> list[Call]:
        config, size = self.config, self.sizes[i]
        calls = [*self._pair(i), Call("student", 1, "weights", size)]
        if self.fake:
            calls.append(Call("fake", 1, "input" if self.critic else "none", size))
            if config.dmd.weight:
                calls.append(Call("teacher", guided(self.context), "none", size))
        if config.mmd.weight:
            judge = config.mmd.features
            calls += [Call(judge, 1, "input", size), Call(judge, 1, "none", size)]
        return calls

    def _fake(self, i: int) -> list[Call]:
        """With a critic also real features, at the levels that it looks at."""
        size = self.sizes[i]
        calls = [*self._pair(i), Call("student", size=size), Call("fake", 1, "weights", size)]
        if self.critic:
            dmd, gan = self.config.dmd, self.config.gan
            inner = dmd.levels if gan.levels is None else gan.levels
            part = share_below(inner, dmd.fake_levels)
            calls.append(Call("fake", part, "weights", size))
        return calls

    def _discriminator(self, i: int) -> list[Call]:
        size = self.sizes[i]
        return [*self._pair(i), Call("student", size=size), Call("fake", 2, "none", size)]

    def _pair(self, i: int) -> list[Call]:
        """Target and input at step i."""
        target = self._shrunk(self.sizes[i])
        if i == 0 or self.config.backward_simulation:
            return [*target, *(Call("student", size=size) for size in self.sizes[:i])]
        return [*target, *self._shrunk(self.sizes[i - 1])]

    def _shrunk(self, size: int) -> list[Call]:
        """A latent's way through pixels to a smaller size."""
        if not self.teacher.codec.latent or size == self.full:
            return []
        return [Call("decode"), Call("encode", size=size)]
