"""The commands of docs/team.md, section by section, as a reader would type them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.paths import PROJECT

PAGE = PROJECT / "docs/team.md"
ASSIGNED = re.compile(r"(\w+)=(\S+)")


def commands(section: str) -> list[str]:
    """The commands of the section's code blocks.

    AssertionError if there is no such section, or no command in it.
    """
    _, _, rest = PAGE.read_text().partition(f"\n## {section}\n")
    text = rest.partition("\n## ")[0]
    block = [line.strip() for line in text.splitlines() if re.match(r" {4,}\S", line)]
    found: list[str] = []
    for line in block:  # a quote that is open goes on in the next line
        if found and found[-1].partition(" #")[0].count("'") % 2:
            found[-1] += f"\n{line}"
        else:
            found.append(line)
    assert found, f"{PAGE}: no commands in section {section!r}"
    return found


def command(section: str, beginning: str) -> str:
    """The one command of the section that begins so."""
    (found,) = [line for line in commands(section) if line.startswith(beginning)]
    return found


def names(section: str) -> list[str]:
    """Variables that the section exports."""
    lines = [line.partition("#")[0] for line in commands(section)]
    exports = [line for line in lines if line.startswith("export ")]
    return [name for line in exports for name, _ in ASSIGNED.findall(line)]


def here(line: str, places: Mapping[str, str]) -> str:
    """The command with the page's example addresses replaced by real ones."""
    for example, place in places.items():
        line = line.replace(example, place)
    return line
