"""What is known of the dataset and of the prompts before any stage has run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.data.dataset import load_manifest
from tasks.data.prompts import collect, open_prompts
from tasks.data.sources.none import NoDataset


@dataclass(frozen=True)
class Facts:
    """Of images or series: how many for training and held out, the shape of one, classes, and
    bytes of one as it is stored.
    """

    train: int
    holdout: int
    shape: tuple[int, ...]
    classes: int
    bytes_each: int


@dataclass(frozen=True)
class Prompts:
    """``bytes``: of their texts on disk; ``exact``: whether their file was there to be read."""

    train: int
    holdout: int
    bytes: int
    exact: bool


def dataset_facts(params: Params, root: Path) -> Facts | None:
    """From data/dataset, if it is that of the params, else from the source itself; None without a
    dataset. Raises InputError for a source that cannot be opened.
    """
    settings: Any = params.dataset
    if isinstance(settings, NoDataset):
        return None
    wanted = settings.model_dump(mode="json", exclude={"digest"})
    try:
        manifest = load_manifest(root)
    except InputError:
        manifest = {}
    if manifest.get("params") == wanted:
        shape, counts = tuple(manifest["shape"]), manifest["counts"]
        classes = len(manifest["class_names"])
        return Facts(counts["train"], counts["holdout"], shape, classes, _bytes(settings, shape))
    source = settings.open(root)
    if settings.data_kind == "series":
        shape = tuple(source.train.shape[1:])
        counts = len(source.train), len(source.holdout)
        return Facts(*counts, shape, 0, _bytes(settings, shape))
    shape = (source.channels, settings.size, settings.size)
    train = len(source.names) - settings.holdout
    return Facts(train, settings.holdout, shape, len(source.class_names), _bytes(settings, shape))


def _bytes(settings: Any, shape: tuple[int, ...]) -> int:
    """Images are uint8, series float32; each has an int64 label."""
    entries = 1
    for side in shape:
        entries *= side
    return entries * (4 if settings.data_kind == "series" else 1) + 8


def prompts_of(params: Params, root: Path) -> Prompts | None:
    """The prompts that `conditions` will encode; None where there are none, and where they are
    captions of the dataset, which are known after its stage. Where the file is not there, as many
    as the trajectories can use.
    """
    settings = params.conditions
    if settings.prompts is None:
        return None
    wanted = params.trajectories.train + settings.holdout
    assumed = min(settings.limit or wanted, wanted)
    if settings.path is None or not (root / settings.path).exists():
        held = min(settings.holdout, assumed // 2)
        return Prompts(assumed - held, held, 80 * assumed, exact=False)
    with TemporaryDirectory(prefix="prompts-") as place:
        found = collect(open_prompts(settings, root), settings, Path(place))
        return Prompts(found.train, found.holdout, found.file.stat().st_size, exact=True)
