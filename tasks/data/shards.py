"""Sharded arrays on disk: written atomically, checksummed, memory-mapped, published in one step.

A shard is a folder with one .npy per array (all with the same number of rows) and shard.json. A
published set is a folder with manifest.json and its shards at <split>/<number>."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from models.common.errors import InputError
from tasks.utils.atomic import atomic_dir, atomic_write_json, sha256_file
from tasks.utils.failpoints import reach

SHARD, MANIFEST = "shard.json", "manifest.json"

logger = logging.getLogger(__name__)


class CorruptShard(InputError):
    """A shard's files are missing, truncated or altered."""


class ArrayInfo(BaseModel):
    """What one .npy file must be; `shape` includes the rows, `bytes` is the size of the whole
    file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str


class ShardInfo(BaseModel):
    """The content of shard.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rows: int
    arrays: dict[str, ArrayInfo]


class PlacedShard(BaseModel):
    """A shard in a manifest; `path` is relative to the manifest's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    info: ShardInfo


class Manifest(BaseModel):
    """The content of manifest.json; row i of a split counts through its shards in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    splits: dict[str, tuple[PlacedShard, ...]]
    meta: dict[str, Any]


def write_shard(directory: Path, arrays: Mapping[str, np.ndarray]) -> ShardInfo:
    """Write arrays of equal row count as one shard, whole or not at all, replacing what is at
    `directory`.

    The same arrays give the same bytes. Object arrays, unequal row counts and no rows raise
    ValueError."""
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"arrays of one shard need equal row counts above 0, got {counts}")
    infos: dict[str, ArrayInfo] = {}
    with atomic_dir(directory) as temporary:
        for name, array in sorted(arrays.items()):
            file = temporary / f"{name}.npy"
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)
            reach("shard.array")
            infos[name] = ArrayInfo(
                dtype=array.dtype.str,
                shape=array.shape,
                bytes=file.stat().st_size,
                sha256=sha256_file(file),
            )
        info = ShardInfo(rows=next(iter(counts.values())), arrays=infos)
        atomic_write_json(temporary / SHARD, info.model_dump(mode="json"))
    return info


def check_shard(
    directory: Path, expected: ShardInfo | None = None, fast: bool = False
) -> ShardInfo:
    """The description of a sound shard; raises CorruptShard, one line that names the file and the
    fix.

    `fast` compares sizes, shapes and dtypes only, otherwise every byte is read. `expected` must
    match too."""
    fix = "delete the folder and rerun the stage"
    try:
        info = ShardInfo.model_validate_json((directory / SHARD).read_bytes())
    except FileNotFoundError:
        raise CorruptShard(
            f"{directory}: no {SHARD} in it, expected a finished shard; {fix}"
        ) from None
    except (OSError, ValidationError):
        raise CorruptShard(
            f"{directory / SHARD}: not readable as a shard's description; {fix}"
        ) from None
    if expected is not None and info != expected:
        raise CorruptShard(f"{directory / SHARD}: differs from the manifest; {fix}")
    for name, array in info.arrays.items():
        file = directory / f"{name}.npy"
        size = file.stat().st_size if file.is_file() else 0
        if size != array.bytes:
            raise CorruptShard(f"{file}: {size} bytes, expected {array.bytes}; {fix}")
        if not fast and sha256_file(file) != array.sha256:
            raise CorruptShard(f"{file}: its checksum differs from {SHARD}; {fix}")
        _map(file, array, fix)
    return info


def usable_shard(directory: Path) -> ShardInfo | None:
    """The description of a finished shard, or None where it has yet to be written.

    A damaged one is named in a warning and removed, so that a resumed stage makes it again.
    """
    if not directory.exists():
        return None
    try:
        return check_shard(directory)
    except CorruptShard as error:
        logger.warning("damaged shard will be made again: %s", error)
        shutil.rmtree(directory)
        return None


def publish(
    scratch: Path,
    dest: Path,
    meta: Mapping[str, Any],
    splits: Mapping[str, Sequence[str]],
    files: Sequence[str] = (),
) -> Manifest:
    """Make `dest` from finished shards: splits[name] lists folders relative to `scratch`, in row
    order.

    Shards are checked whole and hard-linked (copied where links are impossible), so `scratch` stays
    as it is and a kill at any moment leaves `dest` absent, old or new. `meta` is free JSON data for
    the manifest; `files` of `scratch` go beside it."""
    placed: dict[str, tuple[PlacedShard, ...]] = {}
    with atomic_dir(dest) as temporary:
        _link_files(scratch, temporary, files)
        for split, names in splits.items():
            shards = []
            for number, name in enumerate(names):
                info = check_shard(scratch / name)
                path = f"{split}/{number:05d}"
                _link_files(
                    scratch / name,
                    temporary / path,
                    [SHARD, *(f"{key}.npy" for key in info.arrays)],
                )
                shards.append(PlacedShard(path=path, info=info))
            placed[split] = tuple(shards)
            reach("shards.linked")
        manifest = Manifest(splits=placed, meta=dict(meta))
        atomic_write_json(temporary / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


class ShardSet:
    """A published set, opened read-only; raises InputError if the manifest or a shard is not sound.

    Sizes are checked on opening; `full` reads every byte and compares checksums.
    """

    def __init__(self, folder: Path, full: bool = False) -> None:
        self.folder = folder
        try:
            self.manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"{folder}: no {MANIFEST} in it; run the stage that makes it first"
            ) from None
        except (OSError, ValidationError):
            raise InputError(
                f"{folder / MANIFEST}: not readable as a manifest; rerun the stage"
            ) from None
        for shard in self._all():
            check_shard(folder / shard.path, shard.info, fast=not full)

    @property
    def meta(self) -> dict[str, Any]:
        return self.manifest.meta

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.manifest.splits)

    def names(self, split: str) -> tuple[str, ...]:
        """Names of the arrays that every shard of a split has."""
        found = [set(shard.info.arrays) for shard in self._shards(split)]
        return tuple(sorted(set.intersection(*found))) if found else ()

    def rows(self, split: str) -> int:
        return sum(shard.info.rows for shard in self._shards(split))

    def array(self, split: str, name: str) -> ArrayView:
        """A view of one array over all shards of a split; no data is read yet."""
        shards = self._shards(split)
        if not shards or name not in self.names(split):
            raise InputError(
                f"{self.folder}: {split} has no array {name}, only {', '.join(self.names(split))}"
            )
        return ArrayView(
            [self.folder / s.path / f"{name}.npy" for s in shards],
            [s.info.arrays[name] for s in shards],
        )

    def _shards(self, split: str) -> tuple[PlacedShard, ...]:
        if split not in self.manifest.splits:
            raise InputError(f"{self.folder}: no split {split}, only {', '.join(self.splits)}")
        return self.manifest.splits[split]

    def _all(self) -> Iterable[PlacedShard]:
        return (shard for shards in self.manifest.splits.values() for shard in shards)


class ArrayView:
    """Rows of an array that lies in several memory-mapped files; cheap to pickle (paths only).

    view[rows] or view[rows, ...] returns a new array; rows: int, slice, int array or list, or bool
    mask; further indices (ints and slices) select within a row, and only what is selected is read.
    """

    def __init__(self, files: Sequence[Path], infos: Sequence[ArrayInfo]) -> None:
        kinds = {(info.dtype, info.shape[1:]) for info in infos}
        if len(kinds) != 1:
            raise InputError(
                f"{files[0].parent.parent}: shards of {files[0].name} differ in dtype or row shape"
            )
        self._files, self._infos = list(files), list(infos)
        self._starts = np.cumsum([0, *(info.shape[0] for info in infos)])
        self._maps: dict[int, np.ndarray] = {}
        self.dtype = np.dtype(infos[0].dtype)
        self.shape = (int(self._starts[-1]), *infos[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, *within = index if isinstance(index, tuple) else (index,)
        single = isinstance(rows, int | np.integer)
        chosen = np.arange(len(self))[[rows] if single else rows]
        empty = np.broadcast_to(np.zeros((), self.dtype), (0, *self.shape[1:]))[
            (slice(None), *within)
        ]
        out = np.empty((len(chosen), *empty.shape[1:]), self.dtype)
        owner = np.searchsorted(self._starts, chosen, side="right") - 1
        for number in np.unique(owner):
            mine = owner == number
            local: Any = chosen[mine] - self._starts[number]
            if len(local) > 1 and np.all(np.diff(local) == 1):
                local = slice(local[0], local[-1] + 1)  # neighbours are read in one piece
            out[mine] = self._shard(int(number))[(local, *within)]
        return out[0] if single else out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._maps:
            self._maps[number] = _map(self._files[number], self._infos[number], "rerun the stage")
        return self._maps[number]


def _map(file: Path, info: ArrayInfo, fix: str) -> np.ndarray:
    try:
        array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorruptShard(f"{file}: not readable as an array ({error}); {fix}") from None
    if (array.dtype.str, array.shape) != (info.dtype, info.shape):
        found, expected = f"{array.dtype.str} {array.shape}", f"{info.dtype} {info.shape}"
        raise CorruptShard(f"{file}: holds {found}, expected {expected}; {fix}")
    return array


def _link_files(source: Path, dest: Path, names: Sequence[str]) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            os.link(source / name, dest / name)
        except OSError:
            shutil.copyfile(source / name, dest / name)
