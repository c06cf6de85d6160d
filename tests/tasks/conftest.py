"""Fixtures of the stages' tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.config.schema import Params, load_params
from tasks.registry import promotion, registration, tracking
from tasks.registry.registration import Version
from tests.tasks.results import NAME, write_results


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A project whose student is version 1, challenger and champion; to read, not to change."""
    root = write_results(tmp_path_factory.mktemp("registered") / "project")
    params = load_params(root / "params.yaml")
    run = tracking.track_run(root, params)
    assert registration.register_student(root, params, run.run_id) == Version(
        NAME, "1", created=True
    )
    decision = promotion.promote(root, params, "1")
    assert decision.champion and decision.reason == "version 1 is the first champion"
    return root, params


@pytest.fixture
def copy(registered: tuple[Path, Params], tmp_path: Path) -> tuple[Path, Params]:
    """A copy of the registered project, to change."""
    return shutil.copytree(registered[0], tmp_path / "copy"), registered[1]
