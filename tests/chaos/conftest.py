"""The uninterrupted run that all rows are compared with, made once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.forkserver import ForkServer
from tests.chaos.project import STAGES, copy_until, make_project, record
from tests.chaos.rows import ROWS, Row

QUICK = {row.id for row in ROWS if row.quick}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rows are `chaos`, and `slow` beside it unless they are quick enough for every day."""
    for item in items:
        here = Path(__file__).parent in item.path.parents
        if here and isinstance(item, pytest.Function) and (row := row_of(item)):
            item.add_marker(pytest.mark.chaos)
            item.add_marker(pytest.mark.timeout(900))  # a busy machine is no failure
            if row not in QUICK:
                item.add_marker(pytest.mark.slow)


def row_of(item: pytest.Function) -> str | None:
    """The id of the row that a test shows: of its parameter `row`, or its own name."""
    given = getattr(item, "callspec", None)
    if given and isinstance(row := given.params.get("row"), Row):
        return row.id
    name = item.name.removeprefix("test_").replace("_", "-")
    return name if any(row.id == name for row in ROWS) else None


@pytest.fixture(scope="session")
def forkserver() -> Iterator[ForkServer]:
    """Runs stages in processes of their own, without the seconds that importing torch takes."""
    parent = ForkServer()
    yield parent
    parent.close()


@pytest.fixture(scope="session")
def made(forkserver: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project, made without interruption; not to be written to."""
    root = make_project(tmp_path_factory.mktemp("reference") / "project")
    done = forkserver.run(root, STAGES)
    assert done.returncode == 0, done.stdout
    shutil.rmtree(root / ".fewstep")
    return root


@pytest.fixture(scope="session")
def recorded(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished project with DVC's record of it and its cache; not to be written to."""
    root = copy_until(made, tmp_path_factory.mktemp("recorded") / "project")
    record(root)
    return root


@pytest.fixture(scope="session")
def halfway(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All before the student is made and recorded by DVC; not to be written to."""
    root = copy_until(made, tmp_path_factory.mktemp("halfway") / "project", "student")
    record(root, "dataset", "teacher", "conditions", "trajectories")
    return root


@pytest.fixture(scope="session")
def rival(recorded: Path, forkserver: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 is champion, and a better student is made but not registered; not to be written
    to.
    """
    root = copy_until(recorded, tmp_path_factory.mktemp("rival") / "project")
    done = forkserver.run(root, ["flows.register"])
    assert done.returncode == 0, done.stdout
    for path, change in (("student/student.json", str), ("evaluation/metrics.json", better)):
        file = root / "data" / path
        text = change(file.read_text())
        file.unlink()
        file.write_text(text + "\n")
    record(root)
    return root


def better(metrics: str) -> str:
    """The same figures with a student of lower KID."""
    content = json.loads(metrics)
    for row in content["student"].values():
        row |= {"kid": 0.01, "kid_low": 0.005, "kid_high": 0.015}
    return json.dumps(content)


@pytest.fixture
def before(made: Path, tmp_path: Path) -> Callable[[str], Path]:
    """before("student"): a copy in which the student stage and the later ones have yet to run."""
    return lambda stage: copy_until(made, tmp_path / "project", stage)
