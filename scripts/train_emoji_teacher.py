"""Train the text-to-image teacher of emoji that ships as data/pretrained/emoji64.

`python -m scripts.train_emoji_teacher emoji64.npz WORK` trains the autoencoder, then text encoder
and denoiser, and writes WORK/pipeline, a StableDiffusionPipeline. With `--views N` images are N
views of each emoji, at three sizes; `--start PIPELINE` goes on from the parts of a trained one. A
killed run continues from its last checkpoint in WORK. Not a pipeline stage: the result ships with
the project.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from models.teachers.loading import open_pipeline, save_pipeline
from models.training.loop import LoopConfig, TrainState
from scripts.emoji import denoiser, vae
from scripts.emoji.data import Emoji, held_out, learnt, load_emoji, to_float
from scripts.emoji.pictures import save_grid
from scripts.emoji.text import build_text_encoder, save_tokenizer, train_tokenizer
from scripts.emoji.views import prompts_in_turn, views
from tasks.training.trainer import Training
from tasks.utils.atomic import atomic_dir
from tasks.utils.cli import set_up_logging, user_errors

SHOWN_GUIDANCE = 3.0

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help=".npz of captioned emoji")
    parser.add_argument("work", type=Path, help="folder of checkpoints and of the pipeline")
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=8000, help="of text encoder and denoiser")
    parser.add_argument("--views", type=int, default=0, help="of each emoji; 0: as it is drawn")
    parser.add_argument("--start", type=Path, help="a pipeline to begin with")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--shown", type=int, default=24, help="images of each picture")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    set_up_logging()
    with user_errors():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Both trainings; InputError for a file that is no captioned emoji, and for a folder without a
    pipeline to begin with.
    """
    emoji, seed = load_emoji(arguments.data), arguments.seed
    start = begin(emoji, seed) if arguments.start is None else open_pipeline(arguments.start)
    autoencoder = train_vae(emoji, start.vae, arguments)
    config = LoopConfig(
        arguments.steps,
        arguments.rate,
        warmup=min(300, arguments.steps // 10),
        betas=(0.9, 0.99),
        ema=0.997,
        seed=seed,
    )
    train_denoiser(learnt(emoji), autoencoder, start, config, arguments)


def begin(emoji: Emoji, seed: int) -> StableDiffusionPipeline:
    """Untrained parts and a tokenizer of the prompts."""
    tokenizer = train_tokenizer(learnt(emoji)[0].prompts)
    torch.manual_seed(seed)
    autoencoder, text = vae.build_vae(), build_text_encoder(tokenizer)
    return denoiser.assemble(autoencoder, tokenizer, text, denoiser.build_unet())


def train_vae(emoji: Emoji, begun: AutoencoderKL, arguments: argparse.Namespace) -> AutoencoderKL:
    """Train on all emoji but the held-out ones, or open what is trained; writes WORK/vae."""
    work, steps, seed = arguments.work, arguments.vae_steps, arguments.seed
    if (work / "vae" / "config.json").is_file():
        return AutoencoderKL.from_pretrained(work / "vae", use_safetensors=True)
    if steps == 0:
        return begun
    mask = held_out(emoji)
    train, test = emoji[~mask], emoji[mask]
    images = views(train, min(2, arguments.views), seed).images
    made = begun.to(memory_format=torch.channels_last)
    method = vae.VaeTraining(made)
    rates = LoopConfig(steps, vae.RATE, warmup=vae.WARMUP, ema=0.995, betas=(0.9, 0.99), seed=seed)
    state = TrainState(method, rates)
    shown = torch.cat([test.images[:16], images[:16]])

    def validate(step: int, state: TrainState) -> dict[str, float]:
        judged = vae.build_vae()
        judged.load_state_dict(state.ema_state("vae"))
        with torch.inference_mode():
            x = to_float(shown)
            again = judged.decode(judged.encode(x).latent_dist.mode()).sample
        save_grid(work / "grids" / f"vae-{step:06d}.png", torch.cat([x, again]), 16, scale=1)
        value = vae.psnr(judged, test.images)
        logger.info("autoencoder, step %d: %.2f dB on %d held-out emoji", step, value, len(test))
        return {"psnr": value}

    def batches(step: int, _micro: int, _update: int) -> torch.Tensor:
        return vae.crops(images, step, seed)

    training = Training(
        method, state, batches, work / "vae-run", torch.device("cpu"), 100,
        validate_every=500, validate=validate,
    )  # fmt: skip
    training.run("autoencoder")
    made.load_state_dict(state.ema_state("vae"))
    made.eval()
    vae.fit_scaling(made, images[::8])
    made.save_pretrained(work / "vae")
    return made


def train_denoiser(
    parts: tuple[Emoji, Emoji],
    autoencoder: AutoencoderKL,
    start: StableDiffusionPipeline,
    config: LoopConfig,
    arguments: argparse.Namespace,
) -> None:
    """Train text encoder and denoiser on latents; writes WORK/pipeline at every checkpoint."""
    (train, test), work, shown = parts, arguments.work, arguments.shown
    tokenizer = start.tokenizer
    images = views(train, arguments.views, config.seed).images
    known = prompts_in_turn(train, arguments.views) if arguments.views else train.prompts
    numbers, empty = denoiser.token_table(tokenizer, known)
    unet = start.unet.to(memory_format=torch.channels_last)
    method = denoiser.TextToImage(unet, start.text_encoder, empty)
    sizes = denoiser.SIZES if arguments.views else denoiser.SIZES[:1]
    x0 = [denoiser.encode(autoencoder, images, size) for size in sizes]
    # a third of the prompts shown are pairs of caption and style that were held out
    prompts = (test.prompts[: shown // 3] + train.prompts[:: -(-len(train) // shown)])[:shown]

    def validate(step: int, state: TrainState) -> dict[str, float]:
        pipeline = with_average(state)
        with atomic_dir(work / "pipeline") as folder:
            save_pipeline(pipeline, folder)
            save_tokenizer(tokenizer, folder / "tokenizer")
            lines = "\n".join(sorted(set(known)))
            (folder / "prompts.txt").write_text(lines + "\n", encoding="utf-8")
        images = denoiser.draw(pipeline, prompts, SHOWN_GUIDANCE)
        save_grid(work / "grids" / f"step-{step:06d}.png", images, 8, prompts)
        return {"step": step}

    def with_average(state: TrainState) -> StableDiffusionPipeline:
        weights = state.ema_state("teacher")
        copies = torch.nn.ModuleDict(
            {"unet": denoiser.build_unet(), "text": build_text_encoder(tokenizer)}
        )
        copies.load_state_dict(weights)
        return denoiser.assemble(autoencoder, tokenizer, copies["text"], copies["unet"])

    def batches(step: int, _micro: int, _update: int) -> denoiser.Pairs:
        return denoiser.shuffled(x0, numbers, step, arguments.batch, config.seed)

    training = Training(
        method, TrainState(method, config), batches, work / "run", torch.device("cpu"), 100,
        validate_every=arguments.every, validate=validate,
    )  # fmt: skip
    training.run("text to image")


if __name__ == "__main__":
    main()
