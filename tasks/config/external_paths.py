"""What params.yaml points at by a path: files of the user that may or may not be in git."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.config.extensions import extension_files
from tasks.config.schema import Params, params_dict

PATH_KEYS = {"path", "config", "lora", "packs", "exclude", "prompts", "rivals", "aesthetic"}
# Extractors and judges that are named by their kind.
SHIPPED = ("data/pretrained/mnist_features", "data/pretrained/emoji_captions")


def local_paths(params: Params) -> dict[str, str]:
    """Paths by dotted key: {"dataset.path": "/data/images"}. Hub ids and built-in names are among
    them.
    """
    return dict(_paths(params_dict(params), ""))


def worker_files(params: Params, root: Path, stages: Sequence[str]) -> list[str]:
    """Names below ``root`` of what a Ray worker reads: results of ``stages``, and extensions. A
    path that leads out of the project is left out: it has to be the same on every node.
    """
    extensions = map(str, extension_files(params.extensions, root))
    return [*(f"data/{stage}" for stage in stages), *_inside(root, extensions)]


def judging_files(params: Params, root: Path) -> list[str]:
    """The same of what a worker reads to judge samples: the networks that come with the project,
    and what the evaluation's settings point at.
    """
    named = (p for key, p in local_paths(params).items() if key.startswith("evaluation."))
    return [*SHIPPED, *_inside(root, named)]


def _inside(root: Path, places: Iterable[str]) -> list[str]:
    below = {root / place for place in places if (root / place).is_relative_to(root)}
    return sorted(place.relative_to(root).as_posix() for place in below)


def _paths(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{name}.")
        elif key in PATH_KEYS and isinstance(value, str):
            yield name, value
        elif key in PATH_KEYS and isinstance(value, list):
            yield from ((f"{name}[{index}]", item) for index, item in enumerate(value))
