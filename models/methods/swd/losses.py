"""The losses of SwD, pure: tensors in, a scalar out. Formulas: the head of
models/methods/swd/method.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.methods.losses import rbf_mmd

EPSILON = 1e-6


def dmd_loss(x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """(13): its gradient in x0 (n, C, H, W) is the direction from the teacher's denoised image to
    the fake network's.

    ``real``, ``fake``: (n, C, H, W), not differentiated; computed in float32 whatever comes in.
    """
    x0, real, fake = (v if v.dtype == torch.float64 else v.float() for v in (x0, real, fake))
    with torch.no_grad():
        size = (x0 - real).abs().mean(dim=(1, 2, 3), keepdim=True)
        direction = (fake - real) / size.clamp_min(EPSILON)
    return 0.5 * F.mse_loss(x0, (x0 - direction).detach())


def generator_gan_loss(fake_logits: Tensor) -> Tensor:
    """(15) for the student: softplus(-D(fake)), the mean over (n,)."""
    return F.softplus(-fake_logits.float()).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """(15) for the critics: softplus(D(fake)) + softplus(-D(real)), means over (n,)."""
    return F.softplus(fake_logits.float()).mean() + F.softplus(-real_logits.float()).mean()


def linear_mmd(x: Tensor, y: Tensor, c: float = 1e-3) -> Tensor:
    """(16): per image, pseudo-Huber distance of the mean token of x and of y (n, tokens, F), mean
    over n and F.
    """
    gap = x.mean(1) - y.mean(1)
    return ((gap.square() + c**2).sqrt() - c).mean()


def image_mmd(
    x: Tensor, y: Tensor, bandwidths: Sequence[float], width: float | None = None
) -> Tensor:
    """Unbiased RBF MMD^2 between the tokens (n, tokens, F) of paired images, mean over n.

    ``width``: one width of the kernel in the features' own units; None: ``bandwidths``, multiples
    of each image's median distance.
    """
    return torch.stack([rbf_mmd(a, b, bandwidths, width) for a, b in zip(x, y, strict=True)]).mean()


def class_mmd(
    x: Tensor,
    y: Tensor,
    labels: Tensor | None,
    bandwidths: Sequence[float],
    closeness: Tensor | None = None,
) -> Tensor:
    """Unbiased RBF MMD^2 between batches x, y (n, d) within every class, mean weighted by the
    classes' counts.

    Between the whole batches without labels, or where less than half of the batch is of a class
    that comes twice: of hundreds of prompts a chance pair would stand for all. ``closeness`` (n, n)
    of the rows' weights of guidance, where they have some, as of :func:`rbf_mmd`.
    """
    groups = [] if labels is None else [labels == label for label in labels.unique()]
    groups = [group for group in groups if int(group.sum()) > 1]
    if 2 * sum(int(group.sum()) for group in groups) < len(x) or not groups:
        return rbf_mmd(x, y, bandwidths, closeness=closeness)
    counts = torch.stack([group.sum() for group in groups]).to(x.dtype)
    parts = [
        rbf_mmd(
            x[group],
            y[group],
            bandwidths,
            closeness=None if closeness is None else closeness[group][:, group],
        )
        for group in groups
    ]
    return (counts * torch.stack(parts)).sum() / counts.sum()
