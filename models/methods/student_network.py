"""Student networks from the teacher's: more input channels that start at zero, all weights or
LoRA.
"""

from __future__ import annotations

import copy

from torch import nn

from models.common.errors import InputError
from models.common.own_weights import copy_sharing_weights, mark_the_rest
from models.teachers.base import Denoiser
from models.teachers.guidance import GuidanceRange


def student_network(
    teacher: Denoiser, in_channels: int, trainable: str = "full", rank: int = 16
) -> nn.Module:
    """A copy of the teacher's network whose first layer takes ``in_channels`` >= the teacher's.

    The added channels' weights are zero, so the copy computes the teacher until it is trained. It
    is float32, whatever the teacher is: small steps of an optimizer are lost in less. Weights that
    it does not train are the teacher's own tensors, where those are float32.
    ``trainable``: "full", "lora" (Hu et al. 2022, rank ``rank``, on the layers that the teacher's
    ``lora_targets`` name, plus the first layer where that has more channels), or "input" (the first
    layer alone). Where the teacher's embedded guidance is a range, the student has an input for its
    weight too, trained in any case. Raises InputError on anything else.
    """
    whole = trainable == "full"
    student = (
        copy.deepcopy(teacher.network).float() if whole else copy_sharing_weights(teacher.network)
    )
    student.requires_grad_(False)
    teacher.expand_input(student, in_channels)
    weighted = isinstance(teacher.embedded_guidance, GuidanceRange)
    added = teacher.add_weight_input(student) if weighted else None
    if whole:
        student.requires_grad_(True)
        _keep_frequencies(student)
    elif trainable in ("lora", "input"):
        if trainable == "lora":
            _add_lora(teacher, student, rank)
        # without channels of its own a LoRA is all that a student has: it fits the stock network
        if trainable == "input" or in_channels != teacher.shape[0]:
            student.get_submodule(teacher.input_layer).requires_grad_(True)
        if added is not None:
            added.requires_grad_(True)
        mark_the_rest(student)
    else:
        raise InputError(f"method.trainable = {trainable!r}: expected full, lora or input")
    for module in student.modules():
        if hasattr(module, "dropout_prob"):
            # a DiT forgets labels at random in training mode; the student follows its teacher's
            module.dropout_prob = 0.0  # type: ignore[assignment]
    return student.train()


def _keep_frequencies(network: nn.Module) -> None:
    """Fourier embeddings of a time have random frequencies, which no training moves."""
    for module in network.modules():
        if type(module).__name__ == "GaussianFourierProjection":
            module.requires_grad_(False)


def _add_lora(teacher: Denoiser, network: nn.Module, rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    targets, first = teacher.lora_targets, teacher.input_layer
    excluded = list(teacher.lora_excluded)
    if f".{first}".endswith(tuple(f".{t}" for t in targets)):
        excluded.append(first)  # the first layer is trained itself, or not at all
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(targets),
        exclude_modules=excluded or None,
        init_lora_weights="gaussian",
    )
    try:
        inject_adapter_in_model(config, network)
    except ValueError as error:
        raise InputError(
            f"method.trainable = lora: no adapters for {type(network).__name__} "
            f"({str(error).splitlines()[0]}); expected layers that end in {', '.join(targets)}; "
            f"set {type(teacher).__name__}.lora_targets, or use full"
        ) from error


def merged(network: nn.Module) -> nn.Module:
    """A plain copy with LoRA folded into the weights: a stock diffusers model that
    ``save_pretrained`` writes.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(plain.get_submodule(parent), leaf, module.get_base_layer())
    return plain.requires_grad_(False).eval()
