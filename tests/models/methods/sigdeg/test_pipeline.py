"""The student as a pipeline: it starts as the teacher, travels as a folder, and opens without the
project.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.methods.export import export_pipeline
from models.methods.sigdeg.method import (
    SamplerGains,
    SigDEGConfig,
    StepSchedule,
    build_pipeline,
    coarse_steps,
    mean_image,
    untrained_rollout,
)
from models.methods.sigdeg.pipeline import SigDEGPipeline, load_student, save_student
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition
from models.teachers.loading import build_denoiser
from tests.models.tinypaths import KINDS, spec_of, teacher_of
from tests.tiny import perturbed, tiny_unet

Built = tuple[Denoiser, SigDEGPipeline, dict[int, StepSchedule]]


def built(kind: str = "v_prediction", **choices: Any) -> Built:
    teacher = teacher_of(kind)
    config = SigDEGConfig(**({"nfe": (4, 2), "conditioning_limit": None} | choices))
    return teacher, *build_pipeline(teacher, spec_of(teacher), config)


def start(teacher: Denoiser, count: int, n: int = 3) -> tuple[Tensor, Tensor, Condition | None]:
    """Noise, features and condition for ``count`` steps."""
    generator = torch.Generator().manual_seed(5)
    Y = torch.randn(n, *teacher.shape, generator=generator)
    xi = torch.randn(n, count, 3, *teacher.shape, generator=generator)
    return Y, xi, teacher.default_condition(n)


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Within ``tolerance`` of the largest value: an epsilon teacher with random weights makes large
    ones.
    """
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "choices", [{}, {"memory": True, "order": 3}, {"trainable": "lora", "lora_rank": 2}]
)
def test_untrained_is_the_teachers_own_network(kind: str, choices: dict[str, Any]) -> None:
    teacher, pipeline, step_schedules = built(kind, **choices)
    for count in (2, 4):
        Y, xi, condition = start(teacher, count)
        x0, states = pipeline.rollout(Y, xi, condition, count)
        with torch.no_grad():
            expected = untrained_rollout(teacher, step_schedules[count], Y, xi, condition)
        close(states, expected)
        assert torch.equal(x0, states[:, -1]) and torch.equal(states[:, 0], Y)
        steps = step_schedules[count].steps
        with torch.no_grad():
            D = teacher.denoise(Y, steps[0].t, condition)
        n = torch.tensor(steps[0].n, dtype=torch.float32)
        close(
            states[:, 1],
            steps[0].A * Y + steps[0].B * D + torch.einsum("p,npchw->nchw", n, xi[:, 0]),
        )


@pytest.mark.parametrize("kind", ["v_prediction", "dit", "conditional"])
def test_look_ahead_starts_from_the_mean_image(kind: str) -> None:
    """Before there is a history the teacher's mean image stands in; the pipeline keeps it to
    1e-4.
    """
    teacher, pipeline, step_schedules = built(kind, look_ahead=0.5)
    Y, xi, condition = start(teacher, 4)
    assert step_schedules[4].steps[0].b != 0
    with torch.no_grad():
        close(
            pipeline.rollout(Y, xi, condition, 4)[1],
            untrained_rollout(teacher, step_schedules[4], Y, xi, condition),
            1e-3,
        )
    mean = mean_image(teacher, float(teacher.schedule.levels(1).t[0]))
    assert mean.shape == teacher.shape
    close(torch.tensor(pipeline.config.mean_image), mean, 6e-5)


@pytest.mark.parametrize("kind", ["epsilon", "flow", "dit", "conditional"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    """Same images after a trip to disk, with changed weights too; nothing in the folder needs
    pickle.
    """
    _, pipeline, _ = built(kind, trainable="lora", lora_rank=2, memory=True)
    perturbed(pipeline.unet)
    exported = export_pipeline(pipeline)
    save_student(exported, tmp_path / "s")
    labels = [0, 2, 1, 1] if pipeline.config.num_classes else None

    def images(pipe: SigDEGPipeline) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(4, 2, class_labels=labels, generator=generator, output_type="pt").images

    again = load_student(tmp_path / "s")
    assert again.nfe == [2, 4] and torch.equal(images(again), images(exported))
    close(images(exported), images(pipeline), 1e-3)
    names = {path.name for path in (tmp_path / "s").rglob("*") if path.is_file()}
    assert {name.rsplit(".", 1)[1] for name in names} == {"json", "safetensors", "py"}
    assert "pipeline.py" in names and all(
        path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "s").rglob("*.safetensors")
    )


ALONE = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline
folder = sys.argv[1]
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
images = pipe(batch_size=4, generator=torch.Generator().manual_seed(7), output_type="np").images
np.save(sys.argv[2], images)
assert not {"models", "tasks"} & set(sys.modules)
pictures = pipe(batch_size=1).images
assert pictures[0].size == (8, 8), pictures
"""


def test_folder_opens_without_the_project(tmp_path: Path) -> None:
    """By diffusers alone, in another process and folder, with the same images as
    :func:`load_student`.
    """
    _, pipeline, _ = built("epsilon", conditioning_limit=2.0)
    perturbed(pipeline.unet)
    folder = tmp_path / "student"
    save_student(export_pipeline(pipeline), folder)
    (tmp_path / "elsewhere").mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder), str(tmp_path / "images.npy")],
        cwd=tmp_path / "elsewhere",
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    expected = load_student(folder)(
        4, generator=torch.Generator().manual_seed(7), output_type="np"
    ).images
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy", allow_pickle=False), expected)


def test_output_types() -> None:
    _, pipeline, _ = built()
    made = {
        kind: pipeline(3, 4, generator=torch.Generator().manual_seed(1), output_type=kind).images
        for kind in ("pt", "np", "pil")
    }
    tensor, array, pictures = made["pt"], made["np"], made["pil"]
    assert (tensor.shape, tensor.dtype) == ((3, 1, 8, 8), torch.float32) and tensor.abs().max() <= 1
    assert (array.shape, array.dtype) == ((3, 8, 8, 1), np.float32)
    np.testing.assert_allclose(array, (tensor.numpy().transpose(0, 2, 3, 1) + 1) / 2, atol=1e-7)
    assert [picture.size for picture in pictures] == [(8, 8)] * 3
    np.testing.assert_allclose(
        np.array(pictures[1]) / 255, array[1, :, :, 0], atol=0.5 / 255 + 1e-6
    )
    plain = pipeline(
        3, 4, generator=torch.Generator().manual_seed(1), output_type="pt", return_dict=False
    )
    assert isinstance(plain, tuple) and torch.equal(plain[0], tensor)
    longest = pipeline(3, generator=torch.Generator().manual_seed(1), output_type="pt").images
    assert torch.equal(longest, tensor)


def test_labels_choose_classes() -> None:
    _, pipeline, _ = built("conditional")

    def images(labels: Any) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return pipeline(3, 4, class_labels=labels, generator=generator, output_type="pt").images

    one, mixed = images(1), images([1, 0, 1])
    close(mixed[[0, 2]], one[[0, 2]])
    assert (mixed[1] - one[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (
            "v_prediction",
            {"num_inference_steps": 3},
            r"num_inference_steps = 3: this student has \[2, 4\]",
        ),
        ("conditional", {}, r"class_labels: this student is conditional; give a class 0..2"),
        ("conditional", {"class_labels": [0]}, r"class_labels \[0\]: expected 2 classes in 0..2"),
        ("conditional", {"class_labels": 3}, r"class_labels \[3, 3\]: expected 2 classes in 0..2"),
        ("v_prediction", {"output_type": "jpg"}, r"output_type 'jpg': expected pil, np or pt"),
        ("v_prediction", {"batch_size": 0}, r"batch_size = 0: expected at least 1"),
    ],
)
def test_errors(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        built(kind)[1](**({"batch_size": 2} | arguments))
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="no model_index.json; expected a folder written by the student"
    ):
        load_student(tmp_path)


def test_conditioning_limit_damps_the_correction() -> None:
    """Where sigma > limit alpha: D = base + (limit alpha / sigma) (D - base), and one more call
    counts.
    """
    teacher, free, step_schedules = built("epsilon")
    limited = built("epsilon", conditioning_limit=2.0)[1]
    torch.manual_seed(0)
    change = perturbed(free.unet).state_dict()
    limited.unet.load_state_dict(change)
    Y, xi, _ = start(teacher, 4)
    hit = []
    for step in step_schedules[4].steps:
        with torch.no_grad():
            base = teacher.denoise(Y, step.t)
            student, found = (pipe.denoise(step, Y, xi[:, 0], []) for pipe in (free, limited))
        damping = min(1.0, 2.0 * step.alpha / step.sigma)
        close(found, base + damping * (student - base))
        hit.append(damping < 1)
    assert hit[0] and not hit[-1]
    assert [free.network_calls(4), limited.network_calls(4)] == [4, 4 + sum(hit)]
    assert free.frozen is None and limited.frozen is not None
    assert built("v_prediction", conditioning_limit=2.0)[1].frozen is None


def test_latent_student_decodes(tmp_path: Path) -> None:
    torch.manual_seed(5)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        latent_channels=1,
        norm_num_groups=4,
        layers_per_block=1,
        **blocks,
    ).eval()
    plain = teacher_of("v_prediction")
    teacher = build_denoiser(tiny_unet(), plain.scheduler, vae)
    pipeline, _ = build_pipeline(teacher, spec_of(teacher), SigDEGConfig(nfe=(4,)))
    save_student(export_pipeline(pipeline), tmp_path / "s")
    again = load_student(tmp_path / "s")
    images = again(2, generator=torch.Generator().manual_seed(3), output_type="pt").images
    assert images.shape == (2, 3, 16, 16)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, 1, 8, 8, generator=generator)
    x0, _ = pipeline.rollout(noise, None, None, 4, generator)
    close(images, teacher.decode(x0))


def test_another_plan_travels_with_the_folder(tmp_path: Path) -> None:
    """A plan set later is the one that samples, here and after saving; the other schedule stays."""
    teacher, pipeline, _ = built()
    spec, config = spec_of(teacher), SigDEGConfig(nfe=(4, 2))
    kept, gains_by_nfe = (
        pipeline.plan(2),
        coarse_steps(spec, 4, config, SamplerGains(0.5, 1.8, 0.3)),
    )
    Y, xi, _ = start(teacher, 4)
    before = pipeline.rollout(Y, xi, None, 4)[0]
    pipeline.set_plan(4, gains_by_nfe)
    found = pipeline.rollout(Y, xi, None, 4)[0]
    assert pipeline.plan(4) == gains_by_nfe and pipeline.plan(2) == kept and pipeline.nfe == [2, 4]
    assert (found - before).abs().max() > 1e-3
    save_student(pipeline, tmp_path / "student")
    opened = load_student(tmp_path / "student")
    assert opened.plan(4) == gains_by_nfe and opened.plan(2) == kept
    assert torch.equal(opened.rollout(Y, xi, None, 4)[0], found)
