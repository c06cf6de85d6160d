"""Laws: on the ring of Gaussians training brings the samples of few steps to the teacher's law.

The teacher of tests/models/methods/ode_ring.py is exact, so the distance that is left is the
methods' own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from models.sampling.chain import Chain
from models.teachers.schedule import Levels
from tests.models.methods.ode_ring import (
    CUMULATED,
    NFE,
    TRAINING,
    distance_to_teacher,
    exact,
    method_of,
    ode_path,
    ode_spec,
    ring_teacher,
    trained,
)
from tests.models.methods.sigdeg.ring import ring

# sliced Wasserstein distance to the teacher at 3 and 2 steps; two sets of teacher samples are
# 0.014 apart
LIMITS = {"sfd": 0.065, "consistency": 0.06}


@cache
def after(kind: str) -> Any:
    return trained(kind, NFE, TRAINING[kind], 1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", LIMITS)
def test_training_comes_nearer_to_the_teachers_law(kind: str) -> None:
    untrained = method_of(kind, NFE)
    for nfe in NFE:
        before, found = (distance_to_teacher(m, nfe) for m in (untrained, after(kind)))
        assert found < (0.8 if nfe == 10 else 0.6) * before, (nfe, before, found)
        if nfe <= 3:
            assert found < LIMITS[kind], (nfe, found)


def test_the_network_is_the_exact_denoiser() -> None:
    """At rows of different times, that of models/teachers/gaussian_mixture.py."""
    x = 2 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 3, 250, 600, 999, 999])
    for row in range(6):
        alpha = float(CUMULATED[t[row]]) ** 0.5
        expected = ring().denoise(x[row : row + 1].double(), alpha, (1 - alpha**2) ** 0.5)
        torch.testing.assert_close(exact(x, t)[row], expected[0].float(), rtol=1e-4, atol=1e-5)
        found = ring_teacher().denoise(x[row : row + 1], float(t[row]))
        torch.testing.assert_close(found[0], expected[0].float(), rtol=1e-4, atol=1e-5)


def test_untrained_sfd_is_ddim_on_the_adaptive_grid() -> None:
    """States without any space axis; the same start as the path's."""
    spec, method = ode_spec(), method_of("sfd", NFE)
    grid, levels = spec.grid[::6], spec.chain.levels
    chain = Chain(Levels(levels.t[grid[:-1]], levels.alpha[grid], levels.sigma[grid]), 0.0)
    states, _ = ode_path(32, 7)
    x = states[0]
    for k in range(5):
        x = float(chain.a[k]) * x + float(chain.b[k]) * exact(
            x, torch.full((32,), chain.levels.t[k])
        )
    torch.testing.assert_close(method.sample(states[0], nfe=5), x, rtol=1e-4, atol=1e-4)
