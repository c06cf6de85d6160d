"""Images beside the data set: what `evaluation.reference` and `dataset.exclude` name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.data.sources.base import Source, array_source, padded

if TYPE_CHECKING:
    from tasks.config.evaluation import Reference


def reference_source(settings: Reference, root: Path, channels: int) -> Source:
    """The images that `evaluation.reference` names, without labels. Raises InputError."""
    from tasks.data.sources.folder import folder_source
    from tasks.data.sources.npz import npz_images

    section, path = "evaluation.reference", root / settings.path
    if settings.kind == "folder":
        return folder_source(path, channels, section, labels="none")
    return array_source(path.name, npz_images(path, settings.images, settings.pad, section))


def excluded_sources(exclude: str, root: Path, border: int) -> list[Source]:
    """What `dataset.exclude` names: "mnist", "digits", or every image array in an .npz, with
    `border` black pixels on every side.
    """
    if exclude == "mnist":
        from tasks.data.sources.mnist import mnist_source

        return [mnist_source()]
    if exclude == "digits":
        from tasks.data.sources.digits import digits_source

        return [digits_source()]
    from tasks.data.sources.npz import npz_all_images

    path = root / exclude
    arrays = npz_all_images(path, "dataset.exclude")
    return [array_source(path.name, padded(array, border)) for array in arrays.values()]
