"""Views of emoji: the same drawing at other places, sizes and angles.

With them a prompt leaves much open, which is what a few-step student has to learn; without, a small
teacher learns its images by heart, and two steps of any sampler draw what it remembers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.common.random import generator_for
from scripts.emoji.data import Emoji, to_float

SMALLEST, LARGEST, DEGREES = 0.7, 1.0, 15.0
"""Factors of the side, drawn uniformly; the angle is uniform to both sides."""


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (n, 3, S, S) in [-1, 1], each turned, scaled, moved within the frame and, every other
    one by chance, mirrored; what comes into the frame is white.
    """
    n = len(images)
    scale, angle, x, y, side = torch.rand(5, n, generator=generator)
    scale = SMALLEST + (LARGEST - SMALLEST) * scale
    angle = (2 * angle - 1) * math.radians(DEGREES)
    mirror = torch.where(side < 0.5, 1.0, -1.0)
    # affine_grid asks where each pixel comes from: the inverse of the movement
    cos, sin = angle.cos() / scale, angle.sin() / scale
    grid = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    grid[:, 0] *= mirror[:, None]
    to = torch.stack([2 * x - 1, 2 * y - 1], 1) * (1 - scale)[:, None]
    grid = torch.cat([grid, -(grid @ to[:, :, None])], 2)
    return moved(images, grid).clamp(-1, 1)


def moved(images: Tensor, grid: Tensor) -> Tensor:
    """Images (n, 3, S, S) in [-1, 1] by affine maps (n, 2, 3) that say where each pixel comes from;
    outside is white.
    """
    places = F.affine_grid(grid, list(images.shape), align_corners=False)
    return F.grid_sample(images - 1, places, align_corners=False) + 1


def views(emoji: Emoji, count: int, seed: int) -> Emoji:
    """`count` views of each emoji, all emoji once before any comes again; with 0 the emoji
    themselves.
    """
    if not count:
        return emoji
    made = [view(to_float(emoji.images), generator_for("cpu", seed, 2, i)) for i in range(count)]
    images = torch.cat([((x + 1) * 127.5).round().byte() for x in made])
    return Emoji(images, emoji.captions * count, emoji.styles * count)


def prompts_in_turn(emoji: Emoji, count: int) -> list[str]:
    """Prompts of `count` views: with the style and without it by turns, since a caption alone
    leaves the style open as well.
    """
    pairs = [emoji.captions if i % 2 else emoji.prompts for i in range(count)]
    return [prompt for part in pairs for prompt in part]
