"""The gate of SwD's distribution matching: what it compares the teacher's small samples with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.methods.base import MethodContext
from models.methods.swd.config import SwDConfig
from models.methods.swd.gate import measure_scales
from models.teachers.base import Denoiser
from tests.models.teachers.texts import prompt_teacher
from tests.tiny import tiny_teacher


class Means:
    """Features: mean and deviation of each channel."""

    label, dim = "means", 2

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


class Tools:
    """Cached states and training images of a made-up run."""

    def __init__(self, teacher: Denoiser, states: float) -> None:
        self.teacher, self.states = teacher, states

    def teacher_states(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return self.states * torch.randn((16, *self.teacher.shape), generator=generator)

    def training_images(self) -> np.ndarray:
        shape = self.teacher.decode(torch.zeros(1, *self.teacher.shape)).shape[1:]
        return np.random.default_rng(0).integers(0, 255, (20, *shape), dtype=np.uint8)

    def extractor(self) -> Any:
        return Means()

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: None


def gate(teacher: Denoiser, states: float) -> list[dict[str, Any]]:
    full = teacher.shape[1]
    pairs = ((1.0, full // 2), (0.5, full))
    dmd = {"samples": 8, "steps": 2}
    config = SwDConfig.model_validate({"schedule": {"kind": "given", "pairs": pairs}, "dmd": dmd})
    tools: Any = Tools(teacher, states)
    found: list[dict[str, Any]] = measure_scales(MethodContext(teacher, config, tools=tools))[
        "gate"
    ]
    return found


@pytest.mark.parametrize("prompts", [True, False])
def test_of_prompts_the_full_size_images_are_made_of_the_same_prompts(prompts: bool) -> None:
    """Cached states are of held-out prompts, which other images may belong to."""
    teacher = prompt_teacher("sd", 32)[1] if prompts else tiny_teacher()
    first, second = gate(teacher, 0.5), gate(teacher, 2.0)
    assert [row["kid"] for row in first] == [row["kid"] for row in second]
    bases = [[row["reduced_kid"] for row in rows] for rows in (first, second)]
    assert (bases[0] == bases[1]) == prompts
    if prompts:  # at full size it is the teacher's own samples against themselves
        assert first[-1]["kid"] == pytest.approx(first[-1]["reduced_kid"], rel=1e-6)
