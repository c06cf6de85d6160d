"""No images at all: a teacher of prompts makes its own."""

from __future__ import annotations

from typing import ClassVar, Literal

from tasks.data.sources.base import DataSettings


class NoDataset(DataSettings):
    """The teacher's own images take the place of training and held-out ones, everywhere."""

    data_kind: ClassVar[str] = "images"
    resolution: ClassVar[str] = "size"
    kind: Literal["none"] = "none"
