"""What a student of prompts takes along: tokenizers and encoders, or where they are to be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from models.common.errors import InputError
from models.methods.prompt_encoding import EMBEDS, TEXT_PARTS
from models.teachers.base import Denoiser
from models.teachers.encoders import describe, open_encoders, text_parts
from models.teachers.guidance import GuidanceRange
from tasks.config.schema import Params
from tasks.data.conditions import open_shards, prompts_of_rows
from tasks.data.teacher import teacher_source

CARRIED = 2 * 2**30  # bytes of encoders that go into a student's folder
EXAMPLES = 4
TOLERANCE = 5e-3  # of the largest entry: rows are stored in half precision


def with_prompts(pipeline: Any, teacher: Denoiser, params: Params, root: Path) -> Any:
    """The student with what prompts need; unchanged where the teacher takes none.

    Raises InputError where the student's own way to encode prompts is not that of data/conditions.
    """
    if teacher.condition_kind != "prompts":
        return pipeline
    pipe, _ = open_encoders(root / "data" / "teacher")
    parts, table, meta = text_parts(pipe), teacher.conditions, open_shards(root).meta
    assert table is not None
    rows = list(teacher.labels_of("validation"))[:EXAMPLES]
    stored, examples = table[torch.tensor(rows)], prompts_of_rows(root, rows)
    size = sum(p.nbytes for part in parts.values() if isinstance(part, nn.Module)
               for p in part.parameters())  # fmt: skip
    carried = size <= CARRIED
    about = {
        "pipeline": type(pipe).__name__,
        "options": _options(pipe),
        "keys": sorted(stored.keys()),
        "guidance": params.trajectories.guidance,
        "negative_prompt": meta["negative_prompt"] or "",
        **_weight(teacher),
        "examples": examples,
        "source": None if carried else teacher_source(root),
        "encoders": describe(pipe),
    }
    whole = pipeline.with_network(pipeline.unet, num_classes=None, prompts=about, **parts)
    _check(whole.encode_prompts(examples), stored)
    return whole if carried else whole.with_network(whole.unet, **dict.fromkeys(TEXT_PARTS))


def _weight(teacher: Denoiser) -> dict[str, Any]:
    """What is known of the weight of guidance as an input, as JSON."""
    weight = teacher.embedded_guidance
    if isinstance(weight, GuidanceRange):
        return {"guidance_range": [weight.low, weight.high]}
    return {} if weight is None else {"embedded": {"guidance": weight}}


def save_examples(pipeline: Any, teacher: Denoiser, folder: Path) -> None:
    """The encoded examples, beside a student that carries no encoders."""
    if pipeline.prompts is None or pipeline.text_encoder is not None:
        return
    assert teacher.conditions is not None
    rows = list(teacher.labels_of("validation"))[:EXAMPLES]
    stored = teacher.conditions[torch.tensor(rows)]
    save_file({k: v.contiguous() for k, v in stored.items()}, folder / EMBEDS)


def _options(pipe: Any) -> dict[str, Any]:
    """The constructor's arguments beside parts, as JSON."""
    return {
        name: value
        for name, value in pipe.config.items()
        if not name.startswith("_") and isinstance(value, bool | int | float | str)
    }


def _check(found: dict[str, Any], stored: Any) -> None:
    for name, value in found.items():
        wanted = stored[name].float()
        difference = float((value.cpu().float() - wanted).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
            raise InputError(
                f"student: it would encode prompts otherwise than data/conditions ({name} differs "
                f"by {difference:.3g}); run python -m tasks.stages.conditions again"
            )
