"""Prompts of text files: .txt with one a line, .csv and .tsv, .jsonl."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.common.errors import InputError
from tasks.data.prompts.base import KEY, LONGEST, Prompt, prompt_column, texts_of

MARKS = (  # byte-order marks; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LONGEST_LINE = 8 * LONGEST  # characters; of JSON and CSV, which hold more than the prompt


def lines_of(path: Path, encoding: str, newline: str | None = None) -> Iterator[str]:
    """The lines of a text file, read one by one; ``newline`` as of :func:`open`.

    Raises InputError, which names the line, for bytes that are not of the encoding and for a line
    without end.
    """
    found = encoding_of(path, encoding)
    # bytes that are no text become lone surrogates, so that the line they are in can be named
    with path.open(encoding=found, errors="surrogateescape", newline=newline) as file:
        number = 0
        while True:
            try:
                line = file.readline(LONGEST_LINE + 1)
            except UnicodeError as error:
                raise _not_of(path, number + 1, found, str(error)) from None
            if not line:
                return
            number += 1
            _check_line(path, number, line, found)
            yield line


def read_text(path: Path, encoding: str) -> Iterator[Prompt]:
    """One prompt a line."""
    for number, line in enumerate(lines_of(path, encoding), 1):
        yield from texts_of(line, path.name, f"line {number}")


def read_json_lines(path: Path, encoding: str, wanted: str | None) -> Iterator[Prompt]:
    """One object a line, with a prompt or a list of prompts in a column; or one text a line."""
    name: str | None = wanted
    for number, line in enumerate(lines_of(path, encoding), 1):
        place = f"line {number}"
        if not line.strip():
            yield Prompt("", place)
            continue
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{KEY}: {path.name}, {place}: not JSON ({error}); expected one object per line"
            ) from None
        if isinstance(row, dict):
            if name is None or name not in row:
                name = prompt_column(list(row), wanted, f"{path.name}, {place}")
            row = row[name]
        yield from texts_of(row, path.name, place)


def read_csv(path: Path, encoding: str, wanted: str | None) -> Iterator[Prompt]:
    """A column of a table whose first line names the columns; separated by commas, semicolons or
    tabs, whichever the head has most of.
    """
    csv.field_size_limit(LONGEST_LINE)
    lines = lines_of(path, encoding, newline="")
    head = next(lines, "")
    separator = max(",;\t", key=head.count)
    names = [name.strip() for name in next(csv.reader([head], delimiter=separator), [])]
    at = names.index(prompt_column(names, wanted, path.name))
    rows = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        place = f"line {rows.line_num + 2}"  # where the row begins
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{KEY}: {path.name}, {place}: not readable as CSV ({error}); put texts with "
                'separators or quotes between " "'
            ) from None
        if row and len(row) <= at:
            raise InputError(
                f"{KEY}: {path.name}, {place}: {len(row)} columns, expected {len(names)}"
            )
        yield from texts_of(row[at] if row else "", path.name, place)


def encoding_of(path: Path, encoding: str) -> str:
    """What the file's byte-order mark says, else ``encoding``."""
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in MARKS if start.startswith(mark)), encoding)


def _check_line(path: Path, number: int, line: str, encoding: str) -> None:
    if len(line) > LONGEST_LINE:
        raise InputError(
            f"{KEY}: {path.name}, line {number}: more than {LONGEST_LINE:,} characters, expected "
            "one prompt on a line"
        )
    try:
        line.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) & 0xFF
        raise _not_of(path, number, encoding, f"byte 0x{byte:02x}") from None
    if "\0" in line:
        raise _not_of(path, number, encoding, "a null character")


def _not_of(path: Path, number: int, encoding: str, why: str) -> InputError:
    return InputError(
        f"{KEY}: {path.name}, line {number}: not {encoding.removesuffix('-sig')} ({why}); save it "
        "as UTF-8, or name its encoding in conditions.encoding, such as latin-1"
    )
