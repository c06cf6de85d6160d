"""A teacher and a dataset of different shapes do not go together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel

from models.common.errors import InputError
from models.teachers.loading import load_denoiser
from tasks.config.schema import Params
from tasks.data.agreement import check_teacher_fits_dataset, data_shape
from tasks.stages import dataset, teacher


def save_pipeline(folder: Path, channels: int, size: int | tuple[int, int]) -> Path:
    torch.manual_seed(0)
    unet = UNet2DModel(
        size, channels, channels, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler(100)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("channels", "size", "made", "fix"),
    [
        (3, 32, "3x32x32", "give it dataset.size=32 and images of 3 channels (dataset.channels)"),
        (1, 32, "1x32x32", "give it dataset.size=32"),
        (3, 8, "3x8x8", "give it images of 3 channels (dataset.channels)"),
        (1, (8, 16), "1x8x16", "images of a dataset are square"),
    ],
)
def test_a_teacher_of_another_shape_is_refused_at_once(
    tmp_path: Path, channels: int, size: int | tuple[int, int], made: str, fix: str
) -> None:
    save_pipeline(tmp_path / "mine", channels, size)
    params = Params.model_validate(
        {"dataset": {"kind": "digits", "size": 8, "holdout": 20},
         "teacher": {"source": "pretrained", "path": "mine"}}
    )  # fmt: skip
    dataset.run(params, tmp_path)
    with pytest.raises(InputError) as caught:
        teacher.run(params, tmp_path)
    assert str(caught.value) == (
        f"the teacher makes {made}, data/dataset has 1x8x8: expected the same shape; {fix}, or "
        "choose another teacher"
    )
    assert not (tmp_path / "data/teacher").exists()


def test_a_latent_teacher_is_compared_by_its_images(tmp_path: Path) -> None:
    from diffusers import DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    vae = AutoencoderKL(
        3, 3, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (8, 8), norm_num_groups=4,
        latent_channels=4,
    )  # fmt: skip
    transformer = DiTTransformer2DModel(
        2, 8, 4, 8, num_layers=1, sample_size=8, patch_size=2, num_embeds_ada_norm=3
    )
    scheduler = DDPMScheduler(100, prediction_type="epsilon")
    DiTPipeline(transformer, vae, scheduler).save_pretrained(tmp_path / "dit")
    latent = load_denoiser(tmp_path / "dit")
    assert latent.shape == (4, 8, 8) and data_shape(latent) == (3, 16, 16)
    (tmp_path / "data/dataset").mkdir(parents=True)
    manifest = tmp_path / "data/dataset/manifest.json"
    manifest.write_text(json.dumps({"shape": [3, 16, 16], "sha256": {}}))
    check_teacher_fits_dataset(latent, tmp_path)
    manifest.write_text(json.dumps({"shape": [3, 8, 8], "sha256": {}}))
    with pytest.raises(
        InputError, match=r"makes 3x16x16, data/dataset has 3x8x8.*dataset\.size=16"
    ):
        check_teacher_fits_dataset(latent, tmp_path)
