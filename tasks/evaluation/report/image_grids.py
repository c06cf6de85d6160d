"""Sample images side by side, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from diffusers.utils import make_image_grid
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tasks.evaluation.results import Result, SamplerKey

GRID_SIDE = 8
GAP, GREY = 1, (128, 128, 128)


def side_by_side(result: Result, nfe: int) -> list[SamplerKey]:
    """The samplers shown together: teacher, best training-free, untrained, student."""
    keys = [
        result.teacher.key,
        *(row.key for row in result.baselines(nfe)[:1]),
        SamplerKey("untrained", nfe),
        SamplerKey("student", nfe),
    ]
    return [key for key in keys if key in result.images]


def grid_keys(result: Result) -> list[SamplerKey]:
    """Those that get a grid of their own."""
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
    _, height, width = rows[0].shape[1:]
    blank = Image.new("RGB", (width, height), GREY)
    tiles = [
        ImageOps.expand(tile, (0, 0, GAP, GAP), GREY)
        for row in rows
        for tile in [*map(_picture, row), *[blank] * (columns - len(row))]
    ]
    picture = make_image_grid(tiles, rows=len(rows), cols=columns)
    picture = picture.crop((0, 0, picture.width - GAP, picture.height - GAP))
    factor = max(1, round(least / picture.width))
    size = (picture.width * factor, picture.height * factor)
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _picture(image: NDArray[np.uint8]) -> Image.Image:
    """One uint8 image (1 or 3, H, W)."""
    return Image.fromarray(np.moveaxis(np.broadcast_to(image, (3, *image.shape[1:])), 0, -1))
