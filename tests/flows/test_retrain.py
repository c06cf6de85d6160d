from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from flows import retrain as module
from flows.dvc.worktree import git
from models.evaluation.base import Interval
from tasks.config.schema import load_params
from tasks.evaluation import champion_challenger as comparison
from tasks.evaluation.champion_challenger import Round
from tasks.registry import registration, store
from tests.flows.dvc.test_worktree import commit, set_steps
from tests.flows.project import runs
from tests.flows.test_distill import artifacts_of, last_run
from tests.tasks.results import NAME


def champion(root: Path) -> str | None:
    return registration.aliased_version(
        store.open_store(root, load_params(root / "params.yaml")), NAME, "champion"
    )


def rounds(gap: Interval) -> list[Round]:
    return [Round(5, Interval(0.1, 0.0, 0.2), Interval(0.3, 0.2, 0.4), gap)]


def test_only_what_changed_and_is_better_becomes_champion(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gap, events = [Interval(-0.2, -0.3, 0.1)], []

    def run_program(name: str, command: Sequence[str], root: Path) -> None:
        assert (
            Path(command[-2]) / "model_index.json"
        ).is_file()  # the champion, fetched from the registry
        comparison.save(rounds(gap[0]), Path(command[-1]))

    monkeypatch.setattr(module, "run_program", run_program)
    monkeypatch.setattr(
        module,
        "emit_event",
        lambda name, **about: events.append((name, about["payload"]["decision"])),
    )
    first = module.retrain(return_state=True)
    assert first.name == "Completed" and first.message.startswith(
        "version 1 is the first champion; experiment "
    )

    start = time.monotonic()
    again = module.retrain(return_state=True)
    assert again.name == "NothingChanged" and time.monotonic() - start < 30
    assert (
        again.message == f"nothing changed since {NAME} version 1: version 1 is the first champion"
    )
    assert git(project, "worktree", "list").count("\n") == 0

    (project / "student-made-before/more.txt").write_text("other content")
    set_steps(project, 61)
    git(project, "add", ".")
    commit(project)
    third = module.retrain(return_state=True)
    assert third.message.startswith(
        "version 1 stays champion: not better beyond chance: KID 0.10000 against 0.30000"
    )
    assert champion(project) == "1" and events[-1] == (
        module.DECIDED,
        third.message.partition("; experiment")[0],
    )
    (row,) = json.loads(artifacts_of(last_run().id)["promotion"])
    assert row["difference"] == "-0.20000 (-0.30000 to 0.10000)"
    assert module.retrain(return_state=True).name == "NothingChanged"

    gap[0] = Interval(-0.2, -0.3, -0.1)
    forced = module.retrain(force=True, return_state=True)
    assert forced.message.startswith(
        "version 2 replaces version 1: better: KID 0.10000 against 0.30000 at 5 steps"
    )
    assert (
        champion(project) == "2" and runs(project)["student"] == 0
    )  # work is done in worktrees only
