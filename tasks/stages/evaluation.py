"""Evaluation stage: measure the student against its teacher and training-free samplers, and report
it.

Reads data/dataset, data/teacher, data/trajectories and data/student; writes data/evaluation.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

import pandas as pd

from tasks.config.schema import Params
from tasks.evaluation.benchmark import evaluate
from tasks.evaluation.extractor import extractors_of
from tasks.evaluation.identity import content_digests
from tasks.evaluation.load import load_inputs
from tasks.evaluation.load_back import prove_loadable
from tasks.evaluation.on_ray import batches_on_ray
from tasks.evaluation.report import figures
from tasks.evaluation.report import html as report
from tasks.evaluation.stock_back import prove_stock
from tasks.evaluation.tables import write_outputs
from tasks.utils.atomic import atomic_dir
from tasks.utils.cli import stage_main
from tasks.utils.failpoints import reach

logger = logging.getLogger(__name__)


def run(params: Params, root: Path) -> None:
    """Write metrics.json, three tables as CSV, samples.npz, figures/, grids/ and report.html."""
    inputs = load_inputs(params, root)
    extractors = extractors_of(params.evaluation, root)
    with batches_on_ray(params, root) as make_batches:
        result = evaluate(inputs, extractors, params.evaluation, make_batches)
    result.content = content_digests(params, root, inputs.real)
    result.load_back = _opened_elsewhere(root)
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


def _opened_elsewhere(root: Path) -> dict[str, Any]:
    """The record of opening data/student in a process with diffusers alone, and of its form for its
    teacher's own pipeline where it has one; a failure is a warning here, and stands in the report.
    """
    student = root / "data" / "student"
    record = prove_loadable(student)
    if not record["ok"]:
        logger.warning("data/student does not work outside the project: %s", record.get("reason"))
    if (student / "stock" / "stock.json").is_file():
        record["stock"] = stock = prove_stock(student, root / "data" / "teacher")
        if not stock["ok"]:
            logger.warning(
                "data/student/stock does not work in a %s: %s", stock["pipeline"], stock["reason"]
            )
    return record


if __name__ == "__main__":
    stage_main(run)
