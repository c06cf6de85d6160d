"""The scheduler's own coefficients against the project's, which come from other code."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from models.methods.sigdeg import integrator
from models.sampling import grids
from models.sampling.chain import Chain, unroll
from models.sampling.signature import basis
from models.schedulers.sigdeg_plan import (
    FineChain,
    Gains,
    coarse_grid,
    make_plan,
    query_points,
    signature_basis,
)
from models.teachers.schedule import Levels
from tests.models.sampling.test_chain import LEVELS


def both(kind: str, steps: int, eta: float) -> tuple[FineChain, Chain]:
    levels: Levels = LEVELS[kind](steps)
    return FineChain(levels.t, levels.alpha, levels.sigma, eta), Chain(levels, eta)


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_chain(kind: str, eta: float) -> None:
    ours, theirs = both(kind, 60, eta)
    for name in ("a", "b", "s"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for lo, hi in [(0, 60), (7, 8), (20, 59)]:
        A, B, omega, w = ours.unroll(lo, hi)
        part = unroll(theirs, lo, hi)
        assert (A, B) == (part.A, part.B)
        np.testing.assert_array_equal(omega, part.omega)
        np.testing.assert_array_equal(w, part.w)


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_closed_formula_gives_iisignatures_features(kind: str, depth: int, eta: float) -> None:
    ours, theirs = both(kind, 50, eta)
    for lo, hi in [(0, 12), (12, 13), (13, 15), (15, 49), (45, 50), (49, 50)]:
        expected = basis(theirs, lo, hi, depth).Q
        np.testing.assert_allclose(signature_basis(ours, lo, hi, depth), expected, atol=1e-9)


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("name", ["index", "logsnr"])
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_grids(kind: str, name: str, steps: int) -> None:
    ours, theirs = both(kind, 40, 1.0)
    assert coarse_grid(ours, steps, name) == grids.coarse_grid(theirs, steps, name).tolist()


def test_given_points_serve_every_number_of_steps_up_to_theirs() -> None:
    chain, _ = both("vp", 40, 1.0)
    points = [0, 20, 28, 31, 33, 36, 40]
    assert coarse_grid(chain, 6, "given", points) == points
    assert coarse_grid(chain, 3, "given", points) == [0, 28, 33, 40]
    for steps in range(1, 7):
        expected = grids.subgrid(np.array(points), steps).tolist()
        assert coarse_grid(chain, steps, "given", points) == expected
    for steps, given, message in [
        (7, points, "expected at most 6, the intervals of points"),
        (2, [0, 20, 39], "increasing fine indices from 0 to 40"),
        (2, [0, 41, 40], "increasing fine indices from 0 to 40"),
        (2, None, "increasing fine indices from 0 to 40"),
    ]:
        with pytest.raises(ValueError, match=message):
            coarse_grid(chain, steps, "given", given)


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "choices",
    [
        {"order": 1, "predict_order": 1, "gains": Gains(0.0)},
        {"order": 2, "predict_order": 2, "gains": Gains(0.25)},
        {"order": 3, "predict_order": 3, "gains": Gains(0.5, 1.3, 0.4, 1.05)},
    ],
)
def test_plans(kind: str, eta: float, choices: dict[str, Any]) -> None:
    ours, theirs = both(kind, 60, eta)
    grid = coarse_grid(ours, 5, "logsnr")
    gains = choices["gains"]
    asked = query_points(ours, grid, gains.look_ahead)
    found = make_plan(ours, grid, asked, depth=3, **choices)
    parts = [basis(theirs, lo, hi, 3) for lo, hi in itertools.pairwise(grid)]
    expected = integrator.make_plan(
        theirs,
        parts,
        choices["order"],
        [0.0] + [gains.look_ahead] * 4,  # a pipeline's start is the first asked state
        choices["predict_order"],
        gains.gain,
        gains.last_gain,
        gains.noise_gain,
    )
    for step, other in zip(found, expected, strict=True):
        for name in ("t", "alpha", "sigma", "a", "b", "m", "predict", "A", "B", "n", "mix"):
            np.testing.assert_allclose(
                getattr(step, name), getattr(other, name), rtol=1e-9, atol=1e-9, err_msg=name
            )


def test_only_features_that_enter_are_drawn() -> None:
    chain, _ = both("vp", 60, 1.0)
    grid = coarse_grid(chain, 4, "index")
    still = query_points(chain, grid, 0.0)
    plan = make_plan(chain, grid, still, depth=2, order=2, predict_order=2, gains=Gains(0.0))
    assert [step.draws for step in plan] == [(0,), (0,), (0,), ()]  # the last step adds no noise
    ahead = query_points(chain, grid, 0.5)
    plan = make_plan(chain, grid, ahead, depth=2, order=2, predict_order=2, gains=Gains(0.5))
    assert [step.draws for step in plan] == [(0,), (0, 1, 2), (0, 1, 2), (1, 2)]


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_out_of_range(eta: float) -> None:
    with pytest.raises(ValueError, match="expected 0"):
        both("vp", 10, eta)


def test_levels_must_lose_noise() -> None:
    with pytest.raises(ValueError, match="less noise at every step"):
        FineChain(np.arange(2.0), np.array([0.5, 0.5, 1.0]), np.array([0.5, 0.5, 0.0]))
