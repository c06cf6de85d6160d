"""Settings and fixtures for all tests: offline, nothing written outside temporary folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.utils import environment

_home = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Set the tools' variables before any test imports them."""
    os.environ["OMP_NUM_THREADS"] = (
        "1"  # kernels round by their number of threads: here and in every subprocess one
    )
    config.stash[_home] = tempfile.mkdtemp(prefix="fewstep-tests-")
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "DVC_SITE_CACHE_DIR"):
        os.environ.pop(name, None)
    environment.prepare(Path(config.stash[_home]))
    os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the tools wrote."""
    if folder := config.stash.get(_home, None):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect server, with its own database, for all tests that run flows."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
