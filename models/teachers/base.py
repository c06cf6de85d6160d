"""One interface over every teacher: ``denoise(x, t, condition) -> x0``.

Forward process ``x_t = alpha_t x0 + sigma_t eps`` (models/teachers/schedule.py). The network's
prediction becomes x0 by

    epsilon:      x0 = (x - sigma * eps) / alpha
    v_prediction: x0 = alpha * x - sigma * v                    (Salimans and Ho 2022)
    sample:       x0 itself
    flow:         x0 = x - sigma * v,  v = eps - x0             (Lipman et al. 2023)
    edm:          x0 = alpha * x + sigma * F                    (Karras et al. 2022, F = -v)
    edm_v:        x0 = alpha * x - sigma * v, at EDM's times
    ve:           as epsilon, of a network of scores (models/teachers/network_call.py)
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from models.common.errors import InputError
from models.common.shapes import append_dims, rows_at_once
from models.teachers.codec import Codec
from models.teachers.conditioning import Condition, ConditionTable, class_condition
from models.teachers.guidance import Guidance, GuidanceRange, asked_weights, with_weights
from models.teachers.schedule import NoiseSchedule

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow", "edm", "edm_v", "ve")
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj", "net.2")


def to_x0(prediction_type: str, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 from a network's output; all tensors broadcast against the state x (n, ...). Formulas:
    the module's head.
    """
    if prediction_type in ("epsilon", "ve"):
        return (x - sigma * output) / alpha
    if prediction_type in ("v_prediction", "edm_v"):
        return alpha * x - sigma * output
    if prediction_type == "edm":
        return alpha * x + sigma * output
    if prediction_type == "flow":
        return x - sigma * output
    return output


def training_target(
    prediction_type: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """What a network of that prediction type is regressed on; the inverse of :func:`to_x0`."""
    return {
        "epsilon": lambda: eps,
        "ve": lambda: eps,
        "v_prediction": lambda: alpha * eps - sigma * x0,
        "edm_v": lambda: alpha * eps - sigma * x0,
        "edm": lambda: sigma * x0 - alpha * eps,
        "flow": lambda: eps - x0,
        "sample": lambda: x0,
    }[prediction_type]()


class Denoiser(nn.Module):
    """A frozen network with its noise schedule and codec.

    Any PyTorch module can be one: ``network(x, t, **condition)`` returns the prediction (n, ...)
    of type ``prediction_type`` for states x (n, *shape). diffusers' models have a family of their
    own each (models/teachers/families.py).

    ``shape``: of one state, (C, H, W) for images, (C, L) for series. ``clip``: bound on x0, or
    None. ``num_classes``: None for unconditional networks. ``null_class``: the class that stands
    for "no class" in classifier-free guidance, or None. ``scheduler``: the diffusers scheduler
    that the schedule was read from, where there is one.
    """

    network: Any
    codec: Codec
    lora_targets: tuple[str, ...] = LORA_TARGETS
    """Ends of the names of the layers that get an adapter."""
    lora_excluded: tuple[str, ...] = ()
    """Whole names of layers among those that get none, since nothing depends on them."""
    input_layer: str = "conv_in"
    """Name of the network's layer that sees the state."""
    conditions: ConditionTable | None = None
    """Of a teacher of prompts (models/teachers/prompts.py): labels are numbers of its rows."""
    embedded_guidance: Guidance | None = None
    """The weight in every condition, or the range of weights that conditions have, of networks and
    students that take it as an input; see embed_guidance.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        *,
        shape: tuple[int, ...],
        prediction_type: str,
        codec: Codec | None = None,
        clip: float | None = None,
        num_classes: int | None = None,
        null_class: int | None = None,
        scheduler: Any = None,
    ):
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise InputError(
                f"prediction_type {prediction_type!r}: expected {', '.join(PREDICTION_TYPES)}"
            )
        self.network, self.codec = network, Codec() if codec is None else codec
        self.schedule, self.scheduler = schedule, scheduler
        self.shape, self.prediction_type, self.clip = tuple(shape), prediction_type, clip
        self.num_classes, self.null_class = num_classes, null_class
        self.requires_grad_(False).eval()

    @property
    def stride(self) -> int:
        """What the sizes of states must be multiples of."""
        return 1

    def call_network(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        """The network's raw output."""
        output: Tensor = self.network(x, t, **({} if condition is None else condition))
        return output

    def middle_block(self) -> nn.Module:
        """The module whose output :meth:`features` returns; InputError where there is none."""
        raise InputError(
            f"teacher {type(self).__name__}: it has no feature layer; override middle_block, or "
            "set the weights of losses on features to 0"
        )

    def expand_input(self, network: Any, channels: int) -> None:
        """Let ``network``, a copy of this one, take ``channels`` >= C channels, in place; it
        ignores the added ones. InputError where it cannot.
        """
        raise InputError(
            f"teacher's {type(self.network).__name__}: no input layer is known; expected a "
            "DiffusersDenoiser, or a family with expand_input"
        )

    def sharded_blocks(self, network: nn.Module) -> list[nn.Module]:
        """The parts of ``network``, one of this one's kind, that are called as a whole, one after
        the other; where weights are sharded, those of a block are on a device together.
        """
        lists = [part for part in network.children() if isinstance(part, nn.ModuleList)]
        middle = getattr(network, "mid_block", None)
        return [block for part in lists for block in part] + ([] if middle is None else [middle])

    def input_channels(self, network: Any) -> int:
        """How many channels the states have that ``network``, one of this one's kind, takes."""
        return int(network.config.in_channels)

    @classmethod
    def check_channels(cls, channels: int, vae: Any) -> None:
        """InputError unless states of ``channels`` are data, or latents of ``vae``."""

    def feature_map(self, output: Tensor, x: Tensor) -> Tensor:
        """The middle block's output in the layout (n, F, ...)."""
        return output

    @property
    def predicts_noise(self) -> bool:
        """Whether x0 has the network's errors sigma / alpha times."""
        return self.prediction_type in ("epsilon", "ve")

    @property
    def condition_kind(self) -> str:
        """What a sample is made of beside noise: "none", "classes" or "prompts"."""
        return "none" if self.num_classes is None else "classes"

    @property
    def conditional(self) -> bool:
        """Whether every sample needs a condition."""
        return self.condition_kind != "none"

    @property
    def can_guide(self) -> bool:
        """Whether there is a null condition for classifier-free guidance."""
        return self.null_class is not None

    def embed_guidance(self, weight: Guidance) -> None:
        """Let conditions carry the weight of guidance, where the network takes that as an input:
        students are asked at the weight that their teacher's trajectories have. Nothing happens
        where guidance is made from two predictions.

        With a range, conditions have a weight for each sample, and students made from here on take
        it as an input. InputError where they cannot.
        """
        if isinstance(weight, GuidanceRange):
            raise InputError(
                f"trajectories.guidance_range = {weight}: students of a "
                f"{type(self.network).__name__} have no input for the weight of guidance; expected "
                "a teacher with a UNet2DConditionModel (Stable Diffusion 1.x, 2.x, XL), or a "
                "FluxTransformer2DModel with guidance_embeds; use null, and one "
                "trajectories.guidance"
            )

    def add_weight_input(self, network: Any) -> nn.Module | None:
        """Let ``network``, a copy of this one, take the weight of guidance as an input, in place;
        it ignores the weight until it is trained. The new layer; None where there is such an input
        already.
        """
        return None

    def encode_condition(self, labels: Tensor | None) -> Condition | None:
        """The condition of labels (n,) int64; None for unconditional teachers."""
        return class_condition(labels) if self.conditional else None

    def null_condition(self, n: int) -> Condition:
        """n rows of "no class"; ValueError for a teacher that has none (``can_guide``)."""
        if self.null_class is None:
            raise ValueError("this teacher has no null class")
        return Condition(class_labels=torch.full((n,), self.null_class, device=self.device))

    def default_condition(self, n: int, first: int = 0) -> Condition | None:
        """Samples ``first`` to ``first + n`` of an even mixture: the classes in turn, weights of
        guidance all over their range.
        """
        if not self.conditional:
            return None
        rows = self.labels_of("train")
        labels = rows.start + torch.arange(first, first + n) % len(rows)
        condition = self.encode_condition(labels.to(self.device))
        if condition is None or not isinstance(self.embedded_guidance, GuidanceRange):
            return condition
        return with_weights(condition, self.embedded_guidance.evenly(n, first))

    def labels_of(self, split: str) -> range:
        """Labels that the samples of a split ("train" or "validation") take in turn."""
        return range(self.num_classes or 0)

    @property
    def device(self) -> torch.device:
        return torch.device(next(self.network.parameters()).device)

    def output(self, x: Tensor, t: Tensor | float, condition: Condition | None = None) -> Tensor:
        """The network's prediction (n, *shape) at ``t``, scalar or (n,); without guidance."""
        times = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(x.shape[0])
        raw = self.call_network(x, self.schedule.network_time(times), condition)
        return raw[:, : self.shape[0]]  # a learned variance follows the prediction

    def predict(
        self,
        x: Tensor,
        t: Tensor | float,
        condition: Condition | None = None,
        guidance: Guidance = 1.0,
    ) -> Tensor:
        """The network's prediction (n, *shape), guided if ``guidance`` != 1 (Ho and Salimans
        2022): null + guidance * (conditional - null). With a range each row has the weight that its
        condition says. InputError where there is no null condition, or no weight.
        """
        if not self.conditional:
            return self.output(x, t)
        if condition is None:
            raise InputError(
                f"this teacher is conditional ({self.condition_kind}): a condition (a label in "
                f"0..{(self.num_classes or 1) - 1}) is needed for every sample"
            )
        if guidance == 1.0:
            return self.output(x, t, condition)
        if not self.can_guide:
            raise InputError(
                f"guidance = {guidance}: this teacher has no null class; use guidance 1.0"
            )
        plain, weight = asked_weights(condition, guidance)
        both = Condition.cat([plain, self.null_condition(len(x))])
        times = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(x.shape[0])
        guided = self.output(torch.cat([x, x]), torch.cat([times, times]), both)
        with_class, without = guided.chunk(2)
        if isinstance(weight, Tensor):
            weight = append_dims(weight.to(without), without)
        return without + weight * (with_class - without)

    def denoise(
        self,
        x: Tensor,
        t: Tensor | float,
        condition: Condition | None = None,
        guidance: Guidance = 1.0,
    ) -> Tensor:
        """E[x0 | x_t = x]: (n, *shape), clipped to the data range only where the scheduler
        clips.
        """
        times = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(x.shape[0])
        alpha, sigma = (append_dims(v, x) for v in self.schedule.alpha_sigma(times))
        prediction = self.predict(x, times, condition, guidance)
        x0 = to_x0(self.prediction_type, prediction, x, alpha, sigma)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    @contextmanager
    def capture_middle(self) -> Iterator[list[Tensor]]:
        """Collect the middle block's raw output during the forwards inside the ``with``."""
        seen: list[Tensor] = []
        handle = self.middle_block().register_forward_hook(lambda _m, _i, out: seen.append(out))
        try:
            yield seen
        finally:
            handle.remove()

    def features(self, x: Tensor, t: Tensor | float, condition: Condition | None = None) -> Tensor:
        """Activations (n, F, ...) of the middle block; differentiable."""
        with self.capture_middle() as seen:
            self.output(x, t, condition)
        return self.feature_map(seen[0], x)

    def decode(self, x0: Tensor) -> Tensor:
        """Data of states, see :class:`models.teachers.codec.Codec`."""
        return self.codec.decode(x0)

    def encode(self, images: Tensor) -> Tensor:
        """States of data, see :class:`models.teachers.codec.Codec`."""
        return self.codec.encode(images)

    def with_network(self, network: nn.Module) -> Self:
        """The same denoiser around another network of its kind; that keeps its own flags."""
        other = copy.copy(self)
        other._modules = {**self._modules, "network": network}
        return other

    def fingerprint(self) -> str:
        """sha256 (hex) of all that results depend on, wherever it came from: weights and
        configuration of network and autoencoder, schedule, prediction type, bound and classes.
        """
        digest = hashlib.sha256()
        classes = self.num_classes if self.condition_kind == "classes" else None
        numbers = (self.prediction_type, self.clip, classes, self.null_class, self.shape)
        configs = [_public(part) for part in (self.network, self.codec.vae, self.scheduler)]
        digest.update(json.dumps([numbers, configs], sort_keys=True, default=str).encode())
        digest.update(self.schedule.table().tobytes())
        if self.codec.scaling is not None:
            digest.update(json.dumps(self.codec.scaling, sort_keys=True).encode())
        for part in (self.network, self.codec):
            for name, value in sorted(part.state_dict().items()):
                array = np.ascontiguousarray(value.detach().cpu().float().numpy())
                digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()


@torch.no_grad()
def denoised_noise(teacher: Denoiser, noise: Tensor, t: float) -> Tensor:
    """What a teacher sees in pure noise (n, *shape), on the CPU; classes or prompts in turn."""
    size = rows_at_once(noise.shape[1:], len(noise))
    parts = []
    for low in range(0, len(noise), size):
        part = noise[low : low + size].to(teacher.device)
        parts.append(teacher.denoise(part, t, teacher.default_condition(len(part), low)).cpu())
    return torch.cat(parts)


def _public(part: Any) -> dict[str, Any]:
    """A diffusers object's configuration without private keys (paths, versions)."""
    config = dict(getattr(part, "config", None) or {})
    return {key: value for key, value in config.items() if not key.startswith("_")}
