"""Training the digit features, on scikit-learn's 8x8 digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.common.errors import InputError
from models.evaluation.features import DigitNet
from scripts import train_digit_features as features
from tasks.config.schema import Params
from tasks.data.dataset import load_split
from tasks.stages import dataset


def test_run_learns_and_ships_a_folder(tmp_path: Path) -> None:
    params = Params.model_validate({"dataset": {"kind": "digits", "size": 8, "holdout": 300}})
    features.run(params, tmp_path)
    folder = tmp_path / features.FOLDER
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    dataset.run(params, tmp_path)
    images, labels = load_split(tmp_path, "holdout")
    accuracy = features.measure(
        DigitNet.load(folder),
        torch.from_numpy(np.array(images)),
        torch.from_numpy(np.array(labels)),
    )
    assert accuracy > 0.93
    assert f"{100 * accuracy:.2f} % of 300" in (folder / "README.md").read_text()


def test_an_npz_is_tested_on_its_own_test_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = {"train": 30, "test": 20}
    arrays = {
        f"{part}_images": rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        for part, n in counts.items()
    }
    arrays |= {f"{part}_labels": np.arange(n) % 10 for part, n in counts.items()}
    np.savez(tmp_path / "digits.npz", allow_pickle=False, **arrays)
    settings = {"kind": "npz", "path": str(tmp_path / "digits.npz"), "size": 8, "holdout": 10}
    keys = {"images": "train_images", "labels": "train_labels"}
    params = Params.model_validate({"dataset": settings | keys})
    images, labels, test_images, test_labels, source = features._load(params)
    assert (len(images), len(labels), len(test_images), len(test_labels)) == (30, 30, 20, 20)
    known = {image.tobytes() for image in arrays["test_images"]}
    assert {image.numpy().tobytes() for image in test_images[:, 0]} == known
    assert source == "digits.npz: train_images, tested on test_images"


def test_jitter_moves_pictures_a_little_and_fills_with_black() -> None:
    images = torch.full((64, 1, 16, 16), -1.0)
    images[:, :, 7:9, 7:9] = 1.0
    moved = features.jitter(images, torch.Generator().manual_seed(0))
    assert float(moved.min()) >= -1 and float(moved.max()) <= 1
    mass = (moved + 1) / (moved + 1).sum((2, 3), keepdim=True)
    centre = (mass.sum(3) * torch.arange(16)).sum(2)
    assert float((centre - 7.5).abs().max()) < features.SHIFT + 0.3
    assert float(centre.std()) > 0.5
    black = torch.full((4, 1, 16, 16), -1.0)
    assert torch.equal(features.jitter(black, torch.Generator()), black)


def test_unlabelled_images_are_refused(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "plain.npz", allow_pickle=False, images=images)
    settings = {"kind": "npz", "path": str(tmp_path / "plain.npz"), "size": 8, "holdout": 10}
    with pytest.raises(InputError, match="expected grey images with a label each"):
        features.run(Params.model_validate({"dataset": settings}), tmp_path)
