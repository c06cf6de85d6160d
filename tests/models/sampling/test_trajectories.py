"""Noise that is drawn along its own features: laws and the exact projection of (5a)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from models.sampling.chain import Chain
from models.sampling.grids import coarse_grid
from models.sampling.signature import bases, feature_matrix
from models.sampling.trajectories import (
    PathSpec,
    kept_features,
    movement,
    path_features,
    path_noise,
    path_weights,
    teacher_paths,
)
from models.teachers.guidance import GuidanceRange
from tests.models.tinypaths import spec_of as tiny_spec
from tests.models.tinypaths import teacher_of
from tests.tiny import tiny_teacher

SHAPE = (1, 4, 4)


def spec_of(eta: float = 1.0, steps: int = 12, intervals: int = 4, depth: int = 2) -> PathSpec:
    chain = Chain(tiny_teacher().schedule.levels(steps), eta)
    grid = coarse_grid(chain, intervals)
    return PathSpec(chain, grid, bases(chain, grid, depth), seed=5)


def drawn(spec: PathSpec, count: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """(z (n, K, pixels), xi (n, N, m + 1, pixels)) in float64."""
    kept = kept_features(spec.parts)
    z = path_noise(spec, split, range(count), SHAPE)[:, 1:].flatten(2)
    xi = path_features(spec.seed, split, range(count), kept, SHAPE).flatten(3)
    return z.double().numpy(), xi.double().numpy()


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("steps", "intervals", "depth"), [(12, 4, 2), (40, 20, 3), (7, 7, 1)])
def test_the_features_of_the_noise_are_those_drawn(
    eta: float, steps: int, intervals: int, depth: int
) -> None:
    spec = spec_of(eta, steps, intervals, depth)
    z, xi = drawn(spec, 5)
    projected = np.einsum("npk,ikx->inpx", feature_matrix(spec.parts), z)
    np.testing.assert_allclose(projected, xi, atol=2e-6)
    dropped = ~kept_features(spec.parts)
    assert dropped.any() and (xi[:, dropped] == 0).all()  # the last step has no noise at least


def test_a_deterministic_chain_draws_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are zero, of the usual shape, and no generator is asked for them."""
    kept = kept_features(spec_of(0.0).parts)
    monkeypatch.setattr("models.sampling.trajectories.generator_for", lambda *key: 1 / 0)
    xi = path_features(5, "train", [3, 1], kept, SHAPE)
    assert xi.shape == (2, 4, 3, *SHAPE) and xi.dtype == torch.float32 and not xi.any()
    with pytest.raises(ZeroDivisionError):
        path_features(5, "train", [3], kept_features(spec_of(0.1).parts), SHAPE)


def test_the_features_are_standard_normal_and_independent() -> None:
    spec = spec_of()
    _, xi = drawn(spec, 2000)
    kept = xi[:, kept_features(spec.parts)]  # (n, features, pixels)
    for column in kept.transpose(1, 0, 2).reshape(kept.shape[1], -1):
        assert stats.kstest(column, "norm").pvalue > 1e-4
    rows = kept.transpose(0, 2, 1).reshape(-1, kept.shape[1])  # over paths and pixels
    _assert_identity(rows)
    _assert_identity(kept[:, 0])  # pixels among each other


def test_the_noise_is_standard_normal_and_independent() -> None:
    """Over the steps of a path, over pixels and over paths, and in every direction of (5a)."""
    spec = spec_of()
    z, _ = drawn(spec, 2000)
    steps = z.transpose(0, 2, 1).reshape(-1, z.shape[1])
    for column in steps.T:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    _assert_identity(steps)
    _assert_identity(z[:, 3])
    along = feature_matrix(spec.parts).reshape(-1, spec.chain.steps)
    complement = np.eye(spec.chain.steps) - along.T @ along
    for directions in (along, complement):  # the drawn part and the rest, each with its own law
        covariance = (steps @ directions.T).T @ (steps @ directions.T) / len(steps)
        np.testing.assert_allclose(covariance, directions @ directions.T, atol=0.03)
    pairs = np.corrcoef(z[:1000].ravel(), z[1000:].ravel())[0, 1]
    assert abs(pairs) < 5 / z[:1000].size ** 0.5


def test_the_noise_is_a_function_of_seed_split_and_index() -> None:
    """Whatever is drawn with it, and on any number of threads; the start is that of every grid."""
    spec = spec_of()
    whole = path_noise(spec, "train", range(6), SHAPE)
    assert torch.equal(path_noise(spec, "train", [4, 1], SHAPE), whole[[4, 1]])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(path_noise(spec, "train", range(6), SHAPE), whole)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    finer = path_noise(spec_of(intervals=6), "train", range(6), SHAPE)
    assert torch.equal(finer[:, 0], whole[:, 0]) and not torch.equal(finer[:, 1:], whole[:, 1:])
    other = path_noise(spec, "validation", range(6), SHAPE)
    assert not (other == whole).any() and not (whole[0] == whole[1]).any()
    kept = kept_features(spec.parts)
    assert path_features(spec.seed, "train", [], kept, SHAPE).shape == (0, 4, 3, *SHAPE)


def _assert_identity(rows: np.ndarray) -> None:
    """The second moments of independent standard normals, within five standard errors."""
    count = len(rows)
    moments = rows.T @ rows / count
    off = moments - np.eye(len(moments))
    assert np.abs(off).max() < 5 * (2 / count) ** 0.5


def test_paths_have_weights_of_their_own() -> None:
    """Uniform, of no other stream's numbers, a function of seed, split and number alone."""
    given = GuidanceRange(2.0, 6.0)
    weights = path_weights(given, 5, "train", range(2000))
    assert weights is not None and weights.dtype == torch.float32
    assert float(weights.min()) >= 2.0 and float(weights.max()) <= 6.0
    assert stats.kstest(weights.numpy(), stats.uniform(2.0, 4.0).cdf).pvalue > 1e-3
    neighbours = stats.spearmanr(weights[1:], weights[:-1])
    assert neighbours.pvalue > 1e-3
    some = path_weights(given, 5, "train", [1999, 3])
    assert some is not None and some.tolist() == weights[[1999, 3]].tolist()
    for other in (
        path_weights(given, 6, "train", range(5)),
        path_weights(given, 5, "validation", range(5)),
    ):
        assert other is not None and not torch.equal(other, weights[:5])
    assert path_weights(3.0, 5, "train", range(5)) is None


def test_paths_follow_their_own_weights() -> None:
    """Whatever is advanced together; each path is that of a teacher at its one weight."""
    teacher = teacher_of("conditional")
    plain = tiny_spec(teacher)
    given = GuidanceRange(1.0, 9.0)
    spec = replace(plain, lane=4, guidance=given)
    whole = teacher_paths(teacher, spec, "train", 0, 10, batch_size=8)["Y"]
    parts = [teacher_paths(teacher, spec, "train", a, b)["Y"] for a, b in ((0, 3), (3, 10))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    weights = path_weights(given, spec.seed, "train", range(10))
    assert weights is not None
    for i in (0, 7):
        alone = replace(plain, lane=4, guidance=float(weights[i]))
        expected = teacher_paths(teacher, alone, "train", 0, 10)["Y"][i]
        np.testing.assert_allclose(whole[i], expected, atol=1e-5)
    unguided = teacher_paths(teacher, plain, "train", 0, 10)["Y"]
    assert np.abs(whole - unguided).max() > 1e-3
    pilot = replace(spec, grid=np.zeros(0), parts=())
    assert np.isfinite(movement(teacher, pilot)).all()
