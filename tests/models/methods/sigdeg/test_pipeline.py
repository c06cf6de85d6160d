"""The student as a pipeline: it starts as the teacher, travels as a folder, and opens without the
project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from models.methods.export import export_pipeline, open_student
from models.methods.sigdeg.build import (
    SamplerGains,
    StepSchedule,
    build_pipeline,
    coarse_steps,
    make_step_schedule,
    mean_image,
    untrained_rollout,
)
from models.methods.sigdeg.pipeline import SigDEGPipeline
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition
from models.teachers.loading import build_denoiser
from tests.models.methods.made import sigdeg_config
from tests.models.tinypaths import KINDS, spec_of, teacher_of
from tests.tiny import perturbed, tiny_unet

Built = tuple[Denoiser, SigDEGPipeline, dict[int, StepSchedule]]


def built(kind: str = "v_prediction", **choices: Any) -> Built:
    teacher = teacher_of(kind)
    config = sigdeg_config(**({"nfe": (4, 2), "conditioning_limit": None} | choices))
    spec = spec_of(teacher)
    schedules = {nfe: make_step_schedule(spec, nfe, config) for nfe in config.nfe}
    return teacher, build_pipeline(teacher, spec, config), schedules


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
    exported.save_pretrained(tmp_path / "s")
    labels = [0, 2, 1, 1] if pipeline.config.num_classes else None

    def images(pipe: SigDEGPipeline) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(4, 2, class_labels=labels, generator=generator, output_type="pt").images

    again = open_student(tmp_path / "s")
    assert again.nfe == [2, 4] and torch.equal(images(again), images(exported))
    close(images(exported), images(pipeline), 1e-3)
    names = {path.name for path in (tmp_path / "s").rglob("*") if path.is_file()}
    assert {name.rsplit(".", 1)[1] for name in names} == {"json", "safetensors", "py"}


def test_labels_choose_classes() -> None:
    _, pipeline, _ = built("conditional")

    def images(labels: Any) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return pipeline(3, 4, class_labels=labels, generator=generator, output_type="pt").images

    one, mixed = images(1), images([1, 0, 1])
    close(mixed[[0, 2]], one[[0, 2]])
    assert (mixed[1] - one[1]).abs().max() > 1e-3


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="no model_index.json; expected a folder written by the student"
    ):
        open_student(tmp_path)


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
    pipeline = build_pipeline(teacher, spec_of(teacher), sigdeg_config(nfe=(4,)))
    export_pipeline(pipeline).save_pretrained(tmp_path / "s")
    again = open_student(tmp_path / "s")
    images = again(2, generator=torch.Generator().manual_seed(3), output_type="pt").images
    assert images.shape == (2, 3, 16, 16)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, 1, 8, 8, generator=generator)
    x0, _ = pipeline.rollout(noise, None, None, 4, generator)
    close(images, (teacher.decode(x0).clamp(-1, 1) + 1) / 2)


def test_another_plan_travels_with_the_folder(tmp_path: Path) -> None:
    """A plan set later is the one that samples, here and after saving; the other schedule stays."""
    teacher, pipeline, _ = built()
    spec, config = spec_of(teacher), sigdeg_config(nfe=(4, 2))
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
    pipeline.save_pretrained(tmp_path / "student")
    opened = open_student(tmp_path / "student")
    assert opened.plan(4) == gains_by_nfe and opened.plan(2) == kept
    assert torch.equal(opened.rollout(Y, xi, None, 4)[0], found)
