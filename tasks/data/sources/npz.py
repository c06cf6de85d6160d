"""Arrays of an .npz file: images uint8 (n, H, W), (n, H, W, 1|3) or (n, 1|3, H, W), and labels."""

from __future__ import annotations

import difflib
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from models.common.errors import InputError
from tasks.config.types import Digest, LocalPath, Text
from tasks.data.sources.base import DatasetSettings, Source, array_source, padded

Border = Annotated[int, Field(strict=True, ge=0, le=256)]
LAYOUTS = "uint8 (n, H, W), (n, H, W, 1|3) or (n, 1|3, H, W)"


class NpzDataset(DatasetSettings):
    """Arrays by name."""

    kind: Literal["npz"] = "npz"
    path: LocalPath
    """An .npz file."""
    digest: Digest | None = None
    """Of the content at path; runs fill it in, so that new content runs the stage again."""
    images: Text = "images"
    """The array of images."""
    labels: Text | None = None
    """The array of labels; null: none."""
    pad: Border = 0
    """Black pixels added on every side."""

    def open(self, root: Path) -> Source:
        return npz_source(root / self.path, self)

    @property
    def border(self) -> int:
        return self.pad


def npz_source(path: Path, settings: NpzDataset) -> Source:
    """Images and labels by the names of their arrays. Raises InputError."""
    images = npz_images(path, settings.images, settings.pad, "dataset")
    if settings.labels is None:
        return array_source(path.name, images)
    labels = _array(path, settings.labels, "dataset")
    if labels.shape == (len(images), 1):
        labels = labels[:, 0]
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iufbUS":
        raise InputError(
            f"dataset.labels: {settings.labels} is {labels.dtype} {labels.shape}, "
            f"expected {len(images)} integers or strings, one per image{_one_hot(labels)}"
        )
    return array_source(path.name, images, labels)


def npz_images(path: Path, key: str, border: int, section: str) -> np.ndarray:
    """One array of images as uint8 (n, H, W, C); errors name ``section``. Raises InputError."""
    images = channels_last(_array(path, key, section), f"{section}.images: {key}")
    return padded(images, border)


def npz_all_images(path: Path, section: str) -> dict[str, np.ndarray]:
    """Every image array, uint8 (n, H, W, C), by name. Raises InputError if there is none."""
    with _opened(path, section) as file:
        every = {key: _member(file, key, path) for key in file.files}
    arrays = {
        name: array
        for name, array in every.items()
        if array.dtype == np.uint8 and array.ndim > 2 and array.size and array.max() > 1
    }
    if not arrays:
        raise InputError(
            f"{section}: {path} holds no uint8 images, expected an array (n, H, W[, C])"
        )
    return {name: channels_last(array, f"{section}: {name}") for name, array in arrays.items()}


def channels_last(images: np.ndarray, key: str) -> np.ndarray:
    """uint8 (n, H, W, C) of any known layout; raises InputError with what to do about others."""
    shape = images.shape
    if images.dtype == np.uint8 and images.size and (images.max() > 1 or not images.any()):
        if images.ndim == 3:
            return images[..., None]
        if images.ndim == 4 and shape[3] in (1, 3):
            return images
        if images.ndim == 4 and shape[1] in (1, 3):
            return images.transpose(0, 2, 3, 1)
    raise InputError(f"{key} is {images.dtype} {shape}, expected {LAYOUTS}; {_advice(images)}")


def _advice(images: np.ndarray) -> str:
    """What makes such an array right, as a line of Python in x."""
    if not images.size:
        return "it is empty: give at least one image"
    if images.dtype.kind not in "biuf":
        return "give numbers, one array of all images"
    low, high = images.min(), images.max()
    if images.dtype == np.uint8 and high > 1:
        return _layout_advice(images)
    if not np.isfinite([low, high]).all():
        return "remove NaN and infinite values first"
    if low == high:
        return f"all its values are {float(low):g}: give images"
    if images.dtype.kind == "b" or (low >= 0 and high <= 1):
        return (
            "convert with (255 * x).round().astype('uint8')"
            if images.dtype.kind == "f"
            else ("convert with (255 * x.astype('uint8'))")
        )
    if images.dtype.kind == "f" and low >= -1 and high <= 1:
        return "convert with ((x + 1) * 127.5).round().astype('uint8')"
    if low >= 0 and high <= 255:
        return "convert with x.round().astype('uint8')"
    if images.dtype == np.int8:
        return "convert with (x.astype('int16') + 128).astype('uint8')"
    if images.dtype == np.uint16:
        return "convert with (x / 257).round().astype('uint8')"
    scaled = f"(x.astype('float64') - {low:g}) / {float(high) - float(low):g}"
    return f"convert with (255 * ({scaled})).round().clip(0, 255).astype('uint8')"


def _layout_advice(images: np.ndarray) -> str:
    shape = images.shape
    if images.ndim == 4 and shape[3] == 4:
        return "drop the alpha channel with x[..., :3]"
    if images.ndim == 4 and shape[1] == 4:
        return "drop the alpha channel with x[:, :3]"
    if images.ndim == 4 and shape[2] in (1, 3):
        return "move the images first with x.transpose(3, 0, 1, 2)"
    if images.ndim == 2:
        for channels, layout in ((1, "-1, {0}, {0}"), (3, "-1, 3, {0}, {0}")):
            side = round((shape[1] / channels) ** 0.5)
            if side > 1 and channels * side * side == shape[1]:
                return f"unflatten with x.reshape({layout.format(side)})"
    return "reshape it to one of these"


def _one_hot(labels: np.ndarray) -> str:
    several = labels.ndim == 2 and labels.dtype.kind in "iufb" and labels.shape[1] > 1
    return "; turn one-hot rows into classes with x.argmax(1)" if several else ""


def _opened(path: Path, key: str) -> np.lib.npyio.NpzFile:
    try:
        file = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{key}: no file {path}, expected an .npz") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{key}: {path} is not readable as .npz ({error})") from None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise InputError(
            f"{key}: {path} is a single array, expected an .npz of named arrays; "
            "save it with np.savez('images.npz', images=x)"
        )
    return file


def _array(path: Path, key: str, section: str) -> np.ndarray:
    with _opened(path, f"{section}.path") as file:
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
