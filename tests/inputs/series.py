"""Series of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tasks.config.schema import Params
from tasks.data.dataset import load_manifest, load_split
from tasks.stages import dataset
from tests.inputs.rows import Row
from tests.tasks.series import MEASURED

TITLE = "Series (`dataset.kind: series`)"
WALK = 100 + np.random.default_rng(0).standard_normal(40).cumsum().round(4)


def made(root: Path, **settings: Any) -> dict[str, Any]:
    """The dataset stage on `root`/in.csv: its manifest."""
    given = {"kind": "series", "path": "in.csv", "length": 8, "holdout": 4} | settings
    dataset.run(Params.model_validate(MEASURED | {"dataset": given}), root)
    return load_manifest(root)


def table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"date": pd.date_range("2024-01-01", periods=40), "x": WALK} | columns)


def text(row: int, value: str) -> list[str]:
    """The walk as text, one value replaced."""
    return [value if i == row else str(number) for i, number in enumerate(WALK)]


def stored(content: pd.DataFrame, **settings: Any) -> Callable[[Path], None]:
    """A CSV of these columns, read."""

    def run(root: Path) -> None:
        content.to_csv(root / "in.csv", index=False)
        made(root, **settings)

    return run


def taken(root: Path) -> None:
    for suffix in ("csv", "parquet"):
        file = root / f"in.{suffix}"
        table().to_csv(file, index=False) if suffix == "csv" else table().to_parquet(file)
        manifest = made(root, path=file.name)
        assert manifest["channels"] == ["x"] and manifest["counts"] == {"train": 22, "holdout": 4}
        held = load_split(root, "holdout")[0]
        np.testing.assert_allclose(held[-1, 0], WALK[-8:], rtol=1e-6)
        assert len(manifest["scaling"]["mean"]) == 1


def wrong_order(row: int, day: str) -> pd.DataFrame:
    days = [str(day.date()) for day in pd.date_range("2024-01-01", periods=40)]
    return table(date=[*days[:row], day, *days[row + 1 :]])


ROWS = (
    Row("series-taken", "one row per time; a column `date` or `time`, others numbers", taken,
        "windows in the columns' own units; the last `dataset.holdout` are held out, training windows end before them"),
    Row("series-gap", "an empty cell, NaN", stored(table(x=text(3, ""))),
        refused="dataset.path: in.csv: x has 1 missing values, first in row 4; fill the gaps, or leave the rows out"),
    Row("series-inf", "an infinite value", stored(table(x=text(3, "inf"))),
        refused="dataset.path: in.csv: x is infinite in row 4, expected finite numbers"),
    Row("series-text", "text among the numbers", stored(table(x=text(3, "1,5"))),
        refused="dataset.path: in.csv: x is '1,5' in row 4, expected a number such as 1.5"),
    Row("series-short", "fewer rows than windows need", stored(table().head(18)),
        refused="in.csv: 18 rows, expected at least 19 for dataset.holdout = 4 windows of dataset.length = 8 and one to train on before them; lower them"),
    Row("series-constant", "a column that does not move", stored(table(y=7.0)),
        refused="in.csv: y is constant in the training series (std 0, values up to 7), expected one that moves; leave the column out"),
    Row("series-order", "times out of order", stored(wrong_order(5, "2024-01-03")),
        refused="dataset.time: in.csv: row 6 (2024-01-03) is not later than row 5 (2024-01-05), expected one row per time, in order; sort by date and remove what comes twice"),
    Row("series-time", "something that is no time", stored(wrong_order(5, "soon")),
        refused="dataset.time: in.csv: date is 'soon' in row 6, expected a number or a time such as 2024-01-31 or 2024-01-31T09:30:00"),
    Row("series-column", "a column that is not there", stored(table(close=WALK), columns=["closed"]),
        refused="dataset.columns = closed: in.csv has no such column; did you mean close?"),
    Row("series-log", "log-returns of values that are not above 0", stored(table(x=WALK - 100), values="log_returns"),
        refused=f"dataset.path: in.csv: x is {WALK[np.argmax(WALK <= 100)] - 100:g} in row {np.argmax(WALK <= 100) + 1}, expected values above 0 for dataset.values = log_returns; use levels"),
    Row("series-file", "another kind of file", lambda root: made(root, path="in.xlsx"),
        refused="dataset.path: in.xlsx is no such file, expected a .csv or .parquet file"),
)  # fmt: skip
