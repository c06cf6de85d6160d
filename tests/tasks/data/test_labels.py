"""Labels: numbers in their order however they are written, and one meaning of "no label"."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.common.errors import InputError
from tasks.data.labels import encode_folders, encode_labels


@pytest.mark.parametrize(
    "values",
    [
        [f"{i}.0" for i in range(11)] + [""],  # pandas, a column of integers with a gap
        [str(i) for i in range(11)] + ["nan"],
        [float(i) for i in range(11)] + [math.nan],
        [*range(11), -1],
        [*range(11), None],
        [f"+{i}" for i in range(11)] + ["-1.0"],
        [f"{i:03}" for i in range(11)] + ["<NA>"],
        [str(i).encode() for i in range(11)] + [b""],
    ],
)
def test_numbers_are_the_same_classes_in_every_notation(values: list) -> None:
    ids, names = encode_labels(values, "labels")
    assert ids.tolist() == [*range(11), -1] and ids.dtype == np.int64
    assert names == tuple(str(i) for i in range(11))


def test_names_are_sorted_as_text() -> None:
    ids, names = encode_labels(["zebra", " ant", "10", "9", "-1", None, "NaN"], "labels")
    assert names == ("10", "9", "ant", "zebra") and ids.tolist() == [3, 2, 0, 1, -1, -1, -1]
    assert encode_labels([True, False], "labels")[1] == ("False", "True")
    assert encode_labels([], "labels")[1] == ()


def test_numbers_with_a_fraction_are_no_classes() -> None:
    with pytest.raises(InputError, match=r"^scores: label 0\.25 has a fraction, expected whole"):
        encode_labels(["1", "0.25", ""], "scores")
    assert encode_labels(["1.5", "v2"], "models")[1] == ("1.5", "v2")
    assert encode_labels([str(2**62 + 1), str(2**62)], "ids")[0].tolist() == [1, 0]


def test_folders_keep_their_names() -> None:
    ids, names = encode_folders(["10", "9", "01", "1", "9"])
    assert names == ("01", "1", "9", "10") and ids.tolist() == [3, 2, 0, 1, 2]
    assert encode_folders(["b", "10", "9"])[1] == ("10", "9", "b")
