"""The teacher without weights: its network, autoencoder and encoders on the meta device."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.common.errors import InputError
from models.teachers.architectures import build_network, build_scheduler
from models.teachers.base import Denoiser
from models.teachers.families import FAMILIES, family_named
from models.teachers.guidance import WEIGHTS
from models.teachers.loading import build_denoiser, read_record
from models.teachers.prompts import PromptDenoiser
from tasks.config.schema import Params
from tasks.config.teacher import FactoryTeacher, PretrainedTeacher, TrainedTeacher
from tasks.estimate.data import Facts
from tasks.estimate.parts import ENCODERS, Parts, find_parts

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Blueprint:
    """``teacher``: its parameters are on the meta device; ``condition``: shape and dtype of one
    row by name, empty where it takes none; ``told``: where all of it is from; ``dtype``: of the
    network's weights.
    """

    teacher: Denoiser
    told: str
    dtype: torch.dtype = torch.float32
    condition: dict[str, tuple[Shape, torch.dtype]] = field(default_factory=dict)
    encoders: dict[str, nn.Module] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.teacher.network.parameters())

    @property
    def vae(self) -> Any:
        return self.teacher.codec.vae

    @property
    def state(self) -> int:
        """Entries of one state."""
        return int(torch.Size(self.teacher.shape).numel())

    def data_shape(self) -> Shape:
        """Of one decoded image or series."""
        if self.vae is None:
            return self.teacher.shape
        from models.teachers.network_call import pixels_per_entry

        pixels = pixels_per_entry(self.vae)
        channels = int(self.vae.config.get("out_channels") or 3)
        return (channels, *(side * pixels for side in self.teacher.shape[1:]))


def blueprint(params: Params, root: Path, facts: Facts | None) -> Blueprint:
    """The teacher that the params mean. ``facts``: of the dataset, which a teacher that is to be
    trained needs. Raises InputError for one whose shape cannot be known.
    """
    source = params.teacher
    if isinstance(source, TrainedTeacher):
        return _trained(source, facts)
    if isinstance(source, FactoryTeacher):
        from models.teachers.factory import call_factory

        teacher = call_factory(source.factory, source.arguments)
        teacher.network.to("meta")
        return _weighted(Blueprint(teacher, source.factory, condition=_classes(teacher)), params)
    return _weighted(_pretrained(source, root), params)


def _weighted(plan: Blueprint, params: Params) -> Blueprint:
    """With a range of guidance: its students take a weight, each row has one; InputError where they
    cannot.
    """
    from tasks.data.trajectories import guidance_of

    if params.trajectories.guidance_range is None:
        return plan
    plan.teacher.embed_guidance(guidance_of(params.trajectories))
    return replace(plan, condition=plan.condition | {WEIGHTS: ((), torch.float32)})


def _trained(source: TrainedTeacher, facts: Facts | None) -> Blueprint:
    if facts is None:
        raise InputError("teacher.source = train: nothing is known of the dataset to train on")
    classes = facts.classes if source.conditional else None
    with torch.device("meta"):
        network = build_network(
            facts.shape, source.channels, source.layers_per_block, classes, source.dropout
        )
    scheduler = build_scheduler(source.prediction_type, source.schedule)
    teacher = build_denoiser(network, scheduler, null_class=classes)
    return Blueprint(teacher, "teacher.source = train", condition=_classes(teacher))


def _pretrained(source: PretrainedTeacher, root: Path) -> Blueprint:
    parts = find_parts(source.path, source.config, root)
    name = "unet" if "unet" in parts.configs else "transformer"
    if name not in parts.configs or parts.configs[name][0] not in FAMILIES:
        kind = parts.configs[name][0] if name in parts.configs else "no network"
        raise InputError(
            f"teacher.path = {source.path}: {kind}; expected {', '.join(sorted(FAMILIES))}"
        )
    network = _meta(*parts.configs[name])
    vae = parts.configs.get("vae") or parts.configs.get("vqvae")
    record = {} if parts.folder is None else read_record(parts.folder)
    null_class = record.get("null_class") if source.null_class is None else source.null_class
    if null_class is not None and network.config.get("num_class_embeds"):
        null_class = int(network.config.num_class_embeds) - 1  # the teacher stage moves it there
    size = record.get("size") if source.size is None else source.size
    family = family_named(parts.configs[name][0])
    teacher = build_denoiser(
        network,
        _scheduler(*parts.configs["scheduler"]),
        None if vae is None else _meta(*vae),
        null_class,
        size,
    )
    prompts = issubclass(family, PromptDenoiser)
    encoders = {n: _encoder(*c) for n, c in parts.configs.items() if n.startswith(ENCODERS)}
    return Blueprint(
        teacher,
        parts.told,
        getattr(torch, source.dtype),
        condition_shapes(network, parts) if prompts else _classes(teacher),
        encoders if prompts else {},
        parts.folder,
    )


def _meta(kind: str, config: dict[str, Any]) -> Any:
    import diffusers

    with torch.device("meta"):
        return getattr(diffusers, kind).from_config(config)


def _scheduler(kind: str, config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, kind).from_config(config)


def _encoder(kind: str, config: dict[str, Any]) -> nn.Module:
    import transformers

    model = getattr(transformers, kind)
    with torch.device("meta"):
        made: nn.Module = model(model.config_class(**config))
    return made


def _classes(teacher: Denoiser) -> dict[str, tuple[Shape, torch.dtype]]:
    return {"class_labels": ((), torch.int64)} if teacher.condition_kind == "classes" else {}


def condition_shapes(network: Any, parts: Parts) -> dict[str, tuple[Shape, torch.dtype]]:
    """Shape and dtype of the condition of one prompt, as its pipeline pads it."""
    config, kind, number = network.config, type(network).__name__, torch.float32
    if kind == "UNet2DConditionModel":
        found: dict[str, tuple[Shape, torch.dtype]]
        found = {"encoder_hidden_states": ((parts.clip_tokens, config.cross_attention_dim), number)}
        if config.get("addition_embed_type") == "text_time":
            pooled = (
                config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            )
            found["pooled_projections"] = ((pooled,), number)
        return found
    tokens = _stated_length(parts.pipeline)
    if kind in ("SD3Transformer2DModel", "FluxTransformer2DModel"):
        tokens += parts.clip_tokens if kind.startswith("SD3") else 0
        return {
            "encoder_hidden_states": ((tokens, config.joint_attention_dim), number),
            "pooled_projections": ((config.pooled_projection_dim,), number),
        }
    return {
        "encoder_hidden_states": ((tokens, config.caption_channels), number),
        "encoder_attention_mask": ((tokens,), torch.int64),
    }


def _stated_length(pipeline: str) -> int:
    """``max_sequence_length`` of a pipeline's call where nobody says one."""
    import diffusers

    call = inspect.signature(getattr(diffusers, pipeline).__call__)
    return int(call.parameters["max_sequence_length"].default)
