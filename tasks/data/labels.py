"""Labels as people write them -> class numbers and class names, alike for every kind of source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

import numpy as np

from models.common.errors import InputError

NO_LABEL = -1
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?")


def encode_labels(values: Iterable[object], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ids int64 (n,) and class names of labels given as numbers or text.

    None, NaN, empty text and negative numbers are no label (-1). Labels that are all numbers are
    sorted as numbers, and 3, 3.0 and "3.0" are one class; other labels are sorted as text. Raises
    InputError, which begins with ``where``, for numbers with a fraction: they are no classes.
    """
    texts = [_text(value) for value in values]
    names = {text for text in texts if text}
    if names and all(NUMBER.fullmatch(name) for name in names):
        numbers = {name: Decimal(name) for name in names}
        if broken := sorted(name for name, number in numbers.items() if number % 1):
            raise InputError(
                f"{where}: label {broken[0]} has a fraction, expected whole numbers or names; "
                "choose another column, or round the numbers"
            )
        texts = [str(int(numbers[text])) if text else "" for text in texts]
        return _numbered(texts, sorted({text for text in texts if text}, key=int))
    return _numbered(texts, sorted(names))


def encode_folders(folders: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ids and names of class folders: every name its own class ("1" is not "01"), whole numbers in
    their order.
    """
    names = set(folders)
    numeric = all(re.fullmatch(r"[0-9]+", name) for name in names)
    return _numbered(folders, sorted(names, key=lambda n: (int(n) if numeric else 0, n)))


def _text(value: object) -> str:
    """A label as text; "" for no label."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = "" if value is None else str(value).strip()
    if text.lower() in ("nan", "<na>") or (NUMBER.fullmatch(text) and Decimal(text) < 0):
        return ""
    return text


def _numbered(texts: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    ids = {name: index for index, name in enumerate(names)} | {"": NO_LABEL}
    return np.array([ids[text] for text in texts], dtype=np.int64), tuple(names)
