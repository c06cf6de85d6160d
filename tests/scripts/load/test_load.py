"""The measurement of load measures what it says, at the sizes it says."""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from models.common.errors import InputError
from scripts.load import __main__ as load
from scripts.load import queued, registry, shards
from scripts.load.timing import exponent, timed, too_steep
from tests.paths import PROJECT
from tests.tasks.results import write_results


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_is_that_of_the_law(power: float) -> None:
    seconds = {size: 3 * size**power for size in (10, 20, 40)}
    assert exponent(seconds) == pytest.approx(power)
    assert too_steep(seconds) == (power > 1)
    assert not too_steep({size: 1e-6 * size**power for size in (10, 20, 40)})  # ms: no matter


def test_one_size_has_no_exponent() -> None:
    assert math.isnan(exponent({3: 1.0}))
    steps: dict[str, float] = {}
    with timed(steps, "x"):
        pass
    assert 0 <= steps["x"] < 1


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "dvc"))
    found = dict(shards.measure((3, 5), tmp_path, PROJECT))
    assert list(found) == [3, 5]
    assert all(spent > 0 for steps in found.values() for spent in steps.values())
    manifest = json.loads((tmp_path / "shards/data/trajectories/manifest.json").read_text())
    assert len(manifest["splits"]["train"]) == 5


@pytest.mark.slow
def test_registry(tmp_path: Path) -> None:
    project = write_results(tmp_path / "project")
    found = dict(registry.measure((5, 10), tmp_path, project))
    assert [len(steps) for steps in found.values()] == [5, 5]
    with closing(sqlite3.connect(tmp_path / "registry/mlruns/mlflow.db")) as store:
        count = lambda table: store.execute(f"select count(*) from {table}").fetchone()[0]  # noqa: E731
        assert count("runs") == 11  # ten, and the one that was recorded among them
        assert count("model_versions") == 5
        params, each = count("params"), "select count(*) from params group by run_uuid"
        assert {row[0] for row in store.execute(each)} == {params // 11}


@pytest.mark.slow
def test_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (steps,) = [steps for _, steps in queued.measure((3,), tmp_path, PROJECT)]
    assert set(steps) == {
        "submit one",
        "a worker asks for work",
        "the list of runs",
        "`make status`",
    }


def test_without_results_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `make run PRESET=tiny` first"):
        next(registry.measure((5,), tmp_path, tmp_path))


def test_finished_sizes_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PREFECT_HOME", "DVC_SITE_CACHE_DIR"):  # set by main, reset afterwards
        monkeypatch.setenv(name, "")
    asked: list[list[int]] = []

    class Module:
        TITLE, UNIT = "Things", "things"

        @staticmethod
        def measure(sizes: list[int], *_: Path) -> object:
            asked.append(sizes)
            return [
                (
                    size,
                    {
                        "square": float(size**2),
                        "line": float(size),
                        "make one": size**0.5,
                        "ask one": 1.0,
                    },
                )
                for size in sizes
            ]

    monkeypatch.setattr(load, "module", lambda kind: Module)
    monkeypatch.setattr(load.environment, "prepare", lambda root: None)
    assert load.main(["--only", "shards"]) == 1
    assert load.main(["--only", "shards"]) == 1
    assert asked == [list(load.SIZES["shards"])]
    told = capsys.readouterr().out
    assert "grow faster than linearly: shards: square, shards: make one\n" in told
    assert "| 2.00 |" in told
