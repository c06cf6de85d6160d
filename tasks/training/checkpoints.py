"""Training checkpoints: safetensors and JSON, atomic, checksummed, the last few kept.

They live in a scratch folder, outside DVC's outputs, which are deleted before a stage runs.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.common.errors import InputError
from tasks.utils.atomic import atomic_dir, atomic_write_json, sha256_file
from tasks.utils.failpoints import reach

TENSORS, STATE, SEAL = "tensors.safetensors", "state.json", "checkpoint.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk after `step` finished optimizer steps."""

    path: Path
    step: int

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors on the CPU, state) as they were saved; raises InputError if the files changed
        since, or are of another kind.
        """
        _check_seal(self.path)
        return self.read()

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The same, of files whose checksums were compared already."""
        try:
            tensors = load_file(self.path / TENSORS)
        except SafetensorError as error:
            raise InputError(
                f"{self.path / TENSORS}: not readable as safetensors ({error}); delete the folder "
                "and rerun"
            ) from None
        return tensors, json.loads((self.path / STATE).read_text())


def save_checkpoint(
    directory: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Checkpoint:
    """Write directory/step-XXXXXXXX whole or not at all, then remove all but the last `keep` up to
    this step.

    `tensors` may live on any device; `state` is JSON data with finite numbers (see `flatten`).
    """
    check_keep(keep)
    path = folder_of(directory, step)
    with atomic_dir(path) as temporary:
        write_files(temporary, tensors, state)
        reach("checkpoint.tensors")
        seal(temporary, step)
    reach("checkpoint.written")
    remove_earlier(directory, step, keep)
    return Checkpoint(path, step)


def check_keep(keep: int) -> None:
    """ValueError for less than one checkpoint to keep."""
    if keep < 1:
        raise ValueError(f"keep = {keep}: expected at least 1")


def folder_of(directory: Path, step: int) -> Path:
    """The folder of the checkpoint after ``step`` steps."""
    return directory / f"step-{step:08d}"


def write_files(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """TENSORS and STATE of a checkpoint that is being written."""
    save_file({name: _storable(tensor) for name, tensor in tensors.items()}, folder / TENSORS)
    # safetensors writes 0600, which other users of a shared folder cannot read
    (folder / TENSORS).chmod(0o644)
    atomic_write_json(folder / STATE, dict(state))


def seal(folder: Path, step: int) -> None:
    """Write down the checksums of all files of a checkpoint that is otherwise written."""
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    atomic_write_json(folder / SEAL, {"step": step, "sha256": files})


def remove_earlier(directory: Path, step: int, keep: int) -> None:
    """Remove all but the last ``keep`` checkpoints up to this step."""
    earlier = [old for old in _folders(directory) if old.step <= step]
    for old in earlier[:-keep]:
        shutil.rmtree(old.path, ignore_errors=True)


def latest_checkpoint(directory: Path) -> Checkpoint | None:
    """The last checkpoint whose checksums hold; damaged ones are named in a warning and skipped."""
    for checkpoint in reversed(_folders(directory)):
        try:
            _check_seal(checkpoint.path)
        except InputError as error:
            logger.warning("skipped a damaged checkpoint: %s", error)
        else:
            return checkpoint
    return None


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a nested state_dict into (tensors by path, JSON tree that refers to them).

    Dicts (keys str or int), lists, tuples, tensors, str, bool, int, float and None survive exactly,
    with their types, dtypes and 0-dimensional shapes; anything else raises TypeError with its path.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _encode(state, "", tensors)


def unflatten(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """The inverse of `flatten`."""
    if isinstance(tree, list):
        return [unflatten(tensors, item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(unflatten(tensors, item) for item in content)
    if kind == "float":
        return float(content)
    return {key: unflatten(tensors, item) for key, item in content}


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path or "value"
        while name in tensors:  # {"a.b": x, "a": {"b": y}} and {1: x, "1": y} make equal paths
            name += "'"
        tensors[name] = value
        return {"tensor": name}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    below = f"{path}." if path else ""
    if isinstance(value, Mapping):
        if bad := [key for key in value if type(key) not in (str, int)]:
            raise TypeError(f"{path or 'state'}: key {bad[0]!r} is neither str nor int")
        return {
            "dict": [[key, _encode(item, f"{below}{key}", tensors)] for key, item in value.items()]
        }
    if type(value) in (list, tuple):
        items = [_encode(item, f"{below}{index}", tensors) for index, item in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    raise TypeError(f"{path or 'state'}: a {type(value).__name__} cannot be kept in a checkpoint")


def _storable(tensor: Tensor) -> Tensor:
    # a copy of its own: safetensors refuses tensors that share memory
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _folders(directory: Path) -> list[Checkpoint]:
    found = [
        (path.name.removeprefix("step-"), path)
        for path in directory.glob("step-*")
        if path.is_dir()
    ]
    return sorted(
        (Checkpoint(path, int(step)) for step, path in found if step.isdigit()),
        key=lambda c: c.step,
    )


def _check_seal(path: Path) -> None:
    try:
        sums: dict[str, str] = json.loads((path / SEAL).read_text())["sha256"]
        for name in {TENSORS, STATE, *sums}:
            if sha256_file(path / name) != sums[name]:
                raise InputError(
                    f"{path / name}: its checksum differs from {SEAL}; delete the folder and rerun"
                )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: incomplete checkpoint ({error}); delete the folder and rerun"
        ) from None
