"""The dataset stage: digits, exclusions, what it writes and what damages it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from models.common.errors import InputError
from tasks.data.dataset import load_split
from tasks.data.images import fit
from tasks.data.sources.digits import digits_source
from tasks.data.sources.mnist import mnist_source
from tests.tasks.stages.dataset_project import make


def test_digits(tmp_path: Path) -> None:
    manifest = make(tmp_path, kind="digits", size=8, holdout=297)
    images, labels = load_split(tmp_path, "train")
    assert (
        images.shape == (1500, 1, 8, 8) and images.dtype == np.uint8 and not images.flags.writeable
    )
    assert labels.shape == (1500,) and labels.dtype == np.int64
    assert manifest["counts"] == {"train": 1500, "holdout": 297}
    assert (
        manifest["class_names"] == [str(digit) for digit in range(10)]
        and manifest["unlabelled"] == 0
    )
    held, held_labels = load_split(tmp_path, "holdout")
    source = digits_source()
    wanted = sorted((int(source.labels[i]), source.read(i).tobytes()) for i in range(1797))
    pairs = [*zip(labels, images, strict=True), *zip(held_labels, held, strict=True)]
    assert sorted((int(label), image.tobytes()) for label, image in pairs) == wanted


def test_mnist_is_padded_and_reduced_by_area(tmp_path: Path) -> None:
    make(tmp_path, kind="mnist", size=16, holdout=1000)
    images, labels = load_split(tmp_path, "train")
    assert images.shape == (4000, 1, 16, 16) and np.bincount(labels).tolist() == [400] * 10
    assert not images[:, :, 0].any() and not images[:, :, :, -1].any()  # the padding
    source = mnist_source()
    first = source.read(0)[2:30, 2:30, 0].astype(float)  # 28 x 28
    halved = np.pad(first, 2).reshape(16, 2, 16, 2).mean(axis=(1, 3)).round().astype(np.uint8)
    held, _ = load_split(tmp_path, "holdout")
    found = {image.tobytes() for image in [*images, *held]}
    assert halved.tobytes() in found and first.max() > 200


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    sums = [make(tmp_path / name, kind="digits", size=8, holdout=100, seed=seed)["sha256"] for name, seed in
            (("a", 1), ("b", 1), ("c", 2))]  # fmt: skip
    assert sums[0] == sums[1]
    assert sums[0]["train_images.npy"] != sums[2]["train_images.npy"]


def test_exclude_drops_identical_images_only(tmp_path: Path) -> None:
    source = digits_source()
    digits = np.stack([source.read(i) for i in range(40)])
    fresh = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "mixed.npz", images=np.concatenate([digits, fresh]))
    np.savez(tmp_path / "known.npz", held=fresh[:4])
    settings = {"kind": "npz", "path": "mixed.npz", "size": 4, "holdout": 2}
    manifest = make(tmp_path, **settings, exclude="digits")
    assert manifest["excluded"] == 40 and manifest["counts"] == {"train": 8, "holdout": 2}
    kept = {
        image.tobytes()
        for split in ("train", "holdout")
        for image in load_split(tmp_path, split)[0]
    }
    assert kept == {fit(image, 4).tobytes() for image in fresh}
    assert make(tmp_path, **settings, exclude="known.npz")["excluded"] == 4
    with pytest.raises(
        InputError, match=r"fewer than the 0 images .*\(0 unreadable, 1797 excluded\)"
    ):
        make(tmp_path, kind="digits", exclude="digits", holdout=5)


def test_load_before_the_stage_ran(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"manifest\.json: missing; run python -m tasks\.stages\.dataset"
    ):
        load_split(tmp_path, "train")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest"])
def test_load_detects_damage(tmp_path: Path, damage: str) -> None:
    make(tmp_path, kind="digits", size=8, holdout=5)
    file = tmp_path / "data" / "dataset" / "train_images.npy"
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "manifest":
        (file.parent / "manifest.json").write_text(json.dumps([1]))
    elif damage == "truncated":
        file.write_bytes(content[:-1])
    else:
        content[500] ^= 1
        file.write_bytes(content)
    with pytest.raises(
        InputError, match=r"manifest\.json: damaged" if damage == "manifest" else "train_images"
    ):
        load_split(tmp_path, "train")
    if damage != "manifest":
        assert len(load_split(tmp_path, "holdout")[0]) == 5


def test_manifest_sums_are_of_the_files(tmp_path: Path) -> None:
    sums = make(tmp_path, kind="digits", size=8, holdout=5)["sha256"]
    assert sorted(path.name for path in (tmp_path / "data" / "dataset").iterdir()) == sorted(
        [*sums, "manifest.json"]
    )
    for name, value in sums.items():
        assert (
            hashlib.sha256((tmp_path / "data" / "dataset" / name).read_bytes()).hexdigest() == value
        )
