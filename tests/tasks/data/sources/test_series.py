"""Sources of series: laws are tested beside the processes; here windows, splits and the manifest."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from models.common.errors import InputError
from tasks.config.presets import compose
from tasks.config.schema import Params
from tasks.data.dataset import data_kind, load_manifest, load_split
from tasks.data.kinds import kind_of
from tasks.data.sources import SOURCES
from tasks.data.sources.series_base import windows_of
from tasks.stages import dataset
from tasks.stages.dataset import run
from tests.paths import PROJECT
from tests.tasks.series import MEASURED


def make(root: Path, **dataset: Any) -> dict[str, Any]:
    run(Params.model_validate(MEASURED | {"dataset": dataset}), root)
    return load_manifest(root)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"kind": "ar1", "length": 12}, (1, 12)),
        ({"kind": "ou"}, (1, 32)),
        ({"kind": "gbm"}, (1, 32)),
        ({"kind": "rough_bergomi", "length": 8, "substeps": 2}, (2, 8)),
    ],
)
def test_simulated(tmp_path: Path, settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Seeded; float32 in the process's units; the scaling is that of the training split."""
    given = settings | {"count": 60, "holdout": 20}
    manifest = make(tmp_path, **given)
    train, labels = load_split(tmp_path, "train")
    holdout, _ = load_split(tmp_path, "holdout")
    assert manifest["kind"] == data_kind(tmp_path).name == "series"
    assert train.dtype == np.float32 and (train.shape, holdout.shape) == (
        (40, *shape),
        (20, *shape),
    )
    assert tuple(manifest["shape"]) == shape and (labels == -1).all()
    scaling = manifest["scaling"]
    assert np.allclose(scaling["mean"], train.mean((0, 2)), atol=1e-5)
    assert np.allclose(scaling["std"], train.std((0, 2)), rtol=1e-5)
    again = make(tmp_path / "again", **given)
    other = make(tmp_path / "other", **given, seed=1)
    name = "train_series.npy"
    assert (
        again["sha256"] == manifest["sha256"] and other["sha256"][name] != manifest["sha256"][name]
    )


def test_states_are_standardised_and_come_back(tmp_path: Path) -> None:
    manifest = make(tmp_path, kind="gbm", count=500, holdout=100, start=100.0)
    series = data_kind(tmp_path).to_float(load_split(tmp_path, "train")[0])
    codec = kind_of(manifest).codec(manifest)
    states = codec.encode(series)
    assert series.mean() > 90 and abs(float(states.mean())) < 1e-3
    assert float(states.std()) == pytest.approx(1, abs=1e-3) and float(states.abs().max()) > 2
    torch.testing.assert_close(codec.decode(states), series)


def test_windows_of_a_table_end_with_it_and_do_not_mix() -> None:
    table = np.arange(100.0)[:, None]
    for length, stride, holdout in ((8, 1, 5), (8, 3, 4), (10, 10, 2), (4, 7, 3)):
        train, held = windows_of(table, length, stride, holdout, "t")
        assert len(held) == holdout and held[-1, 0, -1] == 99
        assert train.max() < held.min()
        assert held.min() - train.max() <= stride, "one more window would fit"
        for part in (train, held):
            assert (np.diff(part[:, 0, 0]) == stride).all() and (np.diff(part, axis=2) == 1).all()
    few = windows_of(table[:17], 8, 1, 2, "t")
    assert [len(part) for part in few] == [1, 2]
    with pytest.raises(InputError, match="16 rows, expected at least 17 for dataset.holdout = 2"):
        windows_of(table[:16], 8, 1, 2, "t")


def test_stocks(tmp_path: Path) -> None:
    """Held-out windows come after all training windows, in daily log-returns of both indices."""
    from arch.data import nasdaq, sp500

    manifest = make(tmp_path, kind="stocks", holdout=100)
    train, holdout = (load_split(tmp_path, split)[0] for split in ("train", "holdout"))
    assert manifest["channels"] == ["sp500", "nasdaq"] and train.shape[1:] == (2, 32)
    for channel, module in enumerate((sp500, nasdaq)):
        returns = np.diff(np.log(module.load()["Adj Close"].to_numpy())).astype(np.float32)
        assert np.array_equal(train[0, channel], returns[:32])
        assert np.array_equal(holdout[-1, channel], returns[-32:])
        first = len(returns) - 31 - 100
        assert np.array_equal(holdout[0, channel], returns[first : first + 32])
        assert np.array_equal(train[-1, channel], returns[first - 32 : first])
    alone = make(tmp_path / "one", kind="stocks", holdout=100, indices=["nasdaq"], stride=5)
    assert alone["shape"] == [1, 32] and 800 < alone["counts"]["train"] < 900


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_ones_own(tmp_path: Path, suffix: str) -> None:
    """Columns, window, stride and values as asked for; CSV and Parquet alike."""
    rng = np.random.default_rng(0)
    prices = 100 * np.exp(0.01 * rng.standard_normal((60, 2)).cumsum(0))
    days = pd.date_range("2024-01-01", periods=60)
    table = pd.DataFrame({"date": days, "a": prices[:, 0], "b": prices[:, 1], "name": "x"})
    file = tmp_path / f"in.{suffix}"
    table.to_csv(file, index=False) if suffix == "csv" else table.to_parquet(file)
    given = {"kind": "series", "path": file.name, "length": 8, "holdout": 4, "columns": ["b", "a"]}
    expected = {
        "levels": prices, "log_returns": np.diff(np.log(prices), axis=0),
        "returns": prices[1:] / prices[:-1] - 1,
    }  # fmt: skip
    for values, wanted in expected.items():
        manifest = make(tmp_path, **given, values=values, stride=2)
        holdout = load_split(tmp_path, "holdout")[0]
        assert manifest["channels"] == ["b", "a"]
        np.testing.assert_allclose(holdout[-1], wanted[-8:, ::-1].T, rtol=1e-6)
        np.testing.assert_allclose(holdout[-2], wanted[-10:-2, ::-1].T, rtol=1e-6)
    table.drop(columns="name").set_index("date").to_parquet(tmp_path / "indexed.parquet")
    indexed = given | {"path": "indexed.parquet", "columns": None}
    assert make(tmp_path, **indexed)["channels"] == ["a", "b"]


def test_a_table_with_semicolons_and_numbers_as_times(tmp_path: Path) -> None:
    rows = "\n".join(f"{i};{i % 7}.5;{i * 2}" for i in range(30))
    (tmp_path / "in.csv").write_text(f"time; x ;y\n{rows}\n")
    manifest = make(tmp_path, kind="series", path="in.csv", length=4, holdout=3)
    assert manifest["channels"] == ["x", "y"] and manifest["counts"]["holdout"] == 3


def test_trained_teachers_have_one_scale() -> None:
    series = {"kind": "ar1", "length": 16}

    def teacher(scales: list[int]) -> dict[str, Any]:
        return MEASURED | {
            "dataset": series,
            "teacher": {"source": "train", "channels": [8], "scales": scales},
        }

    assert Params.model_validate(teacher([16])).dataset.length == 16
    with pytest.raises(ValueError, match=r"largest is 8, expected dataset.length = 16"):
        Params.model_validate(teacher([8]))
    with pytest.raises(ValueError, match=r"dataset.length = 16 alone, series are learnt whole"):
        Params.model_validate(teacher([8, 16]))


def test_the_commands_of_the_page_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of one's own, and a source of one's own, as docs/series.md shows them."""
    page = (PROJECT / "docs/series.md").read_text()
    monkeypatch.setattr("tasks.data.sources.registry.SOURCES", SOURCES)
    for name, where in (("sines", SOURCES), ("sines", sys.modules)):
        monkeypatch.setitem(where, name, None)
        monkeypatch.delitem(where, name)
    code = re.search(r"`sines\.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    (tmp_path / "sines.py").write_text(code[1])
    shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    found = re.findall(r'make run PRESET=(\w+) ARGS="(.*?)"', page, re.DOTALL)
    table, own = (
        compose(tmp_path, preset, text.replace("\\", " ").split()) for preset, text in found
    )
    assert table.dataset.columns == ("open", "close") and table.dataset.holdout == 200
    dataset.run(own, tmp_path)
    manifest = load_manifest(tmp_path)
    assert manifest["counts"] == {"train": 2500, "holdout": 500} and manifest["shape"] == [1, 32]
