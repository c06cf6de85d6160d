"""Kinds of data: images and series. What differs between them when data/dataset is read.

Images are stored as uint8 and are bounded: as data of a teacher they are in [-1, 1], and states
are the same numbers (or latents). Series are float32 in their own units and have no bound: nothing
is clipped, and states are (x - mean) / std with the training split's mean and std per channel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError
from models.teachers.codec import Codec, ScaledCodec

Shape = Sequence[int]


class DataKind(ABC):
    """``name``: as in the manifest and in names of files, "images" for `train_images.npy`;
    ``one``: of a single one, in messages.
    """

    name: ClassVar[str]
    one: ClassVar[str]

    @abstractmethod
    def to_float(self, stored: np.ndarray) -> Tensor:
        """Stored data (n, C, ...) as float32 tensors, as codecs encode and decode them."""

    @abstractmethod
    def codec(self, manifest: Mapping[str, Any]) -> Codec:
        """Between such data and the states of a teacher that is trained on them."""

    @abstractmethod
    def fix(self, made: Shape, there: Shape) -> str:
        """What makes a dataset of shape ``there`` one of the teacher's shape ``made``."""


class Images(DataKind):
    """uint8 (n, C, S, S); as data float32 in [-1, 1]."""

    name = "images"
    one = "image"

    def to_float(self, stored: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(stored)).float() / 127.5 - 1

    def codec(self, manifest: Mapping[str, Any]) -> Codec:
        return Codec()

    def fix(self, made: Shape, there: Shape) -> str:
        if len(made) != 3 or made[1] != made[2]:
            return "images of a dataset are square"
        fixes = [f"dataset.size={made[-1]}"] if made[-1] != there[-1] else []
        if made[0] != there[0]:
            fixes.append(f"images of {made[0]} channels (dataset.channels)")
        return f"give it {' and '.join(fixes)}"


class Series(DataKind):
    """float32 (n, C, L) in their own units, stored and as data."""

    name = "series"
    one = "series"

    def to_float(self, stored: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(stored, dtype=np.float32))

    def codec(self, manifest: Mapping[str, Any]) -> ScaledCodec:
        return ScaledCodec(**manifest["scaling"])

    def fix(self, made: Shape, there: Shape) -> str:
        if len(made) != 2:
            return "data/dataset has series (channels x length)"
        fixes = [f"dataset.length={made[-1]}"] if made[-1] != there[-1] else []
        if made[0] != there[0]:
            fixes.append(f"series of {made[0]} channels")
        return f"give it {' and '.join(fixes)}"


KINDS: dict[str, DataKind] = {kind.name: kind for kind in (Images(), Series())}


def kind_of(manifest: Mapping[str, Any]) -> DataKind:
    """The kind of data that a manifest of data/dataset describes."""
    name = str(manifest.get("kind", Images.name))  # earlier versions knew images alone
    if name not in KINDS:
        raise InputError(f"data/dataset has data of kind {name}: expected {' or '.join(KINDS)}")
    return KINDS[name]
