"""What SwD's student is given and compared with: reduced, enlarged, renoised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler

from models.methods.swd.build import shrink
from models.methods.swd.pipeline import renoise, upscale
from models.teachers.loading import build_denoiser
from tests.models.methods.made import swd
from tests.models.methods.swd.making import MMD_ONLY, SCHEDULE, batch, normals, stream
from tests.tiny import tiny_dit, tiny_teacher


def test_pairs_are_shrunk_by_area_upscaled_and_then_noised() -> None:
    method = swd(tiny_teacher("flow"), SCHEDULE, **MMD_ONLY)
    given = batch(2)
    target, x = method.pair(given, 2, stream(3))
    six = F.adaptive_avg_pool2d(given.x0, 6)
    four = given.x0.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    assert torch.allclose(target, six, atol=1e-6)
    eps = torch.randn(six.shape, generator=stream(3))
    up = F.interpolate(four, size=6, mode="bicubic", align_corners=False)
    assert torch.allclose(x, 0.3 * up + 0.7 * eps, atol=1e-6)
    target, x = method.pair(given, 0, stream(3))
    assert torch.equal(x, torch.randn(target.shape, generator=stream(3))) and target.shape[-1] == 4


def test_backward_simulation_feeds_the_students_own_steps() -> None:
    method = swd(
        tiny_teacher("flow"),
        SCHEDULE,
        **MMD_ONLY | {"compare": "batch", "backward_simulation": True},
    )
    target, x = method.pair(batch(3), 3, stream(3))
    generator = stream(3)
    sizes = [step.size for step in method.scale_schedule]
    *later, first = (
        torch.randn((len(x), 1, size, size), generator=generator) for size in reversed(sizes)
    )
    expected = first
    for step, following, eps in zip(
        method.scale_schedule, method.scale_schedule[1:], reversed(later), strict=False
    ):
        with torch.no_grad():
            previous = method.pipeline.denoise(step, expected)
        expected = renoise(following, upscale(previous, following.size), eps)
    assert torch.allclose(x, expected, atol=1e-5) and torch.equal(target, batch(3).x0)
    assert not any(method.paired(i) for i in range(4))


def test_real_images_stand_for_the_teachers_where_batches_are_compared() -> None:
    """Inputs from noise do not depend on x0, so with y as ``real`` the loss is that of a batch made
    of y.
    """
    method = swd(
        tiny_teacher("flow"),
        SCHEDULE,
        **MMD_ONLY | {"compare": "batch", "backward_simulation": True},
    )
    for step in range(4):
        given, y = batch(step), 0.5 * normals(6, 1, 8, 8, seed=7)
        real = method.loss("student", given._replace(real=y), stream())[0]
        assert torch.equal(real, method.loss("student", given._replace(x0=y), stream())[0])
        assert not torch.equal(real, method.loss("student", given, stream())[0])
    own = swd(
        tiny_teacher("flow"), SCHEDULE, **MMD_ONLY
    )  # every image with its own target, but for the first step
    given, y = batch(2), normals(6, 1, 8, 8, seed=7)
    alone, beside = (
        own.loss("student", each, stream())[0] for each in (given, given._replace(real=y))
    )
    assert torch.equal(alone, beside)


def test_latents_are_shrunk_in_pixel_space() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=2, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
    )  # fmt: skip
    teacher = build_denoiser(tiny_dit(), DDPMScheduler(clip_sample=False), vae=vae)
    z = normals(2, 2, 8, 8)
    small = shrink(teacher, z, 4)
    with torch.no_grad():
        images = vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1)
        wanted = vae.encode(F.avg_pool2d(images, 2)).latent_dist.mean * vae.config.scaling_factor
    assert torch.allclose(small, wanted, atol=1e-5)
    assert not torch.allclose(small, F.avg_pool2d(z, 2), atol=1e-2)
    assert shrink(teacher, z, 8) is z
