"""Students without inputs of their own: a plain network and the scheduler are the student."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline, EDMEulerScheduler, LDMPipeline
from pydantic import ValidationError

from models.common.errors import InputError
from models.methods.export import open_student
from models.methods.sigdeg.build import SamplerGains, build_pipeline
from models.methods.sigdeg.config import SigDEGConfig
from models.schedulers.export import export_scheduler, stock_pipeline
from models.takeaway.form import stock_form
from models.teachers.loading import build_denoiser
from tests.models.schedulers.driving import close, run
from tests.models.teachers.pipelines import vae
from tests.models.tinypaths import spec_of, teacher_of
from tests.tiny import perturbed, tiny_unet

GAINS = {6: SamplerGains(0.3, 1.3, 0.4, 1.02), 3: SamplerGains(0.1, 1.6, 0.2)}


def student_of(kind: str, **choices: Any) -> tuple[Any, Any]:
    """A student that has moved away from its teacher, and the teacher."""
    teacher = teacher_of(kind)
    spec = spec_of(teacher, steps=24, intervals=6)
    config = SigDEGConfig(nfe=(6, 3), inputs="none", conditioning_limit=None, **choices)
    student = build_pipeline(teacher, spec, config, GAINS)
    perturbed(student.unet)
    return student, teacher


def edm_student(prediction: str) -> tuple[Any, Any]:
    """Over latents, likewise."""
    scheduler = EDMEulerScheduler(prediction_type=prediction, sigma_max=20.0, sigma_data=0.7)
    torch.manual_seed(0)
    teacher = build_denoiser(tiny_unet(), scheduler, vae(1))
    spec = spec_of(teacher, steps=24, intervals=6)
    config = SigDEGConfig(nfe=(6, 3), inputs="none", conditioning_limit=None)
    student = build_pipeline(teacher, spec, config, GAINS)
    perturbed(student.unet)
    return student, teacher


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize("nfe", [6, 3])
def test_the_scheduler_is_the_students_sampler(kind: str, nfe: int) -> None:
    student, teacher = student_of(kind)
    assert student.unet.config.in_channels == teacher.shape[0]
    pipe = stock_pipeline(student, DDPMPipeline(unet=None, scheduler=None))
    assert pipe.unet is student.unet
    noise = torch.randn(3, *teacher.shape, generator=torch.Generator().manual_seed(0))
    xi = torch.randn(3, nfe, 3, *teacher.shape, generator=torch.Generator().manual_seed(1))
    expected, _ = student.rollout(noise, xi, nfe=nfe)
    pipe.scheduler.set_timesteps(nfe)
    pipe.scheduler.set_path(xi)
    with torch.no_grad():
        found = run(pipe.scheduler, noise, lambda x, t: student.unet(x, t).sample)
    close(found[-1], expected, 2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_is_so_of_edm_models_too(prediction: str) -> None:
    """Whose own states are not those of the student: x0 + s eps, not the network's input."""
    student, teacher = edm_student(prediction)
    pipe = stock_pipeline(student, LDMPipeline(vqvae=None, unet=None, scheduler=None))
    noise = torch.randn(3, *teacher.shape, generator=torch.Generator().manual_seed(0))
    xi = torch.randn(3, 3, 3, *teacher.shape, generator=torch.Generator().manual_seed(1))
    expected, _ = student.rollout(noise, xi, nfe=3)
    pipe.scheduler.set_timesteps(3)
    pipe.scheduler.set_path(xi)
    with torch.no_grad():
        start = float(np.hypot(20.0, 0.7)) * noise
        found = run(pipe.scheduler, start, lambda x, t: student.unet(x, t).sample)
    close(found[-1], 0.7 * expected, 5e-5)


def test_it_travels_as_a_stock_folder(tmp_path: Path) -> None:
    student, _ = student_of("v_prediction")
    student.save_pretrained(tmp_path / "student")
    again = open_student(tmp_path / "student")
    pipe = stock_pipeline(again, DDPMPipeline(unet=None, scheduler=None))
    pipe.save_pretrained(tmp_path / "stock")
    export_scheduler(pipe.scheduler, tmp_path / "stock")
    opened = DiffusionPipeline.from_pretrained(tmp_path / "stock", trust_remote_code=True)
    assert type(opened) is DDPMPipeline
    made = []
    for one in (pipe, opened):
        one.set_progress_bar_config(disable=True)
        call = {"num_inference_steps": 3, "batch_size": 2, "output_type": "np"}
        made.append(np.asarray(one(generator=torch.Generator().manual_seed(0), **call).images))
    np.testing.assert_allclose(made[1], made[0], atol=1e-6)


def test_other_students_are_refused() -> None:
    teacher = teacher_of("v_prediction")
    student = build_pipeline(teacher, spec_of(teacher), SigDEGConfig(nfe=(4,)))
    with pytest.raises(InputError, match="expected one trained with method.inputs: none"):
        stock_pipeline(student, DDPMPipeline(unet=None, scheduler=None))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pipelines_that_do_not_scale_states_take_no_edm_student(prediction: str) -> None:
    """Latents or not; the card gives the same reason as the call."""
    student, _ = edm_student(prediction)
    ddpm = DDPMPipeline(unet=None, scheduler=None)
    form = partial(stock_form, student, {"_class_name": "DDPMPipeline"}, {})
    for make in (partial(stock_pipeline, student, ddpm), form):
        with pytest.raises(InputError, match="^a DDPMPipeline does not scale states as an EDM"):
            make()


def test_damping_needs_a_pipeline_of_its_own() -> None:
    teacher = teacher_of("epsilon")
    with pytest.raises(InputError, match="set method.conditioning_limit to null"):
        build_pipeline(teacher, spec_of(teacher), SigDEGConfig(nfe=(4,), inputs="none"))


@pytest.mark.parametrize("choices", [{"memory": True}, {"trainable": "input"}])
def test_choices_that_need_inputs(choices: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="inputs none"):
        SigDEGConfig(inputs="none", **choices)
