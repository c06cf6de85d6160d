"""Arrays in .npz files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.inputs.making import made, pixels
from tests.inputs.rows import Row

TITLE = "Arrays (`dataset.kind: npz`)"
COLOUR = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
COLOUR[0, 0, 0] = 0, 255, 0
GREY = COLOUR[..., 0]


def stored(
    array: np.ndarray, labels: np.ndarray | None = None, **settings: object
) -> Callable[[Path], None]:
    """An .npz with these arrays, read."""

    def run(root: Path) -> None:
        arrays = {"images": array} | ({} if labels is None else {"labels": labels})
        np.savez(root / "in.npz", **arrays)
        wanted = {} if labels is None else {"labels": "labels"}
        manifest = made(root, kind="npz", path="in.npz", **wanted | settings)
        assert sum(manifest["counts"].values()) == len(array)
        if labels is not None:
            assert manifest["class_names"] == ["2", "10"] and manifest["unlabelled"] == 1

    return run


def layouts(root: Path) -> None:
    for number, images in enumerate((COLOUR, COLOUR.transpose(0, 3, 1, 2), GREY, GREY[..., None])):
        place = root / str(number)
        place.mkdir()
        stored(images)(place)
        first = COLOUR[..., :1] if number > 1 else COLOUR
        assert sorted(image.tobytes() for image in pixels(place)) == sorted(
            image.transpose(2, 0, 1).tobytes() for image in first
        )


def labels(root: Path) -> None:
    for number, given in enumerate((np.array([2, 10, -1, 2]), np.array([2, 10, np.nan, 2]),
                                    np.array(["2", "10.0", "", "2"]), np.array([[2], [10], [-1], [2]]))):  # fmt: skip
        place = root / str(number)
        place.mkdir()
        stored(GREY, given)(place)


def single(root: Path) -> None:
    np.save(root / "in.npy", GREY)
    made(root, kind="npz", path="in.npy")


def absent(root: Path) -> None:
    made(root, kind="npz", path="in.npz")


EXPECTED = "expected uint8 (n, H, W), (n, H, W, 1|3) or (n, 1|3, H, W)"
ROWS = (
    Row("layouts", "uint8 `(n, H, W)`, `(n, H, W, 1 or 3)`, `(n, 1 or 3, H, W)`", layouts, "images"),
    Row("array-labels", "labels of whole numbers, text, float, `(n, 1)`; -1, NaN and empty text", labels,
        "classes in the order of numbers; the last three are no label"),
    Row("int64", "int64 0 to 255", stored(GREY.astype(np.int64)),
        refused=f"dataset.images: images is int64 (4, 8, 8), {EXPECTED}; convert with x.round().astype('uint8')"),
    Row("unit", "float in [0, 1]", stored(GREY / 255),
        refused=f"dataset.images: images is float64 (4, 8, 8), {EXPECTED}; "
        "convert with (255 * x).round().astype('uint8')"),
    Row("signed-unit", "float in [-1, 1]", stored(GREY / 127.5 - 1),
        refused=f"dataset.images: images is float64 (4, 8, 8), {EXPECTED}; "
        "convert with ((x + 1) * 127.5).round().astype('uint8')"),
    Row("binary", "uint8 of 0 and 1", stored((GREY > 127).astype(np.uint8)),
        refused=f"dataset.images: images is uint8 (4, 8, 8), {EXPECTED}; convert with (255 * x.astype('uint8'))"),
    Row("rgba", "four channels", stored(np.concatenate([COLOUR, COLOUR[..., :1]], 3)),
        refused=f"dataset.images: images is uint8 (4, 8, 8, 4), {EXPECTED}; drop the alpha channel with x[..., :3]"),
    Row("flat", "flattened images", stored(GREY.reshape(4, 64)),
        refused=f"dataset.images: images is uint8 (4, 64), {EXPECTED}; unflatten with x.reshape(-1, 8, 8)"),
    Row("constant", "one value alone", stored(np.full((4, 8, 8), 300.0)),
        refused=f"dataset.images: images is float64 (4, 8, 8), {EXPECTED}; all its values are 300: give images"),
    Row("empty-array", "no image", stored(GREY[:0]),
        refused=f"dataset.images: images is uint8 (0, 8, 8), {EXPECTED}; it is empty: give at least one image"),
    Row("infinite-array-label", "infinity among the labels", stored(GREY, np.array([1, 2, np.inf, 0])),
        refused="in.npz: label inf is no class, expected whole numbers or names; leave the label of these images "
        "empty"),
    Row("no-array", "another name", stored(GREY, images="imagez"),
        refused="in.npz: no array imagez; did you mean images?"),
    Row("one-hot", "one-hot labels", stored(GREY, np.eye(4, dtype=int)),
        refused="dataset.labels: labels is int64 (4, 4), expected 4 integers or strings, one per image; "
        "turn one-hot rows into classes with x.argmax(1)"),
    Row("npy", "an .npy", single,
        refused="dataset.path: in.npy is a single array, expected an .npz of named arrays; "
        "save it with np.savez('images.npz', images=x)"),
    Row("absent", "no file", absent, refused="dataset.path: no file in.npz, expected an .npz"),
)  # fmt: skip
