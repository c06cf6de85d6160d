"""Labels as people write them -> class numbers and class names, alike for every kind of source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

import numpy as np

from models.common.errors import InputError

NO_LABEL = -1
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?")
# What programs write for a gap in a column of numbers; among names they are names.
GAPS = frozenset(("na", "n/a", "none", "null"))
INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)


def encode_labels(values: Iterable[object], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ids int64 (n,) and class names of labels given as numbers or text.

    None, NaN, empty text and negative numbers are no label (-1); among numbers NA and the like
    are none either. Labels that are all numbers are sorted as numbers, and 3, 3.0 and "3.0" are
    one class; other labels are sorted as text. Raises InputError, which begins with ``where``, for
    what is no class: numbers with a fraction, infinity, lists.
    """
    texts = [_text(value, where) for value in values]
    names = {text for text in texts if text}
    others = {name for name in names if not NUMBER.fullmatch(name)}
    if others < names and all(name.lower() in GAPS or INFINITE.fullmatch(name) for name in others):
        if infinite := sorted(name for name in others if INFINITE.fullmatch(name)):
            raise InputError(
                f"{where}: label {infinite[0]} is no class, expected whole numbers or names; "
                "leave the label of these images empty"
            )
        texts = ["" if text in others else text for text in texts]
        numbers = {name: Decimal(name) for name in names - others}
        if broken := sorted(
            n for n, number in numbers.items() if number != number.to_integral_value()
        ):
            raise InputError(
                f"{where}: label {broken[0]} has a fraction, expected whole numbers or names; "
                "choose another column, or round the numbers"
            )
        texts = [str(int(numbers[text])) if text else "" for text in texts]
        return _numbered(texts, sorted({text for text in texts if text}, key=int))
    return _numbered(texts, sorted(names))


def encode_folders(folders: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ids and names of class folders: every name its own class ("1" is not "01"), whole numbers in
    their order; "" is no label.
    """
    names = set(folders) - {""}
    numeric = all(re.fullmatch(r"[0-9]+", name) for name in names)
    return _numbered(folders, sorted(names, key=lambda n: (int(n) if numeric else 0, n)))


def encode_named(
    values: Iterable[object], names: Sequence[str], where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The same of numbers whose names are known: the classes that occur keep the order of
    ``names``.

    None and negative numbers are no label. Raises InputError for a number without a name.
    """
    given: list[int] = []
    for value in values:
        if value is not None and (not isinstance(value, int) or value >= len(names)):
            raise InputError(
                f"{where}: label {value!r}, expected 0 to {len(names) - 1}: the column names "
                f"{len(names)} classes"
            )
        given.append(NO_LABEL if value is None else value)
    used = sorted({value for value in given if value >= 0})
    ids = {value: index for index, value in enumerate(used)}
    encoded = np.array([ids.get(value, NO_LABEL) for value in given], dtype=np.int64)
    return encoded, tuple(names[value] for value in used)


def _text(value: object, where: str) -> str:
    """A label as text; "" for no label."""
    if isinstance(value, list | tuple | set | Mapping):
        raise InputError(
            f"{where}: label {value} is a {type(value).__name__}, expected one number or name per "
            "image; choose another column, or one of the values"
        )
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = "" if value is None else str(value).strip()
    if text.lower() in ("nan", "<na>") or (NUMBER.fullmatch(text) and Decimal(text) < 0):
        return ""
    return text


def _numbered(texts: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    ids = {name: index for index, name in enumerate(names)} | {"": NO_LABEL}
    return np.array([ids[text] for text in texts], dtype=np.int64), tuple(names)
