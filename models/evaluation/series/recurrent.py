"""Small GRUs, several at once: one for each seed, each with its own weights and batches.

    r, z = sigmoid(W_r x + U_r h),  sigmoid(W_z x + U_z h)
    n = tanh(W_n x + r (U_n h)),    h' = (1 - z) n + z h

`torch.nn.GRU` without its name: the time of so small networks goes into calls of kernels, and one
batched product for all seeds costs hardly more than one seed's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


class GRUs:
    """S networks of `hidden` units with a linear head: (S, B, L, C) -> (S, B, L, outputs).

    Weights are uniform on +- 1 / sqrt(hidden), as torch starts a GRU; network s draws its own from
    `seeds[s]`.
    """

    def __init__(self, channels: int, hidden: int, outputs: int, seeds: Sequence[int]) -> None:
        self.hidden = hidden
        shapes = [
            (channels, 3 * hidden),
            (hidden, 3 * hidden),
            (1, 3 * hidden),
            (1, 3 * hidden),
            (hidden, outputs),
            (1, outputs),
        ]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights = []
        for shape in shapes:
            drawn = torch.stack([torch.rand(shape, generator=own) for own in generators])
            self.weights.append(((2 * drawn - 1) / hidden**0.5).requires_grad_())

    def __call__(self, x: Tensor) -> Tensor:
        into, onto, bias_in, bias_on, head, head_bias = self.weights
        seeds, batch, length, _ = x.shape
        split = 2 * self.hidden
        # the part of the gates that x alone gives, for all times at once: (S, B, 3 hidden) each
        flat = torch.baddbmm(bias_in, x.flatten(1, 2), into)
        given = flat.unflatten(1, (batch, length)).unbind(2)
        h, states = x.new_zeros(seeds, batch, self.hidden), []
        for own in given:
            back = torch.baddbmm(bias_on, h, onto)
            gates = torch.sigmoid(own[..., :split] + back[..., :split])
            reset, keep = gates.chunk(2, dim=-1)
            new = torch.tanh(torch.addcmul(own[..., split:], reset, back[..., split:]))
            h = torch.lerp(new, h, keep)
            states.append(h)
        return (torch.stack(states, 2) @ head[:, None]) + head_bias[:, None]


@dataclass(frozen=True)
class Training:
    """`steps` of Adam with batches of `batch` samples, drawn anew for each epoch."""

    steps: int = 60
    batch: int = 128
    rate: float = 2e-2


def fit(networks: GRUs, x: Tensor, y: Tensor, loss: Loss, plan: Training, seed: int) -> None:
    """Train network s on x[s], y[s] (n, ...); `loss` is the mean over one network's batch, summed
    over networks, so that no network changes another.
    """
    optimizer = torch.optim.Adam(networks.weights, lr=plan.rate, foreach=False)
    generator = torch.Generator().manual_seed(seed)
    seeds, n = x.shape[:2]
    rows = torch.arange(seeds)[:, None]
    size = min(plan.batch, n)
    per_epoch = n // size
    for step in range(plan.steps):
        if step % per_epoch == 0:
            order = torch.stack([torch.randperm(n, generator=generator) for _ in range(seeds)])
        at = (step % per_epoch) * size
        chosen = order[:, at : at + size]
        optimizer.zero_grad(set_to_none=True)
        loss(networks(x[rows, chosen]), y[rows, chosen]).backward()
        optimizer.step()
