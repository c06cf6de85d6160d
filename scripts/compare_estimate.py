"""An estimate beside what the run in this folder has measured, stage by stage.

    python -m scripts.compare_estimate [--root FOLDER]

reads FOLDER/params.yaml, its results and the records of .fewstep/measurements. Times are CPU
seconds, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

from tasks.config.schema import Params, load_params
from tasks.estimate.report import Estimate, estimate
from tasks.utils.resource_usage import MIB, measurement
from tasks.utils.stage_names import STAGES

UNITS = {"evaluations": "", "trained": "", "CPU seconds": " s", "memory": " MiB", "disk": " MiB"}


@dataclass(frozen=True)
class Compared:
    """One figure of a stage; ``resumed``: the measured one is not of the whole work."""

    stage: str
    what: str
    estimated: float
    measured: float

    @property
    def off(self) -> float:
        """How far the estimate is off, as a part of what was measured."""
        return self.estimated / self.measured - 1 if self.measured else 0.0


def compare(params: Params, root: Path) -> list[Compared]:
    """All figures that were measured below ``root``; nothing for stages that went on from earlier
    work.
    """
    found = estimate(params, root)
    return [each for stage in STAGES for each in _stage(found, stage, root)]


def _stage(found: Estimate, stage: str, root: Path) -> Iterator[Compared]:
    record, guess = measurement(root, stage), found.stage(stage)
    if not record or record.get("resumed"):
        return
    if "network_evaluations" in record:
        yield Compared(stage, "evaluations", guess.evaluations, record["network_evaluations"])
        yield Compared(stage, "trained", guess.trained, record["trained_evaluations"])
    if "cpu_seconds" in record:
        yield Compared(stage, "CPU seconds", guess.seconds, record["cpu_seconds"])
    yield Compared(stage, "memory", guess.host / MIB, record["peak_memory_mib"])
    files = [file for file in (root / "data" / stage).rglob("*") if file.is_file()]
    written = sum(file.stat().st_size for file in files)
    yield Compared(stage, "disk", guess.disk / MIB, written / MIB)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare_estimate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--root", type=Path, default=Path.cwd())
    root = parser.parse_args(argv).root
    print("| stage | figure | estimated | measured | off |\n|---|---|---|---|---|")
    for each in compare(load_params(root / "params.yaml"), root):
        unit = UNITS[each.what]
        values = (f"{value:,.0f}{unit}" if value >= 10 or not unit else f"{value:.2f}{unit}"
                  for value in (each.estimated, each.measured))  # fmt: skip
        print(f"| {each.stage} | {each.what} | {' | '.join(values)} | {100 * each.off:+.0f} % |")


if __name__ == "__main__":
    main()
