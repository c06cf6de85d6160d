"""Losses against plain second implementations, finite differences, and laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.methods.losses import feature_loss, path_loss, rbf_mmd


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("power", [2.0, 1.0, 1.5, 3.0])
def test_path_loss(power: float) -> None:
    """Against a loop over paths and steps, and its gradient."""
    states, target = normal(3, 2, 1, 4, 4), normal(3, 2, 1, 4, 4, seed=1)
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64)
    per_step = np.abs((states - target).numpy()) ** power
    expected = np.mean(
        [[w * per_step[n, i].mean() for i, w in enumerate((0.5, 2.0))] for n in range(3)]
    )
    found = path_loss(states, target, weights, power)
    assert float(found) == pytest.approx(expected, rel=1e-12 if power == 2.0 else 1e-3)
    states.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: path_loss(x, target, weights, power), (states,))
    assert float(path_loss(target, target, weights, power).detach()) <= 1.1e-6 ** (power / 2) * 1.25


def test_feature_loss() -> None:
    """Against numpy, its gradient, and that the length of a place's features does not matter."""
    features, target = normal(2, 5, 3, 3), normal(2, 5, 3, 3, seed=1)
    f, g = (
        v.numpy() / np.linalg.norm(v.numpy(), axis=1, keepdims=True) for v in (features, target)
    )
    expected = np.mean(2 - 2 * (f * g).sum(1))
    assert float(feature_loss(features, target)) == pytest.approx(expected, rel=1e-5)
    assert float(feature_loss(7 * target, target)) == pytest.approx(0, abs=1e-9)
    assert float(feature_loss(-target, target)) == pytest.approx(4, rel=1e-5)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: feature_loss(x, target), (features,))
    zero = torch.zeros(1, 5, 2, 2, requires_grad=True)
    feature_loss(zero, torch.ones(1, 5, 2, 2)).backward()
    assert zero.grad is not None and torch.isfinite(zero.grad).all()


def plain_mmd(x: np.ndarray, y: np.ndarray, bandwidths: tuple[float, ...]) -> float:
    """Gretton et al. 2012, equation (3), pair by pair."""
    between = sorted(
        float(((y[i] - y[j]) ** 2).sum()) for i in range(len(y)) for j in range(len(y)) if i != j
    )
    scale = between[(len(between) - 1) // 2]

    def kernel(u: np.ndarray, v: np.ndarray) -> float:
        distance = float(((u - v) ** 2).sum())
        return float(np.mean([np.exp(-distance / (2 * b**2 * scale)) for b in bandwidths]))

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(u, v) for u in x for v in y) / (n * m)


@pytest.mark.parametrize("sizes", [(6, 9), (2, 2), (40, 30)])
def test_mmd(sizes: tuple[int, int]) -> None:
    """Against the sums over pairs, in double and in single precision, and its gradient."""
    n, m = sizes
    x, y, bandwidths = normal(n, 7), 0.3 + normal(m, 7, seed=1), (0.5, 1.0, 2.0)
    expected = plain_mmd(x.numpy(), y.numpy(), bandwidths)
    assert float(rbf_mmd(x, y, bandwidths)) == pytest.approx(expected, abs=1e-10)
    assert float(rbf_mmd(x.float(), y.float(), bandwidths)) == pytest.approx(expected, abs=1e-4)
    if n < 10:
        x.requires_grad_()
        assert torch.autograd.gradcheck(lambda v: rbf_mmd(v, y, bandwidths), (x,))


def test_mmd_of_many_features_in_single_precision() -> None:
    """Sizes at which distances are computed by a matrix product; an offset must not eat the
    digits.
    """
    x, y = 20 + normal(64, 500), 20 + normal(64, 500, seed=1)
    found = float(rbf_mmd(x.float(), y.float(), (1.0,)))
    assert found == pytest.approx(plain_mmd(x.numpy(), y.numpy(), (1.0,)), abs=1e-4)


def test_mmd_is_unbiased_and_separates() -> None:
    """Over draws of one law it is 0 within its standard error, though 1 / n is 30 of these; a shift
    of half a standard deviation is seen in nearly every draw.
    """
    n, draws = 32, 300
    same = [
        float(rbf_mmd(normal(n, 4, seed=i), normal(n, 4, seed=10_000 + i), (1.0,)))
        for i in range(draws)
    ]
    error = float(np.std(same) / np.sqrt(draws))
    assert abs(np.mean(same)) < 3 * error and error < 1 / n / 30
    assert np.mean(np.array(same) < 0) > 0.3
    other = [
        float(rbf_mmd(normal(n, 4, seed=i), 0.5 + normal(n, 4, seed=-1 - i), (1.0,)))
        for i in range(50)
    ]
    assert np.mean(np.array(other) > np.quantile(same, 0.95)) > 0.9
    assert np.mean(other) > 10 * np.std(same) / np.sqrt(draws)


def test_mmd_needs_two_a_side() -> None:
    with pytest.raises(ValueError, match="two samples a side, got 1 and 3"):
        rbf_mmd(normal(1, 2), normal(3, 2), (1.0,))


def test_mmd_of_laws_given_something() -> None:
    """Against the sum over pairs i != j; 0 within its standard error where the laws given w are
    the same; seen where they are swapped, so that the laws over all w are the same.
    """
    w = torch.linspace(0, 1, 24, dtype=torch.float64)
    near = (-0.5 * ((w[:, None] - w[None]) / 0.2).square()).exp()
    x, y = normal(24, 3) + 3 * w[:, None], normal(24, 3, seed=1) + 3 * w[:, None]
    scale = float(torch.pdist(y).square().median())

    def kernel(u: Tensor, v: Tensor) -> float:
        return float((-(u - v).square().sum() / (2 * scale)).exp())

    pairs = [(i, j) for i in range(24) for j in range(24) if i != j]
    terms = [
        float(near[i, j])
        * (kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(y[i], x[j]))
        for i, j in pairs
    ]
    found = float(rbf_mmd(x, y, (1.0,), closeness=near))
    assert found == pytest.approx(np.mean(terms), abs=1e-10)
    same, other, blind = [], [], []
    for i in range(200):
        y = 0.3 * normal(24, 3, seed=10_000 + i) + 3 * w[:, None]
        x = 0.3 * normal(24, 3, seed=i) + 3 * w[:, None]
        same.append(float(rbf_mmd(x, y, (1.0,), closeness=near)))
        x = x + 3 * (1 - 2 * w[:, None])
        other.append(float(rbf_mmd(x, y, (1.0,), closeness=near)))
        blind.append(float(rbf_mmd(x, y, (1.0,))))
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
    assert min(other) > 10 * max(same) and max(blind) < 0.02
