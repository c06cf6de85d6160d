"""Scale-wise Sig-DEG: sizes, noise levels, the split into low-pass and high-pass part, and its law
on a Gaussian field, exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy.stats import chi2, kstest
from torch import Tensor

from models.common.errors import InputError
from models.methods.sigdeg.build import build_pipeline, plans_of
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.sigdeg.pipeline import Step, details, enlarged, lifted, reduced
from models.sampling.chain import Chain
from models.sampling.grids import coarse_grid, subgrid
from models.sampling.signature import bases
from models.sampling.trajectories import PathSpec
from models.teachers.gaussian_field import FieldTeacher, power_law
from scripts.scale_wise_field import covariances, entry_loss, field_spec, kl, wasserstein
from tests.models.methods.made import sigdeg_config

SIZE, SMALL = 8, 4


def field_teacher() -> FieldTeacher:
    return FieldTeacher(power_law(SIZE))


def spec_of(teacher: FieldTeacher, intervals: int, steps: int = 24, eta: float = 1.0) -> PathSpec:
    chain = Chain(teacher.schedule.levels(steps), eta)
    grid = coarse_grid(chain, intervals)
    return PathSpec(chain, grid, bases(chain, grid, 2), seed=3)


def pairs_for(spec: PathSpec, nfe: int, small: int) -> tuple[tuple[float, int], ...]:
    """The first ``small`` of ``nfe`` steps at half size; levels of flow matching."""
    start = subgrid(spec.grid, nfe)[small]
    return ((1.0, SMALL), (float(spec.chain.levels.sigma[start]) + 1e-9, SIZE))


def config_of(spec: PathSpec, nfe: int, small: int, **choices: Any) -> SigDEGConfig:
    scales = {"pairs": pairs_for(spec, nfe, small)} if small else {}
    plain = {"nfe": (nfe,), "inputs": "none", "window_start": nfe}
    return sigdeg_config(**(plain | {"scales": scales} | choices))


def steps_for(spec: PathSpec, nfe: int, small: int, **choices: Any) -> list[Step]:
    config = config_of(spec, nfe, small, **choices)
    return plans_of(field_teacher(), spec, config)[nfe]


def matrix(function: Any, size: int) -> Tensor:
    """A linear map of images as a matrix, its answers to unit images as columns."""
    eye = torch.eye(size**2, dtype=torch.float64).reshape(-1, 1, size, size)
    return function(eye).flatten(1).T


L = matrix(lambda x: F.avg_pool2d(x, 2) * 2, SIZE)
H = torch.eye(SIZE**2, dtype=torch.float64) - L.T @ L
UP = matrix(lambda x: F.interpolate(x, size=(SIZE, SIZE), mode="bicubic"), SMALL) / 2


@pytest.mark.parametrize("factor", [2, 4])
def test_the_split_is_orthogonal(factor: int) -> None:
    """L has orthonormal rows and is f times the mean; what is lifted keeps its low-pass part."""
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(reduced(x, factor), factor * F.avg_pool2d(x, factor))
    down = matrix(lambda v: reduced(v, factor), 8)
    torch.testing.assert_close(down @ down.T, torch.eye(len(down), dtype=torch.float64))
    torch.testing.assert_close(matrix(lambda v: enlarged(v, factor), 8 // factor), down.T)
    high = matrix(lambda v: details(v, factor), 8)
    torch.testing.assert_close(high, torch.eye(64, dtype=torch.float64) - down.T @ down)
    small = reduced(x, factor)
    torch.testing.assert_close(reduced(lifted(small, factor), factor), small)
    assert details(lifted(small, factor), factor).abs().max() > 0.1
    normals = x.unsqueeze(1).expand(-1, 3, -1, -1, -1)  # the signature's axis
    torch.testing.assert_close(reduced(normals, factor)[:, 1], small)


def test_a_small_step_asks_for_the_low_pass_parts_posterior_mean() -> None:
    """(6b): at f^2 times the signal-to-noise ratio, in the small image's units; at the large
    image's own time the answer is another.
    """
    teacher = field_teacher()
    spec = spec_of(teacher, 4)
    steps, plain = steps_for(spec, 4, 3), steps_for(spec, 4, 0)
    C = L @ power_law(SIZE).covariance() @ L.T
    y = torch.randn(6, 1, SMALL, SMALL, generator=torch.Generator().manual_seed(1)).double()
    for step, large in zip(steps[1:3], plain[1:3], strict=True):
        assert step.reduction == 2 and (step.A, step.B, step.n) == (large.A, large.B, large.n)
        assert (step.alpha / step.sigma) == pytest.approx(2 * large.alpha / large.sigma)
        noisy = large.alpha**2 * C + large.sigma**2 * torch.eye(SMALL**2, dtype=torch.float64)
        expected = y.flatten(1) @ torch.linalg.solve(noisy, large.alpha * C)
        found = 2 * teacher.denoise(step.scale * y, step.t).flatten(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        wrong = 2 * teacher.denoise(y, large.t).flatten(1)
        assert (wrong - expected).abs().max() > 0.02
    assert steps[3] == plain[3]
    assert steps[0].alpha == 0 and steps[0].scale == pytest.approx(1.0)  # pure noise at any size


def law(spec: PathSpec, steps: list[Step], small: int) -> Tensor:
    """The covariance of the last state of a plan of order 1 without look-ahead, from (3) and (6a)
    with matrices: other code than the rollout's, and no signature.
    """
    C, levels, grid = power_law(SIZE).covariance(), spec.chain.levels, spec.grid
    eye = torch.eye(SIZE**2, dtype=torch.float64)

    def gain(i: int, C: Tensor) -> Tensor:
        a, s = levels.alpha[grid[i]], levels.sigma[grid[i]]
        return a * C @ torch.linalg.inv(a**2 * C + s**2 * eye[: len(C), : len(C)])

    V, noise = (L @ L.T if small else eye), 1.0
    for i, step in enumerate(steps):
        square = sum(v * v for v in step.n)
        G = gain(i, L @ C @ L.T if i < small else C)
        M = step.A * torch.eye(len(G), dtype=torch.float64) + step.B * G
        noise = step.A**2 * noise + square
        if i == small - 1:
            alpha = levels.alpha[grid[i + 1]]
            M = L.T @ M + alpha * H @ UP @ G
            V = M @ V @ M.T + square * L.T @ L + noise * H
        else:
            V = M @ V @ M.T + square * torch.eye(len(V), dtype=torch.float64)
    return V


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("small", [0, 1, 2, 3])
def test_the_samples_law_is_the_formulas(small: int, eta: float) -> None:
    spec = spec_of(field_teacher(), 4, eta=eta)
    steps = steps_for(spec, 4, small, order=1, predict_order=1)
    found = covariances(field_teacher(), steps)[-1]
    torch.testing.assert_close(found, law(spec, steps, small), rtol=1e-4, atol=2e-6)
    other = law(spec, steps, (small + 2) % 4)
    assert (found - other).abs().max() > 1e-4


def test_simulated_samples_have_that_law() -> None:
    """4,000 samples of the pipeline, with its own normals: x' V^-1 x is chi-squared; not so with the
    law of the full-size generator.
    """
    teacher = field_teacher()
    spec = spec_of(teacher, 4)
    config = config_of(spec, 4, 3, order=1, predict_order=1)
    pipeline = build_pipeline(teacher, spec, config)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 1, SIZE, SIZE, generator=generator)
    x, states = pipeline.rollout(noise, generator=generator)
    assert states.shape == (4000, 5, 1, SIZE, SIZE)
    for small, fits in ((3, True), (0, False)):
        V = law(spec, steps_for(spec, 4, small, order=1, predict_order=1), small)
        distance = (x.double().flatten(1) @ torch.linalg.inv(V) * x.flatten(1)).sum(1).numpy()
        assert (kstest(distance, chi2(SIZE**2).cdf).pvalue > 0.01) == fits


def test_the_high_frequencies_start_with_the_exact_noise() -> None:
    """Where the size grows the details are alpha H up(D) + N: N has the variance that the chain's
    own noise has by then, is independent of the low-pass part, and is the path's own.
    """
    spec = spec_of(field_teacher(), 4)
    steps = steps_for(spec, 4, 2)
    state = covariances(field_teacher(), steps)[2]
    sigma = float(spec.chain.levels.sigma[spec.grid[2]])
    smallest = torch.linalg.eigvalsh(H @ state @ H + 9 * L.T @ L)[0]
    assert float(smallest) == pytest.approx(sigma**2, rel=1e-6)  # eta = 1: the forward process's
    # the low-pass part is that of the generator of the small image alone
    same = covariances(field_teacher(), steps_for(spec, 4, 3))[2]
    torch.testing.assert_close(L @ state @ L.T, L @ same @ L.T, rtol=1e-9, atol=1e-12)


def test_what_is_lost_where_the_size_grows() -> None:
    """KL(field's law || generator's) of the first full-size state: at most that of the two low-pass
    states which decide it and (24), which is nearly all of it.
    """
    spec = spec_of(field_teacher(), 12, 12)
    C, levels = power_law(SIZE).covariance(), spec.chain.levels
    low, eye = L @ C @ L.T, torch.eye(SIZE**2, dtype=torch.float64)
    one, losses = eye[: len(low), : len(low)], []
    for small in (3, 6, 9):
        steps = steps_for(spec, 12, small, order=1, predict_order=1)
        laws = covariances(field_teacher(), steps[:small])
        a, s = levels.alpha[small - 1 : small + 1], levels.sigma[small - 1 : small + 1]
        true = [p**2 * low + q**2 * one for p, q in zip(a, s, strict=True)]
        mine = [L @ laws[small - 1] @ L.T, L @ laws[small] @ L.T]
        M = steps[small - 1].A * one + steps[small - 1].B * a[0] * low @ true[0].inverse()
        crossed = (a[0] / a[1] * true[1], mine[0] @ M.T)
        both = [
            torch.cat([torch.cat([p, c], 1), torch.cat([c.T, q], 1)])
            for (p, q), c in zip((true, mine), crossed, strict=True)
        ]
        loss = entry_loss(power_law(SIZE), steps[small - 1], float(a[1]), float(s[1]))
        found = kl(a[1] ** 2 * C + s[1] ** 2 * eye, laws[small])
        assert found <= kl(*both) + loss
        assert 0.8 * loss < found - kl(true[1], mine[1]) < loss
        losses.append(loss)
    assert losses[0] < 0.05 * losses[1] < 0.05 * 0.05 * losses[2]


def test_growing_in_time_costs_nothing() -> None:
    """Distance to the field's law: that of the full-size generator while the details are below the
    noise, more where all but the last step are small.
    """
    teacher, target = FieldTeacher(power_law(SIZE)), power_law(SIZE).covariance()
    spec = field_spec(power_law(SIZE), Chain(teacher.schedule.levels(60), 1.0), 6)
    distances = []
    for small in (0, 1, 2, 5):
        steps = steps_for(spec, 6, small, look_ahead=0.25)
        distances.append(wasserstein(target, covariances(teacher, steps)[-1]))
    assert np.allclose(distances[1:3], distances[0], rtol=0.01)
    assert distances[3] > 2 * distances[0]


def test_the_low_pass_parts_of_one_path_are_shared() -> None:
    """The same normals give the same low-pass start at every size: what is drawn is one Brownian
    path, seen through L.
    """
    teacher = field_teacher()
    spec = spec_of(teacher, 4)
    generator = torch.Generator().manual_seed(0)
    noise, xi = torch.randn(2, 1, 8, 8, generator=generator), torch.randn(2, 4, 3, 1, 8, 8)
    full, small = (
        build_pipeline(teacher, spec, config_of(spec, 4, count)).rollout(noise, xi)[1]
        for count in (0, 2)
    )
    # the field's modes are nearly its own at both sizes, so that paths stay together
    gap = (full - small)[:, 1:3].square().mean().sqrt()
    assert float(gap) < 0.2 * float(full[:, 1:3].square().mean().sqrt())
    assert float((full - small)[:, 2].abs().max()) > 1e-3


BAD = {
    "first sigma is 0.9; expected 1.0": ((0.9, 4), (0.5, 8)),
    "expected strictly decreasing": ((1.0, 4), (1.0, 8)),
    "expected strictly increasing": ((1.0, 8), (0.5, 8)),
}


@pytest.mark.parametrize("line", BAD)
def test_pairs_that_make_no_sense(line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        sigdeg_config(scales={"pairs": BAD[line]}, window_start=10)
    with pytest.raises(ValidationError, match="train on whole rollouts; set window.start to 10"):
        sigdeg_config(scales={"pairs": ((1.0, 4), (0.5, 8))}, window_start=9)


REFUSED = {
    "last size is 4; expected 8, the teacher's own": ((1.0, 4),),
    "size 3 before 8; expected one that divides it": ((1.0, 3), (0.5, 8)),
    "the last of 4 steps starts at sigma 0.250": ((1.0, 4), (0.2, 8)),
}


@pytest.mark.parametrize("line", REFUSED)
def test_sizes_that_do_not_fit(line: str) -> None:
    spec = spec_of(field_teacher(), 4)
    config = sigdeg_config(nfe=(4,), scales={"pairs": REFUSED[line]}, window_start=4)
    with pytest.raises(InputError, match=f"method.scales.pairs: .*{line}"):
        plans_of(field_teacher(), spec, config)
