"""SwD's losses on teachers of prompts: the middle blocks of SD3 and FLUX give text and image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.methods.base import ImageBatch
from models.methods.swd.schedule import make_schedule
from tests.models.methods.made import swd
from tests.models.teachers.texts import prompt_teacher

QUICK = ("sd3", "flux")
OTHERS = ("sd", "sdxl", "pixart", "sana")
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_of_every_network(name: str) -> None:
    teacher: Any = prompt_teacher(name)[1]
    teacher.embed_guidance(3.5)
    full = teacher.shape[-1]
    schedule = make_schedule([(1.0, full // 2), (0.5, full)], full, teacher.stride)
    method = swd(teacher, schedule, trainable="lora", lora_rank=2, guidance=3.5, compare="batch")
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(2, *teacher.shape, generator=generator)
    batch = ImageBatch(x0, teacher.encode_condition(torch.tensor([0, 1])), 1)
    for role in ("fake", "discriminator", "student"):
        loss, terms = method.loss(role, batch, torch.Generator().manual_seed(1))
        assert terms and all(torch.isfinite(value).all() for value in terms.values()), terms
        torch.autograd.backward(loss)
        trained = [p for p in method.networks[role].parameters() if p.requires_grad]
        assert any(p.grad is not None and bool(p.grad.any()) for p in trained)
