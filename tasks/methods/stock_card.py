"""What a model card says of a student in its teacher's own pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.takeaway.lines import Place, call_line, opening_lines


def stock_section(record: Mapping[str, Any], repo: str, taken: bool) -> dict[str, Any] | None:
    """The ``lines`` that sample and ``notes`` on them, or the ``reason`` why there are none; None
    for students of versions before. ``record``: student.json; ``repo``: the name of the student's
    folder, or of the form alone, where that was ``taken`` away.
    """
    form = record.get("stock")
    if form is None or "reason" in form:
        return form
    place = Place(repo, network=form["part"]) if taken else Place(repo, "stock")
    opened = opening_lines(form, form["base"], place)
    example: Any = {"prompt": record["origin"].get("prompt"), "class_labels": [0], "batch_size": 4}
    return {
        "lines": f"{opened}\n{call_line(form, example[form['takes']])}",
        "notes": [note for note in _notes(form) if note],
    }


def _notes(form: Mapping[str, Any]) -> list[str]:
    steps = " or ".join(map(str, form["steps"]))
    return [
        _weights(form),
        _guidance(form),
        f"`num_inference_steps`: {steps}; it was trained for no other number.",
        _scheduler(form),
        _keys(form),
    ]


def _weights(form: Mapping[str, Any]) -> str:
    what = "The LoRA" if form["weights"] == "lora" else "The network"
    return f"{what} belongs to its teacher, as these lines open it; `dtype` may be a smaller one."


def _guidance(form: Mapping[str, Any]) -> str:
    weight, given = form.get("guidance"), form["call"].get("guidance_scale")
    if given is None:
        return ""
    if form.get("guidance_range") is not None:
        low, high = form["guidance_range"]
        return (
            f"`guidance_scale`: {low} to {high}, an input of the network; it was trained for no "
            "other. The network is asked once a step. A negative prompt says nothing."
        )
    if given != 1.0 or form["pipeline"] == "FluxPipeline":
        return f"`guidance_scale` stays {given}, an input of the network: it was trained at that."
    trained = "Guidance is" if weight is None else f"Guidance {weight} is"
    return (
        f"{trained} trained in: `guidance_scale` stays 1, and the network is asked once a step. A "
        "negative prompt says nothing."
    )


def _scheduler(form: Mapping[str, Any]) -> str:
    if form["scheduler"] == "SigDEGScheduler":
        return (
            "`trust_remote_code` runs the three Python files in `scheduler`; they need torch, "
            "diffusers and NumPy only."
        )
    return (
        "The scheduler is diffusers' own. `height` and `width` are those of the first step, it "
        "enlarges from there; `sigmas` are the levels. The pipeline hands it no generator, so seed "
        "with `torch.manual_seed`."
    )


def _keys(form: Mapping[str, Any]) -> str:
    if form["keys"] != "comfyui":
        return ""
    return (
        "The LoRA's keys are those that ComfyUI reads. ComfyUI has no scheduler of this kind; with "
        "another one the images are not those of these lines."
    )
