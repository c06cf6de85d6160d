"""Sizes and noise levels of the steps of scale-wise students."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

from models.methods.export import open_student
from tasks.config.schema import load_params
from tasks.stages import student, trajectories
from tasks.utils.atomic import atomic_write_json
from tests.inputs.rows import Row
from tests.tasks.distillation import STUDENT, TRAJECTORIES, make_root
from tests.tasks.series import MEASURED, make_series_root, series_settings
from tests.tiny import tiny_dit

TITLE = "Sizes of scale-wise students (`method.schedule.pairs`, `method.scales.pairs`)"
DIGITS = {"kind": "digits", "size": 8, "holdout": 100}
SWD = {"kind": "swd", "dmd": {"gate": "off"}}
SIGDEG = {"nfe": [4], "calibrate": False, "window": {"start": 4}}


def latent_root(root: Path) -> Path:
    """The project of :func:`make_root`, but for a teacher over latents: a DiT."""
    shutil.copytree(project(make_root), root, dirs_exist_ok=True)
    for stale in ("teacher", "trajectories"):
        shutil.rmtree(root / "data" / stale)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, block_out_channels=(8,), norm_num_groups=4
    )
    names = {i: str(i) for i in range(3)}
    pipe = DiTPipeline(tiny_dit(), vae, DDIMScheduler(clip_sample=False), names)
    pipe.save_pretrained(root / "data/teacher")
    atomic_write_json(root / "data/teacher/teacher.json", {"null_class": 3})
    trajectories.run(params_of(root, SIGDEG), root)
    return root


@cache
def project(make: Callable[[Path], Path]) -> Path:
    """What ``make`` makes, once; its folder goes with this process."""
    folder = TemporaryDirectory()
    KEPT.append(folder)
    return make(Path(folder.name) / "project")


KEPT: list[TemporaryDirectory[str]] = []


def params_of(root: Path, method: dict[str, Any], **sections: Any) -> Any:
    """Params as a stage reads them, of students that are not trained."""
    content: dict[str, Any] = {
        "dataset": DIGITS,
        "trajectories": TRAJECTORIES,
        "method": method,
        "student": STUDENT | {"steps": 0},
    }
    (root / "params.yaml").write_text(json.dumps(content | sections))
    return load_params(root / "params.yaml")


def given(
    method: dict[str, Any],
    make: Callable[[Path], Path] = make_root,
    sizes: Sequence[int] = (),
    **sections: Any,
) -> Callable[[Path], None]:
    """The student stage with this method, in the project of ``make``; ``sizes``: those that the
    student's network is asked at.
    """

    def run(root: Path) -> None:
        params = params_of(root, method, **sections)
        shutil.copytree(project(make), root, dirs_exist_ok=True)
        student.run(params, root)
        made, seen = open_student(root / "data/student"), []
        made.unet.register_forward_pre_hook(lambda net, given: seen.append(given[0].shape[-1]))
        made.set_progress_bar_config(disable=True)
        assert made(batch_size=1, output_type="pt").images.shape == (1, 1, 8, 8)
        assert tuple(seen) == tuple(sizes)

    return run


def swd(pairs: Any, **more: Any) -> dict[str, Any]:
    return SWD | {"schedule": {"kind": "given", "pairs": pairs}} | more


def sigdeg(pairs: Any, limit: float = 1e6, **more: Any) -> dict[str, Any]:
    return SIGDEG | {"scales": {"pairs": pairs, "limit": limit}} | more


STEPS = [[1.0, 4], [0.8, 4], [0.5, 8]]
TWO = [[1.0, 4], [0.7, 8]]
SERIES = MEASURED | {"dataset": series_settings().dataset.model_dump(mode="json")}
SERIES["student"] = STUDENT | {"steps": 0} | MEASURED["student"]
GATED = {"dmd": {"limit": 1e-6, "samples": 8, "steps": 2}, "mmd": {"weight": 0.0}}
PAPER = {"kind": "preset", "steps": 5}
FEW_LEVELS = {"kind": "preset", "steps": 4, "sigmas": [1.0, 0.5]}
WIDE_PATCHES = {"path": 0.0, "mmd": 0.0, "score": 1.0, "score_patches": [0, 8]}
OF_SERIES = {"loss": {"path": 1.0, "mmd": 0.0}}
ROWS = (
    Row("swd-sizes", "SwD: a noise level and a size for each step; sizes may repeat", given(swd(STEPS), sizes=(4, 4, 8)),
        taken="the network is asked at these sizes"),
    Row("swd-empty", "SwD without pairs", given(swd([])),
        refused="params.yaml: method.schedule.pairs = []: expected at least 1 entries"),
    Row("swd-first", "SwD, a first level below 1", given(swd([[0.9, 4], [0.5, 8]])),
        refused="method.schedule: first sigma is 0.9; expected 1.0, pure noise"),
    Row("swd-zero", "SwD, a level of 0", given(swd([[1.0, 4], [0.0, 8]])),
        refused="params.yaml: method.schedule.pairs.1.0 = 0.0: expected a number > 0"),
    Row("swd-levels", "SwD, levels that do not fall", given(swd([[1.0, 4], [1.0, 8]])),
        refused="method.schedule: sigmas [1.0, 1.0]; expected strictly decreasing, above 0"),
    Row("swd-close", "SwD, two levels at one time of the teacher", given(swd([[1.0, 4], [0.5, 6], [0.49999, 8]])),
        refused="method.schedule: sigma 0.49999 is the same level as the one before for this teacher"),
    Row("swd-shrink", "SwD, sizes that shrink", given(swd([[1.0, 6], [0.8, 4], [0.5, 8]])),
        refused="method.schedule: sizes [6, 4, 8]; expected none smaller than the one before"),
    Row("swd-last", "SwD, a last size that is not the teacher's", given(swd([[1.0, 4], [0.5, 6]])),
        refused="method.schedule: last size is 6; expected 8, the teacher's own"),
    Row("swd-stride", "SwD, a size that the network cannot halve", given(swd([[1.0, 3], [0.5, 8]])),
        refused="method.schedule: size 3; expected a multiple of 2, the network's stride"),
    Row("swd-steps", "SwD, a number of steps that the paper has no sizes for", given(SWD | {"schedule": PAPER}),
        refused="params.yaml: method.schedule.steps = 5: expected 4 or 6"),
    Row("swd-sigmas", "SwD, levels for other than `schedule.steps` steps", given(SWD | {"schedule": FEW_LEVELS}),
        refused="params.yaml: method.schedule.sigmas has 2 entries: expected steps = 4, or null for the paper's"),
    Row("swd-matched", "SwD with `level_mapping: matched`, sizes that grow faster than levels fall",
        given(swd([[1.0, 2], [0.5, 2], [0.49, 8]], level_mapping="matched")),
        refused="method.level_mapping = matched: the levels become 1 at 2, 0.2 at 2, 0.49 at 8; expected falling ones: let the sizes grow more slowly than sigma falls"),
    Row("swd-gated", "SwD with distribution matching alone, at a size that the teacher does not know", given(swd(STEPS, **GATED)),
        warned="so DMD is off at this size (method.dmd.gate=off overrides)",
        refused="method: no loss is left at size 4 (method.dmd is gated off there); set method.mmd.weight above 0"),
    Row("swd-series", "SwD of a teacher of series", given(swd(STEPS), **SERIES),
        refused="params.yaml: method.kind = swd: makes images, the dataset makes series; use sigdeg"),
    Row("scales-sizes", "Sig-DEG: levels, and the size of the steps that start there or below", given(sigdeg(TWO), sizes=(4, 4, 4, 8)),
        taken="the network is asked at these sizes"),
    Row("scales-first", "Sig-DEG, a first level below 1", given(sigdeg([[0.9, 4], [0.5, 8]])),
        refused="params.yaml: method.scales.pairs: first sigma is 0.9; expected 1.0, pure noise"),
    Row("scales-levels", "Sig-DEG, levels that do not fall", given(sigdeg([[1.0, 4], [1.0, 8]])),
        refused="params.yaml: method.scales.pairs: sigmas [1.0, 1.0]; expected strictly decreasing"),
    Row("scales-grow", "Sig-DEG, sizes that do not grow", given(sigdeg([[1.0, 8], [0.7, 8]])),
        refused="params.yaml: method.scales.pairs: sizes [8, 8]; expected strictly increasing"),
    Row("scales-late", "Sig-DEG, a last level below that of the last step", given(sigdeg([[1.0, 4], [0.1, 8]])),
        refused="method.scales.pairs: the last of 4 steps starts at sigma 0.642, so that none has the full size; expected the last pair's sigma, 0.1, to be that or more"),
    Row("scales-last", "Sig-DEG, a last size that is not the teacher's", given(sigdeg([[1.0, 4]])),
        refused="method.scales.pairs: last size is 4; expected 8, the teacher's own"),
    Row("scales-blocks", "Sig-DEG, a size that does not divide the next one", given(sigdeg([[1.0, 6], [0.7, 8]])),
        refused="method.scales.pairs: size 6 before 8; expected one that divides it, since a low-pass part is made of blocks"),
    Row("scales-stride", "Sig-DEG, a size that the network cannot halve", given(sigdeg([[1.0, 1], [0.7, 8]])),
        refused="method.scales.pairs: size 1; expected a multiple of 2, the network's stride"),
    Row("scales-unknown", "Sig-DEG, a size that the teacher does not know, by `scales.limit`", given(sigdeg(TWO, limit=0.5)),
        refused="method.scales.pairs: at size 4, sigma 0.987, the teacher's error is 1.5 times that at full size, above method.scales.limit = 0.5: it does not know this size; leave it out, or train the teacher at it (teacher.scales)"),
    Row("scales-window", "Sig-DEG, training on parts of the steps", given(sigdeg(TWO, window={"start": 2})),
        refused="params.yaml: method.window.start = 2: scale-wise students train on whole rollouts; set window.start to 4, or window.grow_until to 0"),
    Row("scales-patches", "Sig-DEG, patches of the energy score that do not tile a small size", given(sigdeg(TWO, loss=WIDE_PATCHES)),
        refused="method.loss.score_patches: 8 does not tile states of (4, 4); expected 0 (the whole state) or sizes that divide every axis"),
    Row("scales-latents", "Sig-DEG, a teacher over latents", given(sigdeg(TWO), latent_root),
        refused="method.scales.pairs: this teacher works on latents, and a latent reduced is not the latent of the reduced image; expected a teacher of pixels, or no pairs"),
    Row("scales-series", "Sig-DEG, a teacher of series", given(sigdeg(TWO, **OF_SERIES), make_series_root, **SERIES),
        refused="method.scales.pairs: states are (1, 16); expected square images, or no pairs"),
)  # fmt: skip
