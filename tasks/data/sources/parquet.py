"""Parquet files with the images inside, as Hugging Face's `datasets` writes them and its hub serves
them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.common.errors import InputError
from tasks.config.types import Channels, Digest, LocalPath, Text
from tasks.data.labels import NO_LABEL, encode_labels, encode_named
from tasks.data.sources.base import DatasetSettings, Source

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")


class ParquetDataset(DatasetSettings):
    """Images inside Parquet files, with labels and captions."""

    kind: Literal["parquet"] = "parquet"
    path: LocalPath
    """A .parquet file, or a folder of them."""
    digest: Digest | None = None
    """Of the content at path; runs fill it in, so that new content runs the stage again."""
    channels: Channels = 3
    """1: grey, 3: colour; images are converted."""
    image: Text | None = None
    """The column of encoded images; null: image or another usual name."""
    label: Text | None = None
    """The column of labels; null: label or another usual name, if it is there."""
    text: Text | None = None
    """The column of captions; null: text or another usual name, if it is there."""

    def open(self, root: Path) -> Source:
        return parquet_source(root / self.path, self)


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str | None
    text: str | None


def parquet_source(path: Path, settings: ParquetDataset) -> Source:
    """The rows of one .parquet file, or of all below a folder in the order of their names.

    An image is encoded bytes, alone or as `datasets` has them ({"bytes": .., "path": ..}). Rows
    are decoded one row group at a time. Raises InputError.
    """
    from tasks.data.depths import ONE_BY_ONE
    from tasks.data.images import UnreadableImage, decode
    from tasks.data.tables import captions_of

    files = _files(path)
    columns = _columns(files[0], settings)
    groups, values, texts = [], [], []
    known = None if columns.label is None else _class_names(_opened(files[0]), columns.label)
    for file in files:
        reader = _opened(file, columns)
        groups += [(file, group, reader.metadata.row_group(group).num_rows)
                   for group in range(reader.num_row_groups)]  # fmt: skip
        wanted = [name for name in (columns.label, columns.text) if name is not None]
        table = reader.read(columns=wanted)
        if columns.label is not None:
            values += table[columns.label].to_pylist()
        if columns.text is not None:
            texts += [captions_of(value) for value in table[columns.text].to_pylist()]
    count = sum(rows for _, _, rows in groups)
    if not count:
        raise InputError(f"dataset.path: {path} has no rows, expected one per image")
    labels: np.ndarray = np.full(count, NO_LABEL, dtype=np.int64)
    class_names: tuple[str, ...] = ()
    if columns.label is not None:
        where = f"dataset.label: {columns.label}"
        labels, class_names = (
            encode_labels(values, where) if known is None else encode_named(values, known, where)
        )
    image_at = _random_access(groups, columns.image)

    def read(index: int) -> np.ndarray:
        content = image_at(index)
        if isinstance(content, dict):
            content = content.get("bytes")
        if not content:
            raise UnreadableImage("no bytes in this row")
        return decode(io.BytesIO(content), settings.channels, ONE_BY_ONE)

    names = [str(index) for index in range(count)]
    captions = texts if columns.text is not None else None
    return Source(str(path), names, labels, class_names, settings.channels, read, captions)


def _files(path: Path) -> list[Path]:
    from tasks.data.files import open_files

    if path.suffix.lower() == ".zip" and path.is_file():
        raise InputError(f"dataset.path: {path} is a .zip, expected .parquet files; unpack it")
    if path.is_file():
        return [path]
    found = open_files(path, "dataset.path", "a .parquet file or a folder of them")
    names = [name for name in found.names if name.endswith(".parquet")]
    if not names:
        raise InputError(f"dataset.path: no .parquet files in {path}, expected one or more")
    return [path / name for name in names]


def _opened(file: Path, columns: _Columns | None = None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        reader = pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"dataset.path: {file} is not readable as Parquet ({reason}); fetch it again"
        ) from None
    for name in (columns.image, columns.label, columns.text) if columns else ():
        if name is not None and name not in reader.schema_arrow.names:
            raise InputError(f"dataset.path: {file} has no column {name}, as the files before have")
    return reader


def _columns(file: Path, settings: ParquetDataset) -> _Columns:
    from tasks.data.tables import LABEL_COLUMNS, TEXT_COLUMNS, column

    schema = _opened(file).schema_arrow
    there = ", ".join(schema.names)
    for key in ("image", "label", "text"):
        wanted = getattr(settings, key)
        if wanted is not None and wanted not in schema.names:
            raise InputError(f"dataset.{key} = {wanted}: expected a column of {file}: {there}")
    image = settings.image or column(schema.names, IMAGE_COLUMNS)
    if image is None or not _holds_bytes(schema.field(image).type):
        found = there if image is None else f"{image} is {schema.field(image).type}"
        raise InputError(
            f"dataset.path: {file} has no column of image bytes ({found}), expected image; "
            "files beside a table are read by dataset.kind=folder"
        )
    label = settings.label or column(schema.names, LABEL_COLUMNS)
    return _Columns(image, label, settings.text or column(schema.names, TEXT_COLUMNS))


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _class_names(reader: Any, label: str) -> list[str] | None:
    """The names of a ClassLabel column, which `datasets` keeps in the schema's metadata; classes
    keep their order.
    """
    try:
        info = json.loads((reader.schema_arrow.metadata or {})[b"huggingface"])
        names = info["info"]["features"][label]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _random_access(groups: list[tuple[Path, int, int]], name: str) -> Callable[[int], Any]:
    """``at(row)``: the value of one column; the last row group is kept."""
    starts = np.cumsum([0, *(rows for _, _, rows in groups)])
    kept: dict[int, Any] = {}

    def at(row: int) -> Any:
        number = int(np.searchsorted(starts, row, side="right")) - 1
        if number not in kept:
            kept.clear()
            file, group, _ = groups[number]
            kept[number] = _opened(file).read_row_group(group, columns=[name])[name]
        return kept[number][row - int(starts[number])].as_py()

    return at
