"""The model card of a student's folder: where it comes from, how good it is, how to sample."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.config.schema import Params
from tasks.data.dataset import load_manifest
from tasks.methods.stock_card import stock_section
from tasks.utils.streams import visible

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"
TAGS = {"images": "unconditional-image-generation", "series": None}  # the hub has none for these
UNKNOWN = "not stated by the teacher; state one before you publish"
SETTINGS = ("order", "trainable", "lora_rank", "fake_updates", "backward_simulation")
# beside all with intervals
SHOWN = (
    "kid",
    "frechet",
    "precision",
    "recall",
    "ms_per_image",
    "marginal",
    "acf",
    "ms_per_series",
)


def provenance(params: Params, root: Path, pipeline: Any) -> dict[str, Any]:
    """What a card says about a student's origin, as JSON for student.json; no path of this machine
    beside names of folders.
    """
    manifest, source = load_manifest(root), getattr(params.teacher, "path", None)
    made = getattr(params.teacher, "factory", None)
    return {
        "title": pipeline.title,
        "teacher": (made or ("trained on the same data" if source is None else name_of(source))),
        "data": _data(manifest, pipeline),
        "makes": pipeline.makes,
        "channels": manifest.get("channels"),
        "shape": "x".join(map(str, pipeline.config.shape)),
        "classes": pipeline.config.num_classes,
        "prompt": _example(pipeline),
        "guidance": _weights(pipeline),
        "chosen_on": f"training {pipeline.makes}" if _has(manifest) else "the teacher's images",
        "licence": None if source is None else licence_of(root / source),
    }


def _data(manifest: Mapping[str, Any], pipeline: Any) -> str:
    """What the student learnt from."""
    count = manifest["counts"]["train"]
    images = f"{name_of(str(manifest['source']))}, {count} training {pipeline.makes}"
    if not _has(manifest):
        images = f"the teacher's {pipeline.makes}"
    prompts = getattr(pipeline, "prompts", None)
    if prompts is None:
        return images
    told = f"the teacher's images of prompts, guidance {prompts['guidance']} trained in"
    if "guidance_range" in prompts:
        low, high = prompts["guidance_range"]
        told = f"the teacher's images of prompts, guidance {low} to {high}, an input"
    return f"{told}; {images}" if _has(manifest) else told


def _has(manifest: Mapping[str, Any]) -> bool:
    """Whether there was a dataset."""
    return bool(manifest["counts"]["train"])


def licence_of(folder: Path) -> str | None:
    """The licence that a model folder's README.md states in its head; None where it states none."""
    import yaml
    from huggingface_hub import ModelCard

    if not (folder / "README.md").is_file():
        return None
    try:
        stated = ModelCard.load(folder / "README.md").data.license
    except (ValueError, yaml.YAMLError):  # a head that is no YAML, or asks for objects
        return None
    return None if stated is None else str(stated)


def render(
    record: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    *,
    repo: str = "path/of/this/folder",
    licence: str | None = None,
    taken: bool = False,
) -> str:
    """README.md of a student: ``record`` is student.json, ``metrics`` metrics.json or None.

    ``repo``: the name that the example opens; ``licence`` overrides the teacher's. ``taken``: of
    the form for a stock pipeline alone.
    """
    from huggingface_hub import ModelCard, ModelCardData

    origin, method = record["origin"], record["method"]
    makes = origin.get("makes", "images")
    licence = licence or origin["licence"]
    head = ModelCardData(
        library_name="diffusers",
        license=licence,
        pipeline_tag="text-to-image" if origin.get("prompt") else TAGS[makes],
        tags=["diffusion", "distillation", "few-step", method["kind"]],
    )
    columns, rows = figures_of(metrics or {})
    loaded = (metrics or {}).get("load_back", {})
    card = ModelCard.from_template(
        head,
        template_path=str(TEMPLATE),
        title=_text(f"{origin['title']} student of {origin['teacher']}"),
        method=origin["title"],
        steps=" or ".join(map(str, record["nfe"])),
        teacher_steps=record["trajectories"]["steps"],
        teacher=_text(origin["teacher"]),
        fingerprint=record["teacher"],
        data=_text(origin["data"]),
        settings=[(name, method[name]) for name in SETTINGS if name in method],
        training_steps=record["steps"],
        best_step=record["best_step"],
        makes=makes,
        one="image" if makes == "images" else "series",
        layout=_layout(origin),
        shape=origin["shape"],
        classes=origin["classes"],
        prompt=origin.get("prompt"),
        guidance=origin.get("guidance"),
        chosen_on=origin.get("chosen_on", f"training {makes}"),
        licence=_text(licence or UNKNOWN),
        repo=repo,
        own=not taken,
        stock=_stock(record, repo, taken),
        columns=columns,
        figures=rows,
        measured=_measured(metrics or {}, makes),
        load_back=loaded.get("max_abs_difference") if loaded.get("ok") else None,
    )
    return str(card.content)


def _stock(record: Mapping[str, Any], repo: str, taken: bool) -> dict[str, Any] | None:
    found = stock_section(record, repo, taken)
    if found is None or "reason" not in found:
        return found
    return {"reason": _text(found["reason"])}


def figures_of(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of the student, its teacher and the best training-free sampler."""
    rows = []
    for sampler in ("student", "teacher", "best_training_free"):
        for steps, found in metrics.get(sampler, {}).items():
            rows.append((str(found.get("title") or sampler), steps.removeprefix("nfe"), found))
    measured = dict.fromkeys(name for *_, found in rows for name in found)
    bounded = [name for name in measured if f"{name}_low" in measured]
    names = list(dict.fromkeys(bounded + [name for name in SHOWN if name in measured]))
    table = [
        [title, calls, *(_cell(found, name) for name in names)] for title, calls, found in rows
    ]
    return [name.replace("_", " ") for name in names], table


def _cell(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    low, high = (found.get(f"{name}_{end}") for end in ("low", "high"))
    interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{value:.4g}{interval}"


def _measured(metrics: Mapping[str, Any], makes: str) -> str:
    about = metrics.get("evaluation", {})
    if not about:
        return ""
    own = about.get("against") == "teacher"
    whose = f"of the teacher's {makes}" if own else f"real {makes}"
    told = f"{about['samples']} samples against {about['real']} {whose}"
    return f"{told}, features {about['features']}." if about.get("features") else f"{told}."


def _layout(origin: Mapping[str, Any]) -> str:
    """What an array of series holds, in one line of the example."""
    channels = ", ".join(origin.get("channels") or ())
    return f"(4, channels, length) in the data's units; channels: {channels}"


def _example(pipeline: Any) -> str | None:
    """A prompt to try; None for students that take none."""
    prompts = getattr(pipeline, "prompts", None)
    return None if prompts is None else str(prompts["examples"][0])


def _weights(pipeline: Any) -> list[float] | None:
    """The lowest, the highest and the default weight of guidance, where the call takes one."""
    prompts = getattr(pipeline, "prompts", None) or {}
    if "guidance_range" not in prompts:
        return None
    return [*prompts["guidance_range"], prompts["guidance"]]


def _text(told: str) -> str:
    """What others have named, as plain text of a table's cell: a card is shown as a web page."""
    return html.escape(visible(" ".join(told.split())), quote=False).replace("|", r"\|")


def name_of(place: str) -> str:
    """A hub id or a title as it is; of a path of this machine the last part alone."""
    return Path(place).name if Path(place).is_absolute() else place
