"""Students of tiny stock pipelines with their form for those, as the student stage writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.methods.export import export_pipeline
from models.methods.sigdeg.build import SamplerGains, build_pipeline
from models.methods.sigdeg.config import SigDEGConfig
from models.methods.swd.build import build_swd_pipeline
from models.methods.swd.config import SwDConfig
from models.methods.swd.schedule import make_schedule
from models.takeaway.form import stock_form, write_form
from models.takeaway.lora_file import adapter_tensors
from models.teachers.base import Denoiser
from models.teachers.conditioning import ConditionTable
from models.teachers.encoders import text_parts
from models.teachers.guidance import Guidance, GuidanceRange
from models.teachers.loading import denoiser_of_pipeline
from models.teachers.prompts import PromptDenoiser
from tests.models.teachers import pipelines
from tests.models.tinypaths import spec_of

PROMPTS = ["a cat", "two dogs", "an owl"]
GAINS = {2: SamplerGains(0.1, 1.3, 0.2, 1.02)}
SIGMAS = (1.0, 0.8, 0.5)


@dataclass(frozen=True)
class Made:
    """``root`` has teacher/ and student/, the latter with stock/; ``form``: its stock.json."""

    root: Path
    student: Any
    form: dict[str, Any]
    adapters: dict[str, Tensor]

    @property
    def folders(self) -> tuple[Path, Path]:
        return self.root / "student", self.root / "teacher"


def make(
    root: Path,
    name: str,
    method: str = "sigdeg",
    trainable: str = "lora",
    guidance: Guidance = 3.5,
) -> Made:
    """A student of the pipeline ``name`` that has moved away from its teacher, in folders."""
    pipe, call = pipelines.build(name)
    pipelines.as_published(name, pipe).save_pretrained(root / "teacher")
    size = call.get("height")
    if (name, method) == ("sana", "swd"):
        size = 2 * call["height"]  # its pipeline takes multiples of 32, for the first step too
    teacher = denoiser_of_pipeline(pipe, size=size)
    if isinstance(teacher, PromptDenoiser):
        table = ConditionTable(teacher.encode_prompts(pipe, PROMPTS), teacher.encode_null(pipe))
        teacher.set_conditions(table)
    teacher.embed_guidance(guidance)
    student = untrained(teacher, method, trainable)
    moved_away(student.unet)
    adapters = adapter_tensors(student.unet.state_dict())
    exported = with_prompts(export_pipeline(student), teacher, pipe)
    exported.save_pretrained(root / "student")
    index = json.loads((root / "teacher/model_index.json").read_text())
    form = stock_form(exported, index, adapters) | {"base": {"source": "owner/teacher"}}
    (root / "student/stock").mkdir()
    write_form(form, adapters, root / "student/stock")
    (root / "student/stock/stock.json").write_text(json.dumps(form))
    return Made(root, exported, form, adapters)


def untrained(teacher: Denoiser, method: str, trainable: str, **choices: Any) -> Any:
    """Two steps of Sig-DEG without inputs of its own, or three of SwD."""
    if method == "swd":
        full, stride = teacher.shape[-1], teacher.stride
        sizes = (full // 2, full // 2 + stride, full)
        schedule = make_schedule(list(zip(SIGMAS, sizes, strict=True)), full, stride)
        return build_swd_pipeline(teacher, schedule, SwDConfig(trainable=trainable, lora_rank=2))
    choices = {"inputs": "none", "conditioning_limit": None, "lora_rank": 2} | choices
    config = SigDEGConfig(nfe=(2,), trainable=trainable, **choices)
    return build_pipeline(teacher, spec_of(teacher), config, GAINS)


def moved_away(network: Any) -> None:
    """Noise on every weight that is trained."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def with_prompts(student: Any, teacher: Denoiser, pipe: Any) -> Any:
    """The student with its teacher's encoders, where it takes prompts."""
    if teacher.condition_kind != "prompts":
        return student
    assert teacher.conditions is not None
    weight = teacher.embedded_guidance
    about = {
        "pipeline": type(pipe).__name__,
        "options": {k: v for k, v in pipe.config.items() if isinstance(v, bool)},
        "keys": sorted(teacher.conditions[torch.tensor([0])].keys()),
        "guidance": weight if isinstance(weight, float) else 3.5,
        "negative_prompt": "",
        "examples": PROMPTS,
        "source": None,
    }
    if isinstance(weight, GuidanceRange):
        about["guidance_range"] = [weight.low, weight.high]
    elif weight is not None:
        about["embedded"] = {"guidance": weight}
    return student.with_network(student.unet, num_classes=None, prompts=about, **text_parts(pipe))
