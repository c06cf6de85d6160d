"""What a student is in its teacher's own pipeline: the lines of its card make the images of its own
pipeline, for every family; and the reasons why some have no such form.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchLCMScheduler

from models.common.errors import InputError
from models.takeaway.form import stock_form
from models.takeaway.lines import Place, call_line, opening_lines
from models.takeaway.lora_file import FILE
from models.teachers.guidance import GuidanceRange
from models.teachers.loading import denoiser_of_pipeline
from tasks.evaluation.stock_back import _as_latents, _make_here, _path, asked
from tests.models.methods.test_student_pipeline import student as own_student
from tests.models.takeaway.students import Made, make, untrained
from tests.models.teachers import pipelines
from tests.models.tinypaths import series_teacher, teacher_of

QUICK = ("sd", "flux")
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in pipelines.PIPELINES]
FLOWS = ["sd3", pytest.param("sana", marks=pytest.mark.slow)]
BY_NETWORK = ("ddpm", "dit", "pixart", "pixart_1024", "pixart_sigma")  # take no LoRA


def opened(made: Made) -> Any:
    """The stock pipeline, by the card's lines."""
    student, teacher = (str(folder) for folder in made.folders)
    scope: dict[str, Any] = {}
    exec(opening_lines(made.form, {"source": teacher}, Place(student, "stock")), scope)
    scope["pipe"].set_progress_bar_config(disable=True)
    return scope["pipe"]


def stock_images(made: Made, pipe: Any, xi: Any, **call: Any) -> np.ndarray:
    given = {"batch_size": 4, **asked(made.student, made.root)}
    call = made.form["call"] | {made.form["takes"]: given[made.form["takes"]]} | call
    if xi is not None:
        begin = pipe.scheduler.set_timesteps

        @functools.wraps(begin)
        def set_timesteps(*arguments: Any, **options: Any) -> None:
            begin(*arguments, **options)
            pipe.scheduler.set_path(_as_latents(made.form, xi))

        pipe.scheduler.set_timesteps = set_timesteps
    torch.manual_seed(0)
    return np.asarray(pipe(**call, output_type="np").images)


@pytest.mark.parametrize("name", NAMES)
def test_sigdeg_in_the_teacher_s_own_pipeline(name: str, tmp_path: Path) -> None:
    made = make(tmp_path, name)
    form = made.form
    assert form["weights"] == ("network" if name in BY_NETWORK else "lora")
    assert (tmp_path / "student/stock" / FILE).is_file() == (form["weights"] == "lora")
    assert form["tensors"] == (len(made.adapters) if form["weights"] == "lora" else 0)
    assert form["call"].get("guidance_scale", 1.0) == (3.5 if name == "flux" else 1.0)
    pipe, xi = opened(made), _path(made.student, 2)
    found = stock_images(made, pipe, xi)
    expected = _make_here(made.student, 2, xi, asked(made.student, made.root))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if form["weights"] == "lora":  # it matters
        pipe.disable_lora()
        assert np.abs(stock_images(made, pipe, None) - expected).max() > 1e-2


@pytest.mark.parametrize(
    "name", ["sd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "flux"))]
)
def test_guidance_as_an_input_of_the_teacher_s_own_pipeline(name: str, tmp_path: Path) -> None:
    """The network goes along where it got the input; FLUX has it, and its LoRA is a LoRA."""
    made = make(tmp_path, name, guidance=GuidanceRange(2.0, 6.0))
    form = made.form
    assert form["weights"] == ("lora" if name == "flux" else "network")
    assert form["guidance_range"] == [2.0, 6.0] and form["call"]["guidance_scale"] == 3.5
    pipe, xi = opened(made), _path(made.student, 2)
    images = {}
    for weight in (None, 2.0, 6.0):
        given = asked(made.student, made.root) | {"guidance_scale": weight}
        images[weight] = _make_here(made.student, 2, xi, given)
        call = {} if weight is None else {"guidance_scale": weight}
        found = stock_images(made, pipe, xi, **call)
        np.testing.assert_allclose(found, images[weight], atol=1e-4)
    assert np.abs(images[6.0] - images[2.0]).max() > 1e-3


@pytest.mark.parametrize("name", FLOWS)
def test_swd_in_the_teacher_s_own_pipeline(name: str, tmp_path: Path) -> None:
    """Without code of ours."""
    made = make(tmp_path, name, "swd")
    assert not list((tmp_path / "student/stock").rglob("*.py"))
    pipe = opened(made)
    assert type(pipe.scheduler) is FlowMatchLCMScheduler
    found = stock_images(made, pipe, None)
    expected = _make_here(made.student, 3, None, asked(made.student, made.root))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    pipe.scheduler.set_scale_factors([1.0, 1.0], "bicubic")
    assert stock_images(made, pipe, None).shape != found.shape


def test_all_weights_trained_is_a_network(tmp_path: Path) -> None:
    made = make(tmp_path, "ddpm", trainable="full")
    assert (made.form["weights"], made.form["tensors"]) == ("network", 0)
    xi = _path(made.student, 2)
    found = stock_images(made, opened(made), xi)
    expected = _make_here(made.student, 2, xi, {})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def index_of(name: str) -> dict[str, Any]:
    return {"_class_name": name, "unet": ["diffusers", "UNet2DModel"]}


def test_students_without_such_a_form() -> None:
    teacher = teacher_of("v_prediction")
    widened = untrained(teacher, "sigdeg", "lora", inputs="signature")
    with pytest.raises(InputError, match=r"takes more than the state \(method.inputs: signature\)"):
        stock_form(widened, index_of("DDPMPipeline"), {})
    plain = untrained(teacher, "sigdeg", "lora")
    with pytest.raises(InputError, match="its teacher's pipeline is LDMPipeline; known are"):
        stock_form(plain, index_of("LDMPipeline"), {})
    classes = untrained(teacher_of("conditional"), "sigdeg", "lora")
    with pytest.raises(InputError, match="the call of a DDPMPipeline takes no class_labels"):
        stock_form(classes, index_of("DDPMPipeline"), {})
    with pytest.raises(InputError, match="no scheduler of diffusers steps as a student of"):
        stock_form(own_student("multistep"), index_of("DDPMPipeline"), {})
    series = untrained(series_teacher(), "sigdeg", "full")
    with pytest.raises(InputError, match="no pipeline of series"):
        stock_form(series, index_of("DDPMPipeline"), {})


def test_swd_students_without_such_a_form() -> None:
    scaled = untrained(teacher_of("v_prediction"), "swd", "lora")
    with pytest.raises(InputError, match="knows flow-matching models alone"):
        stock_form(scaled, index_of("DDPMPipeline"), {})
    with pytest.raises(InputError, match="the call of a DDPMPipeline takes no sigmas"):
        stock_form(untrained(teacher_of("flow"), "swd", "lora"), index_of("DDPMPipeline"), {})
    flux = denoiser_of_pipeline(pipelines.build("flux")[0], size=16)
    student = untrained(flux, "swd", "lora")
    with pytest.raises(InputError, match="keeps latents as lists of tokens"):
        stock_form(student, {"_class_name": "FluxPipeline"}, {})


def test_the_lines() -> None:
    form = {
        "pipeline": "StableDiffusion3Pipeline", "part": "transformer", "weights": "lora",
        "network": "SD3Transformer2DModel", "scheduler": "FlowMatchLCMScheduler",
        "takes": "prompt", "call": {"num_inference_steps": 2, "sigmas": [1.0, 0.5]},
    }  # fmt: skip
    base = {"source": "o/n", "revision": "v1", "lora": "style.safetensors", "lora_scale": 0.5}
    lines = opening_lines(form, base, Place("me/mine"))
    assert lines.splitlines() == [
        "import torch",
        "from diffusers import FlowMatchLCMScheduler, StableDiffusion3Pipeline",
        'pipe = StableDiffusion3Pipeline.from_pretrained("o/n", revision="v1", '
        "dtype=torch.float32)",
        'pipe.load_lora_weights("style.safetensors")',
        "pipe.fuse_lora(lora_scale=0.5)",
        "pipe.unload_lora_weights()",
        'pipe.load_lora_weights("me/mine")',
        'pipe.scheduler = FlowMatchLCMScheduler.from_pretrained("me/mine", subfolder="scheduler")',
    ]
    assert call_line(form, 'a "cat"') == (
        'images = pipe(prompt="a \\"cat\\"", num_inference_steps=2, sigmas=[1.0, 0.5]).images'
    )
    other = form | {"weights": "network", "scheduler": "SigDEGScheduler"}
    lines = opening_lines(other, {"source": "x.safetensors"}, Place("me/mine", "stock"))
    assert lines.splitlines()[1:5] == [
        "from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline",
        "from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module",
        'network = SD3Transformer2DModel.from_pretrained("me/mine", subfolder="unet")',
        'pipe = StableDiffusion3Pipeline.from_single_file("x.safetensors", '
        "dtype=torch.float32, transformer=network)",
    ]
    assert "load_lora_weights" not in lines and 'subfolder="stock/scheduler"' in lines
    inside = opening_lines(form, base, Place("me/mine", "stock"))
    assert 'weight_name="stock/pytorch_lora_weights.safetensors"' in inside


def test_names_of_others_stay_inside_their_quotes() -> None:
    name = 'x")\n```\n<script>\u202e\U000e0041'
    form = {"takes": "prompt", "call": {}}
    line = call_line(form, name)
    assert "\n" not in line and "`" not in line and "<" not in line and line.isprintable()
    scope: dict[str, Any] = {"pipe": lambda prompt: type("Output", (), {"images": prompt})}
    exec(line.replace(", )", ")"), scope)
    assert scope["images"] == name
