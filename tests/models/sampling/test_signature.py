"""Partial signatures against iisignature on whole paths, their law, and Chen's identity."""

from __future__ import annotations

import math

import iisignature
import numpy as np
import pytest
from scipy import stats

from models.sampling.chain import Chain, unroll
from models.sampling.grids import coarse_grid
from models.sampling.signature import (
    Basis,
    bases,
    basis,
    chen_join,
    columns,
    feature_matrix,
    signature_weights,
)
from tests.models.sampling.test_chain import flow_levels, ve_levels, vp_levels

CHAINS = {
    "vp": Chain(vp_levels(100)),
    "vp, eta 0.5": Chain(vp_levels(100), 0.5),
    "flow": Chain(flow_levels(40)),
    "ve": Chain(ve_levels(40)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_weights_are_the_signature_of_the_sampled_path(name: str) -> None:
    """iisignature sees one whole path (u, W^1, W^2, W^3); we see only a matrix product with its
    noise.
    """
    chain, depth, pixels = CHAINS[name], 3, 3
    K = chain.steps
    for lo, hi in [(0, 10), (12, 13), (5, K), (K - 4, K)]:
        z = np.random.default_rng(lo).normal(size=(hi - lo, pixels))
        g = chain.g[lo:hi]
        increments = np.column_stack([g**2 / (g**2).sum(), g[:, None] * z])
        path = np.concatenate([np.zeros((1, pixels + 1)), np.cumsum(increments, 0)])
        signature = iisignature.sig(path, depth)
        found = signature_weights(chain, lo, hi, depth) @ z
        for p in range(depth):
            first = sum((pixels + 1) ** level for level in range(1, p + 1)) + 1  # word 0..01
            expected = signature[first : first + pixels]
            np.testing.assert_allclose(
                found[p], expected, rtol=0, atol=1e-12 * np.abs(g).max() * 10
            )


def test_weights_are_averages_of_powers_of_the_clock() -> None:
    chain = CHAINS["vp"]
    g = chain.g[20:30]
    u = np.append(0, np.cumsum(g**2)) / (g**2).sum()
    for p, row in enumerate(signature_weights(chain, 20, 30, 4)):
        mean = np.diff(u ** (p + 1)) / np.diff(u) / math.factorial(p + 1)
        np.testing.assert_allclose(row, g * mean, rtol=1e-10)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_bases_are_orthonormal_and_reproduce_the_noise(name: str, depth: int) -> None:
    chain = CHAINS[name]
    for part in bases(chain, coarse_grid(chain, 5), depth):
        np.testing.assert_allclose(part.Q.T @ part.Q, np.diag(part.kept.astype(float)), atol=1e-12)
        raw, _scale = columns(chain, part.lo, part.hi, depth)
        np.testing.assert_allclose(part.Q @ part.R, raw, atol=1e-6)
        assert np.all(np.diag(part.R)[part.kept] > 0) and np.allclose(np.tril(part.R, -1), 0)
        w = unroll(chain, part.lo, part.hi).w
        loads = part.Q.T @ w
        np.testing.assert_allclose(loads[1:], 0, atol=1e-12 * max(1, np.abs(w).max()))
        z = np.random.default_rng(0).normal(size=(part.hi - part.lo, 4))
        assert loads[0] == pytest.approx(np.linalg.norm(w), abs=1e-12)
        np.testing.assert_allclose(loads[0] * (part.Q.T @ z)[0], w @ z, rtol=1e-9, atol=1e-12)


def test_dependent_columns_are_dropped() -> None:
    chain = CHAINS["vp"]
    K = chain.steps
    assert basis(chain, 80, K, 2).kept.tolist() == [False, True, True]  # the last a is 0, so w = 0
    assert basis(chain, K - 2, K, 2).kept.tolist() == [False, True, False]  # one noisy step
    assert basis(chain, K - 1, K, 2).kept.tolist() == [False, False, False]  # no noise at all
    assert basis(chain, 10, 12, 3).kept.tolist() == [
        True,
        True,
        False,
        False,
    ]  # two steps, two dimensions
    assert basis(chain, 10, 20, 3).kept.tolist() == [True, True, True, True]
    assert not basis(Chain(vp_levels(100), 0.0), 10, 20, 2).kept.any()  # DDIM


def test_law_of_the_features() -> None:
    """xi of sampled noise is standard normal and uncorrelated, over features and over intervals."""
    chain = CHAINS["vp"]
    parts = bases(chain, coarse_grid(chain, 5), 2)
    matrix = feature_matrix(parts)
    assert matrix.shape == (5, 3, 100)
    kept = np.concatenate([part.kept for part in parts])
    rows = matrix.reshape(15, 100)[kept]
    assert len(rows) == 14
    np.testing.assert_allclose(rows @ rows.T, np.eye(14), atol=1e-12)
    xi = rows @ np.random.default_rng(5).normal(size=(100, 4000))
    assert min(stats.kstest(values, "norm").pvalue for values in xi) > 1e-3
    correlation = np.corrcoef(xi) - np.eye(14)
    assert np.abs(correlation).max() < 5 / math.sqrt(4000)


def test_simulated_terms_have_the_covariance_of_the_path() -> None:
    """Fresh normals through R are jointly as [noise, S_0, S_1, S_2] of a real path: equal Gram
    matrices.
    """
    for name, chain in CHAINS.items():
        for lo, hi in [(0, 8), (8, 32), (20, chain.steps)]:
            part = basis(chain, lo, hi, 3)
            raw = np.column_stack([unroll(chain, lo, hi).w, *signature_weights(chain, lo, hi, 3)])
            simulated = part.R * part.scale
            gram = raw.T @ raw
            size = np.sqrt(np.outer(np.diag(gram), np.diag(gram))) + 1e-300
            np.testing.assert_allclose(
                simulated.T @ simulated / size, gram / size, atol=1e-7, err_msg=name
            )


def joined(chain: Chain, parts: list[Basis], depth: int, z: np.ndarray) -> np.ndarray:
    cached = [part.Q.T @ z[part.lo : part.hi] for part in parts]
    return np.einsum("ajb,jbp->ap", chen_join(chain, parts, depth), np.stack(cached))


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [2, 4])
def test_chen_joins_intervals(name: str, depth: int, count: int) -> None:
    """Features of a long interval from those of its parts alone, without the fine noise."""
    chain = CHAINS[name]
    z = np.random.default_rng(1).normal(size=(chain.steps, 6))
    parts = bases(chain, coarse_grid(chain, 8), depth)
    for first in range(0, 8, count):
        some = parts[first : first + count]
        direct = basis(chain, some[0].lo, some[-1].hi, depth)
        found = joined(chain, some, depth, z)
        np.testing.assert_allclose(found, direct.Q.T @ z[direct.lo : direct.hi], atol=1e-6)


def test_chen_with_short_and_uneven_parts() -> None:
    chain = CHAINS["vp"]
    z = np.random.default_rng(2).normal(size=(100, 3))
    for points in ([0, 1, 2, 9], [30, 31, 60], [90, 97, 99, 100], [97, 98, 99, 100]):
        parts = bases(chain, np.array(points), 2)
        direct = basis(chain, points[0], points[-1], 2)
        expected = direct.Q.T @ z[points[0] : points[-1]]
        np.testing.assert_allclose(joined(chain, parts, 2, z), expected, atol=1e-8)
