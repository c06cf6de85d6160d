"""Fixtures of the flows' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.project import REPOSITORY, make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: None) -> Path:
    """A small project of one's own, the current folder, and a Prefect server."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    root = make_project(tmp_path / "project")
    monkeypatch.chdir(root)
    return root
