"""Sample images side by side, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.evaluation.results import Result

GRID_SIDE = 8


def side_by_side(result: Result, nfe: int) -> list[str]:
    """Row keys of the pictures shown together: teacher, best training-free, untrained, student."""
    keys = [
        result.teacher.key,
        *(row.key for row in result.baselines(nfe)[:1]),
        f"untrained.nfe{nfe}",
        f"student.nfe{nfe}",
    ]
    return [key for key in keys if key in result.images]


def grid_keys(result: Result) -> list[str]:
    """Row keys that get a grid of their own."""
    keys = [key for nfe in result.nfe for key in side_by_side(result, nfe)]
    return list(dict.fromkeys([*(row.key for row in result.rows if row.group == "real"), *keys]))


def grid_png(images: NDArray[np.uint8], side: int = GRID_SIDE, least: int = 512) -> bytes:
    """uint8 images (n, C, H, W) as a square grid, enlarged without smoothing to about `least`
    pixels.
    """
    return strip_png(
        [images[i * side : (i + 1) * side] for i in range(side) if len(images) > i * side], least
    )


def strip_png(rows: Sequence[NDArray[np.uint8]], least: int = 1024) -> bytes:
    """Rows of uint8 images (n, C, H, W) under each other, with a gap of one pixel."""
    columns = max(len(row) for row in rows)
    channels, height, width = rows[0].shape[1:]
    canvas = np.full((len(rows) * (height + 1) - 1, columns * (width + 1) - 1, 3), 128, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            pixels = np.moveaxis(
                np.broadcast_to(image, (3, height, width)) if channels == 1 else image, 0, -1
            )
            canvas[
                i * (height + 1) : i * (height + 1) + height,
                j * (width + 1) : j * (width + 1) + width,
            ] = pixels
    factor = max(1, round(least / canvas.shape[1]))
    picture = Image.fromarray(canvas.repeat(factor, 0).repeat(factor, 1))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
