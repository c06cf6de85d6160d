"""Load: `python -m scripts.load` measures the project's steps at growing sizes and prints a table.

Results are kept in .fewstep/load.json as they come; what is there is not measured again. `--again`
forgets them. It needs the results of a finished run (`make run PRESET=tiny`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.utils import environment
from tasks.utils.atomic import atomic_write_json
from tasks.utils.cli import user_errors

SIZES = {
    "registry": (125, 250, 500, 1000),
    "queue": (25, 50, 100, 200),
    "shards": (1250, 2500, 5000, 10_000),
}
RESULTS = Path(".fewstep/load.json")
Results = dict[str, dict[str, dict[str, float]]]  # seconds by kind, size and step


def main(argv: list[str] | None = None) -> int:
    """Measure what is missing, print all; the exit status is 1 if something grows too fast."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=sorted(SIZES), default=list(SIZES))
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes (default: 1)")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    given = parser.parse_args(argv)
    project = Path.cwd()
    with user_errors(), tempfile.TemporaryDirectory(prefix="fewstep-load-") as folder:
        own = Path(folder)
        os.environ |= {"PREFECT_HOME": f"{own}/prefect", "DVC_SITE_CACHE_DIR": f"{own}/dvc"}
        environment.prepare(project)
        found: Results = {}
        if RESULTS.is_file() and not given.again:
            found = json.loads(RESULTS.read_text())
        for kind in given.only:
            sizes = [max(2, round(given.scale * size)) for size in SIZES[kind]]
            measure(kind, sizes, own, project, found)
        return show(found)


def measure(kind: str, sizes: list[int], folder: Path, project: Path, found: Results) -> None:
    """Add one kind's figures to `found` and to the file, unless all of its sizes are there."""
    known = found.setdefault(kind, {})
    if all(str(size) in known for size in sizes):
        return
    for size, steps in module(kind).measure(sizes, folder, project):
        known[str(size)] = steps
        atomic_write_json(RESULTS, found)
        print(f"{kind}: {size} measured", file=sys.stderr, flush=True)


def show(found: Results) -> int:
    """Print the tables as Markdown; 1 if a step grows faster than linearly."""
    from scripts.load.timing import exponent, too_steep

    steep = []
    for kind, by_size in found.items():
        sizes = sorted(map(int, by_size))
        print(f"\n{module(kind).TITLE}: {module(kind).UNIT}\n")
        print(f"| seconds | {' | '.join(f'{size:,}' for size in sizes)} | exponent |")
        print(f"|---|{'---|' * (len(sizes) + 1)}")
        for step in by_size[str(sizes[-1])]:
            seconds = {size: by_size[str(size)][step] for size in sizes}
            shown = " | ".join(f"{value:.3g}" for value in seconds.values())
            print(f"| {step} | {shown} | {exponent(seconds):.2f} |")
            whole = {n: n * spent if " one" in step else spent for n, spent in seconds.items()}
            steep += [f"{kind}: {step}"] if too_steep(whole) else []
    print(f"\ngrow faster than linearly: {', '.join(steep) or 'none'}")
    return int(bool(steep))


def module(kind: str) -> Any:
    """The module that measures it."""
    from scripts.load import queued, registry, shards

    modules: dict[str, ModuleType] = {"registry": registry, "queue": queued, "shards": shards}
    return modules[kind]


if __name__ == "__main__":
    sys.exit(main())
