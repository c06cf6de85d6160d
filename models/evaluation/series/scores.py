"""Scores by small networks that are trained for them (Yoon et al. 2019, TimeGAN).

Both train GRUs of 16 units on at most 500 paths of a set, one for each of five seeds (split, start
weights, order of batches), and give the mean over seeds. Their interval is the spread over seeds,
not a bootstrap interval. All sets see the same seeds, so differences are paired. 60 steps of Adam
with batches of 128 take one to three seconds of one core at 32 times.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.common.errors import InputError
from models.evaluation.base import Estimate
from models.evaluation.series.base import SeriesMetric
from models.evaluation.series.recurrent import GRUs, Training, fit

SEEDS = 5
MOST_PATHS = 500
HELD_OUT = 0.2
HIDDEN = 16
LEAST_PATHS = 10


class _Trained(SeriesMetric):
    lower_is_better = True
    shows_interval = True
    floor = 1e-2

    def compare(self, paths: Tensor) -> Estimate:
        n = min(len(self.few_of(paths)), len(self.few_of(self.real_paths)), MOST_PATHS)
        if n < LEAST_PATHS:
            raise InputError(
                f"metric {self.name}: {n} paths, expected at least {LEAST_PATHS} of each set"
            )
        # (n, L, C) float32; the sets stay as they come, samples are in no order
        x, y = (s[:n].transpose(1, 2).float() for s in (paths, self.real_paths))
        # a caller in inference mode has tensors that no gradient may pass
        with torch.inference_mode(False), torch.enable_grad():
            each = self.train(x.clone(), y.clone()).double().numpy()
        return Estimate(np.concatenate([[each.mean()], each]))

    @abstractmethod
    def train(self, fake: Tensor, real: Tensor) -> Tensor:
        """The score (S,) by each seed, of paths (n, L, C)."""

    def seeds(self) -> list[int]:
        return [1000 * self.options.seed + index for index in range(SEEDS)]


class Discriminative(_Trained):
    """|accuracy - 1/2| of a classifier of real and generated paths, on the held-out fifth.

    0: not told apart; 0.5: always told apart. |.| of a noisy accuracy is above 0 for equal laws
    too: the row of other real paths is the floor. The logit is the mean over times of the GRU's
    output; on AR(1) paths that needs fewer steps than the last output, which TimeGAN reads.
    """

    name = "discriminative"
    title = "Discriminative"

    def train(self, fake: Tensor, real: Tensor) -> Tensor:
        cut = len(real) - max(1, round(HELD_OUT * len(real)))
        train, test = zip(*(_split(fake, real, cut, seed) for seed in self.seeds()), strict=True)
        networks = GRUs(real.shape[2], HIDDEN, 1, self.seeds())
        truth = torch.cat([torch.zeros(cut), torch.ones(cut)]).expand(SEEDS, -1)
        fit(networks, torch.stack(train), truth, _entropy, Training(), self.options.seed)
        with torch.no_grad():
            logits = _logits(networks(torch.stack(test)))
        says_real = (logits > 0).double()
        held = len(real) - cut
        accuracy = (1 - says_real[:, :held].mean(1) + says_real[:, held:].mean(1)) / 2
        return (accuracy - 0.5).abs()


class Predictive(_Trained):
    """Mean absolute error on real paths of one-step forecasts learnt on generated ones.

    All channels at all times from those before, in standard deviations of the real channel. The
    row of other real paths has the error that the data itself allows.
    """

    name = "predictive"
    title = "Predictive"

    def train(self, fake: Tensor, real: Tensor) -> Tensor:
        networks = GRUs(real.shape[2], HIDDEN, real.shape[2], self.seeds())
        shared = fake.expand(SEEDS, *fake.shape)
        fit(networks, shared[:, :, :-1], shared[:, :, 1:], _absolute, Training(), self.options.seed)
        with torch.no_grad():
            forecasts = networks(real[:, :-1].expand(SEEDS, -1, -1, -1))
        return (forecasts - real[:, 1:]).abs().mean((1, 2, 3))


def _split(fake: Tensor, real: Tensor, cut: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training paths and held-out paths of one seed, generated ones first."""
    generator = torch.Generator().manual_seed(seed)
    mixed = [each[torch.randperm(len(each), generator=generator)] for each in (fake, real)]
    return torch.cat([each[:cut] for each in mixed]), torch.cat([each[cut:] for each in mixed])


def _per_network(error: Tensor) -> Tensor:
    return error.flatten(1).mean(1).sum()


def _entropy(outputs: Tensor, truth: Tensor) -> Tensor:
    error = F.binary_cross_entropy_with_logits(_logits(outputs), truth, reduction="none")
    return _per_network(error)


def _logits(outputs: Tensor) -> Tensor:
    """(S, B) from outputs (S, B, L, 1)."""
    return outputs[..., 0].mean(2)


def _absolute(outputs: Tensor, truth: Tensor) -> Tensor:
    return _per_network((outputs - truth).abs())
