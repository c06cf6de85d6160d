"""docs/failures.md and the tests say the same; no failure point is without a row."""

from __future__ import annotations

import re

from tests.chaos.project import REPOSITORY
from tests.chaos.rows import DOCUMENT, ROWS, Kill, document

HERE = REPOSITORY / "tests/chaos"


def test_the_document_shows_the_rows() -> None:
    written = DOCUMENT.read_text()
    assert written == document(written), "run: python -m tests.chaos.rows"
    assert written.count("\n| ") == len(ROWS) + 1


def test_every_row_has_one_test() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)
    files = [*HERE.glob("test_*.py"), *(REPOSITORY / "tests/team").glob("test_*.py")]
    sources = "".join(path.read_text() for path in files)
    functions = re.findall(r"^def test_(\w+)\(", sources, re.M)
    for row in ROWS:
        own = functions.count(row.id.replace("-", "_"))
        assert own == (0 if isinstance(row, Kill) else 1), row.id


def test_every_point_has_a_row() -> None:
    code = "".join(
        path.read_text()
        for room in ("tasks", "flows")
        for path in (REPOSITORY / room).rglob("*.py")
    )
    points = set(re.findall(r'\breach\("([\w.]+)"\)', code))
    used = {row.point.partition(":")[0] for row in ROWS if isinstance(row, Kill)}
    assert used - points == set(), "no such point"
    assert points - used == set(), "points without a row"
