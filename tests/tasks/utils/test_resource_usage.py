from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.utils.peak_memory import STATUS
from tasks.utils.resource_usage import FOLDER, costs, identity, measure_resources
from tests.tasks.utils.fat_parent import HELD, run_in_fat_parent

MIB = 1024**2
MEASURED = """
from pathlib import Path
from tasks.utils.resource_usage import measure_resources
with measure_resources(Path.cwd(), "student"):
    pass
"""


def write(root: Path, text: str = "one") -> None:
    folder = root / "data" / "student"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "student.json").write_text(text)


def test_the_cost_of_a_result_comes_back_with_it(tmp_path: Path) -> None:
    with measure_resources(tmp_path, "student"):
        write(tmp_path, "one")
    first = costs(tmp_path, ["student", "teacher"])
    assert set(first) == {"stage_seconds/student", "peak_memory_mib/student"}
    assert 0 < first["stage_seconds/student"] < 60 and first["peak_memory_mib/student"] > 10
    with measure_resources(tmp_path, "student"):
        write(tmp_path, "two")
    write(tmp_path, "one")  # restored from a cache
    assert costs(tmp_path, ["student"]) == first
    write(tmp_path, "three")
    assert costs(tmp_path, ["student"]) == {}


def test_nothing_is_written_among_the_results_or_for_a_failure(tmp_path: Path) -> None:
    write(tmp_path)
    before = identity(tmp_path / "data/student")
    with pytest.raises(RuntimeError), measure_resources(tmp_path, "student"):
        raise RuntimeError
    assert not (tmp_path / FOLDER).exists()
    with measure_resources(tmp_path, "student"):
        pass
    assert identity(tmp_path / "data/student") == before
    assert [path.name for path in (tmp_path / FOLDER / "student").iterdir()] == [f"{before}.json"]


def test_memory_of_children_counts(tmp_path: Path) -> None:
    code = "import time; held = bytearray(300 * 1024**2); time.sleep(2)"
    with measure_resources(tmp_path, "student"):
        write(tmp_path)
        subprocess.run([sys.executable, "-c", code], check=True)
    with_child = costs(tmp_path, ["student"])["peak_memory_mib/student"]
    assert with_child > 310 and costs(tmp_path, ["student"])["stage_seconds/student"] >= 2


def test_memory_of_the_process_that_started_the_stage_does_not_count(tmp_path: Path) -> None:
    if not STATUS.exists():
        pytest.skip("a child's ru_maxrss begins with its parent's")
    write(tmp_path)
    run_in_fat_parent(MEASURED, tmp_path)
    assert 1 < costs(tmp_path, ["student"])["peak_memory_mib/student"] < HELD / MIB / 2


def test_a_name_tells_content_and_place(tmp_path: Path) -> None:
    write(tmp_path)
    folder = tmp_path / "data/student"
    one = identity(folder)
    (folder / "student.json").rename(folder / "other.json")
    assert identity(folder) != one and identity(tmp_path / "nothing") is None
    big = folder / "weights"
    big.write_bytes(bytes(MIB))
    before = identity(folder)
    big.write_bytes(bytes(MIB + 1))
    assert identity(folder) != before


def test_every_stage_records_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.stages import dataset
    from tasks.utils.cli import stage_main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("dataset: {kind: digits, size: 8, holdout: 100}\n")
    stage_main(dataset.run, [])
    (record,) = (tmp_path / FOLDER / "dataset").iterdir()
    assert set(json.loads(record.read_text())) >= {"seconds", "peak_memory_mib"}
    assert set(costs(tmp_path, ["dataset"])) == {"stage_seconds/dataset", "peak_memory_mib/dataset"}
