"""The untrained generator's coefficients against polynomials, limits, and diffusers' own
solvers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from models.methods.sigdeg.integrator import lagrange_means, make_plan, query_index
from models.methods.sigdeg.pipeline import Step, query_state, rollout
from models.sampling.chain import Chain, unroll
from models.sampling.signature import bases
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition
from models.teachers.schedule import Levels
from tests.models.tinypaths import features_of, fine_paths, spec_of, teacher_of
from tests.tiny import tiny_teacher


def run(
    teacher: Denoiser, steps: list[Step], Y: Tensor, xi: Tensor, condition: Condition | None = None
) -> Tensor:
    mean = torch.zeros(1, *teacher.shape)
    with torch.no_grad():
        return rollout(lambda s, X, z, h: teacher.denoise(X, s.t, condition), steps, Y, xi, mean)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_lagrange_weights_are_exact_on_polynomials(count: int) -> None:
    generator = np.random.default_rng(count)
    points, at, weights = (
        generator.normal(size=count),
        generator.normal(size=9),
        generator.random(9),
    )
    found = lagrange_means(points.tolist(), at, weights)
    for degree in range(count):
        assert found @ points**degree == pytest.approx(weights @ at**degree, rel=1e-9, abs=1e-11)
    assert abs(found @ points**count - weights @ at**count) > 1e-6


def even_chain(eta: float, count: int = 3000) -> Chain:
    """Half-log-SNR from -3 to 3 in equal steps, and clean data."""
    lam = np.linspace(-3.0, 3.0, count)
    alpha = np.append(np.sqrt(1 / (1 + np.exp(-2 * lam))), 1.0)
    sigma = np.append(np.sqrt(1 / (1 + np.exp(2 * lam))), 0.0)
    return Chain(Levels(np.arange(count)[::-1].astype(float), alpha, sigma), eta)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("ratio", [1, 2])
def test_small_steps_tend_to_the_multistep_rule(eta: float, ratio: int) -> None:
    """D + h_i / (2 h_{i-1}) (D - D_prev), times 1 - 1/n as the n fine levels of a step do not reach
    its end; the difference falls in proportion to the step.
    """
    chain, errors = even_chain(eta), []
    for n in (120, 60, 30):
        grid = np.array([1000, 1000 + n, 1000 + n + ratio * n, 1000 + n + 2 * ratio * n])
        mix = make_plan(chain, bases(chain, grid, 1), order=2)[1].mix
        assert len(mix) == 1
        errors.append(abs(mix[0] - ratio / 2 * (1 - 1 / (ratio * n))))
    assert errors[0] < 0.1 * ratio**2 and errors[2] < 0.3 * errors[0]
    assert 1.8 < errors[0] / errors[1] < 2.2


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["v_prediction", "flow", "conditional"])
def test_one_fine_step_per_interval_is_the_teachers_chain(
    kind: str, eta: float, order: int
) -> None:
    """Nothing is left to average then, whatever the order."""
    teacher = teacher_of(kind)
    spec = spec_of(teacher, 8, 8, 1, eta)
    states, z, condition = fine_paths(teacher, spec, 3)
    found = run(
        teacher,
        make_plan(spec.chain, spec.parts, order),
        states[:, 0],
        features_of(spec, z),
        condition,
    )
    torch.testing.assert_close(found, states, rtol=1e-5, atol=1e-5)


def solver_states(scheduler, teacher: Denoiser, count: int, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """States of a diffusers scheduler that is told the teacher's x0."""
    scheduler.set_timesteps(count)
    states = [x]
    with torch.no_grad():
        for t in scheduler.timesteps:
            states.append(scheduler.step(teacher.denoise(states[-1], t), t, states[-1]).prev_sample)
    return torch.stack(states, 1)


def test_first_order_without_noise_is_ddim() -> None:
    """The fine chain between the coarse points does not matter: DDIM's step is exact for a constant
    D.
    """
    teacher = tiny_teacher()
    spec = spec_of(teacher, 100, 5, 2, eta=0.0)
    x = torch.randn(3, *teacher.shape, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler.from_config(
        teacher.scheduler.config,
        prediction_type="sample",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    expected = solver_states(scheduler, teacher, 5, x)
    found = run(
        teacher, make_plan(spec.chain, spec.parts, 1), x, torch.zeros(3, 5, 3, *teacher.shape)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_second_order_without_noise_tends_to_dpm_solver() -> None:
    """DPM-Solver++(2M, "heun") integrates the same line in lambda over continuous time, ours over
    the fine levels: the states differ by O(1 / K), and by much more where the order differs. Both
    end at order one or with an own rule, so the last step is left out.
    """
    teacher, count = tiny_teacher(), 5
    x = torch.randn(3, *teacher.shape, generator=torch.Generator().manual_seed(0))
    scheduler = DPMSolverMultistepScheduler.from_config(
        teacher.scheduler.config,
        prediction_type="sample",
        timestep_spacing="trailing",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="heun",
        final_sigmas_type="zero",
    )
    expected = solver_states(scheduler, teacher, count, x)[:, :-1]

    def error(steps: int, order: int) -> float:
        spec = spec_of(teacher, steps, count, 1, eta=0.0)
        plan = make_plan(spec.chain, spec.parts, order)
        found = run(teacher, plan, x, torch.zeros(3, count, 2, *teacher.shape))[:, :-1]
        return float((found - expected).abs().max())

    coarse, fine = error(100, 2), error(1000, 2)
    assert fine < 0.2 * coarse and fine < 0.02 * error(1000, 1)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("look_ahead", [0.3, 0.6, 1.0])
def test_look_ahead_finds_the_path_itself(look_ahead: float, depth: int) -> None:
    """Intervals of depth + 1 fine steps: the features span the noise, so with a constant denoiser X
    of (6) is the chain's own x_kappa. In the last one w = 0 drops out.
    """
    teacher, length = tiny_teacher(), depth + 1
    spec = spec_of(teacher, 4 * length, 4, depth)
    chain, D = spec.chain, torch.full((2, *teacher.shape), 0.7)
    z = torch.randn(2, chain.steps, *teacher.shape, generator=torch.Generator().manual_seed(1))
    states = [torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(2))]
    for k in range(chain.steps):
        states.append(
            float(chain.a[k]) * states[k] + float(chain.b[k]) * D + float(chain.s[k]) * z[:, k]
        )
    xi = features_of(spec, z)
    plan = make_plan(chain, spec.parts, 2, look_ahead=look_ahead, predict_order=2)
    asked = [int(np.flatnonzero(chain.levels.t == step.t)[0]) for step in plan]
    for i, step in enumerate(plan[:-1]):
        X = query_state(step, states[i * length], xi[:, i], [D] * i, D[:1])
        torch.testing.assert_close(X, states[asked[i]], rtol=1e-5, atol=1e-5)
    assert any(k > i * length for i, k in enumerate(asked[:-1]))


def test_asked_index_goes_along_the_interval() -> None:
    chain = even_chain(1.0)
    found = [query_index(chain, 1000, 1100, share) for share in (0.0, 0.25, 0.5, 1.0)]
    assert found == [1000, 1025, 1050, 1099]


def test_coefficients_are_those_of_the_unrolled_chain() -> None:
    spec = spec_of(tiny_teacher(), 12, 4, 2)
    plan = make_plan(spec.chain, spec.parts, 2)
    for step, part in zip(plan, spec.parts, strict=True):
        whole = unroll(spec.chain, part.lo, part.hi)
        assert (step.A, step.B) == (whole.A, whole.B)
        np.testing.assert_allclose(part.Q @ np.array(step.n), whole.w, atol=1e-12)
        assert np.abs(step.n[1:]).max() < 1e-12
    assert plan[0].mix == () and plan[-1].A == 0.0


@pytest.mark.parametrize("order", [1, 2, 3])
def test_gain_scales_the_extrapolation_alone(order: int) -> None:
    """q of (7) times the gain, exactly, but in the last step; gain 1 is the rule, gain 0 that of
    order one.
    """
    spec = spec_of(tiny_teacher(), 24, 6, 2)
    numbers = {"look_ahead": 0.3, "predict_order": 2}
    plain = make_plan(spec.chain, spec.parts, order, **numbers)
    assert make_plan(spec.chain, spec.parts, order, **numbers, gain=1.0, last_gain=0.0) == plain
    strong = make_plan(spec.chain, spec.parts, order, **numbers, gain=2.0)
    for i, (one, two) in enumerate(zip(plain, strong, strict=True)):
        assert len(one.mix) == (0 if i == 5 else min(order - 1, i))
        assert two.mix == tuple(2.0 * q for q in one.mix) and replace(two, mix=one.mix) == one
    assert any(step.mix for step in plain) == (order > 1)
    assert make_plan(spec.chain, spec.parts, order, **numbers, gain=0.0) == make_plan(
        spec.chain, spec.parts, 1, **numbers
    )


def test_the_last_gain_is_of_the_last_step_alone() -> None:
    """Without it the end is one denoised image; with it, the rule's own q on top, scaled."""
    teacher = tiny_teacher()
    spec = spec_of(teacher, 24, 6, 2)
    plain, whole, fifth = (
        make_plan(spec.chain, spec.parts, 2, 0.3, 2, last_gain=g) for g in (0.0, 1.0, 0.2)
    )
    assert plain[:-1] == whole[:-1] == fifth[:-1] and plain[-1].mix == ()
    lam, part = spec.chain.half_logsnr, spec.parts[-1]
    places = [int(np.flatnonzero(spec.chain.levels.t == step.t)[0]) for step in plain[-2:]]
    points, omega = [lam[places[1]], lam[places[0]]], unroll(spec.chain, part.lo, part.hi).omega
    q = (points[0] - lam[part.lo : part.hi]) @ omega / (points[0] - points[1])
    assert abs(q) > 1e-3 and whole[-1].mix == pytest.approx((-q,), rel=1e-9)
    assert fifth[-1].mix == tuple(0.2 * value for value in whole[-1].mix)
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0))
    xi = torch.randn(2, 6, 3, *teacher.shape, generator=torch.Generator().manual_seed(1))
    states = [run(teacher, plan, x, xi) for plan in (plain, whole, fifth)]
    assert all(torch.equal(states[0][:, :-1], other[:, :-1]) for other in states)
    change, part_of_it = (other[:, -1] - states[0][:, -1] for other in states[1:])
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(part_of_it, 0.2 * change, rtol=1e-3, atol=1e-5)
