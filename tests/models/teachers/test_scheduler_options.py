"""Every option of a teacher's scheduler is honoured or refused."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from models.common.errors import InputError
from models.teachers.loading import build_denoiser
from models.teachers.reading import read_schedule
from models.teachers.scheduler_options import (
    DEPENDENT,
    EDM,
    FLOW_MATCHING,
    HONOURED,
    REFUSED,
    SAMPLER_ONLY,
    TEACHER_SCHEDULERS,
    VARIANCE_PRESERVING,
    scheduler_options,
)
from tests.models.teachers.pipelines import vae
from tests.tiny import tiny_unet

VP_OPTIONS: list[dict[str, Any]] = [
    {},
    {"beta_start": 0.001, "beta_end": 0.03},
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 100},
    {"trained_betas": np.linspace(1e-4, 0.05, 1000).tolist()},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    {"clip_sample": True, "clip_sample_range": 0.7},
    {"timestep_spacing": "trailing", "steps_offset": 1},
]


def make(name: str, **options: Any) -> Any:
    return getattr(diffusers, name)(**options)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TEACHER_SCHEDULERS)
def test_every_option_of_every_scheduler_is_in_the_list(name: str) -> None:
    """A new version of diffusers with a new option fails here, and is refused until then."""
    listed = HONOURED | SAMPLER_ONLY | DEPENDENT | set(REFUSED)
    found = set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}
    assert found <= listed
    assert not (HONOURED & SAMPLER_ONLY | HONOURED & set(REFUSED) | SAMPLER_ONLY & set(REFUSED))


@pytest.mark.parametrize("options", VP_OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler",
                                  "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])  # fmt: skip
def test_x0_is_the_schedulers_own(name: str, options: dict[str, Any]) -> None:
    """``pred_original_sample`` of the scheduler's own step, wherever the class has the option."""
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    unmade = (
        name == "EulerAncestralDiscreteScheduler" and options.get("prediction_type") == "sample"
    )
    if unmade or not set(options) <= set(known):
        pytest.skip("not an option of this scheduler")
    scheduler = make(name, **{"beta_start": 1e-4, "beta_end": 0.02} | options)
    if "clip_sample" in known and "clip_sample" not in options:
        scheduler.register_to_config(clip_sample=False)
    teacher = build_denoiser(tiny_unet(), scheduler)
    scheduler.set_timesteps(10)
    x = noise(3, 1, 8, 8)
    for t in scheduler.timesteps[:9:4]:
        given = x
        if hasattr(scheduler, "sigmas"):  # those work on x / alpha
            step = int((scheduler.timesteps == t).nonzero()[0])
            given = x * (scheduler.sigmas[step] ** 2 + 1) ** 0.5
            scheduler._step_index = step
        whole = t.round()
        with torch.no_grad():
            output = teacher.network(x, whole).sample
            theirs = scheduler.step(output, t, given).pred_original_sample
            found = teacher.denoise(x, float(whole))
        zero = options.get("rescale_betas_zero_snr") and whole == 999 and "Euler" in name
        # Euler's zero is 2^-12; between times its own sigma is interpolated
        scale = float(theirs.abs().max())
        tolerance = 2e-3 if zero or float(whole) != float(t) else 2e-4
        torch.testing.assert_close(found, theirs.float(), rtol=0, atol=tolerance * max(1.0, scale))


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
                                  "DPMSolverSinglestepScheduler", "DEISMultistepScheduler"])  # fmt: skip
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_solvers_schedules(name: str, prediction: str) -> None:
    """Their x0 comes out of ``convert_model_output``."""
    scheduler = make(name, prediction_type=prediction)
    teacher = build_denoiser(tiny_unet(), scheduler)
    scheduler.set_timesteps(10)
    x, step = noise(2, 1, 8, 8), 4
    scheduler._step_index = step
    t = scheduler.timesteps[step]
    with torch.no_grad():
        output = teacher.network(x, t).sample
        theirs = scheduler.convert_model_output(output, sample=x)
        alpha, sigma = teacher.schedule.level(float(t))
        if name == "DEISMultistepScheduler":  # it returns the noise
            theirs = (x - sigma * theirs) / alpha
        found = teacher.denoise(x, float(t))
    torch.testing.assert_close(found, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FLOW_MATCHING)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_takes_its_shift(name: str, shift: float) -> None:
    scheduler = make(name, shift=shift)
    schedule, prediction, clip = read_schedule(scheduler)
    assert (prediction, clip) == ("flow", None)
    sigma = schedule.levels(1000).sigma[:-1]
    own = np.linspace(1, 0.001, 1000)
    np.testing.assert_allclose(sigma, shift * own / (1 + (shift - 1) * own), rtol=1e-9)


def test_flow_sigmas_of_solvers() -> None:
    """As Sana: DPM-Solver with flow_prediction is a flow-matching schedule with that shift."""
    scheduler = make("DPMSolverMultistepScheduler", prediction_type="flow_prediction",
                     use_flow_sigmas=True, flow_shift=3.0)  # fmt: skip
    teacher = build_denoiser(tiny_unet(), scheduler)
    assert teacher.prediction_type == "flow"
    scheduler.set_timesteps(10)
    scheduler._step_index = 3
    sigma = float(scheduler.sigmas[3])
    x = noise(2, 1, 8, 8)
    with torch.no_grad():
        output = teacher.network(x, torch.tensor(1000 * sigma)).sample
        theirs = scheduler.convert_model_output(output, sample=x)
        found = teacher.denoise(x, 1000 * sigma)
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)


ZERO = {"rescale_betas_zero_snr": True}
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("DDPMScheduler", {"thresholding": True}, "thresholding = True"),
    ("DDPMScheduler", {"thresholding": True, "clip_sample": False}, "thresholding = True"),
    ("DPMSolverMultistepScheduler", {"thresholding": True}, "thresholding = True"),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type = 'continuous'"),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas = True"),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
    ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, "shift_terminal = 0.1"),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "stochastic_sampling"),
    ("DDPMScheduler", ZERO, "rescale_betas_zero_snr with prediction_type epsilon"),
    ("EulerDiscreteScheduler", ZERO, "rescale_betas_zero_snr with prediction_type epsilon"),
    ("DDPMScheduler", {"trained_betas": [0.01] * 50}, "50 entries, num_train_timesteps is 1000"),
    ("DDPMScheduler", {"trained_betas": [0.01] * 999 + [1.0]}, "the last beta is 1"),
    ("DDPMScheduler", {"trained_betas": [0.01] * 999 + [0.0]}, "do not add noise at every time"),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "expected flow_prediction and true"),
    ("LCMScheduler", {}, "LCMScheduler: not one that teachers are sampled with"),
    ("TCDScheduler", {}, "TCDScheduler: not one"),
    ("DDIMInverseScheduler", {}, "DDIMInverseScheduler: not one"),
    ("DPMSolverMultistepInverseScheduler", {}, "not one"),
    ("RePaintScheduler", {}, "RePaintScheduler: not one"),
    ("FlowMatchLCMScheduler", {}, "FlowMatchLCMScheduler: not one"),
    ("EDMEulerScheduler", {"sigma_min": 90.0}, "sigma_min = 90, sigma_max = 80"),
    ("EDMEulerScheduler", {"sigma_data": 0.0}, "sigma_data = 0: expected numbers above 0"),
    ("EDMEulerScheduler", {"rho": -1.0}, "rho = -1: expected a number above 0"),
    ("EDMDPMSolverMultistepScheduler", {"prediction_type": "sample"}, "prediction_type 'sample'"),
]


@pytest.mark.parametrize(("name", "options", "words"), CASES)
def test_what_would_change_x0_or_times_is_refused(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        build_denoiser(tiny_unet(), make(name, **options))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_edm_teachers_autoencoder_says_its_scale() -> None:
    autoencoder = vae(1)
    autoencoder.register_to_config(scaling_factor=None)
    with pytest.raises(InputError, match="scaling_factor None; expected a number above 0"):
        build_denoiser(tiny_unet(), make("EDMEulerScheduler"), autoencoder)


def test_unknown_options_at_another_value_than_the_default() -> None:
    class DDPMScheduler(diffusers.DDPMScheduler):  # type: ignore[misc]
        """As a later version of diffusers might be."""

        def __init__(self, num_train_timesteps: int = 1000, new_option: float = 0.0):
            super().__init__(num_train_timesteps=num_train_timesteps)
            self.register_to_config(new_option=new_option)

    assert scheduler_options(DDPMScheduler())["new_option"] == 0.0
    with pytest.raises(
        InputError, match=r"new_option = 0\.5: an option this project does not know"
    ):
        scheduler_options(DDPMScheduler(new_option=0.5))


def test_options_that_the_class_never_reads_have_no_effect() -> None:
    """Stable Diffusion's files carry clip_sample for an Euler scheduler, which does not clip."""
    scheduler = make("EulerDiscreteScheduler")
    scheduler.register_to_config(clip_sample=True, thresholding=True)
    assert build_denoiser(tiny_unet(), scheduler).clip is None
    assert set(VARIANCE_PRESERVING) & set(FLOW_MATCHING) == set() == set(EDM) & set(FLOW_MATCHING)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler"])
def test_zero_terminal_snr_with_v_starts_at_pure_noise(name: str) -> None:
    options = {"clip_sample": False} if name == "DDPMScheduler" else {}
    scheduler = make(name, prediction_type="v_prediction", **ZERO, **options)
    teacher = build_denoiser(tiny_unet(), scheduler)
    levels = teacher.schedule.levels(20)
    assert levels.alpha[0] == 0.0 and np.all(np.diff(levels.alpha) > 0)
    x = noise(2, 1, 8, 8)
    with torch.no_grad():
        v = teacher.network(x, 999).sample
        torch.testing.assert_close(teacher.denoise(x, 999.0), -v)
