"""Images of any source: one size, split into train and holdout."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.common.errors import InputError
from tasks.data.images import UnreadableImage, fit, with_channels
from tasks.data.sources import DatasetSettings, Source
from tasks.data.sources.other import excluded_sources
from tasks.data.splits import SPLITS
from tasks.utils.atomic import atomic_write_json
from tasks.utils.failpoints import reach
from tasks.utils.progress import track

COPIED_ROWS = 4096
DARK = 32  # of 255; 12 bits in a 16-bit file reach 16

logger = logging.getLogger(__name__)


def write_images(settings: DatasetSettings, root: Path, folder: Path) -> dict[str, Any]:
    """Write, of train and holdout, *_images.npy uint8 (n, C, S, S), *_labels.npy int64 (n,), -1
    for none, and *_captions.json, a list of texts for each image, where the source has captions.
    Returns what the manifest says of them.

    Unreadable images are named on stderr, counted and listed in the manifest; raises InputError if
    they are more than half, or if the images left are not more than `dataset.holdout`. Identical
    images (after resizing) are on one side of the split.
    """
    source = settings.open(root)
    everything = folder / "everything.npy"
    shape = (source.channels, settings.size, settings.size)
    images = _create(everything, (len(source.names), *shape))
    outcome = _convert(source, images, _excluded(settings, source.channels, root))
    _check_counts(settings, source, outcome)
    reach("dataset.read")
    labels = source.labels[outcome.kept]
    train, holdout = split_rows(labels, settings.holdout, settings.seed, outcome.groups)
    for split, rows in zip(SPLITS, (train, holdout), strict=True):
        _write_rows(folder / f"{split}_images.npy", images, outcome.kept[rows])
        np.save(folder / f"{split}_labels.npy", labels[rows], allow_pickle=False)
        if source.captions is not None:
            texts = [list(source.captions[index]) for index in outcome.kept[rows]]
            atomic_write_json(folder / f"{split}_captions.json", texts)
    del images
    everything.unlink()
    if outcome.copies:
        what = "%s: %d images are identical to others at this size; copies stay on one side"
        logger.warning(what, source.title, outcome.copies)
    if outcome.brightest < DARK:
        what = "%s: all images are dark, the brightest value is %d of 255; scale them first"
        logger.warning(what, source.title, outcome.brightest)
    logger.info(
        "dataset: %d train, %d holdout of %s; %d unreadable, %d excluded",
        len(train), len(holdout), source.title, len(outcome.unreadable), outcome.excluded,
    )  # fmt: skip
    return {
        "source": source.title,
        "shape": shape,
        "counts": {"train": len(train), "holdout": len(holdout)},
        "class_names": source.class_names,
        "unlabelled": int(np.sum(labels < 0)),
        "captions": source.captions is not None,
        "identical": outcome.copies,
        "excluded": outcome.excluded,
        "unreadable": [{"name": name, "reason": reason} for name, reason in outcome.unreadable],
    }


def split_rows(
    labels: np.ndarray, holdout: int, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(train rows, holdout rows) in random order, every class held out in proportion (within one
    image).

    ``groups``: int (n,), equal for identical images, which stay on one side: those whose first
    member would be held out go there together while there is room. Raises InputError where they
    leave no way to hold out exactly ``holdout``.
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    ordered = shuffled[np.argsort(quantile, kind="stable")]
    held = _held_out(ordered, holdout, groups)
    return generator.permutation(ordered[~held]), generator.permutation(ordered[held])


def _held_out(ordered: np.ndarray, holdout: int, groups: np.ndarray | None) -> np.ndarray:
    """Mask over ``ordered``: the first ``holdout`` rows, except that groups stay whole."""
    if groups is None:
        return np.arange(len(ordered)) < holdout
    sizes = np.bincount(groups)
    chosen = np.zeros(len(sizes), dtype=bool)
    room = holdout
    for group in dict.fromkeys(groups[ordered].tolist()):
        if sizes[group] <= room:
            chosen[group] = True
            room -= sizes[group]
    if room:
        possible = holdout - room
        fix = f"try dataset.holdout={possible}, or " if possible else ""
        raise InputError(
            f"dataset.holdout = {holdout}: identical images stay on one side, and so many cannot "
            f"be held out; {fix}remove the copies"
        )
    return chosen[groups[ordered]]


@dataclass(frozen=True)
class _Outcome:
    """``kept``: indices of the source; ``groups``: int (kept,), equal for identical images."""

    kept: np.ndarray
    groups: np.ndarray
    unreadable: list[tuple[str, str]]
    excluded: int
    brightest: int

    @property
    def copies(self) -> int:
        """Images that are identical to one before."""
        return len(self.groups) - len(np.unique(self.groups))


def _convert(source: Source, images: np.ndarray, unwanted: set[bytes]) -> _Outcome:
    """Fill `images` row by row; rows that are not kept are left as they are."""
    kept, groups, unreadable, excluded, brightest = [], [], [], 0, 0
    known: dict[bytes, int] = {}
    for index in track(range(len(source.names)), "dataset"):
        try:
            image = fit(source.read(index), images.shape[-1])
        except UnreadableImage as error:
            logger.warning("unreadable image %s: %s", source.names[index], error)
            unreadable.append((source.names[index], str(error)))
            continue
        digest = _digest(image)
        if digest in unwanted:
            excluded += 1
            continue
        images[index] = image
        kept.append(index)
        groups.append(known.setdefault(digest, len(known)))
        brightest = max(brightest, int(image.max()))
    whole = np.array(kept, dtype=np.int64), np.array(groups, dtype=np.int64)
    return _Outcome(*whole, unreadable, excluded, brightest)


def _check_counts(settings: DatasetSettings, source: Source, outcome: _Outcome) -> None:
    total, bad, left = len(source.names), len(outcome.unreadable), len(outcome.kept)
    if 2 * bad > total:
        name, reason = outcome.unreadable[0]
        raise InputError(
            f"{source.title}: {bad} of {total} images are unreadable, such as {name} ({reason})"
        )
    if settings.holdout >= left:
        removed = f" ({bad} unreadable, {outcome.excluded} excluded)" if left < total else ""
        found = f"the {left} images of {source.title}{removed}"
        raise InputError(f"dataset.holdout = {settings.holdout}: expected fewer than {found}")


def _excluded(settings: DatasetSettings, channels: int, root: Path) -> set[bytes]:
    if settings.exclude is None:
        return set()
    return {
        _digest(fit(with_channels(source.read(index), channels), settings.size))
        for source in excluded_sources(settings.exclude, root, settings.border)
        for index in range(len(source.names))
    }


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def _create(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A memory-mapped uint8 file whose disk space is there: writing to a map on a full disk kills
    the process.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _write_rows(path: Path, images: np.ndarray, rows: np.ndarray) -> None:
    out = _create(path, (len(rows), *images.shape[1:]))
    for start in range(0, len(rows), COPIED_ROWS):
        out[start : start + COPIED_ROWS] = images[rows[start : start + COPIED_ROWS]]
    out.flush()
