"""KID of schedulers in one stock pipeline, without any training: the shipped MNIST teacher.

Every scheduler samples the same number of images through ``DDPMPipeline`` from the same start
noise; KID is against up to 4,000 training images, as students are chosen (tasks/evaluation).
Prints a table in Markdown. Needs data/dataset: python -m tasks.stages.dataset.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from models.evaluation.features import extract, load_features
from models.evaluation.kid import kid
from models.schedulers.points import measure_points
from models.schedulers.sigdeg_scheduler import SigDEGScheduler
from tasks.data.dataset import load_split

FOLDER, FEATURES = Path("data/pretrained/mnist16"), Path("data/pretrained/mnist_features")
REFERENCE, BATCH = 4000, 125
TRAILING = {"timestep_spacing": "trailing"}
MULTISTEP = TRAILING | {"solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero"}


class UniPC(UniPCMultistepScheduler):  # type: ignore[misc]
    """DDPMPipeline hands a generator to every scheduler; UniPC's own step takes none."""

    def step(self, *args: Any, generator: Any = None, **options: Any) -> Any:
        return super().step(*args, **options)


def rivals() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Training-free schedulers of diffusers with the time grids that they offer."""
    yield "DDIM, trailing", DDIMScheduler, TRAILING | {"set_alpha_to_one": True}
    for name, kind, logsnr in [
        ("DPM-Solver++(2M)", DPMSolverMultistepScheduler, {"use_lu_lambdas": True}),
        ("UniPC", UniPC, {"use_exponential_sigmas": True}),
    ]:
        yield f"{name}, trailing", kind, MULTISTEP
        yield f"{name}, log-SNR", kind, MULTISTEP | logsnr
        yield f"{name}, Karras", kind, MULTISTEP | {"use_karras_sigmas": True}
    sde = MULTISTEP | {"algorithm_type": "sde-dpmsolver++"}
    yield "SDE-DPM-Solver++(2M), trailing", DPMSolverMultistepScheduler, sde
    yield (
        "SDE-DPM-Solver++(2M), Karras",
        DPMSolverMultistepScheduler,
        sde | {"use_karras_sigmas": True},
    )


def ours(points: list[int]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The untrained generator: its three grids, with and without look-ahead, and without noise."""
    given = {"coarse_grid": "given", "points": points}
    yield "SigDEG, as it comes", SigDEGScheduler, {}
    yield "SigDEG, log-SNR", SigDEGScheduler, {"coarse_grid": "logsnr"}
    yield "SigDEG, measured points", SigDEGScheduler, given
    yield "SigDEG, measured points, no look-ahead", SigDEGScheduler, given | {"look_ahead": 0.0}
    yield "SigDEG, measured points, order 1", SigDEGScheduler, given | {"solver_order": 1}
    yield "SigDEG, measured points, order 3", SigDEGScheduler, given | {"solver_order": 3}
    yield "SigDEG, measured points, eta 0.5", SigDEGScheduler, given | {"eta": 0.5}
    yield "SigDEG, measured points, eta 0", SigDEGScheduler, given | {"eta": 0.0}
    yield "SigDEG, 1,000 fine steps", SigDEGScheduler, {"chain_steps": 1000}
    yield "SigDEG, 30 fine steps", SigDEGScheduler, {"chain_steps": 30}


@torch.inference_mode()
def sample(pipe: Any, steps: int, count: int, seed: int) -> Tensor:
    """Images (count, C, H, W) in [-1, 1]; the start noise depends on ``seed`` alone."""
    batches = []
    for first in range(0, count, BATCH):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + first)
        n = min(BATCH, count - first)
        images = pipe(n, generator, num_inference_steps=steps, output_type="np").images
        batches.append(torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1)
    return torch.cat(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="rows whose name this pattern finds")
    parser.add_argument("--points", type=int, nargs="*", help="measured before; else measured now")
    given = parser.parse_args()
    pipe = DDPMPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    extractor = load_features("mnist", folder=FEATURES)
    images, _ = load_split(Path.cwd(), "train")
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:REFERENCE])
    real = extract(extractor, torch.from_numpy(images[rows]).float() / 127.5 - 1)
    config = pipe.scheduler.config
    pilot = torch.Generator().manual_seed(given.seed + 1)
    points = given.points or measure_points(pipe, batch_size=32, generator=pilot)
    print(f"measured points {points}\n")
    print("| scheduler | " + " | ".join(f"KID, {n} calls" for n in given.steps) + " |")
    print("|---" * (1 + len(given.steps)) + "|", flush=True)
    for name, kind, choices in (*rivals(), *ours(points)):
        if not re.search(given.only, name):
            continue
        pipe.scheduler = kind.from_config(config, **choices)
        figures = []
        for steps in given.steps:
            made = sample(pipe, steps, given.samples, given.seed)
            figures.append(kid(extract(extractor, made), real))
        print(f"| {name} | " + " | ".join(f"{v:.4f}" for v in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
