"""The proof that a student works in its teacher's own pipeline: a fresh process with diffusers
alone opens the teacher, the LoRA or network and the scheduler by the lines of the model card, and
makes the images that the student's own pipeline makes here.

Pipelines report a LoRA's key without a place by a warning at most. So each tensor of the file is
looked for in the network, and their number is compared with that of the training.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from models.methods.export import open_student
from models.takeaway.lines import Place, opening_lines
from models.takeaway.lora_file import FILE
from models.teachers.network_call import packed
from tasks.evaluation.alone import run_alone
from tasks.evaluation.load_back import IMAGES, SEED, asked, compare

ALONE = """
import functools, json, sys
import numpy as np, torch
from diffusers.utils import logging
from safetensors.torch import load_file

logging.disable_progress_bar()
given = json.load(open(sys.argv[1]))
torch.set_num_threads(given["threads"])
scope = {}
exec(given["opening"], scope)
pipe, part = scope["pipe"], given["part"]
if given["lora"]:
    def plain(name):
        name = name.removeprefix(f"{part}.").removeprefix(f"lora_{part}_")
        name = name.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B.")
        layer, _, factor = name.partition(".lora_")
        return layer.replace(".", "_"), factor[0]
    tensors = {k: v for k, v in load_file(given["lora"]).items() if not k.endswith(".alpha")}
    own = getattr(pipe, part).state_dict()
    own = {plain(name): value for name, value in own.items() if ".lora_" in name}
    missing = [k for k, v in tensors.items()
               if plain(k) not in own or not torch.equal(own[plain(k)], v)]
    if missing:
        sys.exit(f"{len(missing)} of the LoRA's {len(tensors)} tensors were not taken by "
                 f"{type(pipe).__name__}, such as {missing[0]}")
    if len(own) != len(tensors):
        sys.exit(f"the LoRA has {len(tensors)} tensors, the adapters that were made {len(own)}")
if given["path"]:
    xi = torch.from_numpy(np.load(given["path"]))
    begin = pipe.scheduler.set_timesteps
    @functools.wraps(begin)  # pipelines look at the arguments it takes
    def set_timesteps(*arguments, **options):
        begin(*arguments, **options)
        pipe.scheduler.set_path(xi)
    pipe.scheduler.set_timesteps = set_timesteps
pipe.set_progress_bar_config(disable=True)
torch.manual_seed(given["seed"])
made = pipe(**given["call"], output_type="np").images
project = sorted({name.split(".")[0] for name in sys.modules} & {"models", "tasks", "flows"})
if project:
    sys.exit(f"the folder's code imports {', '.join(project)}")
np.save(given["target"], np.asarray(made))
"""


def prove_stock(student: Path, teacher: Path, taken: Path | None = None) -> dict[str, Any]:
    """{ok, max_abs_difference, images, pipeline, tensors, seconds}, and ``reason`` where not ok.

    ``student``, ``teacher``: data/student and data/teacher; ``taken``: the folder of a form that
    was taken away, the student's own stock/ if None. The difference is that of pixel values in
    [0, 1].
    """
    start, folder = time.perf_counter(), taken or student / "stock"
    form = json.loads((folder / "stock.json").read_text(encoding="utf-8"))
    record: dict[str, Any] = {"ok": False, "max_abs_difference": None, "images": IMAGES}
    record |= {"pipeline": form["pipeline"], "tensors": form["tensors"]}
    reason = _missing(form, folder)
    if reason is None:
        pipeline = _opened(student, teacher)
        steps, given = form["call"]["num_inference_steps"], asked(pipeline, student)
        if form.get("guidance_range") is not None:
            given["guidance_scale"] = form["guidance_range"][1]  # the call takes one for all
        xi = _path(pipeline, steps) if form["scheduler"] == "SigDEGScheduler" else None
        with tempfile.TemporaryDirectory(prefix="stock-back-") as place:
            work = _work(form, given, xi, Path(place))
            work["opening"] = opening_lines(
                form, {"source": str(teacher.resolve())}, _place(form, student, taken)
            )
            work["lora"] = str(folder.resolve() / FILE) if form["weights"] == "lora" else None
            Path(place, "work.json").write_text(json.dumps(work), encoding="utf-8")
            reason = run_alone(ALONE, [str(Path(place, "work.json"))], Path(place))
            if reason is None:
                found = np.load(work["target"], allow_pickle=False)
                expected = _make_here(pipeline, steps, xi, given)
                reason = compare(found, expected, record)
    record["ok"] = reason is None
    record["seconds"] = round(time.perf_counter() - start, 1)
    return record if reason is None else record | {"reason": reason}


def _place(form: Mapping[str, Any], student: Path, taken: Path | None) -> Place:
    if taken is None:
        return Place(str(student.resolve()), "stock")
    return Place(str(taken.resolve()), network=form["part"])


def _missing(form: Mapping[str, Any], folder: Path) -> str | None:
    """The reason why the LoRA file is not whole."""
    if form["weights"] != "lora":
        return None
    with safe_open(folder / FILE, "pt") as file:
        count = sum(not name.endswith(".alpha") for name in file.keys())  # noqa: SIM118
    if count == form["tensors"]:
        return None
    return f"the LoRA file has {count} tensors, the student {form['tensors']}"


def _opened(student: Path, teacher: Path) -> Any:
    """The student's own pipeline with encoders, which are its teacher's where it carries none."""
    pipeline = open_student(student)
    if pipeline.prompts is not None and pipeline.text_encoder is None:
        pipeline.load_encoders(str(teacher))
    return pipeline


def _path(pipeline: Any, steps: int) -> Tensor:
    """Features (n, N, m + 1, C, H, W) of Brownian paths."""
    features = len(pipeline.plan(steps)[0].n)
    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.randn(
        (IMAGES, steps, features, *pipeline.config.shape), generator=generator, dtype=torch.float32
    )


def _work(
    form: Mapping[str, Any], given: Mapping[str, Any], xi: Tensor | None, place: Path
) -> dict[str, Any]:
    """What the other process is told, as JSON; ``given``: what to make, in the student's terms."""
    path = None
    if xi is not None:
        path = str(place / "path.npy")
        np.save(path, _as_latents(form, xi).numpy())
    what = {"batch_size": IMAGES, **given}
    weight = {k: v for k, v in given.items() if k == "guidance_scale"}
    return {
        "threads": torch.get_num_threads(),
        "part": form["part"],
        "path": path,
        "call": dict(form["call"]) | weight | {form["takes"]: what[form["takes"]]},
        "seed": SEED,
        "target": str(place / "images.npy"),
    }


def _as_latents(form: Mapping[str, Any], xi: Tensor) -> Tensor:
    """FLUX's pipeline keeps states as tokens: (n, N, m + 1, H / 2 W / 2, 4 C)."""
    if form["pipeline"] != "FluxPipeline":
        return xi
    return packed(xi.flatten(0, 2)).unflatten(0, xi.shape[:3])


@torch.no_grad()
def _make_here(
    pipeline: Any, steps: int, xi: Tensor | None, given: Mapping[str, Any]
) -> np.ndarray:
    """Images (n, H, W, C) in [0, 1] of the student's own pipeline, from the noise that the other
    process draws: the same numbers of the same seed.
    """
    generator = torch.Generator().manual_seed(SEED)
    own = pipeline.rollout
    # the call draws the start noise; the path is given, where there is one
    pipeline.rollout = lambda noise, _, *rest: own(noise, xi, *rest)
    made: np.ndarray = pipeline(
        IMAGES, steps, **given, generator=generator, output_type="np"
    ).images
    return made
