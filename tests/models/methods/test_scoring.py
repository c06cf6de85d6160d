"""The energy score against a plain second implementation, closed forms, and the law it promises."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.common.errors import InputError
from models.methods.scoring import (
    SMOOTHING,
    check_beta,
    energy_score,
    spread_ratio,
    to_patches,
)

ONE = torch.ones(1, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_score(
    p: np.ndarray,
    q: np.ndarray,
    y: np.ndarray,
    weights: tuple[float, ...],
    beta: float,
    patches: tuple[int, ...],
) -> float:
    """(17) patch by patch with slices, for states (n, L, C, *space)."""

    def distance(u: np.ndarray, v: np.ndarray, weight: float) -> float:
        square = weight * float(((u - v) ** 2).sum()) / u.size
        return float((square + SMOOTHING**2) ** (beta / 2) - SMOOTHING**beta)

    means = []
    for size in patches:
        values = []
        space = y.shape[3:]
        edges = [size or edge for edge in space]
        corners = itertools.product(*(range(0, s, e) for s, e in zip(space, edges, strict=True)))
        cuts = [tuple(slice(c, c + e) for c, e in zip(at, edges, strict=True)) for at in corners]
        for n, i, cut in itertools.product(range(len(y)), range(y.shape[1]), cuts):
            a, b, c = (v[n, i][(slice(None), *cut)] for v in (p, q, y))
            w = weights[i]
            values.append(
                0.5 * distance(a, c, w) + 0.5 * distance(b, c, w) - 0.5 * distance(a, b, w)
            )
        means.append(np.mean(values))
    return float(np.mean(means))


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(
    ("space", "patches"),
    [((), (0,)), ((6,), (0, 3)), ((4, 6), (0, 2, 1)), ((2, 4, 4), (2, 0)), ((4, 4), (4,))],
)
def test_equals_a_plain_implementation(
    space: tuple[int, ...], patches: tuple[int, ...], beta: float
) -> None:
    """Vectors, series, images and volumes."""
    p, q, y = (normal(3, 2, 2, *space, seed=s) for s in range(3))
    weights = (0.4, 2.5)
    found = energy_score(p, q, y, torch.tensor(weights, dtype=torch.float64), beta, patches)
    expected = plain_score(p.numpy(), q.numpy(), y.numpy(), weights, beta, patches)
    assert float(found) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("space", [(6,), (4, 6), (2, 4, 6)])
def test_patches_tile_exactly(space: tuple[int, ...]) -> None:
    """Every entry is in one patch, with all channels of its place, and in no other."""
    total = 3 * math.prod(space)
    x = torch.arange(total).view(1, 1, 3, *space)
    tiles = to_patches(x, 2)
    assert tiles.shape == (1, 1, total // (3 * 2 ** len(space)), 3 * 2 ** len(space))
    assert sorted(tiles.flatten().tolist()) == list(range(total))
    corner = x[(0, 0, slice(None), *(slice(0, 2) for _ in space))]
    assert torch.equal(tiles[0, 0, 0], corner.flatten())
    last = x[(0, 0, slice(None), *(slice(edge - 2, edge) for edge in space))]
    assert torch.equal(tiles[0, 0, -1], last.flatten())
    assert torch.equal(to_patches(x, 0), x.reshape(1, 1, 1, total))


@pytest.mark.parametrize(("space", "size"), [((6, 4), 4), ((4, 4), -1), ((), 1), ((4, 4), 8)])
def test_patches_that_do_not_tile_are_refused(space: tuple[int, ...], size: int) -> None:
    with pytest.raises(InputError, match="score_patches.*sizes that divide every axis"):
        to_patches(torch.zeros(1, 1, 2, *space), size)
    with pytest.raises(InputError, match="score_patches"):
        energy_score(*(torch.zeros(1, 1, 1, 4, 4) for _ in range(3)), torch.ones(1), 1.0, ())


@pytest.mark.parametrize("beta", [0.0, -1.0, 2.0, 2.5, math.nan])
def test_beta_out_of_range_is_refused(beta: float) -> None:
    with pytest.raises(InputError, match="score_beta.*above 0 and below 2"):
        energy_score(*(torch.zeros(1, 1, 1) for _ in range(3)), torch.ones(1), beta)
    for fine in (1e-3, 1.0, 1.999):
        check_beta(fine)


def folded_mean(mean: float, std: float) -> float:
    """E|N(mean, std^2)|."""
    density = math.exp(-(mean**2) / (2 * std**2)) * std * math.sqrt(2 / math.pi)
    return density + mean * math.erf(mean / (std * math.sqrt(2)))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.4, 1.0), (0.0, 0.6), (-0.3, 1.5)])
def test_two_draws_are_unbiased(mean: float, std: float) -> None:
    """The mean over pairs is E|p - y| - E|p - q| / 2 in closed form, y ~ N(0, 1), within five
    standard errors (SMOOTHING moves it by less than 1e-3).
    """
    count = 200_000
    p, q, y = (normal(count, 1, 1, seed=s) for s in (3, 4, 5))
    p, q = mean + std * p, mean + std * q
    score = energy_score(p, q, y, ONE)
    expected = folded_mean(mean, math.hypot(std, 1.0)) - 0.5 * folded_mean(0.0, std * math.sqrt(2))
    each = 0.5 * ((p - y).abs() + (q - y).abs() - (p - q).abs())
    assert float(score) == pytest.approx(
        expected, abs=5 * float(each.std()) / math.sqrt(count) + 1e-3
    )
    assert float(each.std()) / math.sqrt(count) < 2e-3


def expected_score(mean: Tensor, factor: Tensor, beta: float, patches: tuple[int, ...]) -> Tensor:
    """Score of N(mean, factor factor^T) on two places against correlated normals; the same draws
    for every candidate.
    """
    count = 60_000
    truth = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    y = normal(count, 2, seed=6) @ truth.T
    p, q = (mean + normal(count, 2, seed=s) @ factor.T for s in (7, 8))
    return energy_score(*(v.view(count, 1, 1, 2) for v in (p, q, y)), ONE, beta, patches)


TRUE_FACTOR = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
WRONG_LAWS = {
    "mean": (torch.tensor([0.3, 0.0], dtype=torch.float64), TRUE_FACTOR),
    "too narrow": (torch.zeros(2, dtype=torch.float64), 0.75 * TRUE_FACTOR),
    "too wide": (torch.zeros(2, dtype=torch.float64), 1.35 * TRUE_FACTOR),
    "no spread": (torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)),
    "independent": (torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)),
}


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("wrong", WRONG_LAWS)
def test_the_true_law_scores_best(wrong: str, beta: float) -> None:
    """Strict propriety over whole states: mean, spread and correlation are all seen."""
    truth = expected_score(torch.zeros(2, dtype=torch.float64), TRUE_FACTOR, beta, (0,))
    assert float(expected_score(*WRONG_LAWS[wrong], beta, (0,)) - truth) > 5e-3


def test_patches_alone_are_proper_for_their_own_law_only() -> None:
    """Single places: wrong marginals lose, a wrong correlation does not; squared error, for
    contrast, prefers no spread at all.
    """
    truth = expected_score(torch.zeros(2, dtype=torch.float64), TRUE_FACTOR, 1.0, (1,))
    for wrong in ("mean", "too narrow", "too wide", "no spread"):
        assert float(expected_score(*WRONG_LAWS[wrong], 1.0, (1,)) - truth) > 5e-3, wrong
    independent = expected_score(*WRONG_LAWS["independent"], 1.0, (1,))
    assert float(independent) == pytest.approx(float(truth), abs=5e-3)
    y = normal(60_000, 2, seed=6) @ TRUE_FACTOR.T
    draws = normal(60_000, 2, seed=7) @ TRUE_FACTOR.T
    assert float((draws - y).square().mean()) > 1.9 * float(y.square().mean())


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
def test_gradient_descent_finds_the_law(beta: float) -> None:
    """From a point mass at the wrong place, where p = q, to the mean and spread of N(0.5, 0.8^2);
    the state passes through a generator p = m + s e.
    """
    generator = torch.Generator().manual_seed(9)
    m, s = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.Adam([m, s], lr=0.03)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 600)
        y = 0.5 + 0.8 * torch.randn(1024, 1, 1, generator=generator, dtype=torch.float64)
        e = torch.randn(2, 1024, 1, 1, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        energy_score(m + s * e[0], m + s * e[1], y, ONE, beta).backward()
        optimizer.step()
    assert float(m.detach()) == pytest.approx(0.5, abs=0.04)
    assert abs(float(s.detach())) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("beta", [0.3, 1.0, 1.9])
def test_gradients(beta: float) -> None:
    """Against finite differences; finite where draws coincide with each other or with the truth."""
    p, q, y = (normal(2, 2, 1, 4, seed=s) for s in range(3))
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64)
    p.requires_grad_()
    q.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: energy_score(a, b, y, weights, beta, (0, 2)), (p, q)
    )
    for draws, truth in ((y, y), (y + 1, y)):
        a = draws.float().clone().requires_grad_()
        score = energy_score(a, draws.float(), truth.float(), weights, beta, (0, 2))
        score.backward()
        assert a.grad is not None and torch.isfinite(a.grad).all()
        assert (draws is not truth) or float(a.grad.abs().max()) == 0.0 == float(score.detach())


def test_weights_are_inverse_variances() -> None:
    """Twice the unit of length and a quarter of the weight give the same score, per step."""
    p, q, y = (normal(4, 3, 1, 4, 4, seed=s) for s in range(3))
    units = torch.tensor([1.0, 2.0, 30.0], dtype=torch.float64)
    scaled = (v * units.view(1, 3, 1, 1, 1) for v in (p, q, y))
    found = energy_score(*scaled, 1 / units**2, 1.3, (0, 2))
    expected = energy_score(p, q, y, torch.ones(3, dtype=torch.float64), 1.3, (0, 2))
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    assert float(energy_score(p, q, y, torch.zeros(3, dtype=torch.float64))) == 0.0


def test_spread_ratio() -> None:
    """0 for equal draws, 1 for the true law, between for one that is too narrow."""
    p, q, y = (normal(20_000, 1, 1, seed=s) for s in range(3))
    assert float(spread_ratio(p, p, y, ONE)) == 0.0
    assert float(spread_ratio(p, q, y, ONE)) == pytest.approx(1.0, abs=0.02)
    narrow = folded_mean(0.0, 0.5 * math.sqrt(2)) / folded_mean(0.0, math.hypot(0.5, 1.0))
    assert float(spread_ratio(0.5 * p, 0.5 * q, y, ONE)) == pytest.approx(narrow, abs=0.02)
