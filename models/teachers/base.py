"""One interface over every diffusers model: ``denoise(x, t, labels) -> x0``.

Forward process ``x_t = alpha_t x0 + sigma_t eps``. Variance preserving: ``alpha_t**2 =
alphas_cumprod[t]``; flow matching: ``alpha = 1 - t / T`` and ``sigma = t / T``. The network's
prediction becomes x0 by

    epsilon:      x0 = (x - sigma * eps) / alpha
    v_prediction: x0 = alpha * x - sigma * v                    (Salimans and Ho 2022)
    sample:       x0 itself
    flow:         x0 = x - sigma * v,  v = eps - x0             (Lipman et al. 2023)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.common.errors import InputError

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


@dataclass(frozen=True)
class Levels:
    """K + 1 noise levels, from noise (0) to clean data (K).

    ``t``: (K,) times the network is asked at; ``alpha``, ``sigma``: (K + 1,) float64, with alpha[K]
    = 1, sigma[K] = 0.
    """

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray

    @property
    def steps(self) -> int:
        return len(self.t)


def to_x0(prediction: str, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0 from a network's output; all tensors broadcast against (n, C, H, W). Formulas: the
    module's head.
    """
    if prediction == "epsilon":
        return (x - sigma * output) / alpha
    if prediction == "v_prediction":
        return alpha * x - sigma * output
    if prediction == "flow":
        return x - sigma * output
    return output


def training_target(
    prediction: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """What a network of that prediction type is regressed on; the inverse of :func:`to_x0`."""
    return {
        "epsilon": lambda: eps,
        "v_prediction": lambda: alpha * eps - sigma * x0,
        "flow": lambda: eps - x0,
        "sample": lambda: x0,
    }[prediction]()


class Teacher(nn.Module):
    """A frozen diffusers denoiser with its schedule.

    ``network``: ``UNet2DModel`` or ``DiTTransformer2DModel``; ``scheduler``: a diffusers scheduler
    with ``alphas_cumprod`` and ``prediction_type``, or ``FlowMatchEulerDiscreteScheduler``;
    ``vae``: ``AutoencoderKL`` for latent teachers. ``shape`` is (C, H, W) of the state space,
    ``num_classes`` is None for unconditional networks, ``null_label`` the class that stands for "no
    class" in classifier-free guidance.
    """

    network: Any
    vae: Any

    def __init__(
        self,
        network: nn.Module,
        scheduler: Any,
        vae: nn.Module | None = None,
        null_label: int | None = None,
    ):
        super().__init__()
        self.network, self.scheduler, self.vae = network, scheduler, vae
        cfg = self.network.config
        height, width = np.broadcast_to(cfg.sample_size, 2)
        self.shape = (int(cfg.in_channels), int(height), int(width))
        self.is_dit = type(network).__name__ == "DiTTransformer2DModel"
        embeds = cfg.num_embeds_ada_norm if self.is_dit else cfg.get("num_class_embeds")
        self.null_label: int | None = embeds if self.is_dit else null_label
        real = embeds if self.is_dit or null_label is None or embeds is None else embeds - 1
        self.num_classes: int | None = real
        self.prediction, self._alphas_cumprod = _read_schedule(scheduler)
        self.train_steps = int(scheduler.config.num_train_timesteps)
        clips = scheduler.config.get("clip_sample")
        self.clip = float(scheduler.config.get("clip_sample_range", 1.0)) if clips else None
        self.requires_grad_(False).eval()

    @classmethod
    def load(
        cls, source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> Teacher:
        """Open a diffusers pipeline folder or hub id (safetensors only).

        Raises InputError when the folder is missing or the denoiser or scheduler is of an
        unsupported kind.
        """
        pipe = open_pipeline(source, revision=revision, trust_remote_code=trust_remote_code)
        return cls.from_pipeline(pipe, str(source))

    @classmethod
    def from_pipeline(
        cls, pipe: Any, source: str = "pipeline", null_label: int | None = None
    ) -> Teacher:
        """Wrap the denoiser, scheduler and (for latent models) VAE of an opened pipeline.

        ``source`` names it in errors; if it is a folder with teacher.json, that may tell
        ``null_label``.
        """
        parts = pipe.components
        network = parts.get("unet") or parts.get("transformer")
        if type(network).__name__ not in ("UNet2DModel", "DiTTransformer2DModel"):
            found = type(network).__name__
            raise InputError(
                f"teacher {source}: denoiser {found}; expected UNet2DModel or a class-conditional "
                "DiT"
            )
        if parts.get("scheduler") is None:
            raise InputError(
                f"teacher {source}: a pipeline without scheduler; expected one that says the "
                "noise levels"
            )
        null_label = read_null_label(source) if null_label is None else null_label
        return cls(network, parts["scheduler"], parts.get("vae"), null_label)

    @property
    def device(self) -> torch.device:
        return torch.device(next(self.network.parameters()).device)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times ``t`` (any shape, the scheduler's units [0, T)), float32 on t's
        device.
        """
        if self._alphas_cumprod is None:
            sigma = t.to(torch.float32) / self.train_steps
            return 1.0 - sigma, sigma
        squared = torch.as_tensor(self._alphas_cumprod, device=t.device)[t.round().long()]
        return squared.sqrt().float(), (1.0 - squared).sqrt().float()

    def levels(self, steps: int) -> Levels:
        """The K = ``steps`` level chain, times spaced as diffusers' ``trailing``; InputError if K >
        T.
        """
        if not 1 <= steps <= self.train_steps:
            raise InputError(
                f"trajectories.steps = {steps}: expected 1 to {self.train_steps}, the teacher's "
                "own number"
            )
        if self._alphas_cumprod is None:
            shift = float(self.scheduler.config.get("shift") or 1.0)
            sigma = np.linspace(1.0, 0.0, steps + 1)
            sigma = shift * sigma / (1.0 + (shift - 1.0) * sigma)
            return Levels(t=sigma[:-1] * self.train_steps, alpha=1.0 - sigma, sigma=sigma)
        t = (
            np.round(np.arange(self.train_steps, 0, -self.train_steps / steps))[:steps].astype(
                np.int64
            )
            - 1
        )
        squared = np.append(self._alphas_cumprod[t], 1.0)
        return Levels(t=t.astype(np.float64), alpha=np.sqrt(squared), sigma=np.sqrt(1.0 - squared))

    def predict(
        self, x: Tensor, t: Tensor | float, labels: Tensor | None = None, guidance: float = 1.0
    ) -> Tensor:
        """The network's own prediction (n, C, H, W), guided if ``guidance`` != 1; ``t``: scalar or
        (n,).
        """
        times = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(x.shape[0])
        if self._alphas_cumprod is not None:
            times = times.round().long()
        if self.num_classes is None:
            return self._forward(x, times, None)
        if labels is None:
            raise InputError(
                f"this teacher is conditional: labels in 0..{self.num_classes - 1} are needed for "
                "every image"
            )
        if guidance == 1.0:
            return self._forward(x, times, labels)
        if self.null_label is None:
            raise InputError(
                f"guidance = {guidance}: this teacher has no null class; use guidance 1.0"
            )
        null = torch.full_like(labels, self.null_label)
        both = self._forward(
            torch.cat([x, x]), torch.cat([times, times]), torch.cat([labels, null])
        )
        with_class, without = both.chunk(2)
        return without + guidance * (with_class - without)

    def _forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return network_output(self.network, x, t, labels)[:, : self.shape[0]]

    def denoise(
        self, x: Tensor, t: Tensor | float, labels: Tensor | None = None, guidance: float = 1.0
    ) -> Tensor:
        """E[x0 | x_t = x]: (n, C, H, W), clipped to the data range only where the scheduler
        clips.
        """
        times = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(x.shape[0])
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in self.alpha_sigma(times))
        x0 = to_x0(self.prediction, self.predict(x, times, labels, guidance), x, alpha, sigma)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def features(self, x: Tensor, t: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """Activations (n, F, h, w) of the middle (transformer) block; differentiable."""
        times = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(x.shape[0])
        if self._alphas_cumprod is not None:
            times = times.round().long()
        with capture_middle(self.network) as seen:
            self._forward(x, times, labels)
        out = seen[0]
        if out.dim() == 3:
            patch = self.network.config.patch_size
            n, _, width = out.shape
            out = out.transpose(1, 2).reshape(n, width, x.shape[2] // patch, x.shape[3] // patch)
        return out

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Images in [-1, 1]: x0 itself, or its VAE decoding for latent teachers."""
        if self.vae is None:
            return x0.clamp(-1, 1)
        images: Tensor = self.vae.decode(x0 / self.vae.config.scaling_factor).sample
        return images.clamp(-1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """x0 of images in [-1, 1]: themselves, or the mean of their VAE encoding for latent
        teachers.
        """
        if self.vae is None:
            return images
        x0: Tensor = self.vae.encode(images).latent_dist.mode() * self.vae.config.scaling_factor
        return x0

    def fingerprint(self) -> str:
        """sha256 (hex) of weights, network configuration, schedule and null label, wherever it came
        from.
        """
        digest = hashlib.sha256()
        configs = [
            dict(self.network.config),
            dict(self.scheduler.config),
            {"null_label": self.null_label},
        ]
        public = [{k: v for k, v in c.items() if not k.startswith("_")} for c in configs]
        digest.update(json.dumps(public, sort_keys=True, default=str).encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(
                name.encode() + np.ascontiguousarray(value.detach().cpu().float().numpy()).tobytes()
            )
        return digest.hexdigest()


def open_pipeline(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """A diffusers pipeline from a folder or hub id, safetensors weights only; InputError if there
    is none.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    if Path(source).exists() and not (Path(source) / "model_index.json").is_file():
        raise InputError(
            f"teacher {source}: no model_index.json; expected a diffusers pipeline folder "
            "(save_pretrained)"
        )
    try:
        pipe = DiffusionPipeline.from_pretrained(
            str(source),
            revision=revision,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "custom code" in first and not trust_remote_code:
            raise InputError(
                f"teacher {source}: brings code of its own, which is not run unasked; read it, "
                "and if you trust it set "
                "teacher.trust_remote_code: true"
            ) from error
        raise InputError(
            f"teacher {source}: no diffusers pipeline with safetensors weights opens there "
            f"({first}); give "
            "a folder written by save_pretrained, or a hub id that this machine can reach"
        ) from error
    return pipe


def read_null_label(source: str | Path) -> int | None:
    """The class that means "no class", from teacher.json in a pipeline folder; None where nothing
    says.
    """
    record = Path(source) / "teacher.json"
    if not record.is_file():
        return None
    try:
        label = json.loads(record.read_text()).get("null_label")
    except (ValueError, AttributeError):
        raise InputError(
            f"{record}: not readable; expected a JSON object, with null_label if there is one"
        ) from None
    return None if label is None else int(label)


def network_output(network: nn.Module, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Forward of a UNet2DModel or DiT; a DiT's learned-variance channels are still in the
    result.
    """
    output: Tensor = network(x, timestep=t, class_labels=labels, return_dict=False)[0]
    return output


@contextmanager
def capture_middle(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the output of the network's middle block during the forwards inside the ``with``."""
    blocks: Any = getattr(network, "transformer_blocks", None)
    middle: Any = (
        getattr(network, "mid_block", None) if blocks is None else blocks[len(blocks) // 2]
    )
    seen: list[Tensor] = []
    handle = middle.register_forward_hook(lambda _m, _i, out: seen.append(out))
    try:
        yield seen
    finally:
        handle.remove()


def _read_schedule(scheduler: Any) -> tuple[str, np.ndarray | None]:
    if "FlowMatch" in type(scheduler).__name__:
        return "flow", None
    cumprod = getattr(scheduler, "alphas_cumprod", None)
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if cumprod is None or prediction not in PREDICTIONS:
        raise InputError(
            f"teacher scheduler {type(scheduler).__name__} with prediction_type {prediction!r}: "
            "expected one "
            "with alphas_cumprod and epsilon, v_prediction or sample, or "
            "FlowMatchEulerDiscreteScheduler"
        )
    return prediction, np.asarray(cumprod.double())
