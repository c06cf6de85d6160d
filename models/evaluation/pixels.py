"""Moments of the pixels: a first look at brightness and contrast, before any features."""

from __future__ import annotations

from torch import Tensor

from models.common.errors import InputError
from models.evaluation.base import Estimate, Metric, Samples


class PixelMean(Metric):
    """Mean over all pixels in [-1, 1]."""

    name = "pixel_mean"
    title = "Pixel mean"
    lower_is_better = None
    inputs = frozenset({"images"})

    def __call__(self, fake: Samples) -> Estimate:
        return Estimate([float(_images(fake).mean())])


class PixelStd(Metric):
    """Standard deviation over all pixels in [-1, 1]; below that of real images where contrast
    fades.
    """

    name = "pixel_std"
    title = "Pixel std"
    lower_is_better = None
    inputs = frozenset({"images"})

    def __call__(self, fake: Samples) -> Estimate:
        return Estimate([float(_images(fake).std())])


def _images(fake: Samples) -> Tensor:
    if fake.images is None:
        raise InputError("no images: expected (n, C, H, W) in [-1, 1]")
    return fake.images
