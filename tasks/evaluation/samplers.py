"""What the evaluation compares: samplers as plain functions, and where their inputs come from.

The only place of the evaluation that knows how teacher, trajectories and student are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.evaluation.series.gaussian_laws import GaussianLaw
from models.sampling import baselines
from models.sampling.grids import places
from models.teachers.conditioning import Condition
from models.teachers.guidance import Guidance
from tasks.data.reference import to_bytes


class Sampler(Protocol):
    """Clean states (n, C, H, W) from start noise (n, C, H, W); a condition or None."""

    def __call__(
        self, noise: Tensor, condition: Condition | None, generator: torch.Generator
    ) -> Tensor: ...


class Rollout(Protocol):
    """A few-step generator: (x0, what it passed on its way); xi None means fresh noise.

    Sig-DEG passes states (n, nfe + 1, C, H, W); xi are path features then.
    """

    def __call__(
        self,
        noise: Tensor,
        xi: Tensor | None,
        condition: Condition | None,
        nfe: int,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class Paths:
    """Teacher paths: start noise (n, C, H, W), states (n, N + 1, C, H, W), a condition or None.

    `xi` holds the path features (p, nfe, F, C, H, W) of the first p <= n paths for each number of
    steps.
    """

    noise: Tensor
    states: Tensor
    xi: dict[int, Tensor]
    condition: Condition | None

    def __len__(self) -> int:
        return len(self.noise)

    def head(self, n: int) -> Paths:
        condition = None if self.condition is None else self.condition[:n]
        return Paths(
            self.noise[:n], self.states[:n], {k: v[:n] for k, v in self.xi.items()}, condition
        )

    def to(self, device: torch.device) -> Paths:
        condition = None if self.condition is None else self.condition.to(device)
        xi = {nfe: values.to(device) for nfe, values in self.xi.items()}
        return Paths(self.noise.to(device), self.states.to(device), xi, condition)

    def coarse(self, nfe: int) -> Tensor:
        """States (n, nfe + 1, C, H, W) where ``nfe`` steps begin and end."""
        return self.states[:, torch.as_tensor(places(self.states.shape[1] - 1, nfe))]


@dataclass(frozen=True)
class Inputs:
    """Everything that is evaluated.

    `kind`: what the teacher makes, images or series; `channels`: names of series' channels; `law`:
    their exact law, where it is known; `prompts`: the texts of the start noise, in turn, where the
    teacher takes any. `real`: what samples are compared with, real data, or with `against`
    "teacher" the teacher's own images; `other_real`: training data, the teacher's own images where
    there are none (`has_data`). `generators` maps `student` and `untrained` to their rollouts;
    `calls` gives a generator's network calls where they are not its number of steps; `others` are
    more rollouts (controls, other students) with the numbers of steps they are made for; `titles`
    are shown for both; `steps` is the length of the teacher's full run.
    """

    teacher: Any
    generators: dict[str, Rollout]
    paths: Paths
    real: Tensor
    other_real: Tensor
    nfe: tuple[int, ...]
    steps: int
    guidance: Guidance = 1.0
    kind: str = "images"
    channels: tuple[str, ...] = ()
    law: GaussianLaw | None = None
    prompts: tuple[str, ...] | None = None
    against: str = "real"
    has_data: bool = True
    calls: dict[tuple[str, int], int] = field(default_factory=dict)
    others: dict[str, tuple[Rollout, tuple[int, ...]]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    lineage: dict[str, str] = field(default_factory=dict)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def decode(self, x0: Tensor) -> Tensor:
        """Images (n, 1 or 3, H, W) in [-1, 1], or series (n, C, L) in their units, on the CPU."""
        return self.teacher.decode(x0.to(self.device)).float().cpu()

    def kept(self, data: Tensor) -> np.ndarray:
        """Decoded data as they are stored: images uint8, series float32."""
        return to_bytes(data) if self.kind == "images" else data.numpy().astype(np.float32)

    def prompts_of(self, count: int) -> tuple[str, ...] | None:
        """The prompts of the first images."""
        if self.prompts is None:
            return None
        return tuple(self.prompts[index % len(self.prompts)] for index in range(count))

    def sampler(self, name: str, nfe: int) -> Sampler:
        """The generator, other rollout or training-free sampler (in a spacing) of this name."""
        known = name in self.generators or name in self.others
        return self.generator(name, nfe) if known else self.baseline(name, nfe)

    def baseline(self, name: str, nfe: int) -> Sampler:
        def sample(
            noise: Tensor, condition: Condition | None, generator: torch.Generator
        ) -> Tensor:
            return baselines.sample_baseline(
                self.teacher, name, nfe, noise, condition, self.guidance, generator
            )

        return sample

    def generator(self, name: str, nfe: int) -> Sampler:
        rollout = self.generators[name] if name in self.generators else self.others[name][0]

        def sample(
            noise: Tensor, condition: Condition | None, generator: torch.Generator
        ) -> Tensor:
            return rollout(noise, None, condition, nfe, generator)[0]

        return sample


def choose_nfe(wanted: Sequence[int] | None, supported: Sequence[int]) -> tuple[int, ...]:
    """The numbers of steps to evaluate, the larger first; InputError for one the student was not
    made for.
    """
    chosen = tuple(sorted(wanted or supported, reverse=True))
    if unknown := [nfe for nfe in chosen if nfe not in supported]:
        raise InputError(
            f"evaluation.nfe = {unknown[0]}: the student was trained for {list(supported)}; "
            "leave evaluation.nfe null or change method.nfe"
        )
    return chosen
