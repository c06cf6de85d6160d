"""Measure a text-to-image pipeline of emoji: caption retrieval over guidance, and pictures.

`python -m scripts.measure_emoji_teacher emoji64.npz PIPELINE OUT` writes OUT/figures.json,
OUT/sweep.png (a row for each guidance) and OUT/grid.png (captions below their images).
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from models.evaluation.base import MetricOptions, Samples
from models.evaluation.caption_retrieval import FOLDER, CaptionModel, CaptionRetrieval
from models.evaluation.features import extract, load_features
from models.evaluation.kid import KID
from models.teachers.loading import open_pipeline
from scripts.emoji import vae
from scripts.emoji.data import Emoji, held_out, learnt, load_emoji, to_float
from scripts.emoji.denoiser import draw
from scripts.emoji.pictures import save_grid
from scripts.emoji.views import views
from scripts.train_emoji_judge import split
from tasks.utils.cli import set_up_logging, user_errors

COLUMNS, GRID = 12, 60

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help=".npz of captioned emoji")
    parser.add_argument("pipeline", type=Path, help="folder of a StableDiffusionPipeline")
    parser.add_argument("out", type=Path)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0, 6.0])
    parser.add_argument("--shown", type=float, default=4.0, help="guidance of the grid")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument(
        "--views",
        type=int,
        default=0,
        help="of each real emoji; 0: for a teacher of emoji as drawn",
    )
    parser.add_argument("--judge", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    set_up_logging()
    with user_errors():
        emoji = load_emoji(arguments.data)
        pipeline = open_pipeline(arguments.pipeline)
        figures = Measurement(arguments, emoji, pipeline).run()
        text = json.dumps(figures, indent=1)
        (arguments.out / "figures.json").write_text(text + "\n", encoding="utf-8")
        logger.info("%s", text)


class Measurement:
    """Caption retrieval and KID-EffLite0 of one pipeline."""

    def __init__(
        self, arguments: argparse.Namespace, emoji: Emoji, pipeline: StableDiffusionPipeline
    ) -> None:
        self.arguments, self.emoji, self.pipeline = arguments, emoji, pipeline
        self.extractor = load_features("efficientnet")
        self.train, self.unseen = learnt(emoji)
        real = views(self.train, arguments.views, arguments.seed)
        self.real = extract(self.extractor, to_float(real.images), 64)
        options = MetricOptions(resamples=200, seed=arguments.seed)
        nothing = Samples(images=to_float(self.train.images[:1]))
        self.retrieval = CaptionRetrieval(
            nothing, options, CaptionModel.load(arguments.judge), self.extractor
        )
        self.kid = KID(Samples(features=self.real))

    def run(self) -> dict[str, Any]:
        """All figures; writes the pictures."""
        tested = split(self.emoji)[1]
        rows = [caption in set(self.train.captions) for caption in tested.captions]
        tested = tested[torch.tensor(rows)]  # of the teacher's captions
        tested = views(tested, self.arguments.views, self.arguments.seed)
        autoencoder: Any = self.pipeline.vae
        with torch.inference_mode():
            again = torch.cat(
                [
                    autoencoder.decode(autoencoder.encode(x).latent_dist.mode()).sample
                    for x in to_float(tested.images).split(32)
                ]
            ).clamp(-1, 1)
        figures: dict[str, Any] = {
            "vae_psnr": vae.psnr(autoencoder, self.emoji[held_out(self.emoji)].images),
            "real": self.judge(to_float(tested.images), tested.prompts),
            "autoencoder": self.judge(again, tested.prompts),
        }
        seen = self.seen()
        asked = {"unseen": self.unseen.prompts, "seen": seen.prompts}
        if self.arguments.views:
            asked["caption alone"] = seen.captions
        every = [prompt for prompts in asked.values() for prompt in prompts]
        drawn = {}
        for scale in self.arguments.guidance:
            drawn[scale] = self.draw(every, scale)
            parts = drawn[scale].split([len(prompts) for prompts in asked.values()])
            for (name, prompts), images in zip(asked.items(), parts, strict=True):
                figures.setdefault(name, {})[f"{scale:g}"] = self.judge(images, prompts)
        self.pictures(drawn, every)
        return figures

    def seen(self) -> Emoji:
        """Training pairs, spread over captions and styles."""
        generator = torch.Generator().manual_seed(self.arguments.seed)
        order = torch.randperm(len(self.train), generator=generator)
        return self.train[order[: self.arguments.images]]

    def draw(self, prompts: Sequence[str], scale: float) -> Tensor:
        """One image (3, 64, 64) for each prompt, the same noise at every guidance."""
        return draw(self.pipeline, prompts, scale, self.arguments.steps, self.arguments.seed)

    def judge(self, images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
        """Caption retrieval with its interval, KID against the training images."""
        found = self.retrieval(Samples(images=images, prompts=tuple(prompts)))
        kid = self.kid(Samples(features=extract(self.extractor, images, 64)))
        return {
            "images": len(images),
            "retrieval": round(found.value, 4),
            "low": round(found.low, 4),
            "high": round(found.high, 4),
            "kid": round(kid.value, 4),
        }

    def pictures(self, drawn: dict[float, Tensor], prompts: Sequence[str]) -> None:
        """The sweep, a row of COLUMNS images for each guidance, and the grid at one guidance, the
        pairs that training has not seen first.
        """
        out = self.arguments.out
        rows = torch.cat([images[-COLUMNS:] for images in drawn.values()])
        texts = [f"{g:g}: {p.split(',')[0]}" for g in drawn for p in prompts[-COLUMNS:]]
        save_grid(out / "sweep.png", rows, COLUMNS, texts, scale=1)
        shown = drawn.get(self.arguments.shown, next(reversed(drawn.values())))[:GRID]
        save_grid(out / "grid.png", shown, COLUMNS, prompts[:GRID])


if __name__ == "__main__":
    main()
