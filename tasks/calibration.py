"""Choosing the free numbers of a Sig-DEG schedule before any gradient step.

Coarse steps lose contrast: what happens inside an interval is only partly known to the network. How far along the path
the network is asked, how strongly earlier answers are extrapolated, and how much noise there is, are four numbers per
schedule (models/plans.py); a coordinate search over a few values each, judged by rolled-out KID on training images and
held-out noise, takes a minute or two.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from models.paths import PathSpec
from models.sigdeg import SigDEGConfig, Tuning, build_pipeline, coarse_steps
from models.teacher import Teacher
from tasks.judge import Judge
from tasks.params import Params
from tasks.progress import track

SAMPLES = 2  # times student.validation_samples: differences between settings are smaller than those between students
CHOICES: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("gain", (1.4,)),
    ("look_ahead", (0.0, 0.12)),
    ("gain", (1.0, 1.4, 1.8)),
    ("noise_gain", (1.03, 1.06)),
    ("last_gain", (0.1,)),
)


def calibrate(params: Params, root: Path, teacher: Teacher, spec: PathSpec, config: SigDEGConfig) -> dict[str, Any]:
    """{"tuned": {nfe: numbers}, "trials": [every setting tried, with its KID]}, as JSON data for student.json."""
    judge = Judge(params, root, teacher, SAMPLES * params.student.validation_samples)
    pipeline, _ = build_pipeline(teacher, spec, config)
    pipeline.unet.to(teacher.device).eval()
    if teacher.device.type == "cpu":
        pipeline.unet.to(memory_format=torch.channels_last)
    trials: list[dict[str, Any]] = []

    def score(nfe: int, tuning: Tuning) -> float:
        known = [t["kid"] for t in trials if t["nfe"] == nfe and t["tuning"] == asdict(tuning)]
        if not known:
            pipeline.set_plan(nfe, coarse_steps(spec, nfe, config, tuning))
            known = [judge.kid(lambda x, labels, g: pipeline.rollout(x, None, labels, nfe, g)[0], nfe)]
            trials.append({"nfe": nfe, "tuning": asdict(tuning), "kid": known[0]})
        return float(known[0])

    rounds = [(nfe, name, value) for nfe in config.nfe for name, values in CHOICES for value in values]
    best = {nfe: Tuning(config.look_ahead) for nfe in config.nfe}
    for nfe, name, value in track(rounds, "calibration"):
        candidate = replace(best[nfe], **{name: value})
        if score(nfe, candidate) < score(nfe, best[nfe]):
            best[nfe] = candidate
    return {"tuned": {str(nfe): asdict(tuning) for nfe, tuning in best.items()}, "trials": trials}
