"""The levels of SwD's losses: a part of the times, or a list."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.methods.swd.levels import NoiseLevels, share_below
from tests.tiny import tiny_teacher


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("part", [0.6, 1.0])
def test_a_part_of_the_times_is_uniform(part: float) -> None:
    levels = NoiseLevels(tiny_teacher(), part)
    t = levels.draw(4000, stream())
    counts = np.histogram(t.numpy(), bins=10, range=(0, 1000 * part))[0]
    assert counts.sum() == 4000 and abs(counts - 400).max() < 80  # 4 sd
    assert levels.contains(t).all()
    assert (t == t.round()).all()


@pytest.mark.parametrize("prediction", ["flow", "epsilon"])
def test_each_level_of_a_list_is_as_likely_and_has_its_signal_to_noise_ratio(
    prediction: str,
) -> None:
    teacher, given = tiny_teacher(prediction), (0.9, 0.5, 0.1)
    levels = NoiseLevels(teacher, given)
    t = levels.draw(3000, stream())
    times, counts = t.unique(return_counts=True)
    assert len(times) == 3 and abs(counts - 1000).max() < 110  # 4 sd
    alpha, sigma = teacher.schedule.alpha_sigma(times.flip(0))
    wanted = torch.tensor([s / (1 - s) for s in given])
    assert torch.allclose(sigma / alpha, wanted, rtol=0.02)
    assert levels.contains(t).all()
    above = NoiseLevels(teacher, 1.0).draw(500, stream(1))
    alpha, sigma = teacher.schedule.alpha_sigma(above)
    assert torch.equal(levels.contains(above), above <= times.max())


def test_one_level_for_a_batch_and_the_same_noise_for_both() -> None:
    teacher = tiny_teacher()
    levels = NoiseLevels(teacher, (0.7, 0.2))
    x0, y0 = torch.randn(2, 64, 1, 8, 8, generator=stream()).unbind()
    t, x_u, y_u = levels.renoised(x0, stream(1), y0, together=True)
    assert len(t.unique()) == 1
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in teacher.schedule.alpha_sigma(t))
    assert torch.allclose(x_u - y_u, alpha * (x0 - y0), atol=1e-5)
    assert float(((x_u - alpha * x0) / sigma).std()) == pytest.approx(1.0, abs=0.05)


def test_the_share_of_levels_that_another_range_holds() -> None:
    assert share_below(0.6, 1.0) == 0.6
    assert share_below(1.0, 0.5) == 1.0
    assert share_below((0.5, 0.2), 1.0) == 0.5
    assert share_below((0.5, 0.2), (1.0, 0.6, 0.5, 0.1)) == 0.5
