"""What a source of prompts is: texts that come one by one, each with the place it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from models.common.errors import InputError
from tasks.data.tables import TEXT_COLUMNS, column

LONGEST = 100_000  # characters of one prompt; more is another kind of file
COLUMNS = (*TEXT_COLUMNS, "prompts")
KEY = "conditions.prompts"


@dataclass(frozen=True)
class Prompt:
    """One text, "" for an empty one; ``place``: where it is from, such as "line 3"."""

    text: str
    place: str


@dataclass(frozen=True)
class PromptSource:
    """``title``: of the file or folder; ``prompts``: read as they are asked for, once;
    ``held_out``: those for evaluation, where the source itself says so, else None.
    """

    title: str
    prompts: Iterable[Prompt]
    held_out: Iterable[Prompt] | None = None


def texts_of(value: Any, title: str, place: str) -> Iterator[Prompt]:
    """The prompts in one cell: a text, a list of texts, or nothing, which is an empty prompt.

    Raises InputError for anything else: a number is no prompt.
    """
    several = value if isinstance(value, list | tuple) else [value]
    if not several:
        yield Prompt("", place)
    for item in several:
        if item is not None and not isinstance(item, str):
            raise InputError(
                f"{KEY}: {title}, {place}: {str(item)[:40]!r} is no text, expected a prompt; "
                "choose another column in conditions.column"
            )
        text = (item or "").strip()
        if len(text) > LONGEST:
            raise InputError(
                f"{KEY}: {title}, {place}: {len(text):,} characters, expected one prompt of at "
                f"most {LONGEST:,}; put one prompt on a line"
            )
        yield Prompt(text, place)


def prompt_column(names: Sequence[str], wanted: str | None, title: str) -> str:
    """The column of prompts: the one asked for, or the first of the usual names.

    Raises InputError, which names the columns that are there.
    """
    there = ", ".join(map(str, names))
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"conditions.column = {wanted}: expected a column of {title}: {there}")
        return wanted
    found = column(names, COLUMNS)
    if found is None:
        raise InputError(
            f"{KEY}: {title} has the columns {there}, expected {', '.join(COLUMNS)}; name yours in "
            "conditions.column"
        )
    return found
