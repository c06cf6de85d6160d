"""Daily log-returns of S&P 500 and NASDAQ, 1999 to 2018, from the package `arch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from models.common.config import Count, distinct
from tasks.data.sources.series_base import SeriesSettings, SeriesSource, transformed, windows_of

Index = Literal["sp500", "nasdaq"]


class StocksDataset(SeriesSettings):
    """Windows of daily log-returns; the last ones are held out."""

    kind: Literal["stocks"] = "stocks"
    indices: Annotated[tuple[Index, ...], Field(min_length=1), AfterValidator(distinct)] = (
        "sp500",
        "nasdaq",
    )
    """One channel each, on the same days."""
    stride: Count = 1
    """Days between the starts of two windows."""

    def open(self, root: Path) -> SeriesSource:
        import pandas as pd
        from arch.data import nasdaq, sp500

        known = {"sp500": sp500, "nasdaq": nasdaq}
        columns = [known[name].load()["Adj Close"].rename(name) for name in self.indices]
        prices = pd.concat(columns, axis=1, join="inner").sort_index()
        returns = transformed(prices.to_numpy(float), "log_returns", self.indices, "dataset")
        first, last = prices.index[0].year, prices.index[-1].year
        title = f"daily log-returns of {' and '.join(self.indices)}, {first} to {last}"
        train, holdout = windows_of(returns, self.length, self.stride, self.holdout, title)
        return SeriesSource(title, train, holdout, tuple(self.indices))
