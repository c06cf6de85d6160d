"""CLIP score and aesthetic score of a tiny CLIP model, by hand and by transformers' own logits."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel

from models.common.errors import InputError
from models.evaluation.base import MetricOptions, Samples
from models.evaluation.clip import Aesthetic, Clip, ClipScore, load_aesthetic, open_clip
from models.evaluation.features import DigitFeatures, DigitNet
from tasks.config.evaluation import Evaluation
from tasks.evaluation.evaluator import Evaluator
from tasks.evaluation.results import SamplerKey
from tests.models.evaluation.test_features import images, save_backbone
from tests.models.teachers.pipelines import clip_tokenizer

PROMPTS = ("ab", "c", "ab")
WIDTH = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight tokens are read; those of the tokenizer are fewer than the model knows."""
    save_backbone(tmp_path / "clip", "clip")
    tokenizer: Any = clip_tokenizer()
    tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def embeddings(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of images of the model's own size and of the prompts, by the whole model's forward pass."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    tokens: Any = clip_tokenizer()(list(PROMPTS), padding="max_length", max_length=8)
    net = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = net(
            input_ids=torch.tensor(tokens.input_ids),
            attention_mask=torch.tensor(tokens.attention_mask),
            pixel_values=((x + 1) / 2 - mean) / std,
        )
    return found.image_embeds, found.text_embeds  # of length 1


def test_clip_score_is_the_cosine_of_image_and_prompt(folder: Path) -> None:
    x = images(3, 3, 28)
    image, text = embeddings(folder, x)
    metric = ClipScore(Samples(), MetricOptions(resamples=50, clip=folder))
    found = metric(Samples(images=x, prompts=PROMPTS))
    cosine = (image * text).sum(1)
    assert float(cosine.min()) > 0
    assert found.value == pytest.approx(float(100 * cosine.mean()), rel=1e-4)
    assert found.low <= found.value <= found.high
    assert metric(Samples(images=x.flip(0), prompts=PROMPTS[::-1])).value == pytest.approx(
        found.value, rel=1e-5
    )


def test_an_image_that_is_against_its_prompt_counts_nothing(folder: Path) -> None:
    net = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        net.visual_projection.weight.neg_()
    net.save_pretrained(folder)
    metric = ClipScore(Samples(), MetricOptions(clip=folder))
    assert metric(Samples(images=images(3, 3, 28), prompts=PROMPTS)).value == 0.0


def test_a_long_prompt_is_cut_and_a_missing_one_is_refused(folder: Path) -> None:
    metric = ClipScore(Samples(), MetricOptions(clip=folder))
    x = images(1, 3, 28)
    first, second = (metric(Samples(images=x, prompts=("abcdef" + end,))) for end in ("g", "gxyz"))
    assert first.value == second.value
    with pytest.raises(InputError, match="clip_score: expected images with a prompt each"):
        metric(Samples(images=x))


def save_head(path: Path, sizes: list[int]) -> nn.Sequential:
    """Linear layers between dropouts, named as in published predictors."""
    torch.manual_seed(1)
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.Dropout(0.2)]
    head = nn.Sequential(*parts[:-1]).eval()
    save_file({f"layers.{name}": value for name, value in head.state_dict().items()}, path)
    return head


@pytest.mark.parametrize("sizes", [[WIDTH, 1], [WIDTH, 9, 8, 7, 6, 5, 4, 1]])
def test_aesthetic_score_is_the_stack_of_layers(
    folder: Path, tmp_path: Path, sizes: list[int]
) -> None:
    """Also with more than ten parts, whose numbers do not sort as text."""
    head = save_head(tmp_path / "head.safetensors", sizes)
    options = MetricOptions(clip=folder, aesthetic=tmp_path / "head.safetensors")
    x = images(4, 3, 28)
    image, _ = embeddings(folder, images(3, 3, 28))
    found = Aesthetic(Samples(), options)(Samples(images=images(3, 3, 28)))
    with torch.no_grad():
        assert found.value == pytest.approx(float(head(image).mean()), rel=1e-4)
    assert Aesthetic(Samples(), options)(Samples(images=x)).value != found.value


def watch(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass of the model has from now on."""
    looked: list[int] = []
    whole = clip.images_of

    def images_of(x: Tensor) -> Tensor:
        looked.append(len(x))
        return whole(x)

    monkeypatch.setattr(clip, "images_of", images_of)
    return looked


def test_images_are_looked_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By both metrics together; other samples, also a part of the same ones, are looked at anew."""
    save_head(tmp_path / "head.safetensors", [WIDTH, 1])
    options = MetricOptions(clip=folder, aesthetic=tmp_path / "head.safetensors")
    fits, pleases = ClipScore(Samples(), options), Aesthetic(Samples(), options)
    looked = watch(fits.clip, monkeypatch)
    x = images(3, 3, 28)
    samples = Samples(images=x, prompts=PROMPTS)
    together = fits(samples).value, pleases(samples).value
    assert looked == [3]
    part = samples.head(2)
    assert fits(part).value != together[0] and looked == [3, 2]
    apart = [metric(Samples(images=x, prompts=PROMPTS)).value for metric in (fits, pleases)]
    assert together == tuple(apart) and looked == [3, 2, 3, 3]


def test_the_table_looks_at_a_samplers_images_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_head(tmp_path / "head.safetensors", [WIDTH, 1])
    settings = Evaluation(
        metrics=("kid", "clip_score", "aesthetic"),
        bootstrap=0,
        clip={"path": str(folder), "aesthetic": str(tmp_path / "head.safetensors")},
    )
    x = images(6, 3, 28)
    evaluator = Evaluator([DigitFeatures(DigitNet(channels=8, width=12))], x[:3], settings)
    looked = watch(open_clip(folder), monkeypatch)
    for name in ("student", "teacher"):
        evaluator.measure(SamplerKey(name, 2), x[3:], PROMPTS)
    assert looked == [3, 3]


def test_wrong_files_are_one_line(folder: Path, tmp_path: Path) -> None:
    save_head(tmp_path / "wide.safetensors", [16, 1])
    save_head(tmp_path / "two.safetensors", [WIDTH, 2])
    (tmp_path / "broken.safetensors").write_bytes(b"not it")
    save_file({"layers.0.weight": torch.zeros(1, WIDTH)}, tmp_path / "bare.safetensors")
    for name, line in {
        "wide.safetensors": r"layers \(1, 16\); expected .* from 12 entries to 1",
        "two.safetensors": r"layers \(2, 12\); expected",
        "broken.safetensors": "expected a .safetensors of linear layers",
        "bare.safetensors": "has layers.0.weight; expected",
        "none.safetensors": "none.safetensors: .*expected",
        "x.pth": "of a .pth, python -c",
    }.items():
        with pytest.raises(InputError, match=line) as caught:
            load_aesthetic(tmp_path / name, WIDTH)
        assert "\n" not in str(caught.value)
    save_backbone(tmp_path / "dino", "dinov2")
    with pytest.raises(InputError, match="Dinov2Model reads no text; expected a CLIP model"):
        ClipScore(Samples(), MetricOptions(clip=tmp_path / "dino"))
    save_backbone(tmp_path / "mute", "clip")
    with pytest.raises(InputError, match="no tokenizer; expected tokenizer.json or"):
        ClipScore(Samples(), MetricOptions(clip=tmp_path / "mute"))
