"""Train the small digit classifier whose penultimate layer serves as MNIST features.

Writes data/pretrained/mnist_features. Not a pipeline stage: the result ships with the project.
"""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.common.errors import InputError
from models.evaluation.features import DigitNet
from tasks.config.schema import Params
from tasks.data.dataset import load_split
from tasks.data.sources.npz import NpzDataset
from tasks.stages import dataset
from tasks.utils.atomic import atomic_dir
from tasks.utils.cli import stage_main
from tasks.utils.progress import progress

FOLDER = Path("data/pretrained/mnist_features")
# No label smoothing: it pulls each class into a point and so hides flaws within a class from the
# metrics.
EPOCHS, BATCH, RATE, SHIFT, SHEAR = 10, 250, 4e-3, 1.5, 0.1

logger = logging.getLogger("scripts.train_digit_features")


def run(params: Params, root: Path) -> None:
    """Train on the dataset of `params` and write the folder; InputError for colour images or no
    labels.
    """
    images, labels, test_images, test_labels, source = _load(params)
    if images.shape[1] != 1 or labels.min() < 0:
        raise InputError("dataset: expected grey images with a label each, for the digit features")
    start = time.monotonic()
    net = train(images, labels, seed=params.dataset.seed)
    seconds = time.monotonic() - start
    accuracy = measure(net, test_images, test_labels)
    logger.info(
        "accuracy %.2f %% on %d test images, %.0f s", 100 * accuracy, len(test_images), seconds
    )
    with atomic_dir(root / FOLDER) as folder:
        net.save(folder)
        (folder / "README.md").write_text(
            _card(accuracy, len(images), len(test_images), source, seconds), encoding="utf-8"
        )


def train(images: Tensor, labels: Tensor, seed: int, epochs: int = EPOCHS) -> DigitNet:
    """A classifier of uint8 images (n, 1, S, S) with labels (n,) int64, after `epochs` passes."""
    torch.manual_seed(seed)
    net = DigitNet(size=min(16, images.shape[-1] // 4 * 4), classes=int(labels.max()) + 1).train()
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-2)
    steps = max(1, len(images) // BATCH)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=epochs * steps + 1, pct_start=0.2
    )
    generator = torch.Generator().manual_seed(seed)
    with progress("digit features", epochs * steps) as advance:
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            for index in order[: steps * BATCH].chunk(steps):
                x = jitter(images[index].float() / 127.5 - 1, generator)
                loss = F.cross_entropy(net(x), labels[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rates.step()
                advance(loss=float(loss.detach()))
    return net.eval()


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random shifts (to 1.5 pixels) and small distortions of (n, 1, S, S) in [-1, 1]; outside is
    -1.
    """
    n, size = len(images), images.shape[-1]
    grid = torch.eye(2, 3).repeat(n, 1, 1)
    grid[:, :, :2] += (torch.rand(n, 2, 2, generator=generator) * 2 - 1) * SHEAR
    grid[:, :, 2] = (torch.rand(n, 2, generator=generator) * 2 - 1) * (SHIFT * 2 / size)
    places = F.affine_grid(grid, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, places, align_corners=False) - 1


@torch.inference_mode()
def measure(net: DigitNet, images: Tensor, labels: Tensor) -> float:
    """Accuracy in [0, 1] on uint8 images (n, 1, S, S)."""
    found = torch.cat([net(batch.float() / 127.5 - 1).argmax(1) for batch in images.split(500)])
    return float((found == labels).double().mean())


def _load(params: Params) -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    """Train and test images and labels, and a line that names them.

    An .npz with `train_*` and `test_*` arrays has a test set; other datasets are tested on their
    holdout.
    """
    settings = params.dataset
    with tempfile.TemporaryDirectory() as folder:
        train_part, holdout = _splits(params, Path(folder) / "train")
        if not (isinstance(settings, NpzDataset) and settings.images.startswith("train")):
            return *train_part, *holdout, f"dataset {settings.kind}, tested on its holdout"
        keys = {"images": settings.images, "labels": settings.labels or ""}
        test = settings.model_copy(
            update={k: v.replace("train", "test") for k, v in keys.items()} | {"exclude": None}
        )
        parts = _splits(params.model_copy(update={"dataset": test}), Path(folder) / "test")
        joined = [
            torch.cat(pair)
            for pair in (*zip(train_part, holdout, strict=True), *zip(*parts, strict=True))
        ]
        excluded = f" without the images of {settings.exclude}" if settings.exclude else ""
        source = f"{Path(settings.path).name}: {settings.images}{excluded}, tested on {test.images}"
        return joined[0], joined[1], joined[2], joined[3], source


def _splits(params: Params, root: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    dataset.run(params, root)
    train_part, holdout = (load_split(root, name) for name in ("train", "holdout"))
    return _tensors(*train_part), _tensors(*holdout)


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels))


def _card(accuracy: float, train_size: int, test_size: int, source: str, seconds: float) -> str:
    return f"""# Digit features

A LeNet-like classifier of grey 16x16 digits; its penultimate layer (96 numbers after ReLU) is the feature
space of KID, Frechet distance, precision and recall for MNIST. Other sizes are resized to 16x16 first.

| | |
|---|---|
| test accuracy | {100 * accuracy:.2f} % of {test_size:,} |
| training images | {train_size:,} |
| data | {source} |
| training | {EPOCHS} epochs, batch {BATCH}, AdamW {RATE}, shifts up to {SHIFT} pixels; {seconds:.0f} s |

Command, given an .npz of MNIST with `train_images`, `train_labels`, `test_images` and `test_labels`
(`dataset.exclude=mnist` keeps the project's own 5,000 digits, and so its holdout, out of the training):

    python -m scripts.train_digit_features dataset.kind=npz dataset.path=mnist.npz dataset.images=train_images \\
      dataset.labels=train_labels dataset.pad=2 dataset.exclude=mnist
"""


if __name__ == "__main__":
    stage_main(run)
