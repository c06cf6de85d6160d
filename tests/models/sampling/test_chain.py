"""The fine chain against diffusers' schedulers, and its exact unrolling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from models.common.errors import InputError
from models.sampling.chain import Chain, unroll
from models.sampling.grids import adaptive_grid, coarse_grid, places, subgrid
from models.teachers.base import to_x0
from models.teachers.loading import build_denoiser
from models.teachers.schedule import Levels
from tests.tiny import tiny_unet


def in_double(scheduler: Any) -> Any:
    """Diffusers keeps alphas_cumprod in float32, which alone limits agreement to three digits at K
    = 1000.
    """
    for name in ("alphas_cumprod", "one", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def flow_levels(steps: int) -> Levels:
    sigma = np.linspace(1.0, 0.0, steps + 1)
    return Levels(t=1000 * sigma[:-1], alpha=1 - sigma, sigma=sigma)


def ve_levels(steps: int) -> Levels:
    sigma = np.append(np.geomspace(80.0, 0.002, steps), 0.0)
    return Levels(t=sigma[:-1], alpha=np.ones(steps + 1), sigma=sigma)


def vp_levels(steps: int) -> Levels:
    alpha = np.cos(np.linspace(1.5, 0.0, steps + 1))
    return Levels(t=np.arange(steps)[::-1].astype(float), alpha=alpha, sigma=np.sqrt(1 - alpha**2))


LEVELS = {"vp": vp_levels, "flow": flow_levels, "ve": ve_levels}
SETTINGS = {"clip_sample": False, "timestep_spacing": "trailing"}


def largest_gap(scheduler: Any, steps: int, prediction: str, eta: float) -> float:
    """Largest difference to the scheduler over one path, of every step, over the size of the
    state.
    """
    options = {"eta": eta} if isinstance(scheduler, DDIMScheduler) else {}
    levels = build_denoiser(tiny_unet(), in_double(scheduler)).schedule.levels(steps)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == levels.t.tolist()
    chain = Chain(levels, eta)
    theirs, ours = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    worst = 0.0
    for k, t in enumerate(scheduler.timesteps):
        output = torch.sin(3 * x + 0.01 * k)  # any network
        y = scheduler.step(output, int(t), x, generator=theirs, **options).prev_sample
        alpha, sigma = torch.tensor(levels.alpha[k]), torch.tensor(levels.sigma[k])
        z = torch.randn(x.shape, generator=ours, dtype=torch.float64)
        x = (
            chain.a[k] * x
            + chain.b[k] * to_x0(prediction, output, x, alpha, sigma)
            + chain.s[k] * z
        )
        worst = max(worst, float((x - y).abs().max() / x.abs().max()))
    return worst


@pytest.mark.parametrize("steps", [100, 1000])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_eta_one_is_ddpm(prediction: str, steps: int) -> None:
    scheduler = DDPMScheduler(variance_type="fixed_small", prediction_type=prediction, **SETTINGS)
    assert largest_gap(scheduler, steps, prediction, 1.0) < 1e-9


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_any_eta_is_ddim(prediction: str, eta: float) -> None:
    for steps in (100, 1000):
        scheduler = DDIMScheduler(prediction_type=prediction, **SETTINGS)
        assert largest_gap(scheduler, steps, prediction, eta) < 1e-9


def test_steps_that_do_not_divide_the_teachers_are_distinct() -> None:
    teacher = build_denoiser(tiny_unet(), DDPMScheduler(**SETTINGS))
    for steps in (1, 3, 7, 333, 501, 667, 999):
        t = teacher.schedule.levels(steps).t
        assert len(t) == steps and t[0] == 999 and t[-1] >= 0 and np.all(np.diff(t) < 0)
    with pytest.raises(InputError, match="1001"):
        teacher.schedule.levels(1001)


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_marginals_are_kept(kind: str, eta: float) -> None:
    """With denoise = x0, x_k ~ N(alpha_k x0, sigma_k^2) implies the same at k + 1."""
    chain = Chain(LEVELS[kind](40), eta)
    alpha, sigma = chain.levels.alpha, chain.levels.sigma
    np.testing.assert_allclose(chain.a * alpha[:-1] + chain.b, alpha[1:], atol=1e-14)
    np.testing.assert_allclose(
        chain.a**2 * sigma[:-1] ** 2 + chain.s**2, sigma[1:] ** 2, rtol=1e-12
    )
    assert chain.a[-1] == 0.0 and chain.s[-1] == 0.0


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_unrolling_is_an_identity(kind: str, eta: float) -> None:
    """(2) for arbitrary denoiser outputs and every kind of interval."""
    K = 60
    chain = Chain(LEVELS[kind](K), eta)
    generator = np.random.default_rng(3)
    x0, z = generator.normal(size=(2, K, 5))
    x = [generator.normal(size=5) * chain.levels.sigma[0]]
    for k in range(K):
        x.append(chain.a[k] * x[-1] + chain.b[k] * x0[k] + chain.s[k] * z[k])
    for lo, hi in [(0, 1), (0, K), (7, 8), (3, 29), (40, K), (K - 1, K)]:
        part = unroll(chain, lo, hi)
        assert part.omega.sum() == pytest.approx(1.0, abs=1e-12) and part.omega.min() >= 0
        found = part.A * x[lo] + part.B * (part.omega @ x0[lo:hi]) + part.w @ z[lo:hi]
        np.testing.assert_allclose(found, x[hi], rtol=0, atol=1e-10 * max(1.0, np.abs(x[lo]).max()))


def test_index_grid() -> None:
    chain = Chain(vp_levels(100))
    assert coarse_grid(chain, 4).tolist() == [0, 25, 50, 75, 100]
    assert coarse_grid(chain, 100).tolist() == list(range(101))
    uneven = coarse_grid(chain, 7)
    assert uneven[0] == 0 and uneven[-1] == 100 and set(np.diff(uneven)) == {14, 15}


@pytest.mark.parametrize("kind", LEVELS)
def test_logsnr_grid_takes_equal_steps(kind: str) -> None:
    chain = Chain(LEVELS[kind](1000))
    grid = coarse_grid(chain, 8, "logsnr")
    steps = np.diff(chain.half_logsnr[grid[1:-1]])
    assert steps.std() / steps.mean() < 0.1
    for intervals in (1, 2, 5, 19, 20):
        assert len(coarse_grid(Chain(LEVELS[kind](20)), intervals, "logsnr")) == intervals + 1


def test_given_grid_and_subgrid() -> None:
    chain = Chain(vp_levels(10))
    assert coarse_grid(chain, 3, "given", [0, 1, 4, 10]).tolist() == [0, 1, 4, 10]
    for points in ([0, 4, 4, 10], [1, 4, 6, 10], [0, 4, 6, 9], [0, 4, 10], [0, 6, 4, 10]):
        with pytest.raises(InputError, match="coarse grid"):
            coarse_grid(chain, 3, "given", points)
    with pytest.raises(InputError, match=r"intervals = 11: .*steps = 10"):
        coarse_grid(chain, 11)
    grid = coarse_grid(Chain(vp_levels(100)), 20)
    assert subgrid(grid, 5).tolist() == [0, 20, 40, 60, 80, 100]
    assert subgrid(grid, 20).tolist() == grid.tolist()
    assert subgrid(grid, 3).tolist() == [0, 35, 65, 100]  # 6.67 and 13.33 of 20
    for total in range(1, 30):
        for n in range(1, total + 1):
            found = places(total, n)
            assert found[0] == 0 and found[-1] == total and (np.diff(found) >= 1).all()
            assert np.abs(found - np.arange(n + 1) * total / n).max() <= 0.5
    for wrong in (40, 21, 0):
        with pytest.raises(InputError, match=f"method.nfe {wrong}: expected 1 to 20"):
            subgrid(grid, wrong)


def test_adaptive_grid_shares_movement_out() -> None:
    assert adaptive_grid(np.full(100, 3.0), 4).tolist() == [
        0,
        25,
        50,
        75,
        101,
    ]  # clean data is one step further
    moves = np.where(np.arange(100) < 50, 1.0, 16.0)  # the fourth root counts: 1 and 2
    assert adaptive_grid(moves, 3).tolist() == [0, 50, 75, 101]
    still = np.zeros(19)
    still[10] = 1.0
    for intervals in (1, 2, 7, 20):
        grid = adaptive_grid(still, intervals)
        assert (
            len(grid) == intervals + 1
            and (grid[0], grid[-1]) == (0, 20)
            and np.all(np.diff(grid) > 0)
        )
    with pytest.raises(InputError, match=r"intervals = 21"):
        adaptive_grid(still, 21)


def test_adaptive_grids_are_nested() -> None:
    """Quantiles: halving the intervals keeps every second point, as long as points do not
    coincide.
    """
    moves = np.random.default_rng(0).uniform(0.5, 2.0, 119)
    fine = adaptive_grid(moves, 16)
    shares = np.append(0.0, np.cumsum(moves**0.25))[fine[:-1]] / np.sum(moves**0.25)
    np.testing.assert_allclose(shares, np.arange(16) / 16, atol=0.01)
    for intervals in (1, 2, 4, 8):
        assert adaptive_grid(moves, intervals).tolist() == subgrid(fine, intervals).tolist()


def test_bad_chains() -> None:
    with pytest.raises(InputError, match=r"eta = 1.5"):
        Chain(vp_levels(10), 1.5)
    levels = vp_levels(10)
    backwards = Levels(levels.t, levels.alpha[::-1].copy(), levels.sigma[::-1].copy())
    with pytest.raises(InputError, match="not monotone"):
        Chain(backwards)
