"""Arrays: advice that works when it is followed, and labels of every notation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from models.common.errors import InputError
from tasks.data.sources.base import Source
from tasks.data.sources.npz import NpzDataset

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 5, 5)).astype(np.uint8)
GREY[0, 0, :2] = 0, 255  # the whole range is used
COLOUR = RNG.integers(0, 256, (6, 5, 5, 3)).astype(np.uint8)


def opened(folder: Path, images: np.ndarray, labels: np.ndarray | None = None) -> Source:
    arrays = {"images": images} | ({} if labels is None else {"labels": labels})
    np.savez(folder / "x.npz", **arrays)
    wanted = {"path": "x.npz", "labels": None if labels is None else "labels"}
    return NpzDataset.model_validate(wanted).open(folder)


WRONG = {
    "int64 0..255": (GREY.astype(np.int64), GREY),
    "int32 0..255": (GREY.astype(np.int32), GREY),
    "float 0..255": (GREY.astype(np.float32), GREY),
    "float in [0, 1]": (GREY / 255, GREY),
    "float16 in [0, 1]": ((GREY / 255).astype(np.float16), GREY),
    "float in [-1, 1]": ((GREY / 127.5 - 1).astype(np.float32), GREY),
    "int8": ((GREY.astype(np.int16) - 128).astype(np.int8), GREY),
    "uint16": (GREY.astype(np.uint16) * 257, GREY),
    "bool": (GREY > 127, np.where(GREY > 127, 255, 0)),
    "0 and 1": ((GREY > 127).astype(np.uint8), np.where(GREY > 127, 255, 0)),
    "0 and 1, int64": ((GREY > 127).astype(np.int64), np.where(GREY > 127, 255, 0)),
    "another range": (GREY.astype(np.float64) * 20 - 1000, GREY),
    "another range of integers": (GREY.astype(np.int32) * 20 - 1000, GREY),
    "RGBA": (np.concatenate([COLOUR, COLOUR[..., :1]], 3), COLOUR),
    "RGBA, channels first": (
        np.concatenate([COLOUR, COLOUR[..., :1]], 3).transpose(0, 3, 1, 2),
        COLOUR,
    ),
    "images last": (COLOUR.transpose(1, 2, 3, 0), COLOUR),
    "flat": (GREY.reshape(6, 25), GREY),
    "flat colour": (COLOUR.transpose(0, 3, 1, 2).reshape(6, 75), COLOUR),
}


@pytest.mark.parametrize("case", WRONG)
def test_advice_works_when_followed(tmp_path: Path, case: str) -> None:
    x, wanted = WRONG[case]
    with pytest.raises(InputError, match="expected uint8") as caught:
        opened(tmp_path, x)
    advice = re.search(r"; (?:[a-z ]+) (?:with|first with) (.*)$", str(caught.value))
    assert advice is not None and "\n" not in str(caught.value), str(caught.value)
    followed = eval(advice[1], {"x": x})
    source = opened(tmp_path, followed)
    found = np.stack([source.read(i) for i in range(6)])
    off = np.abs(found.squeeze(-1 if wanted.ndim == 3 else ()).astype(int) - wanted)
    assert found.dtype == np.uint8 and off.max() <= (1 if case == "float16 in [0, 1]" else 0)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.full((2, 4, 4), np.nan), "remove NaN and infinite values first"),
        (np.zeros((0, 4, 4), np.uint8), "it is empty: give at least one image"),
        (np.array([["a"]]), "give numbers, one array of all images"),
        (np.full((2, 7), 9, np.uint8), "reshape it to one of these"),
    ],
)
def test_what_no_formula_mends(tmp_path: Path, images: np.ndarray, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        opened(tmp_path, images)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 10, 2, -1, 10, 0]),
        np.array([0, 10, 2, np.nan, 10, 0]),
        np.array([0.0, 10.0, 2.0, -1.0, 10.0, 0.0], np.float32),
        np.array([[0], [10], [2], [-1], [10], [0]]),
        np.array(["0", "10.0", "2", "", "10", "0"]),
        np.array([b"0", b"10", b"2", b"nan", b"10", b"0"]),
    ],
)
def test_labels_of_every_notation(tmp_path: Path, labels: np.ndarray) -> None:
    source = opened(tmp_path, GREY, labels)
    assert source.class_names == ("0", "2", "10")
    assert source.labels.tolist() == [0, 2, 1, -1, 2, 0]


def test_labels_that_are_none(tmp_path: Path) -> None:
    one_hot = np.eye(3, dtype=int)[[0, 1, 2, 0, 1, 2]]
    with pytest.raises(InputError, match=r"turn one-hot rows into classes with x\.argmax\(1\)"):
        opened(tmp_path, GREY, one_hot)
    assert opened(tmp_path, GREY, one_hot.argmax(1)).class_names == ("0", "1", "2")
    with pytest.raises(InputError, match=r"label 0\.5 has a fraction"):
        opened(tmp_path, GREY, np.linspace(0, 2.5, 6))
