"""Losses, pure: tensors in, a scalar out; randomness comes in as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def path_loss(states: Tensor, target: Tensor, weights: Tensor, power: float = 2.0) -> Tensor:
    """Mean over paths, steps and pixels of weights[i] |states - target|^power.

    ``states``, ``target``: (n, L, C, ...); ``weights``: (L,) >= 0; powers below 2 are smoothed at
    0 (by 1e-3, in data units).
    """
    error = (states - target).square()
    if power != 2.0:
        error = (error + 1e-6).pow(power / 2)
    return (weights.view(1, -1, *[1] * (error.dim() - 2)) * error).mean()


def feature_loss(features: Tensor, target: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Squared distance of paired features (n, F, h, w), channels scaled to unit length at every
    place (Zhang et al. 2018).
    """

    def unit(f: Tensor) -> Tensor:
        return f / (f.square().sum(1, keepdim=True) + epsilon).sqrt()

    return (unit(features) - unit(target)).square().sum(1).mean()


def rbf_mmd(
    x: Tensor,
    y: Tensor,
    bandwidths: Sequence[float],
    width: float | None = None,
    closeness: Tensor | None = None,
) -> Tensor:
    """Unbiased squared MMD (Gretton et al. 2012) of x (n, d) and y (m, d), n, m >= 2; may be
    negative.

    Kernel: mean over b of exp(-|u - v|^2 / (2 b^2 s)), with s the median squared distance within y,
    not differentiated, so that bandwidths are in units of the data's own spread; or the one kernel
    exp(-|u - v|^2 / (2 width^2)).

    ``closeness`` (n, n): a kernel between what the rows of both are given, the same for x_i and
    y_i, m = n. The result is the squared MMD of the joint laws of it and of x, or y, from pairs
    i != j alone (lemma 6 there; x_i and y_i depend on each other): 0 just where the laws of x and y
    given it are the same.
    """
    if len(x) < 2 or len(y) < 2:
        raise ValueError(f"unbiased MMD needs two samples a side, got {len(x)} and {len(y)}")
    xx, yy, xy = (torch.cdist(u, v).square() for u, v in ((x, x), (y, y), (x, y)))
    off = ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    scale = yy[off].median().detach().clamp_min(1e-12)
    if width is not None:
        bandwidths, scale = (1.0,), torch.full_like(scale, width**2)
    n, m = len(x), len(y)

    def kernel(d2: Tensor) -> Tensor:
        return torch.stack([torch.exp(-d2 / (2 * b**2 * scale)) for b in bandwidths]).mean(0)

    if closeness is not None:
        whole = kernel(xx) + kernel(yy) - 2 * kernel(xy)
        return (whole * closeness)[off].sum() / (n * (n - 1))
    kxx = (kernel(xx).sum() - n) / (n * (n - 1))
    kyy = (kernel(yy).sum() - m) / (m * (m - 1))
    return kxx + kyy - 2 * kernel(xy).mean()
