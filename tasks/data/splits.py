"""The two parts of a dataset."""

from __future__ import annotations

from typing import Literal

SPLITS = ("train", "holdout")
Split = Literal["train", "holdout"]
