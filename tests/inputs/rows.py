"""What is taken and what is refused, row by row; docs/inputs.md shows the rows.

A row is a test: it makes the input in an empty folder and gives it to the project. `python -m
tests.inputs.rows` writes the tables of the document anew. A new section is a module with TITLE and
ROWS, named in SECTIONS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tests.paths import PROJECT

DOCUMENT = PROJECT / "docs/inputs.md"
BEGIN, END = "<!-- rows: written by python -m tests.inputs.rows -->", "<!-- end of rows -->"
SECTIONS = (
    "images", "labels", "arrays", "tables", "prompts", "series", "pipelines", "schedulers", "teachers",
    "text_teachers", "sizes", "environments",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of a table.

    ``run`` gets an empty folder; it asserts what is made of the input, or raises the InputError
    whose message is ``refused`` (places below the folder are relative). ``taken``: what is made of
    it, in words; ``warned``: a part of what is told on stderr.
    """

    id: str
    given: str
    run: Callable[[Path], object]
    taken: str = ""
    refused: str = ""
    warned: str = ""

    def __post_init__(self) -> None:
        if bool(self.taken) == bool(self.refused):
            raise ValueError(f"row {self.id}: expected either what is taken or the refusal")


def sections() -> dict[str, tuple[Row, ...]]:
    """The rows by title of their section."""
    modules = [import_module(f"tests.inputs.{name}") for name in SECTIONS]
    return {module.TITLE: tuple(module.ROWS) for module in modules}


def table(rows: tuple[Row, ...]) -> str:
    """Rows as a Markdown table."""
    lines = ["| given | what becomes of it | line |", "|---|---|---|"]
    for row in rows:
        outcome = row.taken or "refused"
        line = row.refused or row.warned
        shown = f"`{line}`".replace("|", "\\|") if line else ""
        lines.append(f"| {row.given} | {outcome} | {shown} |")
    return "\n".join(lines)


def document(text: str) -> str:
    """`text` with the tables between its two marks written anew."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    tables = "\n\n".join(f"## {title}\n\n{table(rows)}" for title, rows in sections().items())
    return f"{head}{BEGIN}\n\n{tables}\n\n{END}{tail}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
