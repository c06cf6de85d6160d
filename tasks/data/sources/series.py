"""Series of one's own: windows of the columns of a CSV or Parquet file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from models.common.config import Count, distinct
from models.common.errors import InputError
from tasks.config.types import Digest, LocalPath, Text
from tasks.data.sources.series_base import (
    SeriesSettings,
    SeriesSource,
    Values,
    transformed,
    windows_of,
)

if TYPE_CHECKING:
    import pandas as pd

TIME_COLUMNS = ("time", "date", "datetime", "timestamp")
Columns = Annotated[tuple[Text, ...], Field(min_length=1), AfterValidator(distinct)]


class OwnSeriesDataset(SeriesSettings):
    """Windows of a table with one row per time; the last ones are held out."""

    kind: Literal["series"] = "series"
    path: LocalPath
    """A .csv or .parquet file."""
    digest: Digest | None = None
    """Of the content at path; runs fill it in, so that new content runs the stage again."""
    columns: Columns | None = None
    """Columns that become channels; null: all but the time."""
    time: Text | None = None
    """The column of times; null: time, date, datetime or timestamp, if it is there."""
    values: Values = "levels"
    """What a channel holds: the column, its returns or its log-returns."""
    stride: Count = 1
    """Rows between the starts of two windows."""

    def open(self, root: Path) -> SeriesSource:
        return table_source(root / self.path, self)


def table_source(path: Path, settings: OwnSeriesDataset) -> SeriesSource:
    """Windows of one file; those held out come after all others. Raises InputError."""
    table = _read(path)
    time = _time_column(table, settings.time, path)
    names = settings.columns or tuple(name for name in table.columns if name != time)
    for name in names:
        _check_known("columns", name, table, path)
    if not names:
        raise InputError(f"dataset.path: {path} has no columns of values")
    if time is not None:
        _check_order(table[time], path)
    levels = np.stack([_numbers(table[name], path) for name in names], axis=1)
    values = transformed(levels, settings.values, names, f"dataset.path: {path.name}")
    split = windows_of(values, settings.length, settings.stride, settings.holdout, path.name)
    return SeriesSource(path.name, *split, tuple(names))


def _read(path: Path) -> pd.DataFrame:
    """All columns; those of a CSV as text. Separated by commas, semicolons or tabs."""
    import pandas as pd

    kind = {".csv": "CSV", ".parquet": "Parquet"}.get(path.suffix.lower())
    if kind is None or not path.is_file():
        found = "no such file" if not path.exists() else "not a table"
        raise InputError(f"dataset.path: {path} is {found}, expected a .csv or .parquet file")
    try:
        if kind == "CSV":
            with path.open("rb") as file:
                head = file.readline()
            mark = max(",;\t", key=lambda each: head.count(each.encode()))
            table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=mark, index_col=False)
        else:
            table = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # also of pandas and pyarrow
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"dataset.path: {path} is not readable as {kind} ({reason})") from None
    if isinstance(table.index, pd.DatetimeIndex) and table.index.name is not None:
        table = table.reset_index()  # pandas keeps an index of times beside the columns
    table.columns = [str(name).strip() for name in table.columns]
    if repeated := [name for name in table.columns if list(table.columns).count(name) > 1]:
        raise InputError(f"dataset.path: {path} has two columns {repeated[0]}; rename one")
    return table


def _check_known(key: str, name: str, table: pd.DataFrame, path: Path) -> None:
    if name not in table.columns:
        close = difflib.get_close_matches(name, table.columns, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(table.columns)}"
        raise InputError(f"dataset.{key} = {name}: {path.name} has no such column; {hint}")


def _time_column(table: pd.DataFrame, wanted: str | None, path: Path) -> str | None:
    from tasks.data.tables import column

    if wanted is not None:
        _check_known("time", wanted, table, path)
    return wanted or column(table.columns, TIME_COLUMNS)


def _check_order(times: pd.Series[Any], path: Path) -> None:
    """InputError unless each time is later than the one before."""
    import pandas as pd

    parsed: Any = times
    if times.dtype == object or pd.api.types.is_string_dtype(times):
        numbers = pd.to_numeric(times, errors="coerce")
        parsed = numbers
        if numbers.isna().any():
            parsed = pd.to_datetime(times, format="ISO8601", errors="coerce", utc=True)
    if parsed.isna().any():
        row = int(np.flatnonzero(parsed.isna())[0])
        raise InputError(
            f"dataset.time: {path.name}: {times.name} is {times.iloc[row]!r} in row {row + 1}, "
            "expected a number or a time such as 2024-01-31 or 2024-01-31T09:30:00"
        )
    values = parsed.to_numpy()
    late = np.flatnonzero(~(values[1:] > values[:-1]))
    if len(late):
        row = int(late[0]) + 1
        raise InputError(
            f"dataset.time: {path.name}: row {row + 1} ({times.iloc[row]}) is not later than row "
            f"{row} ({times.iloc[row - 1]}), expected one row per time, in order; sort by "
            f"{times.name} and remove what comes twice"
        )


def _numbers(values: pd.Series[Any], path: Path) -> np.ndarray:
    """float64 (T,); InputError for anything missing, infinite or no number."""
    import pandas as pd

    where = f"dataset.path: {path.name}: {values.name}"
    text = pd.api.types.is_string_dtype(values) or values.dtype == object
    if not text and not pd.api.types.is_numeric_dtype(values):
        raise InputError(f"{where} is {values.dtype}, expected numbers; name dataset.columns")
    numbers = np.asarray(pd.to_numeric(values, errors="coerce"), dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if not len(bad):
        return numbers
    row, given = int(bad[0]), values.iloc[int(bad[0])]
    missing = pd.isna(given) or (isinstance(given, str) and not given.strip())
    named_nan = isinstance(given, str) and given.strip().lower() in ("nan", "na", "null", "none")
    if missing or named_nan:
        fix = "fill the gaps, or leave the rows out"
        raise InputError(f"{where} has {len(bad)} missing values, first in row {row + 1}; {fix}")
    if np.isinf(numbers[row]):
        raise InputError(f"{where} is infinite in row {row + 1}, expected finite numbers")
    raise InputError(f"{where} is {given!r} in row {row + 1}, expected a number such as 1.5")
