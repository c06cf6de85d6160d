"""Finished results as the stages would leave them, without running a stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from tests.flows.project import REPOSITORY, write_student

NAME = "fewstep-mnist16"
STAGES = ("dataset", "teacher", "conditions", "trajectories", "student", "evaluation")


def write_results(root: Path, kid: float = 0.01, seed: int = 0, dataset: str = "d") -> Path:
    """Write params.yaml, dvc.lock, a student with weights from `seed`, and its evaluation."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(REPOSITORY / "params.yaml", root)
    shutil.rmtree(root / "data", ignore_errors=True)
    student = write_student(root / "data/student", seed)
    (student / "history.csv").write_text("step,loss,kid\n0,2.0,\n50,1.0,0.5\n")
    (root / "data/teacher").mkdir()
    (root / "data/teacher/teacher.json").write_text(json.dumps({"fingerprint": "abc"}))
    results = root / "data/evaluation"
    (results / "figures").mkdir(parents=True)
    (results / "figures/frontier.png").write_bytes(b"png")
    (results / "report.html").write_text("<!doctype html><title>Report</title>")
    write_kid(root, kid)
    marks = {"dataset": dataset, "evaluation": str(kid)} | {"student": str(seed)}
    write_lock(root, marks)
    return root


def write_kid(root: Path, kid: float) -> None:
    """Write metrics.json with that KID at 5 and 10 steps and intervals of 10 %."""
    row = {"title": "student", "kid": kid, "kid_low": 0.9 * kid, "kid_high": 1.1 * kid}
    metrics = {"evaluation": {"features": "mnist"}, "student": {"nfe5": row, "nfe10": row}}
    (root / "data/evaluation/metrics.json").write_text(json.dumps(metrics))


def write_lock(root: Path, marks: dict[str, str]) -> None:
    """Write dvc.lock with hashes that begin with the marks."""
    stages = {
        name: {
            "cmd": "",
            "outs": [{"path": f"data/{name}", "md5": f"{marks.get(name, name):x<32.32}.dir"}],
        }
        for name in STAGES
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
