"""Schedulers of teachers, given to the teacher stage.

That x0 is the scheduler's own is tested in tests/models/teachers/test_scheduler_options.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DDPMPipeline

from models.teachers.base import Denoiser
from models.teachers.scheduler_options import VARIANCE_PRESERVING
from tests.inputs.pipelines import opened
from tests.inputs.rows import Row
from tests.tiny import tiny_unet

TITLE = "Schedulers of teachers"


def scheduler(kind: str, **options: Any) -> Callable[[Path], Denoiser]:
    """A teacher with this scheduler; ``options`` are written into its file."""

    def run(root: Path) -> Denoiser:
        DDPMPipeline(unet=tiny_unet(), scheduler=getattr(diffusers, kind)()).save_pretrained(
            root / "in"
        )
        file = root / "in/scheduler/scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | options))
        return opened(root)

    return run


def one_schedule(root: Path) -> None:
    """Whatever solver a teacher comes with, the noise process of equal betas is the same."""
    tables = []
    for kind in VARIANCE_PRESERVING[::8]:
        found = scheduler(kind, beta_start=1e-4, beta_end=0.02, clip_sample=False)(root / kind)
        assert (found.prediction_type, found.clip) == ("epsilon", None)
        tables.append(found.schedule.table())
    for other in tables[1:]:
        np.testing.assert_allclose(other, tables[0], atol=1e-6)


def flow(root: Path) -> None:
    found = scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0)(root)
    assert found.prediction_type == "flow"
    np.testing.assert_allclose(found.schedule.levels(2).sigma, [1, 0.75, 0])


def clipped(root: Path) -> None:
    assert scheduler("DDPMScheduler", clip_sample_range=0.7)(root).clip == 0.7


def ignored(root: Path) -> None:
    """Stable Diffusion's files carry clip_sample for schedulers that do not clip."""
    assert scheduler("EulerDiscreteScheduler", clip_sample=True)(root).clip is None


def steps_alone(root: Path) -> None:
    plain = scheduler("DPMSolverMultistepScheduler")(root / "plain")
    other = scheduler("DPMSolverMultistepScheduler", use_karras_sigmas=True, solver_order=3,
                      timestep_spacing="leading", steps_offset=1)(root / "other")  # fmt: skip
    np.testing.assert_array_equal(plain.schedule.table(), other.schedule.table())


def zero_snr(root: Path) -> None:
    found = scheduler("DDPMScheduler", rescale_betas_zero_snr=True, prediction_type="v_prediction")(
        root
    )
    assert found.schedule.levels(5).alpha[0] == 0


def edm_pixels(root: Path) -> None:
    found = scheduler("EDMEulerScheduler", sigma_data=0.25)(root)
    assert found.prediction_type == "edm"
    half = torch.full((1, 1, 8, 8), 0.5)
    assert torch.equal(found.decode(2 * half), 0.5 * half)


def score_sde(root: Path) -> None:
    found = scheduler("ScoreSdeVeScheduler", sigma_max=30.0)(root)
    alpha, sigma = found.schedule.level(30.0)
    assert found.prediction_type == "ve"
    np.testing.assert_allclose([sigma / alpha, sigma**2 + alpha**2], [30.0, 1.0])


def refused(kind: str, given: str, line: str, **options: Any) -> Row:
    name = f"{kind.removesuffix('Scheduler')}-{'-'.join(options)}"
    return Row(name, given, scheduler(kind, **options), refused=line)


EXPECTED = (
    "not one that teachers are sampled with; expected one of "
    "DDPMScheduler, DDIMScheduler, DDPMParallelScheduler"
)
FLOW = "FlowMatchEulerDiscreteScheduler"
ROWS = (
    Row("vp", "DDPM, DDIM, PNDM, Euler, Heun, LMS, KDPM2, DPM-Solver, DEIS, UniPC, SA-Solver", one_schedule,
        "levels, prediction type and clipping are taken; equal betas give one process, whatever the solver"),
    Row("flow", "flow matching with a shift", flow, "its levels are taken"),
    Row("clipped", "`clip_sample` with a range", clipped, "x0 is clipped there, in baselines and students too"),
    Row("ignored", "options that the class never reads, such as Euler's `clip_sample`", ignored, "no effect, as there"),
    Row("steps-alone", "spacing, order, Karras sigmas and other options of the scheduler's own steps", steps_alone,
        "no effect"),
    Row("zero-snr", "`rescale_betas_zero_snr` with v or x0 prediction", zero_snr, "starts at pure noise"),
    refused("DDPMScheduler", "`rescale_betas_zero_snr` with epsilon prediction",
            "teacher DDPMScheduler: rescale_betas_zero_snr with prediction_type epsilon: at zero signal-to-noise "
            "ratio the noise says nothing about the image; expected v_prediction or sample, or "
            "rescale_betas_zero_snr: false", rescale_betas_zero_snr=True),
    refused(FLOW, "`invert_sigmas`", f"teacher {FLOW}: invert_sigmas = True: times that run from data to noise are "
            "not supported; set it to false", invert_sigmas=True),
    refused(FLOW, "`use_dynamic_shifting`, of a network without tokens", f"teacher {FLOW}: use_dynamic_shifting = "
            "True: a shift that depends on the image's size is not supported for this network; set it to false and "
            "shift to the value for the teacher's size", use_dynamic_shifting=True),
    refused(FLOW, "`stochastic_sampling`", f"teacher {FLOW}: stochastic_sampling = True: trajectories.eta says how "
            "stochastic the chain is; set it to false", stochastic_sampling=True),
    refused("DDPMScheduler", "betas of another length than the schedule",
            "teacher DDPMScheduler: trained_betas has 50 entries, num_train_timesteps is 1000: expected as many",
            trained_betas=[0.01] * 50),
    refused("DDPMScheduler", "betas of 0 or 1",
            "teacher DDPMScheduler: betas that do not add noise at every time; expected each in (0, 1)",
            beta_start=0.0),
    refused("DDPMScheduler", "`clip_sample_range: 0`",
            "teacher DDPMScheduler: clip_sample_range = 0: expected a number above 0, or clip_sample: false",
            clip_sample_range=0.0),
    Row("edm-pixels", "an EDM scheduler with a network over pixels", edm_pixels,
        "states are the images over `sigma_data`"),
    Row("score-sde", "`ScoreSdeVeScheduler`, whose states explode", score_sde,
        "as a variance preserving process over images in [0, 1]"),
    refused("ScoreSdeVeScheduler", "sigmas of a score SDE that do not fall",
            "teacher ScoreSdeVeScheduler: sigma_min = 2000, sigma_max = 1348, sampling_eps = 1e-05: expected sigmas "
            "above 0, sigma_min below sigma_max, and sampling_eps from 0 to 1", sigma_min=2000.0),
    refused("DDPMScheduler", "an unknown schedule of betas",
            "teacher in: no diffusers pipeline with safetensors weights opens there (cosine is not implemented for "
            "<class 'diffusers.schedulers.scheduling_ddpm.DDPMScheduler'>); give a folder written by "
            "save_pretrained, or a hub id that this machine can reach", beta_schedule="cosine"),
)  # fmt: skip
