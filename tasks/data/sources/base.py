"""What a source of images is: settings that open as images read one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from models.common.config import Count, Section, Seed, Size
from tasks.config.types import Exclude
from tasks.data.labels import NO_LABEL, encode_labels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Images that can be read one by one.

    `read(i)` gives uint8 (H, W, channels) or raises UnreadableImage; `labels` is int64
    (len(names),), -1 for none, else an index into `class_names`. `captions`: of each image, any
    number of texts; None if the source has none at all.
    """

    title: str
    names: Sequence[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    channels: int
    read: Callable[[int], np.ndarray]
    captions: Sequence[Sequence[str]] | None = None


class DataSettings(Section):
    """Base of the settings of images and of series.

    ``data_kind``: name of what is made (tasks/data/kinds.py); ``resolution``: the key that says
    how large one is.
    """

    data_kind: ClassVar[str]
    resolution: ClassVar[str]

    if TYPE_CHECKING:  # fields of every kind
        holdout: Count
        seed: Seed


class DatasetSettings(DataSettings):
    """What every kind of images has; a kind adds `kind: Literal[...]`, its own keys and `open`.

    The module of a kind imports nothing heavy: every stage reads the params.
    """

    data_kind: ClassVar[str] = "images"
    resolution: ClassVar[str] = "size"

    size: Size = 16
    """Images become size x size."""
    holdout: Count = 1000
    """Images kept for evaluation, never seen in training."""
    exclude: Exclude | None = None
    """null | mnist | digits | an .npz: drop images identical to one in there."""
    seed: Seed = 0
    """Of the split."""

    def open(self, root: Path) -> Source:
        """The images; relative paths are below `root`. Raises InputError."""
        raise NotImplementedError

    @property
    def border(self) -> int:
        """Black pixels that `open` adds on every side; arrays of `exclude` get them, too."""
        return 0


def array_source(title: str, images: np.ndarray, raw_labels: np.ndarray | None = None) -> Source:
    """Images uint8 (n, H, W, C) in memory, with labels (n,) of any kind."""
    count = len(images)
    labels: np.ndarray = np.full(count, NO_LABEL, dtype=np.int64)
    class_names: tuple[str, ...] = ()
    if raw_labels is not None:
        labels, class_names = encode_labels(raw_labels.tolist(), title)
    names = [str(index) for index in range(count)]
    return Source(title, names, labels, class_names, images.shape[3], lambda i: images[i])


def padded(images: np.ndarray, border: int) -> np.ndarray:
    """uint8 (n, H, W, C) with `border` black pixels on every side."""
    if not border:
        return images
    return np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))


def warn_of(message: str, names: Iterable[str]) -> None:
    """One warning, `message` with the number of names in its braces, and the first three."""
    if listed := list(names):
        more = ", ..." if len(listed) > 3 else ""
        logger.warning("%s: %s%s", message.format(len(listed)), ", ".join(listed[:3]), more)
