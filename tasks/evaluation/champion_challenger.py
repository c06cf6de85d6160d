"""Champion against challenger: both sampled from the same noise and measured against the same
held-out images; run by tasks/stages/champion_challenger.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.common.errors import InputError
from models.evaluation.base import Interval
from models.methods.export import open_student as open_any_student
from tasks.config.schema import Params
from tasks.data.student import open_student
from tasks.data.teacher import load_teacher
from tasks.evaluation.evaluator import Evaluator
from tasks.evaluation.extractor import extractors_of
from tasks.evaluation.load import load_paths, real_images
from tasks.evaluation.results import SamplerKey
from tasks.evaluation.sample_generator import SampleGenerator
from tasks.evaluation.samplers import Inputs
from tasks.utils.atomic import atomic_write_json
from tasks.utils.device import pick_device
from tasks.utils.progress import progress

FEWEST_RESAMPLES = 200
SIDES = ("challenger", "champion")


@dataclass(frozen=True)
class Round:
    """Both at one number of steps by the metric `title`, and the paired difference, challenger
    minus champion.
    """

    nfe: int
    challenger: Interval
    champion: Interval
    difference: Interval
    title: str = "KID"
    lower_is_better: bool = True


def compare(params: Params, root: Path, champion: Path) -> list[Round]:
    """One round per number of steps that both are made for, the smallest first.

    Raises InputError if there is none, or if the champion makes images of another size.
    """
    device = pick_device()
    teacher, challenger = load_teacher(root, device), open_student(root, device)
    try:
        rival = open_any_student(champion, device, encoders=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the champion cannot be opened ({str(error).strip().splitlines()[0]})"
        ) from error
    ours, theirs = ("x".join(map(str, pipe.config.shape)) for pipe in (challenger, rival))
    if ours != theirs:
        raise InputError(
            f"the champion makes states of size {theirs}, this evaluation set has {ours}: they "
            "cannot be compared; register under another registration.name"
        )
    common = tuple(sorted(set(challenger.nfe) & set(rival.nfe)))
    if not common:
        raise InputError(
            f"made for {list(challenger.nfe)} steps, the champion for {list(rival.nfe)}: none in "
            "common"
        )
    real, other = real_images(params, root, teacher)
    inputs = Inputs(
        teacher=teacher,
        generators=dict(zip(SIDES, (challenger.rollout, rival.rollout), strict=True)),
        paths=load_paths(params, root, teacher, ()),
        real=real,
        other_real=other,
        nfe=common,
        steps=params.trajectories.steps,
        kind=params.dataset.data_kind,
        device=device,
    )
    return _measure(inputs, params, root)


def _measure(inputs: Inputs, params: Params, root: Path) -> list[Round]:
    resamples = max(params.evaluation.bootstrap, FEWEST_RESAMPLES)
    criterion = params.evaluation.criterion
    changes = {"bootstrap": resamples, "metrics": (criterion,), "more_features": ()}
    settings = params.evaluation.model_copy(update=changes)
    few, extractors = settings.samples, extractors_of(settings, root)
    evaluator = Evaluator(extractors, inputs.real, settings, few, inputs.kind)
    column, rounds = evaluator.columns[criterion], []
    with (
        progress("champion against challenger", 2 * settings.samples * sum(inputs.nfe)) as advance,
        torch.inference_mode(),
    ):
        sample_generator = SampleGenerator(inputs, settings, advance)
        for nfe in inputs.nfe:
            new, old = (SamplerKey(name, nfe) for name in SIDES)
            for key in (new, old):
                images, _ = sample_generator.make(key.name, nfe, sample_generator.batches())
                evaluator.score(key, images)
            ours, theirs = (evaluator.estimates[key].interval() for key in (new, old))
            gap, less = evaluator.difference(new, old), bool(column.lower_is_better)
            rounds.append(Round(nfe, ours, theirs, gap, column.title, less))
    return rounds


def decide(rounds: list[Round]) -> tuple[bool, str]:
    """Whether the challenger is better beyond chance, and the figures that say so.

    The smallest number of steps decides: the whole 95 % interval of the paired difference has to be
    on the better side of 0. Wholly on the other side, the challenger is called worse.
    """
    first = min(rounds, key=lambda each: each.nfe)
    gap = first.difference
    sides = (gap.high < 0, gap.low > 0)
    better, worse = sides if first.lower_is_better else sides[::-1]
    verdict = "better" if better else "worse" if worse else "not better beyond chance"
    figures = (
        f"{first.title} {first.challenger.value:.5f} against {first.champion.value:.5f} at "
        f"{first.nfe} steps, difference {gap.value:+.5f} ({gap.low:+.5f} to {gap.high:+.5f})"
    )
    return better, f"{verdict}: {figures}"


def save(rounds: list[Round], path: Path) -> None:
    """Write the rounds as JSON."""
    atomic_write_json(
        path, [{name: _plain(value) for name, value in vars(each).items()} for each in rounds]
    )


def load(path: Path) -> list[Round]:
    """The rounds of :func:`save`."""
    return [_round(fields) for fields in json.loads(path.read_text())]


def _plain(value: Any) -> Any:
    return vars(value) if isinstance(value, Interval) else value


def _round(fields: Mapping[str, Any]) -> Round:
    intervals = {name: Interval(**fields[name]) for name in (*SIDES, "difference")}
    return Round(**{**fields, **intervals})
