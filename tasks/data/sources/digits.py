"""The 1,797 digits 8x8 inside scikit-learn, their 17 grey levels spread over 0 to 255."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from tasks.data.sources.base import DatasetSettings, Source, array_source


class DigitsDataset(DatasetSettings):
    kind: Literal["digits"] = "digits"

    def open(self, root: Path) -> Source:
        return digits_source()


def digits_source() -> Source:
    """The digits with their ten classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return array_source("digits 8x8 of scikit-learn", images, bunch.target)
