"""Sig-DEG's step schedules: features joined, weights, gains."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from models.common.errors import InputError
from models.methods.sigdeg.build import SamplerGains, coarse_steps, gains_for, make_step_schedule
from models.methods.sigdeg.integrator import make_plan
from models.sampling.grids import subgrid
from models.sampling.signature import bases, feature_matrix
from tests.models.methods.made import sigdeg, sigdeg_config
from tests.models.methods.sigdeg.making import loss_of
from tests.models.tinypaths import batch_of, spec_of, teacher_of
from tests.tiny import perturbed, tiny_teacher


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("nfe", [8, 7, 5, 4, 3, 2, 1])
def test_course_joins_the_caches_features(nfe: int, depth: int) -> None:
    """By Chen's identity, they equal those computed from the noise on the coarse intervals
    themselves.
    """
    teacher = tiny_teacher()
    spec = spec_of(teacher, 16, 8, depth)
    step_schedule = make_step_schedule(spec, nfe, sigdeg_config(nfe=(nfe,)))
    z = torch.randn(3, 16, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own, direct = (
        torch.einsum("ipk,nkchw->nipchw", torch.as_tensor(feature_matrix(parts)), z)
        for parts in (spec.parts, bases(spec.chain, subgrid(spec.grid, nfe), depth))
    )
    found = step_schedule.features(own)
    assert found.shape == (3, nfe, depth + 1, 1, 2, 2)
    torch.testing.assert_close(found, direct, rtol=1e-9, atol=1e-9)
    assert step_schedule.states(torch.arange(9)[None]).tolist() == [
        [int(np.floor(8 * i / nfe + 0.5)) for i in range(nfe + 1)]
    ]
    with pytest.raises(InputError, match="method.nfe 9: expected 1 to 8"):
        make_step_schedule(spec, 9, sigdeg_config())


def test_loss_weights() -> None:
    """(8): by the state's own variance, evenly, or the last state alone."""
    spec = spec_of(tiny_teacher())
    levels = spec.chain.levels
    variance = (0.5 * levels.alpha[[6, 12]]) ** 2 + levels.sigma[[6, 12]] ** 2
    expected = {"marginal": 1 / variance, "uniform": [1, 1], "final": [0, 2]}
    for name, values in expected.items():
        found = make_step_schedule(spec, 2, sigdeg_config(nfe=(2,), weighting=name)).weights
        np.testing.assert_allclose(found, values, rtol=1e-6)


@pytest.mark.parametrize("kind", ["v_prediction", "flow", "dit"])
def test_the_teachers_own_steps_lose_nothing(kind: str) -> None:
    """With a network call per fine step the untrained student is the teacher on the same path."""
    teacher = teacher_of(kind)
    spec = spec_of(teacher, 6, 6, 1)
    method = sigdeg(teacher, spec, nfe=(6,), conditioning_limit=None, window_until=0.0)
    batch = batch_of(teacher, spec, 4)
    loss, terms = loss_of(method, batch)
    scale = float(
        (batch.Y[:, 1:].square().mean((0, 2, 3, 4)) * method.step_schedules[6].weights).mean()
    )
    assert float(loss.detach()) < 1e-9 * max(1.0, scale) and set(terms) == {"path_6"}
    perturbed(method.pipeline.unet)
    assert float(loss_of(method, batch)[0].detach()) > 1e-3


def test_calibrated_gains_are_of_their_own_numbers_of_steps() -> None:
    """They replace the plain ones in plans; a number of steps without any is refused, since gains
    of another would keep it from the teacher.
    """
    teacher = tiny_teacher()
    spec, numbers = spec_of(teacher), SamplerGains(0.5, 1.6, 0.2)
    config = sigdeg_config(nfe=(2,), look_ahead=0.3)
    parts = bases(spec.chain, subgrid(spec.grid, 2), 2)
    expected = make_plan(spec.chain, parts, 2, 0.5, 2, gain=1.6, last_gain=0.2)
    assert coarse_steps(spec, 2, config, numbers) == expected
    assert make_step_schedule(spec, 2, config, numbers).steps == expected
    plain = make_plan(spec.chain, parts, 2, 0.3, 2)
    assert make_step_schedule(spec, 2, config).steps == plain != expected
    diagnostics = {"gains_by_nfe": {"2": asdict(numbers)}}
    method = sigdeg(teacher, spec, nfe=(2,), look_ahead=0.3, diagnostics=diagnostics)
    assert method.step_schedules[2].steps == method.pipeline.plan(2) == expected
    assert method.pipeline.untrained(method.pipeline.unet).plan(2) == plain
    assert gains_for(2, config, {2: numbers}) == numbers
    assert gains_for(4, config, {}) == SamplerGains(0.3)
    with pytest.raises(
        InputError, match=r"4 steps: the gains were calibrated for \[2\] steps only"
    ):
        sigdeg(teacher, spec, nfe=(4, 2), diagnostics=diagnostics)
