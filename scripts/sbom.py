"""What the environment is made of: `python -m scripts.sbom` writes a bill of materials in
CycloneDX's format (sbom.json) and the licences of all packages of requirements.lock
(docs/licences.md).

Licences are what the installed packages state themselves: an SPDX expression, else a classifier,
else a short text.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from models.common.errors import InputError
from tasks.utils.atomic import atomic_write_json, atomic_write_text
from tasks.utils.cli import user_errors

LOCK, BOM, PAGE = Path("requirements.lock"), Path("sbom.json"), Path("docs/licences.md")
UNSTATED = "not stated"
LONGEST = 60  # characters; more is a licence's text, not its name
# Classifiers and free words of the same licence, as SPDX names it.
SPDX = {
    "MIT License": "MIT",
    "MIT license": "MIT",
    "The MIT License (MIT)": "MIT",
    "Expat license": "MIT",
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache License Version 2.0": "Apache-2.0",
    "Apache Software License 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache-2": "Apache-2.0",
    "Apache": "Apache-2.0",
    "BSD License": "BSD",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause": "BSD-3-Clause",
    "BSD-3": "BSD-3-Clause",
    "New BSD": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0",
    "PSF": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
HEAD = """\
# Licences of the packages

What the packages of `requirements.lock` state about themselves.
`BSD` alone is a licence of that family whose number of clauses the package does not state.
Names with ` / ` between them are several classifiers; the package's own text says whether all hold
or one may be chosen.
Written by `make sbom`, which also writes `sbom.json`, a bill of materials in CycloneDX's format.
This is a list, not legal advice.

| licence | packages | which |
|---|---|---|
"""


@dataclass(frozen=True)
class Package:
    """A locked package; `licence`: SPDX where the package states or classifies it."""

    name: str
    version: str
    licence: str


def locked(text: str) -> list[tuple[str, str]]:
    """(name, version) of a lock file's lines, in their order.

    Raises InputError for a line that pins nothing.
    """
    found = []
    for line in text.splitlines():
        plain = line.partition("#")[0].strip()
        if not plain:
            continue
        name, pinned, number = plain.partition("==")
        if not pinned:
            raise InputError(f"{LOCK}: {plain!r}: expected name==version; run `make lock`")
        found.append((name.strip(), number.strip()))
    return found


def packages(lock: Iterable[tuple[str, str]]) -> list[Package]:
    """The locked packages with the licences of those that are installed.

    Raises InputError for one that is not installed, or in another version.
    """
    found = []
    for name, number in lock:
        try:
            there = version(name)
        except PackageNotFoundError:
            there = "none"
        if there.partition("+")[0] != number.partition("+")[0]:
            raise InputError(
                f"{name}: installed is {there}, {LOCK} has {number}; run `make .venv` first"
            )
        found.append(Package(name, number, licence(name)))
    return found


def licence(name: str) -> str:
    """What an installed package states."""
    about = distribution(name).metadata
    if stated := about.get("License-Expression"):
        return stated
    classified = [
        item.rpartition(" :: ")[2]
        for item in about.get_all("Classifier") or []
        if item.startswith("License :: ") and not item.endswith(("OSI Approved", "DFSG approved"))
    ]
    if not classified and (short := (about.get("License") or "").strip()):
        classified = [short] if len(short) <= LONGEST and "\n" not in short else []
    names = sorted({SPDX.get(item, item) for item in classified} - {"UNKNOWN"})
    return " / ".join(names) or UNSTATED


def bill(found: Sequence[Package], own: str) -> dict[str, Any]:
    """The bill of materials (CycloneDX 1.6); `own` is this project's version.

    It has no date and no serial number, so that the same lock gives the same bytes.
    """
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "fewstep", "version": own}},
        "components": [_component(package) for package in found],
    }


def _component(package: Package) -> dict[str, Any]:
    name = re.sub(r"[-_.]+", "-", package.name).lower()  # as package URLs write it
    place = f"pkg:pypi/{name}@{package.version}"
    known = {"type": "library", "bom-ref": place, "name": package.name}
    known |= {"version": package.version, "purl": place}
    if package.licence == UNSTATED:
        return known
    return known | {"licenses": [{"license": {"name": package.licence}}]}


def page(found: Sequence[Package]) -> str:
    """docs/licences.md: packages by licence, the most frequent first."""
    by_licence: dict[str, list[str]] = defaultdict(list)
    for package in found:
        by_licence[package.licence].append(package.name)
    rows = sorted(by_licence.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [
        f"| {name} | {len(names)} | {', '.join(sorted(names, key=str.lower))} |"
        for name, names in rows
    ]
    return HEAD + "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Write both files; returns the exit status."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args(argv)
    with user_errors():
        found = packages(locked(LOCK.read_text(encoding="utf-8")))
        atomic_write_json(BOM, bill(found, version("fewstep")))
        atomic_write_text(PAGE, page(found))
        print(f"{len(found)} packages: {BOM}, {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
