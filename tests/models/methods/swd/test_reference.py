"""What the authors of SwD do and the default does not: lists of levels, the fake network's
features, the critic, the first step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from pydantic import ValidationError
from torch import Tensor

from models.methods.base import ImageBatch
from models.methods.swd.build import Critic
from models.methods.swd.config import SwDConfig
from models.methods.swd.losses import image_mmd, linear_mmd
from models.methods.swd.schedule import make_schedule
from tasks.config.presets import compose
from tests.models.methods.made import swd, swd_config
from tests.tiny import tiny_teacher

SCHEDULE = make_schedule([(1.0, 4), (0.9, 4), (0.7, 6), (0.4, 8)], 8, 2)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_levels_of_the_preset_are_those_of_28_times_at_shift_3() -> None:
    method = compose(Path.cwd(), "swd-reference").method
    assert isinstance(method, SwDConfig)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    scheduler.set_timesteps(28)
    sigmas = scheduler.sigmas[:-1].tolist()
    assert method.dmd.fake_levels == pytest.approx(sigmas, abs=5e-5)
    assert method.gan.levels == method.dmd.fake_levels
    assert method.dmd.levels == pytest.approx(sigmas[12:], abs=5e-5)
    assert method.mmd.levels == pytest.approx(sigmas[18:], abs=5e-5)


def test_mmd_in_the_fake_networks_features_moves_the_student_alone() -> None:
    method = swd(tiny_teacher(), SCHEDULE, mmd_features="fake", dmd=0.0)
    assert method.fake is not None
    with torch.no_grad():  # the fake network is no longer the teacher
        for parameter in method.fake.network.parameters():
            parameter.add_(0.1 * normals(*parameter.shape, seed=parameter.numel()))
    x0, y = normals(3, 1, 6, 6).requires_grad_(), normals(3, 1, 6, 6, seed=1)
    found = method._mmd(2, x0, y, None, stream(2))
    t, x_u, y_u = method.mmd_levels.renoised(x0.detach(), stream(2), y)
    tokens = [
        method.fake.features(v, t, None).flatten(2).transpose(1, 2).float() for v in (x_u, y_u)
    ]
    assert float(found.detach()) == pytest.approx(
        float(linear_mmd(*tokens, 1e-3).detach()), rel=1e-4
    )
    plain = swd(tiny_teacher(), SCHEDULE, dmd=0.0)
    assert float(plain._mmd(2, x0, y, None, stream(2)).detach()) != pytest.approx(
        float(found.detach()), rel=1e-2
    )
    found.backward()
    assert x0.grad is not None and float(x0.grad.abs().sum()) > 0
    assert all(p.grad is None for p in method.fake.network.parameters())
    assert all(p.requires_grad for p in method.fake.network.parameters())


@pytest.mark.parametrize(("choice", "batches"), [("auto", True), ("batch", True), ("image", False)])
def test_what_the_first_step_compares(choice: str, batches: bool) -> None:
    method = swd(tiny_teacher(), SCHEDULE, dmd=0.0, gan=0.0, first_step=choice)
    assert [method._batchwise(i) for i in range(4)] == [batches, False, False, False]


def test_the_critic_is_trained_as_often_as_the_fake_network() -> None:
    method = swd(tiny_teacher(), SCHEDULE, fake_updates=3, gan_updates=3, critic="deep")
    assert method.updates(0) == ("fake", "discriminator") * 3 + ("student",)
    batch = ImageBatch(0.5 * normals(8, 1, 8, 8), None, 3)
    for role in dict.fromkeys(method.updates(3)):
        total, _ = method.loss(role, batch, stream())
        assert torch.isfinite(total)


def test_widths_of_the_deep_critic_fall_evenly() -> None:
    critic = Critic(1536, "deep")
    found = [
        (m.in_features, m.out_features) for m in critic.modules() if isinstance(m, torch.nn.Linear)
    ]
    assert found == [(1536, 1152), (1152, 768), (768, 384), (384, 1)]
    assert critic(normals(5, 1536)).shape == (5,)


def test_a_fixed_width_of_the_kernel_by_hand() -> None:
    x, y = normals(1, 3, 2).double(), normals(1, 3, 2, seed=1).double()

    def k(a: Tensor, b: Tensor) -> float:
        return float(torch.exp(-(a - b).square().sum() / (2 * 5.0**2)))

    pairs = [(i, j) for i in range(3) for j in range(3)]
    own = sum(k(v[0, i], v[0, j]) for v in (x, y) for i, j in pairs if i != j) / 6
    wanted = own - 2 * sum(k(x[0, i], y[0, j]) for i, j in pairs) / 9
    assert float(image_mmd(x, y, (9.0,), 5.0)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({"compare": "batch", "mmd_features": "fake"}, "mmd.features = fake: batches are compared"),
        ({"dmd": 0.0, "gan": 0.0, "mmd_features": "fake"}, "there is no fake network"),
        ({"width": 100.0}, "mmd.width = 100.0: expected null"),
        ({"renoise": "predicted"}, "renoise = predicted: inputs made from teacher images"),
        ({"dmd_levels": (0.5, 1.5)}, "less than or equal to 1"),
        ({"dmd_levels": ()}, "at least 1 item"),
    ],
)
def test_options_without_effect_are_refused(choices: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        swd_config(**choices)
