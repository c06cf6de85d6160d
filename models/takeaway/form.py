"""What a student is in its teacher's own pipeline of diffusers: a LoRA or a network, a scheduler,
and the arguments of the call.

Guidance is trained in, so that the call has none: ``guidance_scale`` is 1, or the weight that the
network takes as an input (FLUX; students of a range of weights).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from torch import Tensor

from models.common.errors import InputError
from models.schedulers.export import check_scaling, export_scheduler
from models.schedulers.sigdeg_scheduler import SigDEGScheduler
from models.takeaway.lora_file import save_lora
from models.teachers.network_call import pixels_per_entry

PIPELINES = (
    "DDPMPipeline", "DiTPipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline", "FluxPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline",
    "SanaPipeline",
)  # fmt: skip
OWN_WAY = {"clean_caption": False, "use_resolution_binning": False}
"""Of calls that would change prompts and sizes beyond what students are trained on."""


def stock_form(
    student: Any, index: Mapping[str, Any], adapters: Mapping[str, Tensor]
) -> dict[str, Any]:
    """All that is to be said of a ``student`` pipeline in the pipeline that ``index``, the content
    of its teacher's model_index.json, names; as JSON. InputError with the reason where it is none.

    ``adapters``: of :func:`models.takeaway.lora_file.adapter_tensors`, empty where all weights were
    trained. The network itself goes along where there are none, where the pipeline has no
    ``load_lora_weights``, and where an input for guidance was added, which no LoRA file holds.
    """
    name = str(index.get("_class_name"))
    if student.makes != "images":
        raise InputError("diffusers has no pipeline of series")
    if name not in PIPELINES:
        raise InputError(f"its teacher's pipeline is {name}; known are {', '.join(PIPELINES)}")
    check_scaling(name, student)
    try:
        sampler = student.stock_sampler()
    except ValueError as error:
        raise InputError(str(error)) from None
    pipeline = getattr(diffusers, name)
    lora = bool(adapters) and hasattr(pipeline, "load_lora_weights")
    lora = lora and student.unet.config.get("time_cond_proj_dim") is None
    takes = _takes(pipeline, student)
    return {
        "pipeline": name,
        "part": "unet" if "unet" in index else "transformer",
        "network": type(student.unet).__name__,
        "weights": "lora" if lora else "network",
        "tensors": len(adapters) if lora else 0,
        "scheduler": sampler["scheduler"],
        "config": sampler["config"],
        "steps": student.nfe,
        "takes": takes,
        "call": _call(pipeline, student, sampler),
        "guidance": (student.prompts or {}).get("guidance"),
        "guidance_range": (student.prompts or {}).get("guidance_range"),
        "keys": "diffusers",
    }


def write_form(form: Mapping[str, Any], adapters: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``folder``/scheduler, with its code where it is ours, and the LoRA file where the form
    has one.
    """
    if form["scheduler"] == "SigDEGScheduler":
        export_scheduler(SigDEGScheduler.from_config(dict(form["config"])), folder)
    else:
        scheduler = getattr(diffusers, form["scheduler"])(**form["config"])
        scheduler.save_pretrained(folder / "scheduler")
    if form["weights"] == "lora":
        save_lora(adapters, form["part"], folder)


def _takes(pipeline: Any, student: Any) -> str:
    """The argument of the call that says what to make: prompt, class_labels or batch_size."""
    known = inspect.signature(pipeline.__call__).parameters
    wanted = "batch_size"
    if student.prompts is not None:
        wanted = "prompt"
    elif student.config.num_classes is not None:
        wanted = "class_labels"
    if wanted not in known:
        raise InputError(f"the call of a {pipeline.__name__} takes no {wanted}")
    return wanted


def _call(pipeline: Any, student: Any, sampler: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the call beside what to make."""
    known = inspect.signature(pipeline.__call__).parameters
    call: dict[str, Any] = {"num_inference_steps": max(student.nfe)}
    if "sigmas" in sampler:
        if not {"sigmas", "height"} <= set(known):
            raise InputError(f"the call of a {pipeline.__name__} takes no sigmas")
        call["sigmas"] = sampler["sigmas"]
    if "guidance_scale" in known:
        about = student.prompts or {}
        given = about if "guidance_range" in about else about.get("embedded", {})
        call["guidance_scale"] = float(given.get("guidance", 1.0))
    if "height" in known:
        pixels = pixels_per_entry(student.vae)
        height, width = sampler.get("start", student.config.shape[1:])
        call |= {"height": height * pixels, "width": width * pixels}
    return call | {name: value for name, value in OWN_WAY.items() if name in known}
