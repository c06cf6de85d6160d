"""Evaluation stage: measure the student against its teacher and training-free samplers, and report
it.

Reads data/dataset, data/teacher, data/trajectories and data/student; writes data/evaluation.
"""

from __future__ import annotations

from pathlib import Path

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

import pandas as pd

from tasks.config.schema import Params
from tasks.evaluation.benchmark import evaluate
from tasks.evaluation.extractor import extractor_of
from tasks.evaluation.load import load_inputs
from tasks.evaluation.report import figures
from tasks.evaluation.report import html as report
from tasks.evaluation.tables import write_outputs
from tasks.utils.atomic import atomic_dir
from tasks.utils.cli import stage_main
from tasks.utils.failpoints import reach

GROUPS = ("student", "untrained", "baseline", "teacher", "real")


def run(params: Params, root: Path) -> None:
    """Write metrics.json, three tables as CSV, samples.npz, figures/, grids/ and report.html."""
    inputs = load_inputs(params, root)
    result = evaluate(inputs, extractor_of(params, root), params.evaluation)
    reach("evaluation.measured")
    with atomic_dir(root / "data" / "evaluation") as folder:
        write_outputs(result, folder)
        reach("evaluation.tables")
        history = root / "data" / "student" / "history.csv"
        curve = pd.read_csv(history) if history.is_file() else None
        figures.write_all(result, curve, folder)
        (folder / "report.html").write_text(
            report.render(result, curve, params, inputs.lineage), encoding="utf-8"
        )


if __name__ == "__main__":
    stage_main(run)
