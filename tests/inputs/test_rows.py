"""Every row of docs/inputs.md is run; the document shows the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.common.errors import InputError
from tests.inputs.rows import DOCUMENT, Row, document, sections

ROWS = [row for rows in sections().values() for row in rows]


def test_the_document_shows_the_rows() -> None:
    written = DOCUMENT.read_text()
    assert written == document(written), "run: python -m tests.inputs.rows"
    assert len({row.id for row in ROWS}) == len(ROWS)
    shown = sum(line.startswith("| ") for line in written.splitlines())
    assert shown == len(ROWS) + len(sections())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row(row: Row, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if row.refused:
        with pytest.raises(InputError) as caught:
            row.run(tmp_path)
        assert _relative(str(caught.value), tmp_path) == row.refused
    else:
        row.run(tmp_path)
    told = _relative(caplog.text, tmp_path)
    assert row.warned in told
    assert row.warned or row.refused or "WARNING" not in told


def _relative(text: str, folder: Path) -> str:
    return text.replace(f"{folder}/", "").replace(str(folder), ".")
