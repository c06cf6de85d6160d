"""What RMD (arXiv 2603.06136) adds to the sampler: matched levels, and noise that is carried on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.common.errors import InputError
from models.methods.swd.pipeline import area_weights, carried_noise, renoise, upscale
from models.methods.swd.schedule import make_schedule, matched_levels
from tests.models.methods.made import swd
from tests.tiny import tiny_teacher


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("size", "larger"), [(4, 8), (5, 8), (6, 8), (8, 8), (3, 7)])
def test_carried_noise_is_exactly_white_and_keeps_what_the_small_size_holds(
    size: int, larger: int
) -> None:
    """The map is linear in (noise, fresh), so that its covariance is M M^T."""
    small, large = size * size, larger * larger
    basis = torch.eye(small + large, dtype=torch.float64)
    noise = basis[:, :small].reshape(-1, 1, size, size)
    fresh = basis[:, small:].reshape(-1, 1, larger, larger)
    map_ = carried_noise(noise, fresh).flatten(1)
    assert torch.allclose(map_.T @ map_, torch.eye(large, dtype=torch.float64), atol=1e-9)
    eps, new = normals(2, 1, size, size), normals(2, 1, larger, larger, seed=1)
    seen = F.interpolate(carried_noise(eps, new), size=(size, size), mode="area")
    root = area_weights(larger, size)[1]
    assert torch.allclose(seen, root @ eps @ root, atol=1e-9)
    if larger % size == 0:  # the mean of a block is the noise, as much weaker as the mean is
        assert torch.allclose(seen, eps * size / larger, atol=1e-9)


def test_matched_levels_are_those_of_the_reduced_noisy_image() -> None:
    """A noisy image of 8 pixels, reduced to 4, has half the noise for the same signal."""
    schedule = matched_levels(make_schedule([(1.0, 4), (0.9, 4), (0.7, 6), (0.4, 8)], 8, 2))
    assert [scale.size for scale in schedule] == [4, 4, 6, 8]
    assert schedule[0].sigma == 1.0 and schedule[-1].sigma == pytest.approx(0.4)
    ratio = schedule[1].sigma / (1 - schedule[1].sigma)
    assert ratio == pytest.approx(0.9 / 0.1 * 4 / 8)
    noisy = 0.1 * torch.ones(400, 1, 8, 8, dtype=torch.float64) + 0.9 * normals(400, 1, 8, 8)
    small = F.interpolate(noisy, size=(4, 4), mode="area")
    assert float(small.std()) / 0.1 == pytest.approx(ratio, rel=0.03)


def test_levels_that_no_longer_fall_are_refused() -> None:
    with pytest.raises(InputError, match="expected falling ones"):
        matched_levels(make_schedule([(1.0, 2), (0.5, 2), (0.49, 8)], 8, 2))


def test_the_sampler_carries_the_noise_of_the_step_before() -> None:
    schedule = make_schedule([(1.0, 4), (0.7, 6), (0.4, 8)], 8, 2)
    method = swd(
        tiny_teacher(), schedule, dmd=0.0, gan=0.0, compare="batch", backward_simulation=True,
        renoise="predicted",
    )  # fmt: skip
    pipe = method.pipeline
    assert pipe.config.renoise == "predicted"
    noise = normals(2, 1, 8, 8, dtype=torch.float32)
    xi = [normals(2, 1, s, s, seed=s, dtype=torch.float32) for s in (6, 8)]
    x = noise[..., :4, :4]
    for i, step in enumerate(pipe.scale_schedule):
        x0 = pipe.denoise(step, x)
        if i < 2:
            eps = carried_noise((x - step.alpha * x0) / step.sigma, xi[i])
            later = pipe.scale_schedule[i + 1]
            x = renoise(later, upscale(x0, later.size), eps)
    assert torch.allclose(pipe.rollout(noise, xi)[0], x0, atol=1e-6)
    fresh = swd(
        tiny_teacher(), schedule, dmd=0.0, gan=0.0, compare="batch", backward_simulation=True
    )
    assert not torch.allclose(fresh.pipeline.rollout(noise, xi)[0], x0, atol=1e-2)
    with pytest.raises(ValueError, match="draws fresh noise"):
        pipe.stock_sampler()
