"""A folder of image files, or a zip archive of one.

Labels and captions come from metadata.csv, .jsonl or .parquet (columns file_name, label, text),
from class folders, and from a .txt file beside each image, as Hugging Face's imagefolder and the
trainers of LoRAs have them.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np

from models.common.errors import InputError
from tasks.config.types import Channels, Digest, LocalPath
from tasks.data.labels import NO_LABEL, encode_folders, encode_labels
from tasks.data.sources.base import DatasetSettings, Source, warn_of

if TYPE_CHECKING:
    from tasks.data.files import Files
    from tasks.data.tables import Described

Labels = Literal["auto", "folders", "none"]
# Folders of these names part a data set; they are no classes.
# fmt: off
SPLIT_NAMES = frozenset((
    "train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval",
    "evaluation", "images", "img", "imgs",
))
# fmt: on

logger = logging.getLogger(__name__)


class FolderDataset(DatasetSettings):
    """Image files with labels and captions as Hugging Face's imagefolder has them."""

    kind: Literal["folder"] = "folder"
    path: LocalPath
    """A folder, or a .zip of one."""
    digest: Digest | None = None
    """Of the content at path; runs fill it in, so that new content runs the stage again."""
    channels: Channels = 3
    """1: grey, 3: colour; images are converted."""
    labels: Labels = "auto"
    """auto: of the metadata table if it has any, else of class folders."""

    def open(self, root: Path) -> Source:
        return folder_source(root / self.path, self.channels, labels=self.labels)


def folder_source(
    path: Path, channels: int, section: str = "dataset", labels: Labels = "auto"
) -> Source:
    """All image files at and below a folder, or in a .zip, in the order of their paths.

    What is left out is counted in a warning. Raises InputError, which names ``section``.
    """
    from tasks.data.depths import measure_ranges
    from tasks.data.files import open_files, same_name
    from tasks.data.images import SUFFIXES, decode
    from tasks.data.tables import NAMES, read_described

    files = open_files(path, f"{section}.path", "a folder of images or a .zip of one")
    names = [name for name in files.names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not names:
        raise InputError(_nothing_in(files, f"{section}.path"))
    captions = _caption_files(files, names)
    used = {*names, *captions.values()}
    rest = [n for n in files.names if n not in used and PurePosixPath(n).name not in NAMES]
    _tell_left_out(files, rest)
    described = read_described(files)
    known = [same_name(name) for name in names]
    ids, class_names = _labels(files, known, described, labels)
    texts = _captions(files, names, known, described, captions)
    ranges = measure_ranges(names, files.open)

    def read(index: int) -> np.ndarray:
        with files.open(names[index]) as file:
            return decode(file, channels, ranges)

    return Source(files.title, names, ids, class_names, channels, read, texts)


def folder_captions(path: Path, key: str) -> tuple[list[str], list[list[str]] | None]:
    """(names, captions) of the images that :func:`folder_source` finds, which are not opened; None
    for a folder without any caption. Raises InputError that begins with ``key``.
    """
    from tasks.data.files import open_files, same_name
    from tasks.data.images import SUFFIXES
    from tasks.data.tables import read_described

    files = open_files(path, key, "a folder of captioned images or a .zip of one")
    names = [name for name in files.names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not names:
        raise InputError(_nothing_in(files, key))
    known, beside = [same_name(name) for name in names], _caption_files(files, names)
    return names, _captions(files, names, known, read_described(files), beside)


def _labels(
    files: Files, names: list[str], described: Described, choice: Labels
) -> tuple[np.ndarray, tuple[str, ...]]:
    unknown = sorted(described.names - set(names))
    if unknown and len(unknown) == len(described.names):
        raise InputError(
            f"{files.title}: metadata: no row names an image file, the first is {unknown[0]}; "
            f"expected names such as {names[0]}"
        )
    warn_of(f"{files.title}: metadata: {{}} rows name no image file", unknown)
    if choice == "auto" and described.has_labels:
        values = [described.labels.get(name) for name in names]
        ids, class_names = encode_labels(values, f"{files.title}: metadata")
        bare = [name for name, label in zip(names, ids, strict=True) if label == NO_LABEL]
        warn_of(f"{files.title}: {{}} images have no label", bare)
        return ids, class_names
    if choice == "folders" or (choice == "auto" and not described.names):
        folders = [PurePosixPath(name).parent.name for name in names]
        if choice == "folders" or _are_classes(files, names, folders):
            return encode_folders(folders)
    return np.full(len(names), NO_LABEL, dtype=np.int64), ()


def _are_classes(files: Files, names: list[str], folders: list[str]) -> bool:
    """Whether the images lie in two or more folders of one level, as imagefolder asks."""
    found = set(folders) - {""}
    if len(found) < 2 or all(name.lower() in SPLIT_NAMES for name in found):
        return False
    if len({name.count("/") for name in names}) > 1:
        logger.warning(
            "%s: images lie at several levels, so folders are no classes; "
            "dataset.labels=folders takes the last folder's name",
            files.title,
        )
        return False
    return True


def _captions(
    files: Files, names: list[str], known: list[str], described: Described, beside: dict[str, str]
) -> list[list[str]] | None:
    """Captions of the tables, else of the file beside the image; None if there are none at all."""
    if not described.has_captions and not beside:
        return None
    texts = []
    for name, key in zip(names, known, strict=True):
        found = list(described.captions.get(key, ()))
        if not found and name in beside:
            text = _caption_in(files, beside[name])
            found = [text] if text else []
        texts.append(found)
    return texts


def _caption_in(files: Files, name: str) -> str:
    from tasks.data.tables import decoded

    with files.open(name) as file:
        content = file.read()
    try:
        return decoded(content).strip()
    except ValueError as error:
        raise InputError(f"{files.title}/{name}: not readable as text ({error})") from None


def _caption_files(files: Files, names: list[str]) -> dict[str, str]:
    """The .txt of the same name beside an image, by the image's name."""
    there = {name for name in files.names if name.endswith(".txt")}
    paired = {name: str(PurePosixPath(name).with_suffix(".txt")) for name in names}
    return {name: text for name, text in paired.items() if text in there}


def _tell_left_out(files: Files, rest: list[str]) -> None:
    from tasks.data.images import SUFFIXES

    if rest:
        kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in rest)
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
        what = f"left out {len(rest)} files without an image suffix"
        logger.warning("%s: %s that Pillow reads (%s)", files.title, what, told)
    pictures = [n for n in files.hidden if PurePosixPath(n).suffix.lower() in SUFFIXES]
    warn_of(f"{files.title}: left out {{}} hidden files", pictures)


def _nothing_in(files: Files, key: str) -> str:
    suffixes = {PurePosixPath(name).suffix.lower() for name in files.names}
    if ".parquet" in suffixes:
        first = "unpack it and " if files.title.lower().endswith(".zip") else ""
        return f"{key}: {files.title} holds .parquet files; {first}use dataset.kind=parquet"
    found = f", only {', '.join(sorted(suffixes - {''}))}" if suffixes - {""} else ""
    expected = "expected files such as .png, .jpg or .webp"
    return f"{key}: no images in {files.title}{found}; {expected}"
