"""Training the text-to-image teacher of emoji for two steps, and measuring what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from models.common.random import generator_for
from scripts import export_emoji_teacher, measure_emoji_teacher, train_emoji_teacher
from scripts.emoji import denoiser, vae
from scripts.emoji.pictures import save_grid
from tests.scripts.emoji.samples import write_emoji


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the data, the work folder after two steps of each part)"""
    folder = tmp_path_factory.mktemp("emoji")
    data, work = write_emoji(folder / "e.npz"), folder / "work"
    train_emoji_teacher.main(
        [str(data), str(work), *["--vae-steps", "2", "--steps", "2", "--shown", "3"]]
    )
    return data, work


def test_the_pipeline_opens_in_stock_diffusers(made: tuple[Path, Path]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(made[1] / "pipeline", local_files_only=True)
    assert type(pipeline.unet).__name__ == "UNet2DConditionModel"
    images = denoiser.draw(pipeline, ["red heart, noto style", "doughnut"], 3.0, steps=2)
    assert images.shape == (2, 3, 64, 64)
    assert float(images.abs().max()) <= 1
    with torch.inference_mode():
        latents = pipeline.vae.encode(images).latent_dist.mode()
    assert latents.shape == (2, 4, 16, 16)


def test_half_the_size_draws_the_same(made: tuple[Path, Path], tmp_path: Path) -> None:
    whole = made[1] / "pipeline"
    export_emoji_teacher.main([str(whole), str(tmp_path / "half")])
    sizes = [
        sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        for folder in (whole, tmp_path / "half")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    assert not any(str(made[1]) in file.read_text() for file in (tmp_path / "half").rglob("*.json"))
    first, second = (
        denoiser.draw(
            StableDiffusionPipeline.from_pretrained(folder, local_files_only=True),
            ["red heart, noto style"],
            2.0,
            steps=2,
        )
        for folder in (whole, tmp_path / "half")
    )
    assert torch.allclose(first, second, atol=0.05)
    with pytest.raises(SystemExit):
        export_emoji_teacher.main([str(tmp_path), str(tmp_path / "half")])


def test_the_seed_of_a_place_gives_its_noise(made: tuple[Path, Path]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(made[1] / "pipeline", local_files_only=True)
    prompts = ["red heart", "doughnut", "green apple"]
    whole = denoiser.draw(pipeline, prompts, 2.0, steps=2, batch=3)
    parts = denoiser.draw(pipeline, prompts, 2.0, steps=2, batch=2)
    assert torch.allclose(whole, parts, atol=1e-4)
    other = denoiser.draw(pipeline, prompts, 2.0, steps=2, seed=1)
    assert not torch.allclose(whole, other, atol=1e-2)


def test_a_finished_run_is_continued_not_repeated(made: tuple[Path, Path]) -> None:
    data, work = made
    before = (work / "vae" / "config.json").stat().st_mtime_ns
    train_emoji_teacher.main(
        [str(data), str(work), *["--vae-steps", "2", "--steps", "3", "--shown", "3"]]
    )
    assert (work / "vae" / "config.json").stat().st_mtime_ns == before
    assert (work / "run" / "step-00000003").is_dir()
    assert (work / "grids" / "step-000003.png").is_file()


def test_views_go_on_from_a_pipeline(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, work = made
    start = ["--start", str(work / "pipeline"), "--views", "2"]
    sizes = ["--vae-steps", "0", "--steps", "5", "--batch", "4", "--shown", "3"]
    train_emoji_teacher.main([str(data), str(tmp_path), *start, *sizes])
    before, after = (
        StableDiffusionPipeline.from_pretrained(folder / "pipeline", local_files_only=True)
        for folder in (work, tmp_path)
    )
    for (name, old), new in zip(
        before.vae.state_dict().items(), after.vae.state_dict().values(), strict=True
    ):
        assert torch.equal(old, new), name
    weights = [pipe.unet.conv_in.weight for pipe in (before, after)]
    assert not torch.equal(*weights)
    assert float((weights[0] - weights[1]).abs().max()) < 0.05  # begun where the other ended
    with pytest.raises(SystemExit):
        train_emoji_teacher.main([str(data), str(tmp_path), "--start", str(tmp_path / "none")])


def test_sizes_take_turns() -> None:
    latents = [torch.zeros(10, 4, size, size) for size in denoiser.SIZES]
    prompts = torch.arange(10)[:, None]
    sides = [denoiser.shuffled(latents, prompts, k, 5, 0).x0.shape[-1] for k in range(5)]
    assert sides == [16, 12, 16, 8, 16]
    seen = [denoiser.shuffled(latents[:1], prompts, k, 5, 0).prompts for k in (2, 3)]
    assert sorted(torch.cat(seen).flatten().tolist()) == list(range(10))


def test_figures_and_pictures(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Pixels:
        label, dim = "pixels", 1280

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(images, 21).flatten(1)[:, :1280]

    monkeypatch.setattr(measure_emoji_teacher, "load_features", lambda _kind: Pixels())
    data, work = made
    out = work / "out"
    command = [str(data), str(work / "pipeline"), str(out)]
    options = ["--guidance", "1", "2", "--steps", "2", "--images", "5", "--views", "2", "--judge"]
    judge = Path(__file__).parents[2] / "data/pretrained/emoji_captions"
    measure_emoji_teacher.main([*command, *options, str(judge)])
    figures = json.loads((out / "figures.json").read_text())
    assert set(figures["seen"]) == {"1", "2"}
    assert figures["seen"]["2"]["images"] == 5
    assert figures["unseen"]["2"]["images"] == 2
    assert figures["caption alone"]["2"]["images"] == 5
    assert 0 <= figures["real"]["retrieval"] <= 1
    assert figures["vae_psnr"] > 0
    assert Image.open(out / "sweep.png").width == 12 * 70
    assert Image.open(out / "grid.png").height == 158


def test_an_epoch_shows_every_pair_once() -> None:
    x0, prompts = torch.arange(10.0)[:, None], torch.arange(10)[:, None]
    first = [denoiser.shuffled([x0], prompts, step, 5, seed=0) for step in range(4)]
    for epoch in (first[:2], first[2:]):
        assert sorted(torch.cat([b.x0 for b in epoch])[:, 0].tolist()) == list(range(10))
    assert not torch.equal(first[0].x0, first[2].x0)
    assert all(torch.equal(b.x0.long(), b.prompts) for b in first)


def test_crops_are_parts_of_the_images() -> None:
    image = torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64).remainder(251).to(torch.uint8)
    batch = vae.crops(image, step=0, seed=0)
    assert batch.shape == (vae.BATCH, 3, vae.CROP, vae.CROP)
    pixels = ((batch + 1) * 127.5).round().to(torch.uint8)
    windows = image[0].unfold(1, vae.CROP, 1).unfold(2, vae.CROP, 1)  # (3, 33, 33, C, C)
    windows = windows.permute(1, 2, 0, 3, 4).flatten(0, 1)
    for part in pixels:
        same = [bool((windows == p).flatten(1).all(1).any()) for p in (part, part.flip(-1))]
        assert any(same)


def test_psnr_of_a_perfect_and_of_a_grey_copy() -> None:
    class Copy:
        def __init__(self, error: float):
            self.error = error

        def encode(self, x):
            latents = type("Latents", (), {"mode": lambda _self: x})()
            return type("Encoded", (), {"latent_dist": latents})()

        def decode(self, z):
            return type("Decoded", (), {"sample": z + 2 * self.error})()

    grey = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    assert vae.psnr(Copy(0.1), grey) == pytest.approx(20, abs=1e-3)
    assert vae.psnr(Copy(0.0), grey) == pytest.approx(100, abs=1e-3)


def test_the_losses_fall_to_zero_for_a_perfect_prediction() -> None:
    class Perfect(torch.nn.Module):
        """Knows the clean latents, 0: then v = alpha eps and x = sigma eps."""

        def forward(self, x, t, encoder_hidden_states, return_dict):
            squared = denoiser.build_scheduler().alphas_cumprod[t].view(-1, 1, 1, 1)
            return ((squared / (1 - squared)).sqrt() * x,)

    class Text(torch.nn.Module):
        def forward(self, numbers):
            return type("Found", (), {"last_hidden_state": numbers[..., None].float()})()

    method = denoiser.TextToImage(Perfect(), Text(), torch.zeros(16, dtype=torch.long))
    batch = denoiser.Pairs(torch.zeros(8, 4, 16, 16), torch.ones(8, 16, dtype=torch.long))
    loss, _ = method.loss("teacher", batch, generator_for("cpu", 0))
    assert float(loss) < 1e-6


def test_grids_have_room_for_their_texts(tmp_path: Path) -> None:
    images = torch.zeros(5, 3, 64, 64)
    save_grid(tmp_path / "a.png", images, 3, scale=1)
    save_grid(tmp_path / "b.png", images, 3, ["a very long caption indeed, noto style"] * 5)
    assert Image.open(tmp_path / "a.png").size == (3 * 70, 2 * 70)
    assert Image.open(tmp_path / "b.png").size == (3 * 134, 2 * 158)
