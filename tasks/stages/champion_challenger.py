"""Champion against challenger: both sampled from the same noise and measured against the same
held-out images.

`python -m tasks.stages.champion_challenger CHAMPION RESULT` compares the student folder CHAMPION
with data/student and writes RESULT.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.utils import environment

if __name__ == "__main__":  # OpenMP reads its settings when torch is imported
    environment.prepare(Path.cwd())

import torch

from models.common.errors import InputError
from models.evaluation.features import extract
from models.evaluation.metrics import Interval
from models.methods.export import open_student as open_any_student
from tasks.config.schema import Params, load_params
from tasks.data.student import open_student
from tasks.data.teacher import load_teacher
from tasks.evaluation.benchmark import Evaluator, SampleGenerator
from tasks.evaluation.extractor import extractor_of
from tasks.evaluation.load import load_paths, real_images
from tasks.evaluation.samplers import Inputs
from tasks.utils.atomic import atomic_write_json
from tasks.utils.cli import set_up_logging, user_errors
from tasks.utils.device import pick_device
from tasks.utils.progress import progress

FEWEST_RESAMPLES = 200
SIDES = ("challenger", "champion")


@dataclass(frozen=True)
class Round:
    """KID of both at one number of steps, and the paired difference: below 0 the challenger is
    better.
    """

    nfe: int
    challenger: Interval
    champion: Interval
    difference: Interval


def compare(params: Params, root: Path, champion: Path) -> list[Round]:
    """One round per number of steps that both are made for, the smallest first.

    Raises InputError if there is none, or if the champion makes images of another size.
    """
    device = pick_device()
    teacher, challenger = load_teacher(root, device), open_student(root, device)
    try:
        rival = open_any_student(champion, device)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the champion cannot be opened ({str(error).strip().splitlines()[0]})"
        ) from error
    sizes = [pipe.unet.config.sample_size for pipe in (challenger, rival)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the champion makes states of size {sizes[1]}, this evaluation set has {sizes[0]}"
        )
    common = tuple(sorted(set(challenger.nfe) & set(rival.nfe)))
    if not common:
        raise InputError(
            f"made for {list(challenger.nfe)} steps, the champion for {list(rival.nfe)}: none in "
            "common"
        )
    real, other = real_images(params, root)
    inputs = Inputs(
        teacher=teacher,
        generators=dict(zip(SIDES, (challenger.rollout, rival.rollout), strict=True)),
        paths=load_paths(params, root, teacher, ()),
        real=real,
        other_real=other,
        nfe=common,
        steps=params.trajectories.steps,
        device=device,
    )
    return _measure(inputs, params, root)


def _measure(inputs: Inputs, params: Params, root: Path) -> list[Round]:
    resamples = max(params.evaluation.bootstrap, FEWEST_RESAMPLES)
    settings = params.evaluation.model_copy(update={"bootstrap": resamples})
    evaluator = Evaluator(extractor_of(params, root), inputs.real, settings)
    rounds = []
    with (
        progress("champion against challenger", 2 * settings.samples * sum(inputs.nfe)) as advance,
        torch.inference_mode(),
    ):
        sample_generator = SampleGenerator(inputs, settings, advance)
        for nfe in inputs.nfe:
            new, old = (f"{name}.{nfe}" for name in SIDES)
            for name, key in zip(SIDES, (new, old), strict=True):
                images, _ = sample_generator.make(
                    inputs.generator(name, nfe), sample_generator.batches(), nfe
                )
                evaluator.kid.add(key, extract(evaluator.extractor, images))
            kid = evaluator.kid
            rounds.append(
                Round(nfe, kid.interval(new), kid.interval(old), kid.difference(new, old))
            )
    return rounds


def decide(rounds: list[Round]) -> tuple[bool, str]:
    """Whether the challenger is better beyond chance, and the figures that say so.

    The smallest number of steps decides: the whole 95 % interval of the paired difference has to be
    below 0.
    """
    first = min(rounds, key=lambda each: each.nfe)
    gap = first.difference
    figures = (
        f"KID {first.challenger.value:.5f} against {first.champion.value:.5f} at {first.nfe} "
        "steps, "
        f"difference {gap.value:+.5f} ({gap.low:+.5f} to {gap.high:+.5f})"
    )
    return (
        (True, f"better: {figures}")
        if gap.high < 0
        else (False, f"not better beyond chance: {figures}")
    )


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
    return Round(fields["nfe"], *(Interval(**fields[name]) for name in (*SIDES, "difference")))


def main(argv: list[str] | None = None) -> None:
    """The command line, in a project whose stages have run."""
    set_up_logging()
    parser = argparse.ArgumentParser(
        prog="python -m tasks.stages.champion_challenger",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("champion", type=Path)
    parser.add_argument("result", type=Path)
    with user_errors():
        arguments = parser.parse_args(argv)
        root = Path.cwd()
        save(compare(load_params(root / "params.yaml"), root, arguments.champion), arguments.result)


if __name__ == "__main__":
    main()
