"""Samples of a sampler as one PNG: a grid of images, or a fan of series."""

from __future__ import annotations

from tasks.evaluation.report import image_grids as grids
from tasks.evaluation.report import series_figures as series
from tasks.evaluation.results import Result, SamplerKey

FEW_ROWS, FEW_COLUMNS = 4, 8  # of a small grid
STRIP = 16  # images in a row


def shown_keys(result: Result) -> list[SamplerKey]:
    """The samplers that get a picture of their own."""
    return grids.grid_keys(result)


def samples_png(result: Result, key: SamplerKey) -> bytes:
    """Many samples."""
    if result.data == "series":
        return series.fan_png(result, key)
    return grids.grid_png(result.images[key])


def few_samples_png(result: Result, key: SamplerKey) -> bytes:
    """A smaller grid of images; series as in :func:`samples_png`."""
    if result.data == "series":
        return series.fan_png(result, key)
    images = result.images[key][: FEW_ROWS * FEW_COLUMNS]
    rows = [images[i : i + FEW_COLUMNS] for i in range(0, len(images), FEW_COLUMNS)]
    return grids.strip_png(rows, 512)


def same_paths_png(result: Result, key: SamplerKey) -> bytes:
    """What a sampler makes along the teacher's Brownian paths, in a row."""
    if result.data == "series":
        return series.strip_png(result, key)
    return grids.strip_png([result.path_images[key][:STRIP]])


def side_by_side_png(result: Result, nfe: int) -> bytes:
    """Images of several samplers, a row each."""
    return grids.strip_png([result.images[key][:STRIP] for key in grids.side_by_side(result, nfe)])
