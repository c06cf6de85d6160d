"""The dataset stage on arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.common.errors import InputError
from tasks.data.dataset import load_split
from tests.tasks.stages.dataset_project import make


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    rgb = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    np.savez(
        tmp_path / "set.npz",
        images=rgb, first=rgb.transpose(0, 3, 1, 2), grey=rgb[..., 0], names=np.array(["b", "a", "c"] * 4),
        numbers=np.array([10, 2, -1] * 4), floats=rgb / 255, few=np.zeros(3, np.int64),
        objects=np.array([{}]),
    )  # fmt: skip
    return tmp_path


def test_npz_layouts_agree(arrays: Path) -> None:
    sums = {}
    for key in ("images", "first"):
        sums[key] = make(
            arrays, kind="npz", path="set.npz", images=key, labels="names", size=6, holdout=3
        )["sha256"]
    assert sums["images"] == sums["first"]
    manifest = make(
        arrays,
        kind="npz",
        path="set.npz",
        images="grey",
        labels="numbers",
        size=8,
        holdout=3,
        pad=1,
    )
    assert (
        manifest["shape"] == [1, 8, 8]
        and manifest["class_names"] == ["2", "10"]
        and manifest["unlabelled"] == 4
    )
    images, _ = load_split(arrays, "train")
    assert not images[:, :, 0].any() and images[:, :, 1:7, 1:7].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "absent.npz"}, "no file .*absent.npz"),
        ({"images": "image"}, "no array image; did you mean images?"),
        ({"images": "floats"}, r"expected uint8 .*convert with"),
        ({"images": "objects"}, "array objects is not readable"),
        ({"labels": "few"}, "expected 12 integers or strings"),
        ({"labels": "grey"}, "expected 12 integers or strings"),
        ({"holdout": 12}, "dataset.holdout = 12: expected fewer than the 12 images"),
    ],
)
def test_bad_npz(arrays: Path, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(arrays, **{"kind": "npz", "path": "set.npz", "holdout": 3, **settings})


def test_not_an_npz(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match="not readable as"):
        make(tmp_path, kind="npz", path="x.npz")
    noise = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    np.savez_compressed(tmp_path / "z.npz", images=noise)
    content = bytearray((tmp_path / "z.npz").read_bytes())
    content[300] ^= 255
    (tmp_path / "z.npz").write_bytes(content)
    with pytest.raises(InputError, match="array images is not readable"):
        make(tmp_path, kind="npz", path="z.npz")
    np.save(tmp_path / "y.npy", np.zeros(3))
    with pytest.raises(InputError, match="a single array"):
        make(tmp_path, kind="npz", path="y.npy")
