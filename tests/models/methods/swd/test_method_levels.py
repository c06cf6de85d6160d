"""The noise levels that SwD's losses look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.methods.swd.method import SwD
from tests.models.methods.made import swd
from tests.models.methods.swd.making import CONFIG, SCHEDULE, batch, stream
from tests.tiny import tiny_teacher


def highest_levels(
    method: SwD, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, float], dict[str, bool]]:
    """Filled by each loss: the highest time that it has looked at, and whether its batch shared
    one.
    """
    seen: dict[str, float] = {}
    shared: dict[str, bool] = {}
    for name in ("dmd", "fake", "critic", "mmd"):
        levels = getattr(method, f"{name}_levels")
        kept = levels.renoised

        def renoised(*given: Any, kept: Any = kept, name: str = name, **options: Any) -> Any:
            found = kept(*given, **options)
            seen[name] = max(float(found[0].max()), seen.get(name, 0.0))
            shared[name] = len(found[0].unique()) == 1
            return found

        monkeypatch.setattr(levels, "renoised", renoised)
    return seen, shared


def test_levels_of_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """DMD and GAN look at the lower 60 % of levels, MMD at its own part, the fake network learns
    all; batches share one level.
    """
    method = swd(tiny_teacher(), SCHEDULE, **CONFIG | {"mmd_levels": 0.3})
    seen, shared = highest_levels(method, monkeypatch)
    for role in ("fake", "discriminator", "student"):
        method.loss(role, batch(3, 256), stream())
    for name, part in {"dmd": 0.6, "critic": 0.6, "fake": 1.0, "mmd": 0.3}.items():
        assert 970 * part < seen[name] < 1000 * part, name
    assert not any(shared.values())
    method.loss("student", batch(0, 64), stream())
    assert shared["mmd"] and not shared["dmd"]


@pytest.mark.parametrize("part", [0.79, (0.79, 0.5, 0.01)])
def test_levels_of_dmd_and_gan_are_a_choice(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = swd(tiny_teacher("flow"), SCHEDULE, **CONFIG | {"dmd_levels": part})
    seen, _ = highest_levels(method, monkeypatch)
    for role in ("discriminator", "student"):
        method.loss(role, batch(3, 256), stream())
    for name in ("dmd", "critic"):
        assert 770 < seen[name] <= 790.001, name


def test_fake_loss_of_epsilon_networks_is_bounded_at_high_noise() -> None:
    """An epsilon error e is an error e sigma / alpha of x0, 158 at the last level; it weighs at
    most 10 times.
    """
    method = swd(
        tiny_teacher("epsilon"), SCHEDULE, **CONFIG | {"gan": 0.0, "conditioning_limit": 10.0}
    )
    free = swd(
        tiny_teacher("epsilon"), SCHEDULE, **CONFIG | {"gan": 0.0, "conditioning_limit": None}
    )
    for each in (method, free):
        assert each.fake is not None
        with torch.no_grad():
            each.fake.network.conv_out.bias.add_(1.0)
    given = batch(3, 256)
    bounded, unbounded = (
        float(m.loss("fake", given, stream())[0].detach()) for m in (method, free)
    )
    assert bounded < 0.2 * unbounded
