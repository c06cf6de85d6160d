"""SwD's patch loss: each image with its own target, batches within classes."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from models.methods.losses import rbf_mmd
from models.methods.swd.build import shrink
from models.methods.swd.losses import linear_mmd
from models.methods.swd.schedule import make_schedule
from models.teachers.conditioning import class_condition
from models.teachers.loading import build_denoiser
from tests.models.methods.made import swd
from tests.models.methods.swd.making import MMD_ONLY, SCHEDULE, batch, normals, stream
from tests.models.teachers.texts import prompt_teacher
from tests.tiny import tiny_teacher, tiny_unet


def test_paired_mmd_is_zero_at_the_target_and_first_step_compares_batches() -> None:
    method = swd(tiny_teacher(), SCHEDULE, **MMD_ONLY)
    y = shrink(method.teacher, batch().x0, 6)
    assert float(method._mmd(2, y, y, None, stream())) == pytest.approx(0, abs=1e-7)
    assert float(method._mmd(2, y.roll(1, 0), y, None, stream())) > 1e-3
    four = shrink(method.teacher, batch().x0, 4)
    same = method._mmd(0, four, four, None, stream())
    assert torch.allclose(method._mmd(0, four.roll(1, 0), four, None, stream()), same, atol=0.2)


def test_with_prompts_each_image_has_its_own_target_at_the_first_step_too() -> None:
    _, teacher = prompt_teacher("sd", 32)
    size = teacher.shape[1]
    method = swd(
        teacher, make_schedule([(1.0, size), (0.5, size)], size, teacher.stride), **MMD_ONLY
    )
    condition = teacher.encode_condition(torch.arange(2))
    y = normals(2, *teacher.shape)
    assert float(method._mmd(0, y, y, condition, stream())) == pytest.approx(0, abs=1e-7)
    assert float(method._mmd(0, y.roll(1, 0), y, condition, stream())) > 1e-3


def test_batch_mmd_compares_features_and_denoised_images_within_classes() -> None:
    teacher = build_denoiser(
        tiny_unet(classes=3), DDPMScheduler(prediction_type="v_prediction"), null_class=3
    )
    method = swd(teacher, SCHEDULE, **MMD_ONLY | {"compare": "batch", "mmd_levels": 0.3})
    condition = class_condition(torch.tensor([0, 1, 0, 1, 0, 1, 0]))
    x0, target = normals(7, 1, 6, 6), normals(7, 1, 6, 6, seed=1)
    t, x_u, y_u = method.mmd_levels.renoised(x0, stream(2), target, together=True)
    assert float(t.max()) < 300
    wanted = 0.0
    for look in (teacher.features, teacher.denoise):
        a, b = (look(v, t, condition).flatten(1) for v in (x_u, y_u))
        wanted += sum(
            len(rows) / 7 * float(rbf_mmd(a[rows], b[rows], (0.5, 1.0, 2.0)))
            for rows in ([0, 2, 4, 6], [1, 3, 5])
        )
    assert float(method._mmd(2, x0, target, condition, stream(2))) == pytest.approx(
        wanted, abs=1e-5
    )
    paired = swd(teacher, SCHEDULE, **MMD_ONLY | {"mmd_levels": 0.3})
    assert float(paired._mmd(2, x0, target, condition, stream(2))) != pytest.approx(
        wanted, abs=1e-2
    )


def test_linear_mmd_of_shuffled_places_is_zero() -> None:
    tokens = normals(2, 9, 4)
    assert float(linear_mmd(tokens, tokens.flip(1))) == pytest.approx(0, abs=1e-6)
