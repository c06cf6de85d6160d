"""Tables that describe images: metadata.csv, .jsonl or .parquet, as Hugging Face's imagefolder has
them.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from models.common.errors import InputError
from tasks.data.files import Files, same_name

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_COLUMNS = ("file_name", "image", "filename", "file")
LABEL_COLUMNS = ("label", "labels", "class")
TEXT_COLUMNS = ("text", "caption", "captions", "prompt")
DECIMAL_COMMA = re.compile(r"^([+-]?[0-9]+),([0-9]+)$")


@dataclass
class Described:
    """What the tables say of images, by file name. ``has_labels``: whether any has a label
    column.
    """

    labels: dict[str, Any] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    has_labels: bool = False
    has_captions: bool = False

    @property
    def names(self) -> set[str]:
        return {*self.labels, *self.captions}


def read_described(files: Files) -> Described:
    """All tables of a folder joined; names in one count from its own folder. Raises InputError."""
    described = Described()
    for name in files.names:
        place = PurePosixPath(name)
        if place.name in NAMES:
            _add(described, f"{files.title}/{name}", place.parent, _rows(files, name))
    return described


def column(columns: Iterable[str], known: Sequence[str]) -> str | None:
    """The first of ``known`` that is there, whatever its case."""
    there = {name.strip().lower(): name for name in columns}
    return next((there[name] for name in known if name in there), None)


def captions_of(value: Any) -> list[str]:
    """The captions of one image: text, a list of texts, or none."""
    several = value if isinstance(value, list | tuple) else [value]
    return [text for item in several if item is not None and (text := str(item).strip())]


def _add(described: Described, title: str, folder: PurePosixPath, table: dict[str, list]) -> None:
    file = column(table, FILE_COLUMNS)
    label, text = column(table, LABEL_COLUMNS), column(table, TEXT_COLUMNS)
    if file is None or (label is None and text is None):
        raise InputError(
            f"{title}: columns {', '.join(table)}, expected file_name and label or text"
        )
    described.has_labels |= label is not None
    described.has_captions |= text is not None
    for index, value in enumerate(table[file]):
        if isinstance(value, dict):  # as `datasets` writes images: {"bytes": .., "path": ..}
            value = value.get("path")
        if not isinstance(value, str):
            raise InputError(f"{title}: row {index + 1} has no file name, expected one per row")
        name = same_name(str(folder / same_name(value)))
        if label is not None:
            given = table[label][index]
            if str(described.labels.setdefault(name, given)) != str(given):
                raise InputError(f"{title}: {value} has two labels, expected one row per image")
        if text is not None:
            described.captions[name] += captions_of(table[text][index])


def _rows(files: Files, name: str) -> dict[str, list]:
    """The columns of a table."""
    title = f"{files.title}/{name}"
    with files.open(name) as file:
        content = file.read()
    kind = {".csv": "CSV", ".jsonl": "JSON lines", ".parquet": "Parquet"}[
        PurePosixPath(name).suffix
    ]
    try:
        if kind == "CSV":
            return _csv(content)
        return _json_lines(content) if kind == "JSON lines" else _parquet(content)
    except (OSError, ValueError, TypeError) as error:  # also of pandas and pyarrow
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{title}: not readable as {kind} ({reason})") from None


def decoded(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 where it begins with a byte order mark (as Excel and Notepad
    write it). Raises ValueError for any other encoding: it would give wrong letters.
    """
    two_bytes = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if two_bytes else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8; save it as UTF-8") from None
    if "\0" in text:
        raise ValueError("zero bytes in the text; save it as UTF-8")
    return text


def _csv(content: bytes) -> dict[str, list]:
    """Text columns; separated by commas, semicolons or tabs, whichever the head has most of."""
    import pandas as pd

    text = decoded(content)
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, sep=separator)
    columns = {str(name).strip(): table[name].tolist() for name in table.columns}
    label = column(columns, LABEL_COLUMNS)
    if separator == ";" and label is not None:  # where the comma is the decimal point: 3,0
        columns[label] = [DECIMAL_COMMA.sub(r"\1.\2", value) for value in columns[label]]
    return columns


def _json_lines(content: bytes) -> dict[str, list]:
    rows = [json.loads(line) for line in decoded(content).split("\n") if line.strip()]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected one object per line")
    columns = dict.fromkeys(key for row in rows for key in row)
    return {name: [row.get(name) for row in rows] for name in columns}


def _parquet(content: bytes) -> dict[str, list]:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    return {name: table[name].to_pylist() for name in table.column_names}
