"""Teachers whose own states are x0 + s eps, over pixels: score SDEs and EDM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
)
from torch import Tensor

from models.common.errors import InputError
from models.distil import distil
from models.methods.export import open_student
from models.methods.student_network import student_network
from models.sampling.baselines import BASELINES, SOLVERS, sample_baseline, variants
from models.sampling.chain import Chain
from models.schedulers.export import stock_pipeline
from models.teachers.loading import build_denoiser, load_denoiser
from models.teachers.unet1d import UNet1D
from tests.tiny import score_network, tiny_unet

STEPS = 12
EDM = {"sigma_max": 20.0, "sigma_data": 0.7}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scheduler(**more: Any) -> ScoreSdeVeScheduler:
    return ScoreSdeVeScheduler(num_train_timesteps=STEPS, sigma_max=30.0, **more)


def score_teacher(steps: int = STEPS) -> Any:
    own = ScoreSdeVeScheduler(num_train_timesteps=steps, sigma_max=30.0)
    return build_denoiser(score_network(), own)


def edm_teacher(steps: int = STEPS) -> Any:
    return build_denoiser(tiny_unet(), EDMEulerScheduler(num_train_timesteps=steps, **EDM))


TEACHERS = {"score": score_teacher, "edm": edm_teacher}


def chain_end(teacher: Any, x: Tensor, condition: Any = None) -> Tensor:
    chain = Chain(teacher.schedule.levels(teacher.schedule.train_steps), 0.0)
    for k in range(chain.steps):
        x0 = teacher.denoise(x, float(chain.levels.t[k]), condition)
        x = float(chain.a[k]) * x + float(chain.b[k]) * x0
    return x


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@torch.no_grad()
@pytest.mark.parametrize("embedding", ["fourier", "positional"])
def test_x0_and_the_reverse_ode_of_a_score(embedding: str) -> None:
    """Tweedie's x0 = y + s^2 score, and dy = -s score ds by Euler in the scheduler's own sigmas.
    The network is asked as ScoreSdeVePipeline asks it, at the time s.
    """
    network, own = score_network(), scheduler()
    if embedding == "positional":  # its output is not over s
        network = tiny_unet()
    teacher: Any = build_denoiser(network, own)
    own.set_timesteps(STEPS)
    own.set_sigmas(STEPS)
    x = noise(2, *teacher.shape)
    y = x * (1 + own.sigmas[0] ** 2).sqrt()
    np.testing.assert_allclose(teacher.schedule.levels(STEPS).t, own.sigmas, rtol=1e-5)
    for s, after in zip(own.sigmas, [*own.sigmas[1:], torch.tensor(0.0)], strict=True):
        score = network(y, s * torch.ones(2)).sample
        x0 = y + s**2 * score
        # float32 rounds states of size s, in both ways
        tolerance = max(1e-5, 1e-6 * float(y.abs().max()))
        near(teacher.denoise(y / (1 + s**2).sqrt(), s), x0, tolerance)
        y = y - (after - s) * s * score
    near(chain_end(teacher, x), y, 2e-5)


@torch.no_grad()
def test_the_ancestral_chain_has_the_predictors_mean() -> None:
    """``step_pred`` of the scheduler; its noise is that of diffusers' ``fixed_large``."""
    network, own = score_network(), scheduler(sampling_eps=1e-5)
    teacher: Any = build_denoiser(network, own)
    chain = Chain(teacher.schedule.levels(STEPS), 1.0)
    own.set_timesteps(STEPS)
    own.set_sigmas(STEPS)
    for k in (0, 5, STEPS - 1):
        s, y = own.sigmas[k], noise(2, *teacher.shape) * own.sigmas[k]
        score = network(y, s * torch.ones(2)).sample
        theirs = own.step_pred(score, own.timesteps[k], y).prev_sample_mean
        x = y / (1 + s**2).sqrt()
        mine = chain.a[k] * x + chain.b[k] * teacher.denoise(x, s)
        if k < STEPS - 1:  # the last step goes to clean data there, and by sigma_min here
            near(mine / chain.levels.alpha[k + 1], theirs, 1e-3)


@torch.no_grad()
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_over_pixels_is_the_stock_sampler(classes: int | None, prediction: str) -> None:
    network = tiny_unet(classes=classes)
    own = EDMEulerScheduler(num_train_timesteps=STEPS, prediction_type=prediction, **EDM)
    teacher: Any = build_denoiser(network, own)
    labels = torch.tensor([2, 0])
    condition = None if classes is None else teacher.encode_condition(labels)
    own.set_timesteps(STEPS)
    x = noise(2, *teacher.shape)
    y = x * (20.0**2 + 0.7**2) ** 0.5
    given = {} if classes is None else {"class_labels": labels}
    for k, t in enumerate(own.timesteps):
        output = network(own.scale_model_input(y, t), t, **given).sample
        state, s = y / (own.sigmas[k] ** 2 + 0.49).sqrt(), own.sigmas[k]
        y, x0 = own.step(output, t, y, return_dict=False)
        near(0.7 * teacher.denoise(state, float(s.log() / 4), condition), x0)
    mine = chain_end(teacher, x, condition)
    near(0.7 * mine, y)
    near(teacher.decode(mine), y.clamp(-1, 1))
    near(teacher.decode(teacher.encode(y.clamp(-1, 1))), y.clamp(-1, 1))


@torch.no_grad()
def test_edms_solver_over_pixels_is_ours() -> None:
    network, own = tiny_unet(), EDMDPMSolverMultistepScheduler(**EDM, solver_order=2)
    teacher: Any = build_denoiser(network, own)
    own.set_timesteps(STEPS)
    x = noise(2, *teacher.shape)
    y = x * (20.0**2 + 0.7**2) ** 0.5
    for t in own.timesteps:
        y = own.step(network(own.scale_model_input(y, t), t).sample, t, y).prev_sample
    near(0.7 * sample_baseline(teacher, "dpmpp_2m", STEPS, x), y)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("kind", TEACHERS)
def test_rivals_at_full_steps_end_near_the_chain(kind: str) -> None:
    """DDIM is the chain; solvers of the same equation end near it. None is left out; the stochastic
    ones and other spacings run.
    """
    steps = 48
    teacher = TEACHERS[kind](steps)
    x = noise(2, *teacher.shape)
    chain = chain_end(teacher, x)
    near(sample_baseline(teacher, "ddim", steps, x), chain)
    for name in BASELINES:
        spacings = variants(teacher, name)
        assert len(spacings) == len(SOLVERS[name].spacings)
        for spaced in spacings:
            made = sample_baseline(teacher, spaced, 4, x, generator=torch.Generator())
            assert bool(made.isfinite().all())
        if name not in ("ddim", "ddpm", "sde_dpmpp_2m", "sde_heun"):
            found = sample_baseline(teacher, name, steps, x)
            error = float((found - chain).square().mean().sqrt())
            assert error < 0.2 * float(chain.std()), (name, error)


SMALL = {"paths": 16, "batch_size": 4, "fine_steps": 8, "intervals": 4, "steps": 2}
SWD = {"schedule": {"kind": "given", "pairs": [[1.0, 4], [0.5, 8]]}, "dmd": {"gate": "off"}}
PLAIN = {"nfe": (2,), "calibrate": False}
METHODS: dict[str, dict[str, Any]] = {
    "sigdeg": PLAIN, "swd": SWD, "consistency": {"nfe": (2,)},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", TEACHERS)
def test_students_are_trained_saved_and_opened_elsewhere(
    kind: str, method: str, tmp_path: Path
) -> None:
    """Two calls; their images are those that the teacher's codec makes of its states."""
    settings = METHODS[method] | {"learning_rate": 1e-3}
    teacher = TEACHERS[kind]()
    student = distil(teacher, method, **SMALL, **settings)
    call = {"num_inference_steps": 2, "batch_size": 3, "output_type": "np"}
    made = student(generator=torch.Generator().manual_seed(1), **call).images
    latent = student(generator=torch.Generator().manual_seed(1), **call | {"output_type": "latent"})
    expected = (teacher.decode(latent.images) + 1) / 2
    np.testing.assert_allclose(made, expected.permute(0, 2, 3, 1), atol=1e-6)
    student.save_pretrained(tmp_path / "student")
    again = open_student(tmp_path / "student")
    opened = again(generator=torch.Generator().manual_seed(1), **call).images
    np.testing.assert_allclose(opened, made, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEACHERS)
def test_a_student_opens_with_diffusers_alone(kind: str, tmp_path: Path) -> None:
    student = distil(TEACHERS[kind](), "sigdeg", **SMALL, **PLAIN)
    call = {"num_inference_steps": 2, "batch_size": 3, "output_type": "np"}
    made = student(generator=torch.Generator().manual_seed(1), **call).images
    student.save_pretrained(tmp_path / "student")
    program = (
        "import sys, torch, numpy as np\n"
        "sys.modules['models'] = None\n"
        "from diffusers import DiffusionPipeline\n"
        "pipe = DiffusionPipeline.from_pretrained('student', trust_remote_code=True)\n"
        f"images = pipe(generator=torch.Generator().manual_seed(1), **{call!r}).images\n"
        "np.save('images.npy', images)\n"
    )
    environment = {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), made, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", TEACHERS)
def test_widened_students_answer_as_their_teacher(kind: str) -> None:
    """Also where the network centres what it is given."""
    teacher = TEACHERS[kind]()
    channels = teacher.shape[0]
    wide: Any = student_network(teacher, channels + 2).eval()
    x, t = noise(2, *teacher.shape), float(teacher.schedule.levels(4).t[1])
    found = teacher.with_network(wide).output(torch.cat([x, noise(2, 2, 8, 8, seed=1)], 1), t)
    near(found[:, :channels], teacher.output(x, t))
    trained = {name for name, p in wide.named_parameters() if p.requires_grad}
    assert "time_proj.weight" not in trained and "conv_in.weight" in trained


def test_networks_with_skips_keep_their_inputs() -> None:
    """The published NCSN++: one widened is refused, a student of the state alone works."""
    teacher = build_denoiser(score_network(skips=True), scheduler())
    with pytest.raises(InputError, match="its SkipDownBlock2D reads states of 3 channels"):
        distil(teacher, **SMALL, **PLAIN)
    settings = PLAIN | {"inputs": "none", "conditioning_limit": None}
    student = distil(teacher, **SMALL, **settings)
    assert student(batch_size=2, output_type="pt").images.shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="steps its variance exploding states"):
        student.stock_sampler()


def test_no_stock_pipeline_of_pixels_scales_states() -> None:
    settings = PLAIN | {"inputs": "none", "conditioning_limit": None}
    student = distil(edm_teacher(), **SMALL, **settings)
    with pytest.raises(InputError, match="DDPMPipeline does not scale states"):
        stock_pipeline(student, DDPMPipeline(unet=None, scheduler=None))


def test_a_folder_of_score_sde_ve_is_opened(tmp_path: Path) -> None:
    network = score_network()
    ScoreSdeVePipeline(unet=network, scheduler=scheduler()).save_pretrained(tmp_path / "t")
    teacher = load_denoiser(tmp_path / "t")
    assert teacher.prediction_type == "ve" and teacher.codec.scaling == {
        "mean": [-1.0] * 3, "std": [2.0] * 3,
    }  # fmt: skip
    zero, one = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert torch.equal(teacher.decode(zero), -one) and torch.equal(teacher.decode(2 * one), one)
    assert torch.equal(teacher.encode(-one), zero)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma_min": 0.0}, "sigma_min = 0, sigma_max = 1348"),
        ({"sigma_min": 2000.0}, "sigma_min below sigma_max"),
        ({"sampling_eps": 1.0}, "sampling_eps = 1: expected"),
    ],
)
def test_levels_that_do_not_fall_are_refused(options: dict[str, Any], words: str) -> None:
    own = ScoreSdeVeScheduler()
    own.register_to_config(**options)
    with pytest.raises(InputError, match=words):
        build_denoiser(score_network(), own)


def test_what_a_state_stands_for_has_to_be_known() -> None:
    from tests.models.teachers.pipelines import vae

    series: Any = UNet1D
    own: Any = diffusers.EDMEulerScheduler
    with pytest.raises(InputError, match="a network over latents"):
        build_denoiser(tiny_unet(), ScoreSdeVeScheduler(), vae(1))
    edm, score = (build.codec_of for build in (series, series))
    from models.teachers.reading import read_schedule

    with pytest.raises(InputError, match=r"sigma_data = 0\.5 of a network over series"):
        edm(read_schedule(own())[0], None, 2, "EDMEulerScheduler")
    with pytest.raises(InputError, match="a network over series"):
        score(read_schedule(ScoreSdeVeScheduler())[0], None, 2, "ScoreSdeVeScheduler")
    assert edm(read_schedule(own(sigma_data=1.0))[0], None, 2, "EDM").value_range is None
