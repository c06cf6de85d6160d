"""Scale schedules: what is refused, the presets, the spectrum rule, and levels of equal
signal-to-noise ratio.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.common.errors import InputError
from models.methods.swd.schedule import (
    Scale,
    auto_schedule,
    level_of,
    make_schedule,
    preset,
    radial_power,
    short_run,
)
from models.teachers.loading import build_denoiser
from tests.tiny import tiny_dit, tiny_teacher


@pytest.mark.parametrize(
    ("pairs", "line"),
    [
        ([], "no steps"),
        ([(0.9, 8)], "first sigma is 0.9"),
        ([(1.0, 8), (1.0, 16)], "strictly decreasing"),
        ([(1.0, 8), (0.0, 16)], "above 0"),
        ([(1.0, 12), (0.8, 8), (0.5, 16)], "none smaller"),
        ([(1.0, 8), (0.5, 12)], "last size is 12; expected 16"),
        ([(1.0, 6), (0.5, 16)], "size 6; expected a multiple of 4"),
    ],
)
def test_bad_schedules_are_refused(pairs: list[tuple[float, int]], line: str) -> None:
    with pytest.raises(InputError, match=line):
        make_schedule(pairs, 16, 4)


def test_sizes_may_repeat_anywhere() -> None:
    schedule = make_schedule([(1.0, 8), (0.9, 8), (0.5, 16), (0.2, 16)], 16, 8)
    assert schedule == (Scale(1.0, 8), Scale(0.9, 8), Scale(0.5, 16), Scale(0.2, 16))


def test_presets_are_the_papers() -> None:
    assert preset(4, 128, 1) == (
        Scale(1.0, 64),
        Scale(0.8959, 80),
        Scale(0.7371, 96),
        Scale(0.6022, 128),
    )
    assert [s.size for s in preset(6, 128, 1)] == [32, 48, 64, 80, 96, 128]
    assert [s.size for s in preset(4, 16, 4)] == [8, 8, 12, 16]
    with pytest.raises(InputError, match="4 or 6"):
        preset(5, 16, 4)
    assert preset(4, 16, 4, (1.0, 0.75, 0.5, 0.3))[2:] == (Scale(0.5, 12), Scale(0.3, 16))
    with pytest.raises(InputError, match="expected 4, one a step"):
        preset(4, 16, 4, (1.0, 0.5))


def test_power_of_white_noise_is_one_and_of_a_wave_at_its_frequency() -> None:
    white = radial_power(torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert len(white) == 12 and np.abs(white - 1).max() < 0.15
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    power = radial_power(wave)
    assert power[3] > 1 and np.delete(power, 3).max() < 1e-9


def test_auto_takes_the_smallest_size_that_hides_nothing() -> None:
    power = np.zeros(12)
    power[:9] = [100, 50, 20, 10, 4, 1, 0.5, 0.1, 0.01]
    # sigma 0.5: noise-to-signal 1, so frequencies up to 4 matter (P > 1): size 8 holds them
    sizes = {s: auto_schedule(power, (1.0, s, 0.01), 16, 4)[1].size for s in (0.9, 0.5, 0.2)}
    assert sizes == {0.9: 4, 0.5: 8, 0.2: 16}
    assert auto_schedule(power, (1.0, 0.5), 16, 4, smallest=8)[0].size == 8
    assert auto_schedule(np.zeros(12), (1.0, 0.5), 16, 4)[-1].size == 16


@pytest.mark.parametrize("sigma", [0.9454, 0.8959, 0.6022, 0.2])
def test_levels_have_equal_signal_to_noise(sigma: float) -> None:
    teacher = tiny_teacher("epsilon")
    t, alpha, noise = level_of(teacher, sigma)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    cumulative = torch.cumprod(1 - beta, 0)[int(t)]
    assert alpha**2 == pytest.approx(float(cumulative), rel=1e-5)
    assert noise / alpha == pytest.approx(sigma / (1 - sigma), rel=0.02)
    expected = pytest.approx((1000 * sigma, 1 - sigma, sigma), rel=1e-12)
    assert level_of(tiny_teacher("flow"), sigma) == expected


def test_pure_noise_is_the_last_level() -> None:
    assert level_of(tiny_teacher("v_prediction"), 1.0)[0] == 999
    assert level_of(tiny_teacher("flow"), 1.0) == (1000.0, 0.0, 1.0)


def test_strides() -> None:
    from diffusers import DDPMScheduler

    assert tiny_teacher().stride == 2
    assert build_denoiser(tiny_dit(), DDPMScheduler()).stride == 2


def test_short_run_takes_any_size_and_ends_at_the_denoised_image() -> None:
    teacher = tiny_teacher("flow")
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    one = short_run(teacher, noise, 1)
    assert torch.allclose(one, teacher.denoise(noise, 1000.0), atol=1e-6)
    x = noise
    for t in (1000.0, 500.0):  # Euler by hand
        x = x - 0.5 * teacher.predict(x, t)
    assert torch.allclose(short_run(teacher, noise, 2), x, atol=1e-5)
    assert F.interpolate(one, 8).shape[-1] == 8
