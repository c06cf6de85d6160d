"""The ring of eight Gaussians of tests/models/methods/sigdeg/ring.py as a teacher of deterministic
paths: a network of the exact denoiser and a correction that starts at zero, through the methods'
own classes and training loop. From the command line it prints the table of docs/methods.md:

    python -m tests.models.methods.ode_ring --kind sfd consistency
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from models.common.random import generator_for
from models.methods.base import DistillationMethod, MethodContext, PathBatch
from models.methods.registry import config_class, method_class
from models.sampling.chain import Chain
from models.sampling.grids import adaptive_grid
from models.sampling.signature import bases
from models.sampling.trajectories import PathSpec
from models.teachers.codec import Codec
from models.teachers.diffusers_model import DiffusersDenoiser
from models.teachers.gaussian_mixture import GaussianMixture
from models.teachers.schedule import VariancePreserving
from models.training.loop import LoopConfig, TrainState, train
from tests.models.methods.sigdeg.ring import STEPS, TAU, ring, sliced_wasserstein

CUMULATED = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))  # DDPM's linear schedule
POOL, BATCH, INTERVALS, SAMPLES = 32_768, 256, 30, 40_000
NFE = (10, 5, 3, 2)
TRAINING = {"sfd": 1_000, "consistency": 2_000}  # steps


class RingNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """x0 = exact denoised point + MLP of (x, x0, sines of t), whose last layer starts at zero."""

    @register_to_config
    def __init__(self, in_channels: int = 2, out_channels: int = 2, width: int = 128) -> None:
        super().__init__()
        self.first = nn.Linear(in_channels, width)
        self.guess, self.time = nn.Linear(2, width), nn.Linear(16, width)
        self.middle = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.last = nn.Linear(width, out_channels)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        with torch.no_grad():
            x0 = exact(x[:, :2], t)
        phase = t[:, None] / 1000 * torch.pi * 2 ** torch.arange(8)
        h = self.first(x) + self.guess(x0) + self.time(torch.cat([phase.sin(), phase.cos()], 1))
        h = torch.relu(h)
        for layer in self.middle:
            h = h + torch.relu(layer(h))
        return (x0 + self.last(h),)


def exact(x: Tensor, t: Tensor) -> Tensor:
    """E[x0 | x] of the ring for rows x (n, 2) at whole times t (n,), float32; the closed form of
    models/teachers/gaussian_mixture.py with a level for each row.
    """
    mixture: GaussianMixture = ring()
    squared = torch.as_tensor(CUMULATED)[t.long()][:, None]  # (n, 1)
    alpha, variance = squared.sqrt(), squared * TAU**2 + 1 - squared
    points = x.double()
    distance = (points[:, None] - alpha[..., None] * mixture.means).square().sum(-1)
    shares = torch.softmax(mixture.weights.log() - distance / (2 * variance), 1)
    mean = shares @ mixture.means
    return (mean + alpha * TAU**2 / variance * (points - alpha * mean)).float()


class RingDenoiser(DiffusersDenoiser):
    input_layer = "first"


@cache
def ring_teacher() -> RingDenoiser:
    torch.manual_seed(0)
    schedule = VariancePreserving(CUMULATED)
    return RingDenoiser(
        RingNet(), schedule, shape=(2,), prediction_type="sample", codec=Codec(None)
    )


@torch.no_grad()
def ode_path(n: int, *key: int) -> tuple[Tensor, Tensor]:
    """(states (K + 1, n, 2), denoised (K, n, 2)) of the chain of 100 steps with eta = 0."""
    chain, teacher = ode_chain(), ring_teacher()
    x = torch.randn(n, 2, generator=generator_for("cpu", *key))
    states, denoised = [x], []
    for k in range(STEPS):
        denoised.append(teacher.denoise(states[-1], float(chain.levels.t[k])))
        states.append(float(chain.a[k]) * states[-1] + float(chain.b[k]) * denoised[-1])
    return torch.stack(states), torch.stack(denoised)


def ode_chain() -> Chain:
    return Chain(VariancePreserving(CUMULATED).levels(STEPS), 0.0)


@cache
def ode_spec() -> PathSpec:
    """The adaptive grid of 30 intervals, from the movement of 2,000 pilot paths."""
    denoised = ode_path(2_000, 0)[1]
    movement = (denoised[1:] - denoised[:-1]).square().mean((1, 2)).numpy()
    grid = adaptive_grid(movement, INTERVALS)
    return PathSpec(ode_chain(), grid, bases(ode_chain(), grid, 1), seed=0)


@cache
def pool() -> Tensor:
    """(n, 31, 2): cached states at the grid."""
    grid = torch.as_tensor(ode_spec().grid)
    pieces = [ode_path(8_192, 1, piece)[0][grid] for piece in range(POOL // 8_192)]
    return torch.cat(pieces, 1).transpose(0, 1).contiguous()


def method_of(kind: str, nfe: tuple[int, ...], **choices: Any) -> DistillationMethod:
    torch.manual_seed(0)
    config = config_class(kind).model_validate({"kind": kind, "nfe": nfe, **choices})
    made: DistillationMethod = method_class(kind)(MethodContext(ring_teacher(), config, ode_spec()))
    return made


def trained(kind: str, nfe: tuple[int, ...], steps: int, rate: float, **choices: Any) -> Any:
    """The method with the averaged weights of its last step in place."""
    method, paths = method_of(kind, nfe, **choices), pool()

    def batches(step: int, micro: int, update: int) -> PathBatch:
        rows = torch.randint(len(paths), (BATCH,), generator=generator_for("cpu", 2, step))
        return PathBatch(paths[rows], paths[:0], None, step)

    state = TrainState(method, LoopConfig(steps=steps, learning_rate=rate, warmup=50, ema=0.99))
    for _ in train(method, batches, state):
        pass
    method.pipeline.unet.load_state_dict(state.ema_state("student"))
    return method


@cache
def teacher_ends(n: int, seed: int) -> Tensor:
    return ode_path(n, 3, seed)[0][-1]


def distance_to_teacher(method: DistillationMethod, nfe: int, seeds: int = 4) -> float:
    """Sliced Wasserstein distance between independent samples, a mean over pairs of sets."""
    found = []
    for seed in range(seeds):
        generator = generator_for("cpu", 4, seed)
        noise = torch.randn(SAMPLES, 2, generator=generator)
        samples = method.sample(noise, nfe=nfe, generator=generator)
        found.append(sliced_wasserstein(samples, teacher_ends(SAMPLES, seed)))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", nargs="+", choices=TRAINING, default=list(TRAINING))
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = sliced_wasserstein(teacher_ends(SAMPLES, 0), teacher_ends(SAMPLES, 1))
    print(f"two sets of teacher samples: {sets:.4f}")
    for kind in args.kind:
        start = time.process_time()
        pair = (method_of(kind, NFE), trained(kind, NFE, TRAINING[kind], 1e-3))
        for name, method in zip(("untrained", "trained"), pair, strict=True):
            found = [f"{n}: {distance_to_teacher(method, n):.4f}" for n in NFE]
            print(kind, name, *found, flush=True)
        print(f"{time.process_time() - start:.0f} s of a core")


if __name__ == "__main__":
    main()
