"""Folders and archives of images."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.inputs.making import RAMP, made, pixels, png, png_bytes, tiff, toned
from tests.inputs.rows import Row

TITLE = "Image folders (`dataset.kind: folder`)"
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def linked(root: Path) -> None:
    for number in range(3):
        png(root / "in" / f"{number}.png", number)
        png(root / "disk2" / f"{number}.png", 10 + number)
    (root / "in" / "more").symlink_to(root / "disk2")
    (root / "disk2" / "back").symlink_to(root / "in")
    assert made(root)["counts"] == {"train": 5, "holdout": 1}


def hidden(root: Path) -> None:
    for number in range(3):
        png(root / "in" / f"{number}.png", number)
        png(root / "in" / ".ipynb_checkpoints" / f"{number}-checkpoint.png", number)
    assert made(root)["counts"] == {"train": 2, "holdout": 1}


def mac_zip(root: Path) -> None:
    with zipfile.ZipFile(root / "in.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"in/{number}.png", png_bytes(number))
            archive.writestr(f"__MACOSX/in/._{number}.png", b"\0\5\x16\7")
            archive.writestr(f"in/._{number}.png", b"\0\5\x16\7")
    assert made(root, path="in.zip")["counts"] == {"train": 2, "holdout": 1}


def no_zip(root: Path) -> None:
    (root / "in.zip").write_bytes(b"PK cut")
    made(root, path="in.zip")


def packed_tables(root: Path) -> None:
    with zipfile.ZipFile(root / "in.zip", "w") as archive:
        archive.writestr("train.parquet", b"x")
    made(root, path="in.zip")


def dotted_zip(root: Path) -> None:
    with zipfile.ZipFile(root / "in.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"./{number}.png", png_bytes(number))
    assert made(root, path="in.zip")["counts"] == {"train": 2, "holdout": 1}


def tar(root: Path) -> None:
    (root / "in.tar").write_bytes(b"x")
    made(root, path="in.tar")


def empty(root: Path) -> None:
    (root / "in").mkdir()
    made(root)


def heic(root: Path) -> None:
    (root / "in").mkdir()
    (root / "in" / "IMG_0001.HEIC").write_bytes(b"x")
    made(root)


def others_beside(root: Path) -> None:
    for number in range(3):
        png(root / "in" / f"{number}.png", number)
    (root / "in" / "a.heic").write_bytes(b"x")
    assert made(root)["counts"] == {"train": 2, "holdout": 1}


def special(root: Path) -> None:
    for number in range(3):
        png(root / "in" / f"{number}.png", number)
    os.mkfifo(root / "in" / "pipe.png")
    assert made(root)["counts"] == {"train": 2, "holdout": 1}


def unreadable(root: Path) -> None:
    for number in range(4):
        png(root / "in" / f"{number}.png", number)
    (root / "in" / "0.png").write_bytes(b"cut")
    (root / "in" / "9.png").symlink_to("gone.png")
    assert [entry["name"] for entry in made(root)["unreadable"]] == ["0.png", "9.png"]


def mostly_unreadable(root: Path) -> None:
    for number in range(4):
        png(root / "in" / f"{number}.png", number)
        if number:
            (root / "in" / f"{number}.png").write_bytes(b"cut")
    made(root)


def too_few(root: Path) -> None:
    png(root / "in" / "0.png")
    made(root, holdout=5)


def copies(root: Path) -> None:
    for number in range(6):
        png(root / "in" / f"{number}.png", number // 2)
    assert made(root, holdout=2)["identical"] == 3
    train, held = pixels(root)[:4], pixels(root)[4:]
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in held}


def shows_the_ramp(stored: np.ndarray, kind: int) -> Callable[[Path], None]:
    """A TIFF of this depth comes out as the ramp of 8 bits."""

    def run(root: Path) -> None:
        tiff(root / "in" / "a.tif", stored, kind)
        tiff(root / "in" / "b.tif", np.ascontiguousarray(stored.T), kind)
        made(root, channels=1)
        _same(pixels(root), RAMP)

    return run


def unclear_range(root: Path) -> None:
    tiff(root / "in" / "a.tif", np.full((8, 8), -1000, np.int16), SIGNED)
    made(root, channels=1)


def unclear_beside(root: Path) -> None:
    """What has no usual range is named; the others keep the range of all: 0.5 of 255 is black."""
    for name, low, high in (("a", -1000, -1000), ("b", 0.5, 0.5), ("c", np.nan, 3), ("d", 0, 255)):
        tones = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
        tiff(root / "in" / f"{name}.tif", tones, FLOAT)
    manifest = made(root, channels=1)
    assert [entry["name"] for entry in manifest["unreadable"]] == ["a.tif", "c.tif"]
    assert sorted(int(image.max()) for image in pixels(root)) == [0, 255]


def no_common_range(root: Path) -> None:
    for name, low, high in (("a", -1, 1), ("b", 0, 255)):
        tones = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
        tiff(root / "in" / f"{name}.tif", tones, FLOAT)
    made(root, channels=1)


def signed_8(root: Path) -> None:
    tiff(root / "in" / "a.tif", np.full((8, 8), -128, np.int8), SIGNED)
    made(root, channels=1)


def twelve_bits(root: Path) -> None:
    stored = (RAMP.astype(np.float64) / 255 * 4095).round().astype(np.uint16)
    shows_the_ramp(stored * 16, UNSIGNED)(root / "scaled")
    for name, tones in (("a", stored), ("b", stored.T)):
        tiff(root / "in" / f"{name}.tif", np.ascontiguousarray(tones), UNSIGNED)
    made(root, channels=1)


def pages(root: Path) -> None:
    png(root / "in" / "0.png", 0)
    first, *rest = (toned(100 + number) for number in range(3))
    first.save(root / "in" / "a.tif", save_all=True, append_images=rest)
    made(root)
    assert {int(image[0, 0, 0]) for image in pixels(root)} == {0, 100}


def transparent_16(root: Path) -> None:
    (root / "in").mkdir()
    for name, shown in (("a", RAMP), ("b", np.ascontiguousarray(RAMP.T))):
        deep = Image.fromarray(shown.astype(np.uint16) * 257)
        deep.save(root / "in" / f"{name}.png", transparency=0)
    made(root, channels=1)
    _same(pixels(root), np.where(RAMP == 0, 255, RAMP))


def _same(found: list[np.ndarray], shown: np.ndarray) -> None:
    """The two images are this one and its transpose."""
    wanted = {shown.astype(np.uint8).tobytes(), shown.astype(np.uint8).T.tobytes()}
    assert {image.tobytes() for image in found} == wanted


def suffixes(root: Path) -> None:
    for number, suffix in enumerate(("jfif", "jpe", "avif", "webp", "jp2", "tga", "ppm", "qoi")):
        png(root / "in" / f"{suffix}.{suffix}", 200 - 20 * number)
    assert sum(made(root)["counts"].values()) == 8
    tones = sorted((int(image[0, 4, 4]) for image in pixels(root)), reverse=True)
    assert all(abs(tone - 200 + 20 * number) < 4 for number, tone in enumerate(tones))


ONE_RANGE = "as 8 bits: the smallest of {} that holds all images of the folder is white"
ROWS = (
    Row("linked-folders", "links to folders, also in circles", linked, "every folder once"),
    Row(
        "hidden-files", "`.ipynb_checkpoints`, `._x.png`, `@eaDir`", hidden, "left out",
        warned="in: left out 3 hidden files: .ipynb_checkpoints/0-checkpoint.png",
    ),
    Row(
        "mac-zip", "a .zip, also one from a Mac", mac_zip, "read without unpacking; `__MACOSX` left out",
        warned="left out 6 hidden files",
    ),
    Row(
        "damaged-zip", "a damaged .zip", no_zip,
        refused="dataset.path: in.zip is not readable as .zip (File is not a zip file)",
    ),
    Row(
        "packed-tables", "a .zip of Parquet files", packed_tables,
        refused="dataset.path: in.zip holds .parquet files; unpack it and use dataset.kind=parquet",
    ),
    Row("dotted-zip", "a .zip whose names begin with `./`", dotted_zip, "read as others"),
    Row(
        "tar", "a .tar, a single image", tar,
        refused="dataset.path: in.tar is not a folder, expected a folder of images or a .zip of one",
    ),
    Row(
        "empty-folder", "an empty folder", empty,
        refused="dataset.path: no images in in; expected files such as .png, .jpg or .webp",
    ),
    Row(
        "heic", "a folder of .heic files", heic,
        refused="dataset.path: no images in in, only .heic; expected files such as .png, .jpg or .webp",
    ),
    Row(
        "others-beside", "other files beside the images", others_beside, "left out",
        warned="in: left out 1 files without an image suffix that Pillow reads (1 .heic)",
    ),
    Row("suffixes", "`.jfif`, `.avif`, `.jp2`, `.tga` and others that Pillow reads", suffixes, "read"),
    Row(
        "special", "pipes and devices", special, "left out", warned="in: left out 1 hidden files: pipe.png",
    ),
    Row(
        "unreadable", "damaged images, links to nothing", unreadable, "named, counted, left out",
        warned="unreadable image 9.png: a link to a file that is not there",
    ),
    Row(
        "mostly-unreadable", "more than half of the images damaged", mostly_unreadable,
        refused="in: 3 of 4 images are unreadable, such as 1.png (not an image, or of an unknown format)",
    ),
    Row(
        "too-few", "fewer images than `dataset.holdout`", too_few,
        refused="dataset.holdout = 5: expected fewer than the 1 images of in",
    ),
    Row(
        "copies", "identical images", copies, "on one side of the split",
        warned="in: 3 images are identical to others at this size; copies stay on one side",
    ),
    Row(
        "grey-16", "grey TIFF, 16 bits", shows_the_ramp(RAMP.astype(np.uint16) * 257, UNSIGNED),
        "as 8 bits: 65535 is white",
    ),
    Row(
        "grey-signed-16", "grey TIFF, 16 bits with a sign",
        shows_the_ramp((RAMP / 255 * 32767).round().astype(np.int16), SIGNED), ONE_RANGE.format("255 and 32767"),
    ),
    Row(
        "grey-32", "grey TIFF, 32 bits", shows_the_ramp(RAMP.astype(np.int32), SIGNED),
        ONE_RANGE.format("255, 65535, 2^31 - 1 and 2^32 - 1"),
    ),
    Row(
        "grey-float", "grey TIFF, float", shows_the_ramp((RAMP / 255).astype(np.float32), FLOAT),
        ONE_RANGE.format("1, 255 and 65535") + "; [-1, 1] where there are negative values",
    ),
    Row(
        "unclear-range", "grey TIFF with negative values", unclear_range,
        refused="in: 1 of 1 images are unreadable, such as a.tif (signed 16-bit values from -1000 to -1000: "
        "black and white unclear; save as 8 or 16 bits)",
    ),
    Row(
        "unclear-beside", "such values or NaN in some images of a folder", unclear_beside,
        "named, counted, left out; the others keep their common range",
        warned="unreadable image a.tif: float values from -1000 to -1000: black and white unclear",
    ),
    Row(
        "no-common-range", "float TIFF in [-1, 1] beside others in [0, 255]", no_common_range,
        refused="in: 2 of 2 images are unreadable, such as a.tif (over all images float values from -1 to 255: "
        "black and white unclear; save as 8 or 16 bits)",
    ),
    Row(
        "signed-8", "grey TIFF, 8 bits with a sign, negative values", signed_8,
        refused="in: 1 of 1 images are unreadable, such as a.tif (signed 8-bit values from -128 to -128: "
        "black and white unclear; save as 8 or 16 bits)",
    ),
    Row(
        "twelve-bits", "12 bits in files of 16", twelve_bits, "nearly black: 65535 is white",
        warned="in: all images are dark, the brightest value is 16 of 255; scale them first",
    ),
    Row(
        "pages", "TIFF files of several pages, animations", pages, "the first page",
        warned="1 images have several pages, of which the first is taken: a.tif",
    ),
    Row("transparent-16", "16-bit PNG with a transparent value", transparent_16, "that value is white"),
)  # fmt: skip
