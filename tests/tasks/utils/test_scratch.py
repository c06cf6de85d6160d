from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.utils.scratch import code_fingerprint, code_of
from tests.paths import PROJECT

STAGES = ("dataset", "teacher", "conditions", "trajectories", "student", "evaluation")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A copy of the code and of the list of what each stage depends on."""
    for name in ("models", "tasks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=ignored)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(PROJECT / name, tmp_path)
    return tmp_path


def changed_by(top: Path, name: str) -> set[str]:
    """The stages whose unfinished work is named anew after a comment in the file `name`."""
    code_fingerprint.cache_clear()
    before = {stage: code_fingerprint(top, stage) for stage in STAGES}
    path = top / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "# a comma,\n")
    code_fingerprint.cache_clear()
    return {stage for stage in STAGES if code_fingerprint(top, stage) != before[stage]}


def test_a_change_counts_where_the_code_is_used(top: Path) -> None:
    assert changed_by(top, "tasks/evaluation/report/html.py") == {"evaluation"}
    assert changed_by(top, "tasks/evaluation/report/templates/report.html.j2") == {"evaluation"}
    assert changed_by(top, "models/sampling/chain.py") == {"trajectories", "student", "evaluation"}
    assert changed_by(top, "models/sampling/finer/steps.py") == {
        "trajectories", "student", "evaluation",
    }  # fmt: skip
    assert changed_by(top, "models/teachers/loading.py") == set(STAGES) - {"dataset"}
    assert changed_by(top, "models/methods/swd/deeper/losses.py") == {"student", "evaluation"}
    assert changed_by(top, "tasks/stages/trajectories.py") == {"trajectories"}
    assert changed_by(top, "tasks/data/sources/folder.py") == {
        "dataset", "conditions", "evaluation",
    }  # fmt: skip


def test_settings_progress_and_other_rooms_do_not_count(top: Path) -> None:
    for name in (
        "models/methods/swd/config.py",
        "models/common/config.py",
        "tasks/config/schema.py",
        "tasks/utils/progress.py",
        "tasks/registry/promotion.py",
        "tasks/data/__pycache__/shards.py",
    ):
        assert changed_by(top, name) == set(), name


def test_the_list_is_the_one_that_dvc_hashes() -> None:
    """DVC's own walk over a folder dependency finds the same files."""
    from flows.dvc.repro import open_repository

    with open_repository(PROJECT) as repository:
        for stage in repository.index.stages:
            hashed = {
                Path(file).resolve()
                for dep in stage.deps
                if not dep.def_path.startswith(("data/", "params.yaml"))
                for file in repository.dvcignore.find(dep.fs, dep.fs_path)
            } | {
                Path(dep.fs_path)
                for dep in stage.deps
                if dep.def_path.endswith(".py") and not dep.def_path.startswith("data/")
            }
            assert hashed == set(code_of(PROJECT, stage.name)), stage.name


def test_without_a_pipeline_file_all_code_counts(top: Path) -> None:
    (top / "dvc.yaml").unlink()
    assert changed_by(top, "tasks/evaluation/report/html.py") == set(STAGES)
