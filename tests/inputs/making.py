"""Inputs of the rows, and the dataset stage run on them."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.config.schema import Params
from tasks.data.dataset import load_captions, load_manifest, load_split
from tasks.stages import dataset

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def png(path: Path, tone: int = 0) -> Path:
    """An 8x8 image of one tone (`toned`); folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    toned(tone).save(path)
    return path


def toned(tone: int) -> Image.Image:
    """8x8 pixels of one tone; a dark one has a bright last pixel."""
    pixels = np.full((8, 8, 3), tone, np.uint8)
    pixels[-1, -1] = max(tone, 60)
    return Image.fromarray(pixels)


def png_bytes(tone: int = 0) -> bytes:
    """The content of such an image."""
    content = io.BytesIO()
    toned(tone).save(content, "png")
    return content.getvalue()


def tiff(
    path: Path, pixels: np.ndarray, sample_format: int, photometric: int = 1, order: str = "<"
) -> Path:
    """A grey TIFF as other programs write it: one uncompressed strip (TIFF 6.0)."""
    height, width = pixels.shape
    bits = pixels.dtype.itemsize * 8
    tags = ((256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8),
            (277, 1), (278, height), (279, pixels.nbytes), (339, sample_format))  # fmt: skip
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    fields = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + fields + bytes(4))
    return path


def made(root: Path, **settings: Any) -> dict[str, Any]:
    """The dataset stage on `root`/in (a folder, unless told otherwise): its manifest."""
    given = {"kind": "folder", "path": "in", "size": 8, "holdout": 1} | settings
    dataset.run(Params.model_validate({"dataset": given}), root)
    return load_manifest(root)


def content(root: Path) -> dict[int, tuple[str, list[str]]]:
    """(class name, captions) by tone of the images made; "" for no label."""
    names, found = load_manifest(root)["class_names"], {}
    for split in ("train", "holdout"):
        images, labels = load_split(root, split)
        captions = load_captions(root, split) or [[]] * len(images)
        for image, label, texts in zip(images, labels, captions, strict=True):
            found[int(image[0, 0, 0])] = (names[label] if label >= 0 else "", texts)
    return found


def pixels(root: Path) -> list[np.ndarray]:
    """All images made, uint8 (C, S, S)."""
    return [image for split in ("train", "holdout") for image in load_split(root, split)[0]]
