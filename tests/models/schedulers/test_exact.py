"""Special cases in which the scheduler is another one, and the project's own rollout."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from models.methods.sigdeg.build import SamplerGains, build_pipeline, coarse_steps
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.sigdeg.pipeline import rollout
from models.schedulers.sigdeg_scheduler import SigDEGScheduler
from tests.models.sampling.test_chain import SETTINGS, in_double
from tests.models.schedulers.driving import close, run, start, wavy
from tests.models.tinypaths import spec_of, teacher_of

VP = ["epsilon", "v_prediction", "sample"]


def sigdeg(other: Any, **choices: Any) -> SigDEGScheduler:
    """Ours, from the other scheduler's configuration; alphas_cumprod in double as in tests there."""
    scheduler = SigDEGScheduler.from_config(other.config, **choices)
    if scheduler.alphas_cumprod is not None:
        scheduler.alphas_cumprod = other.alphas_cumprod.double()
    return scheduler


CLIPPED = {"clip_sample": True, "clip_sample_range": 0.7}


@pytest.mark.parametrize(
    ("prediction", "choices", "steps"),
    [(p, c, 20) for p in VP for c in ({}, CLIPPED, {"thresholding": True})]
    + [("epsilon", {}, 1000)],
)
def test_all_fine_steps_are_ddpm(prediction: str, choices: dict[str, Any], steps: int) -> None:
    settings = SETTINGS | {"sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.8} | choices
    other = in_double(DDPMScheduler(prediction_type=prediction, **settings))
    ours = sigdeg(other, chain_steps=steps)
    for scheduler in (other, ours):
        scheduler.set_timesteps(steps)
    assert ours.timesteps.tolist() == other.timesteps.tolist()
    # the same generator: one draw of the state's shape a step, none in the last
    close(run(ours, start()), run(other, start()), 1e-9)


@pytest.mark.parametrize("prediction", VP)
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_all_fine_steps_are_ddim(prediction: str, eta: float) -> None:
    other = in_double(DDIMScheduler(prediction_type=prediction, **SETTINGS))
    ours = sigdeg(other, chain_steps=20, eta=eta)
    for scheduler in (other, ours):
        scheduler.set_timesteps(20)
    close(run(ours, start()), run(other, start(), eta=eta), 1e-9)


def test_clipping_with_ddim() -> None:
    """DDIM has two ways with a clipped image; ours is the one in which noise and image agree."""
    other = in_double(DDIMScheduler(**SETTINGS | {"clip_sample": True}))
    ours = sigdeg(other, chain_steps=20, eta=0.0)
    for scheduler in (other, ours):
        scheduler.set_timesteps(20)
    close(run(ours, start()), run(other, start(), use_clipped_model_output=True), 1e-9)


def test_first_order_without_noise_is_ddim_at_any_number_of_steps() -> None:
    other = in_double(DDIMScheduler(**SETTINGS))
    ours = sigdeg(other, eta=0.0, solver_order=1, look_ahead=0.0, coarse_grid="index")
    for scheduler in (other, ours):
        scheduler.set_timesteps(10)
    assert ours.timesteps.tolist() == other.timesteps.tolist()
    close(run(ours, start()), run(other, start()), 1e-9)


FLOW = [
    ({"shift": 3.0}, None),
    ({"use_dynamic_shifting": True}, 0.8),
    ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, 1.7),
    ({"use_dynamic_shifting": True, "shift_terminal": 0.02}, 0.8),
]


@pytest.mark.parametrize(("settings", "mu"), FLOW)
@pytest.mark.parametrize("chain_steps", [7, 100])
def test_first_order_without_noise_is_flow_matching_euler(
    settings: dict[str, Any], mu: float | None, chain_steps: int
) -> None:
    other = FlowMatchEulerDiscreteScheduler(**settings)
    ours = sigdeg(other, eta=0.0, solver_order=1, look_ahead=0.0, chain_steps=chain_steps)
    sigmas = torch.linspace(1.0, 1 / 7, 7, dtype=torch.float64).tolist()  # as FLUX gives them
    for scheduler in (other, ours):
        scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    torch.testing.assert_close(ours.timesteps, other.timesteps, rtol=1e-6, atol=1e-4)
    close(run(ours, start(dtype=torch.float32)), run(other, start(dtype=torch.float32)), 1e-5)


@pytest.mark.parametrize("settings", [{"shift": 3.0}, {"shift": 1.0}])
def test_flow_matching_has_the_same_grid_on_its_own(settings: dict[str, Any]) -> None:
    other = FlowMatchEulerDiscreteScheduler(**settings)
    ours = sigdeg(other, eta=0.0, solver_order=1, look_ahead=0.0)
    other.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    ours.set_timesteps(4)
    torch.testing.assert_close(ours.timesteps, other.timesteps, rtol=1e-6, atol=1e-4)
    ours.set_timesteps(timesteps=[1000.0, 750.0, 500.0, 250.0])
    torch.testing.assert_close(ours.timesteps, other.timesteps, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_all_fine_steps_without_noise_are_edm_euler(schedule: str, prediction: str) -> None:
    other = EDMEulerScheduler(sigma_schedule=schedule, prediction_type=prediction)
    ours = sigdeg(other, eta=0.0, chain_steps=12)
    for scheduler in (other, ours):
        scheduler.set_timesteps(12)
    torch.testing.assert_close(ours.timesteps, other.timesteps, rtol=1e-5, atol=1e-6)
    assert ours.init_noise_sigma == other.init_noise_sigma
    x = start(dtype=torch.float32) * ours.init_noise_sigma
    # the network's own time: float32 logarithms differ in the last digit, a network hardly
    close(
        run(ours, x, lambda v, t: torch.sin(3 * v)),
        run(other, x, lambda v, t: torch.sin(3 * v)),
        2e-5,
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_coarse_grid_is_the_untrained_generator(kind: str, eta: float) -> None:
    teacher = teacher_of(kind)
    spec = spec_of(teacher, steps=24, intervals=6, eta=eta)
    pipeline = build_pipeline(teacher, spec, SigDEGConfig(nfe=(6, 3), order=3, look_ahead=0.0))
    for nfe in (6, 3):
        noise = torch.randn(4, *teacher.shape, generator=torch.Generator().manual_seed(0))
        xi = torch.randn(4, nfe, 3, *teacher.shape, generator=torch.Generator().manual_seed(1))
        _, expected = pipeline.rollout(noise, xi, nfe=nfe)
        ours = SigDEGScheduler.from_config(
            teacher.scheduler.config,
            chain_steps=24,
            eta=eta,
            solver_order=3,
            look_ahead=0.0,
            coarse_grid="given",
            points=spec.grid.tolist(),
        )
        ours.set_timesteps(nfe)
        ours.set_path(xi)
        with torch.no_grad():
            states = run(ours, noise, lambda x, t: teacher.predict(x, float(t)))
        close(states.transpose(0, 1), expected, 2e-5)


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_look_ahead_and_gains_are_the_integrators(kind: str) -> None:
    """Between calls X is returned instead of Y; the last state is the integrator's own."""
    teacher = teacher_of(kind)
    spec = spec_of(teacher, steps=24, intervals=6)
    gains = SamplerGains(0.4, 1.3, 0.5, 1.02)
    steps = coarse_steps(spec, 6, SigDEGConfig(), gains)
    still = coarse_steps(spec, 6, SigDEGConfig(), SamplerGains(0.0, 1.3, 0.5, 1.02))
    ours = SigDEGScheduler.from_config(
        teacher.scheduler.config,
        chain_steps=24,
        coarse_grid="index",
        by_steps={"6": {"look_ahead": 0.4, "gain": 1.3, "last_gain": 0.5, "noise_gain": 1.02}},
    )
    ours.set_timesteps(6)
    # the weights q of the second step know where the first was asked: at the start itself
    asked = [still[0].t, *(step.t for step in steps[1:])]
    assert ours.timesteps.tolist() == pytest.approx(asked)
    xi = torch.randn(2, 6, 3, *teacher.shape, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0))
    ours.set_path(xi)
    # its steps have the full size, and no field that says so
    plan = [SimpleNamespace(**asdict(step), reduction=1) for step in ours.plan]
    expected = rollout(
        lambda step, X, z, history: teacher.denoise(X, step.t),
        plan,  # type: ignore[arg-type]
        noise,
        xi,
        torch.zeros(()),
    )
    with torch.no_grad():
        close(
            run(ours, noise, lambda x, t: teacher.predict(x, float(t)))[-1], expected[:, -1], 2e-5
        )


def test_given_times_are_the_coarse_grid() -> None:
    other = in_double(DDIMScheduler(**SETTINGS))
    times = [999, 700, 431, 200, 30]
    ours = sigdeg(other, eta=0.0, solver_order=1, look_ahead=0.0)
    ours.set_timesteps(timesteps=times)
    assert ours.timesteps.tolist() == times
    x, states = start(), run(ours, start())
    cumprod = other.alphas_cumprod
    for i, t in enumerate(times):
        following = cumprod[times[i + 1]] if i + 1 < len(times) else torch.tensor(1.0)
        x0 = (x - (1 - cumprod[t]).sqrt() * wavy(x, t)) / cumprod[t].sqrt()
        x = following.sqrt() * x0 + (1 - following).sqrt() * wavy(x, t)
        close(states[i + 1], x, 1e-9)
