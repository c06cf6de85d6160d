"""What params.yaml points at by a path: files of the user that may or may not be in git."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.config.schema import Params, params_dict

PATH_KEYS = {"path", "config", "lora", "packs", "exclude", "prompts", "rivals", "aesthetic"}


def local_paths(params: Params) -> dict[str, str]:
    """Paths by dotted key: {"dataset.path": "/data/images"}. Hub ids and built-in names are among
    them.
    """
    return dict(_paths(params_dict(params), ""))


def _paths(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{name}.")
        elif key in PATH_KEYS and isinstance(value, str):
            yield name, value
        elif key in PATH_KEYS and isinstance(value, list):
            yield from ((f"{name}[{index}]", item) for index, item in enumerate(value))
