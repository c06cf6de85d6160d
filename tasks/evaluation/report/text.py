"""Numbers, intervals and pictures as text of the report."""

from __future__ import annotations

import base64

from models.evaluation.base import Interval
from tasks.evaluation.results import Result, Row


def fixed(value: float, decimals: int = 4) -> str:
    """A number with a true minus sign, and none before zero."""
    text = f"{value:.{decimals}f}"
    return text.replace("-", "" if float(text) == 0 else "−")


def shown(result: Result, row: Row) -> str:
    """The criterion's figure of a row."""
    return number(result, result.score(row).value)


def number(result: Result, value: float) -> str:
    """A figure of the criterion with its decimals."""
    return fixed(value, result.column.decimals)


def span(result: Result, gap: Interval) -> str:
    """A difference of the criterion with its interval."""
    value, low, high = (number(result, each) for each in (gap.value, gap.low, gap.high))
    return f"{value}, 95 % {low} to {high}"


def png(content: bytes) -> str:
    """A picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode()
