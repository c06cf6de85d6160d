"""What DVC sees of the params: a value that changes runs what depends on it and nothing else."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.dvc.params_file import write_preset
from flows.dvc.repro import STAGES, open_repository
from tasks.config.presets import presets
from tests.paths import PROJECT

# Who reads a section; the longest name that fits counts.
READERS = {
    "dataset": {"dataset"},
    "teacher": {"teacher"},
    "conditions": {"conditions"},
    "trajectories": {"trajectories"},
    "method": {"student"},
    "student": {"student"},
    "evaluation": {"evaluation"},
    "evaluation.features": {"student", "evaluation"},
    "evaluation.features_digest": {"student", "evaluation"},
    "registration": set(),
    "extensions": set(STAGES),
    "extensions_digest": set(STAGES),
}


def readers(key: str) -> set[str]:
    fitting = [name for name in READERS if f"{key}.".startswith(f"{name}.")]
    return READERS[max(fitting, key=len)]


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def changed(params: dict[str, Any], key: str) -> dict[str, Any]:
    """The params with another value at `key`."""
    found = copy.deepcopy(params)
    *above, last = key.split(".")
    place = found
    for name in above:
        place = place[name]
    place[last] = "another" if place[last] != "another" else "a third"
    return found


@contextmanager
def recorded(root: Path, text: str) -> Iterator[Any]:
    """A function that says which stages DVC finds changed under other params; `text` is what
    their records hold.
    """
    (root / "params.yaml").write_text(text)
    with open_repository(root) as repository:
        watched = [
            (stage.name, dep)
            for stage in repository.index.stages
            for dep in stage.deps
            if hasattr(dep, "read_params")
        ]
        for _, dep in watched:
            dep.save()

        def outdated(params: dict[str, Any]) -> set[str]:
            (root / "params.yaml").write_text(yaml.safe_dump(params))
            return {name for name, dep in watched if dep.status()}

        yield outdated


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The pipeline's declaration, the presets and DVC's settings, without git."""
    shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    (tmp_path / ".dvc").mkdir()
    shutil.copy(PROJECT / ".dvc/config", tmp_path / ".dvc/config")
    shutil.copy(PROJECT / "dvc.yaml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("preset", sorted(presets(PROJECT)))
def test_every_key_runs_what_depends_on_it_and_nothing_else(root: Path, preset: str) -> None:
    write_preset(root, preset, [])
    text = (root / "params.yaml").read_text()
    params = yaml.safe_load(text)
    keys = list(leaves(params))
    assert len(keys) > 60
    with recorded(root, text) as outdated:
        assert outdated(params) == set()
        wrong = {key: outdated(changed(params, key)) ^ readers(key) for key in keys}
    assert {key: stages for key, stages in wrong.items() if stages} == {}


@pytest.mark.parametrize(
    ("file", "old", "new", "preset", "key"),
    [
        ("models/methods/swd/config.py", "fake_updates: Natural = 1", "fake_updates: Natural = 2",
         "mnist-swd", "method.fake_updates"),
        ("models/methods/sigdeg/config.py", "start: Count = 10", "start: Count = 9",
         "mnist-calibrated", "method.window.start"),
        ("tasks/config/trajectories.py", "eta: common.Fraction = 1.0", "eta: common.Fraction = 0.9",
         "mnist-sigdeg", "trajectories.eta"),
        ("tasks/config/evaluation.py", "bootstrap: Natural = 200", "bootstrap: Natural = 201",
         "mnist-swd", "evaluation.bootstrap"),
        ("conf/student/swd.yaml", "warmup: 100", "warmup: 101", "mnist-swd", "student.warmup"),
    ],
)  # fmt: skip
def test_a_default_changed_in_the_code_reaches_dvc(
    root: Path, tmp_path: Path, file: str, old: str, new: str, preset: str, key: str
) -> None:
    for name in ("tasks", "models", "flows"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, root / name, ignore=ignored)
    write_preset(root, preset, [])
    before = (root / "params.yaml").read_text()
    source = root / file
    assert source.read_text().count(old) == 1
    source.write_text(source.read_text().replace(old, new))
    command = [sys.executable, "-m", "flows.cli", "params", "--preset", preset]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith(f"{key}: "), done.stdout + done.stderr
    after = yaml.safe_load((root / "params.yaml").read_text())
    with recorded(root, before) as outdated:
        assert outdated(after) == readers(key)
