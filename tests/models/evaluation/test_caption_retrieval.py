"""Caption retrieval on features whose captions are known by construction."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.common.errors import InputError
from models.evaluation.base import MetricOptions, Samples
from models.evaluation.caption_retrieval import CaptionModel, CaptionRetrieval, caption_of, hits
from models.evaluation.registry import metric_class

CAPTIONS = ("cat", "green apple", "red apple")


class Means:
    """Features: the mean of each channel."""

    label, dim = "means", 3

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.fixture
def model() -> CaptionModel:
    """Caption i is right for the i-th unit vector: words cat 1, green 2, red 3, apple nothing."""
    made = CaptionModel(CAPTIONS, inputs=3, width=3)
    with torch.no_grad():
        made.image.weight.copy_(torch.eye(3))
        made.image.bias.zero_()
        words = ["apple", "cat", "green", "red"]
        made.text.weight.zero_()
        for row, word in enumerate(("cat", "green", "red")):
            made.text.weight[row, words.index(word)] = 1
    return made.eval().requires_grad_(False)


def pictures(rows: list[int]) -> Tensor:
    """Images (n, 3, 4, 4) whose channel of that number is bright."""
    return torch.eye(3)[rows][:, :, None, None].expand(-1, -1, 4, 4).contiguous()


def test_the_share_of_right_captions_with_its_interval(model: CaptionModel) -> None:
    metric = CaptionRetrieval(Samples(), MetricOptions(resamples=100), model, Means())
    prompts = ("cat, noto style", "green apple, noto style", "Red Apple", "cat")
    right = metric(Samples(images=pictures([0, 1, 2, 0]), prompts=prompts))
    assert right.value == 1.0
    half = metric(Samples(images=pictures([0, 1, 0, 1]), prompts=prompts))
    assert half.value == 0.5
    assert 0 <= half.low < 0.5 < half.high <= 1


def test_the_best_two_hold_more_than_the_best_one(model: CaptionModel) -> None:
    features = torch.tensor([[1.0, 0.5, 0.0]])
    assert not bool(hits(model, features, ["green apple"]))
    assert bool(hits(model, features, ["green apple"], top=2))
    assert not bool(hits(model, features, ["red apple"], top=2))


def test_an_unknown_caption_is_one_line(model: CaptionModel) -> None:
    with pytest.raises(InputError, match="'zebra' is none of the 3") as error:
        hits(model, torch.zeros(1, 3), ["zebra, noto style"])
    assert "\n" not in str(error.value)


def test_images_without_prompts_are_refused(model: CaptionModel) -> None:
    metric = CaptionRetrieval(Samples(), model=model, extractor=Means())
    with pytest.raises(InputError, match="a prompt each"):
        metric(Samples(images=pictures([0])))
    with pytest.raises(InputError, match="2 prompts"):
        hits(model, torch.zeros(1, 3), ["cat", "cat"])


def test_saved_and_loaded(model: CaptionModel, tmp_path: Path) -> None:
    model.save(tmp_path)
    again = CaptionModel.load(tmp_path)
    x = torch.eye(3)
    assert again.captions == CAPTIONS
    assert torch.allclose(again(x), model(x), atol=1e-2)  # weights are kept in half precision
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="scripts.train_emoji_judge"):
        CaptionModel.load(tmp_path)


def test_the_style_is_no_part_of_the_caption() -> None:
    assert caption_of("Red apple, noto style") == "red apple"


def test_the_model_that_ships_tells_many_captions_apart() -> None:
    root = Path(__file__).parents[3]
    model = CaptionModel.load(root / "data/pretrained/emoji_captions")
    assert len(model.captions) > 200
    scores = model(torch.randn(50, 1280, generator=torch.Generator().manual_seed(0)))
    assert len(set(scores.argmax(1).tolist())) > 10


def test_it_is_a_metric_by_name() -> None:
    assert metric_class("caption_retrieval") is CaptionRetrieval
