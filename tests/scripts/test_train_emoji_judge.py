"""The judge learns captions from real emoji and ships as a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.common.random import generator_for
from models.evaluation.caption_retrieval import CaptionModel, hits
from scripts import train_emoji_judge as judge
from scripts.emoji.data import load_emoji, to_float
from tests.scripts.emoji.samples import CAPTIONS, write_emoji


class Corners:
    """Features: an 8x8 picture as it is."""

    label, dim = "pixels", 192

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)


def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "load_features", lambda _kind: Corners())
    data = write_emoji(tmp_path / "e.npz")
    judge.main([str(data), "--out", str(tmp_path / "out"), "--steps", "60"])
    model = CaptionModel.load(tmp_path / "out")
    assert model.captions == tuple(sorted(CAPTIONS))
    train, test = judge.split(load_emoji(data))
    assert not set(train.prompts) & set(test.prompts)
    found = hits(model, Corners()(to_float(train.images)), train.captions)
    assert float(found.double().mean()) > 0.8  # chance is 1 in 6
    assert "real emoji it has not seen" in (tmp_path / "out" / "README.md").read_text()


def test_jitter_moves_pictures_a_little_and_fills_with_white() -> None:
    images = torch.ones(32, 3, 64, 64)
    images[:, :, 28:36, 28:36] = -1.0
    moved = judge.jitter(images, generator_for("cpu", 0))
    dark = (moved < 0).float().sum((1, 2, 3)) / 3
    assert bool((dark > 30).all()) and bool((dark < 110).all())
    assert bool((moved[:, :, :8] > 0.9).all())  # the border stays white
    assert len({tuple(m.argmin().flatten().tolist()) for m in moved}) > 8
