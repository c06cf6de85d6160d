"""The proof that a student's folder is whole: a fresh process with diffusers alone opens it and
makes the same images as this project does.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from models.methods.export import open_student
from models.methods.prompt_encoding import EMBEDS
from tasks.evaluation.alone import run_alone

IMAGES, SEED = 4, 0
TOLERANCE = 1e-4  # of pixel values in [0, 1]: kernels may round differently in another process

ALONE = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

logging.disable_progress_bar()
folder, target, images, seed, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
pipeline = DiffusionPipeline.from_pretrained(
    folder, trust_remote_code=True, use_safetensors=True, local_files_only=True
)
classes, prompts, count = pipeline.config.num_classes, pipeline.prompts, int(images)
given = {}
if classes is not None:
    given = {"class_labels": [i % classes for i in range(count)]}
elif prompts is not None and pipeline.text_encoder is not None:
    given = {"prompt": [prompts["examples"][i % len(prompts["examples"])] for i in range(count)]}
elif prompts is not None:
    from safetensors.torch import load_file
    embeds = load_file(f"{folder}/prompt_embeds.safetensors")
    given = {"prompt_embeds": {k: v[torch.arange(count) % len(v)] for k, v in embeds.items()}}
if prompts is not None and "guidance_range" in prompts:
    given["guidance_scale"] = np.linspace(*prompts["guidance_range"], count)
generator = torch.Generator().manual_seed(int(seed))
made = pipeline(batch_size=count, generator=generator, output_type="np", **given)[0]
own = sorted({name.split(".")[0] for name in sys.modules} & {"models", "tasks", "flows"})
if own:
    sys.exit(f"the folder's code imports {', '.join(own)}")
np.save(target, made)
"""


def prove_loadable(folder: Path) -> dict[str, Any]:
    """{ok, max_abs_difference, images, seconds}, and ``reason`` where not ok.

    The other process runs ``python -I`` in an empty folder, with no PYTHONPATH and no network. The
    difference is that of pixel values in [0, 1], or of series in units of their spread; None where
    there is nothing to compare.
    """
    start = time.perf_counter()
    record: dict[str, Any] = {"ok": False, "max_abs_difference": None, "images": IMAGES}
    with tempfile.TemporaryDirectory(prefix="load-back-") as place:
        target = Path(place, "images.npy")
        reason = _make_alone(folder.resolve(), target)
        if reason is None:
            found, expected = np.load(target, allow_pickle=False), _make_here(folder)
            reason = compare(found, expected, record)
    record["ok"] = reason is None
    record["seconds"] = round(time.perf_counter() - start, 1)
    return record if reason is None else record | {"reason": reason}


def compare(found: np.ndarray, expected: np.ndarray, record: dict[str, Any]) -> str | None:
    """The reason why two sets of samples are not the same; notes their difference in ``record``."""
    if found.shape != expected.shape:
        return f"samples of shape {found.shape}, expected {expected.shape}"
    # series (n, C, L) are in units of their own, channel by channel
    spread = expected.std(axis=(0, 2), keepdims=True) if expected.ndim == 3 else 1.0
    difference = float((np.abs(found.astype(np.float64) - expected) / spread).max())
    record["max_abs_difference"] = difference
    # not (a <= b), so that NaN is a difference too
    return None if difference <= TOLERANCE else f"other samples, by up to {difference:.3g}"


def _make_here(folder: Path) -> np.ndarray:
    pipeline = open_student(folder)
    made: np.ndarray = pipeline(
        batch_size=IMAGES,
        **asked(pipeline, folder),
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
    )[0]
    return made


def asked(pipeline: Any, folder: Path) -> dict[str, Any]:
    """Classes or prompts in turn; as embeddings, where the folder does not carry the encoders.
    Weights of guidance over their range, where the student takes some.
    """
    classes, prompts, places = pipeline.config.num_classes, pipeline.prompts, range(IMAGES)
    if classes is not None:
        return {"class_labels": [i % classes for i in places]}
    if prompts is None:
        return {}
    given: dict[str, Any] = {}
    if "guidance_range" in prompts:
        low, high = prompts["guidance_range"]
        given["guidance_scale"] = np.linspace(low, high, IMAGES)
    if pipeline.text_encoder is not None:
        texts = [prompts["examples"][i % len(prompts["examples"])] for i in places]
        return given | {"prompt": texts}
    embeds = load_file(folder / EMBEDS)
    rows = {k: v[torch.arange(IMAGES) % len(v)] for k, v in embeds.items()}
    return given | {"prompt_embeds": rows}


def _make_alone(folder: Path, target: Path) -> str | None:
    """Write the images of a process of its own to ``target``; the reason if there are none."""
    numbers = [str(number) for number in (IMAGES, SEED, torch.get_num_threads())]
    reason = run_alone(ALONE, [str(folder), str(target), *numbers], target.parent)
    if reason is None and not target.is_file():
        reason = "it wrote nothing"
    return reason and f"the folder does not open alone ({reason})"
