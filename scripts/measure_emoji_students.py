"""Measure few-step students of the emoji teacher beside it and samplers that need no training.

`python -m scripts.measure_emoji_students emoji64.npz OUT --students data/student` gives all the
same prompts and the same start noise, and writes
OUT/figures.json (caption retrieval; KID and recall against the real emoji of the prompts) and
OUT/grid.png: a row for each sampler, a column for each of the first prompts.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from models.common.errors import InputError
from models.common.random import generator_for
from models.evaluation.base import MetricOptions, Samples
from models.evaluation.caption_retrieval import CaptionRetrieval
from models.evaluation.features import extract, load_features
from models.evaluation.kid import KID
from models.evaluation.precision_recall import Recall
from models.methods.export import open_student
from models.schedulers.sigdeg_scheduler import SigDEGScheduler
from models.teachers.loading import open_pipeline
from scripts.emoji.data import learnt, load_emoji, to_float
from scripts.emoji.denoiser import draw
from scripts.emoji.pictures import save_grid
from scripts.emoji.views import views
from tasks.utils.cli import set_up_logging, user_errors

TEACHER = Path("data/pretrained/emoji64")
FULL_STEPS, BATCH = 25, 32

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help=".npz of captioned emoji")
    parser.add_argument("out", type=Path)
    parser.add_argument("--students", type=Path, nargs="+", default=[Path("data/student")])
    parser.add_argument("--teacher", type=Path, default=TEACHER)
    parser.add_argument("--prompts", type=Path, help="a line each; default: those it has learnt")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument(
        "--views",
        type=int,
        default=0,
        help="of each real emoji; 0: for a teacher of emoji as drawn",
    )
    parser.add_argument("--guidance", type=float, default=3.0, help="of teacher and UniPC")
    parser.add_argument("--calls", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--columns", type=int, default=14, help="of the picture")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    set_up_logging()
    with user_errors():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """All samplers, one after the other. InputError for files that are not there."""
    emoji = learnt(load_emoji(arguments.data))[0]
    prompts = _prompts(arguments, emoji.prompts)
    extractor = load_features("efficientnet")
    wanted = set(prompts)
    pairs = zip(emoji.prompts, emoji.captions, strict=True)
    asked = torch.tensor([bool(wanted & set(pair)) for pair in pairs])
    if int(asked.sum()) < 4:
        raise InputError(
            f"{arguments.data}: {int(asked.sum())} emoji of the prompts; expected 4 at least"
        )
    shown = views(emoji[asked], arguments.views, arguments.seed)
    real = extract(extractor, to_float(shown.images), 64)
    options = MetricOptions(resamples=200, seed=arguments.seed)
    nothing = Samples(images=to_float(emoji.images[:1]))
    retrieval = CaptionRetrieval(nothing, options, extractor=extractor)
    metrics = {
        "kid": KID(Samples(features=real), options),
        "recall": Recall(Samples(features=real)),
    }
    figures: dict[str, Any] = {}
    rows = []
    for name, evaluations, images in samplers(arguments, prompts):
        seen = Samples(images=images, features=extract(extractor, images, 64))
        found = retrieval(Samples(images=images, prompts=tuple(prompts)))
        figures[name] = {
            "network_evaluations": evaluations,
            "retrieval": [round(v, 3) for v in (found.value, found.low, found.high)],
            **{key: round(metric(seen).value, 4) for key, metric in metrics.items()},
        }
        logger.info("%s: %s", name, figures[name])
        rows.append(images[: arguments.columns])
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_grid(arguments.out / "grid.png", torch.cat(rows), len(rows[0]), scale=1)
    content = {"prompts": prompts[: arguments.columns], "images": len(prompts), "of": figures}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (arguments.out / "figures.json").write_text(text + "\n", encoding="utf-8")


def _prompts(arguments: argparse.Namespace, known: list[str]) -> list[str]:
    """As many as images are asked for: of the file in turn, or learnt ones at random."""
    if arguments.prompts is not None:
        try:
            lines = arguments.prompts.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InputError(f"{arguments.prompts}: {error.strerror}; expected prompts") from error
        known = [line.strip() for line in lines if line.strip()]
        return [known[i % len(known)] for i in range(arguments.images)]
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(arguments.seed))
    return [known[int(i)] for i in order[: arguments.images]]


def samplers(
    arguments: argparse.Namespace, prompts: list[str]
) -> Iterator[tuple[str, int, Tensor]]:
    """(name, network evaluations of an image, images (n, 3, 64, 64)); guidance asks twice."""
    students = {folder: opened(folder) for folder in arguments.students}
    teacher = open_pipeline(arguments.teacher)
    twice = 1 if arguments.guidance == 1 else 2
    guidance, seed = arguments.guidance, arguments.seed
    images = draw(teacher, prompts, guidance, FULL_STEPS, seed)
    yield f"teacher, {FULL_STEPS} steps", twice * FULL_STEPS, images
    config = teacher.scheduler.config
    teacher.scheduler = UniPCMultistepScheduler.from_config(config)
    for calls in arguments.calls:
        images = draw(teacher, prompts, guidance, calls, seed)
        yield f"UniPC, {calls} steps", twice * calls, images
    teacher.scheduler = SigDEGScheduler.from_config(config)
    for calls in arguments.calls:  # without guidance: as many evaluations as a student makes
        images = draw(teacher, prompts, 1.0, calls, seed)
        yield f"Sig-DEG, untrained, {calls} steps", calls, images
    for folder, student in students.items():
        for calls in (calls for calls in arguments.calls if calls in student.nfe):
            yield (
                f"{student.title} of {folder}, {calls} calls",
                calls,
                _draw(student, prompts, calls, seed),
            )


def opened(folder: Path) -> Any:
    """The student's pipeline; InputError where none of prompts is in the folder."""
    try:
        student = open_student(folder)
    except ValueError as error:
        raise InputError(str(error)) from error
    if student.prompts is None:
        raise InputError(f"student {folder}: it takes no prompts; expected one of {TEACHER}")
    return student


def _draw(student: Any, prompts: list[str], calls: int, seed: int) -> Tensor:
    """The student's images; the noise of a place in the list depends on the seed."""
    made = []
    for low in range(0, len(prompts), BATCH):
        part = prompts[low : low + BATCH]
        generators = [generator_for("cpu", seed, low + i) for i in range(len(part))]
        result = student(
            prompt=part, num_inference_steps=calls, generator=generators, output_type="pt"
        )
        made.append(result.images.float() * 2 - 1)
    return torch.cat(made)


if __name__ == "__main__":
    main()
