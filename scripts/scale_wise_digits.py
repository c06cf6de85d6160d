"""KID of the untrained scale-wise generator on the shipped MNIST teacher, beside the full size.

    python -m tasks.stages.dataset && python -m scripts.scale_wise_digits

For every number of steps all splits into steps at 8x8 and at 16x16, from the same start noise and
the same Brownian paths; KID is against up to 4,000 training digits, as students are chosen. Prints
a table in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.common.random import generator_for
from models.distil import path_spec
from models.evaluation.base import MetricOptions, Samples
from models.evaluation.features import extract, load_features
from models.evaluation.kid import KID
from models.methods.sigdeg.build import build_pipeline
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.sigdeg.pipeline import SigDEGPipeline
from models.sampling.grids import subgrid
from models.sampling.trajectories import PathSpec
from models.teachers.base import Denoiser
from models.teachers.loading import load_denoiser
from tasks.data.dataset import load_split

FOLDER, FEATURES = Path("data/pretrained/mnist16"), Path("data/pretrained/mnist_features")
REFERENCE, BATCH, SMALL, FINE = 4000, 125, 8, 60


def config_of(spec: PathSpec, count: int, small: int, full: int) -> SigDEGConfig:
    """Plain settings for ``count`` steps, the first ``small`` of them at 8x8."""
    start = subgrid(spec.grid, count)[small]
    alpha, sigma = spec.chain.levels.alpha[start], spec.chain.levels.sigma[start]
    pairs = ((1.0, SMALL), (float(sigma / (alpha + sigma)) + 1e-9, full)) if small else ()
    return SigDEGConfig.model_validate(
        {"nfe": (count,), "calibrate": False, "inputs": "none", "scales": {"pairs": pairs}}
        | {"conditioning_limit": None}
    )


@torch.inference_mode()
def sample(pipeline: SigDEGPipeline, samples: int, seed: int) -> Tensor:
    """Images (samples, 1, 16, 16) in [-1, 1]; equal seeds have equal noise at any sizes."""
    made = []
    for first in range(0, samples, BATCH):
        generator = generator_for("cpu", seed, 13, first)
        noise = torch.randn(
            min(BATCH, samples - first), *pipeline.config.shape, generator=generator
        )
        made.append(pipeline.rollout(noise, generator=generator)[0])
    return torch.cat(made)


def gflops(pipeline: SigDEGPipeline) -> float:
    """Of one image."""
    counter = FlopCounterMode(display=False)
    with counter:
        pipeline.rollout(torch.zeros(1, *pipeline.config.shape))
    return float(counter.get_total_flops()) / 1e9


def reference(metric_features: object, resamples: int) -> KID:
    """KID to training digits."""
    images, _ = load_split(Path.cwd(), "train")
    rows = np.sort(np.random.default_rng(0).permutation(len(images))[:REFERENCE])
    real = extract(metric_features, torch.from_numpy(images[rows]).float() / 127.5 - 1)
    return KID(Samples(features=real), MetricOptions(resamples=resamples))


def splits(count: int, wanted: Sequence[int] | None) -> list[int]:
    return [small for small in range(count) if wanted is None or small in (0, *wanted)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8])
    parser.add_argument("--small", type=int, nargs="*", help="steps at 8x8; else all numbers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=200)
    given = parser.parse_args()
    teacher: Denoiser = load_denoiser(FOLDER)
    extractor = load_features("mnist", folder=FEATURES)
    kid = reference(extractor, given.resamples)
    print("| steps | at 8x8 | SNR where it grows | GFLOP | KID | 95 % |\n|---|---|---|---|---|---|")
    for count in given.steps:
        spec = path_spec(teacher, FINE, count, given.seed, 1.0)
        for small in splits(count, given.small):
            config = config_of(spec, count, small, teacher.shape[1])
            pipeline = build_pipeline(teacher, spec, config)
            pipeline.unet.eval().to(memory_format=torch.channels_last)
            found = kid(
                Samples(features=extract(extractor, sample(pipeline, given.samples, given.seed)))
            )
            snr = spec.chain.snr[spec.grid[small]] if small else 0.0
            print(
                f"| {count} | {small} | {snr:.3f} | {gflops(pipeline):.3f} | {found.value:.3f} | "
                f"{found.low:.3f} to {found.high:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
