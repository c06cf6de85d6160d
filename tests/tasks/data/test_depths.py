"""Grey images of every depth show the same ramp as their 8-bit version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.data.depths import measure_ranges
from tasks.data.images import SUFFIXES, UnreadableImage, decode
from tests.inputs.making import tiff

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(4, 16)


UNSIGNED, SIGNED, FLOAT = 1, 2, 3
DEEP = [
    (RAMP.astype(np.uint16) * 257, UNSIGNED),
    (RAMP.astype(np.int16), SIGNED),
    ((RAMP / 255 * 32767).round().astype(np.int16), SIGNED),
    (RAMP.astype(np.int32), SIGNED),
    (RAMP.astype(np.uint32) * 257, UNSIGNED),
    ((RAMP / 255 * (2**31 - 1)).round().astype(np.int32), SIGNED),
    ((RAMP / 255 * (2**32 - 1)).round().astype(np.uint32), UNSIGNED),
    ((RAMP / 255).astype(np.float32), FLOAT),
    (RAMP.astype(np.float32), FLOAT),
    ((RAMP / 255 * 65535).astype(np.float32), FLOAT),
    ((RAMP / 127.5 - 1).astype(np.float32), FLOAT),
]
# What Pillow has no reader for: not shown wrongly, but named as unreadable.
UNKNOWN = [
    ((RAMP / 255).astype(np.float64), FLOAT, 1, "<"),
    (RAMP.astype(np.uint32), UNSIGNED, 1, ">"),
    (RAMP.astype(np.int16), SIGNED, 0, "<"),
]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("pixels", "kind"), DEEP)
def test_tiff_of_every_depth(tmp_path: Path, pixels: np.ndarray, kind: int, order: str) -> None:
    if (pixels.dtype, order) == (np.uint32, ">"):
        pytest.skip("Pillow has no reader: see UNKNOWN")
    path = tiff(tmp_path / "a.tif", pixels, kind, order=order)
    assert np.array_equal(decode(path, 1)[..., 0], RAMP)
    assert np.array_equal(decode(path, 3)[..., 2], RAMP)


@pytest.mark.parametrize(("pixels", "kind", "photometric", "order"), UNKNOWN)
def test_unknown_tiffs_are_named(
    tmp_path: Path, pixels: np.ndarray, kind: int, photometric: int, order: str
) -> None:
    with pytest.raises(UnreadableImage, match="of an unknown format"):
        decode(tiff(tmp_path / "a.tif", pixels, kind, photometric, order), 1)


def test_white_is_zero(tmp_path: Path) -> None:
    for pixels, kind in ((RAMP.astype(np.uint16) * 257, UNSIGNED), (RAMP / 255, FLOAT)):
        stored = pixels if kind == UNSIGNED else pixels.astype(np.float32)
        path = tiff(tmp_path / "a.tif", stored, kind, photometric=0)
        assert np.array_equal(decode(path, 1)[..., 0], 255 - RAMP)


def test_png_and_pgm_of_16_bits(tmp_path: Path) -> None:
    deep = RAMP.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "plain.png")
    assert np.array_equal(decode(tmp_path / "plain.png", 1)[..., 0], RAMP)
    Image.fromarray(deep).save(tmp_path / "clear.png", transparency=0)
    shown = RAMP.copy()
    shown[RAMP == 0] = 255
    assert np.array_equal(decode(tmp_path / "clear.png", 1)[..., 0], shown)
    twelve = np.rint(RAMP / 255 * 4095).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 16 4 4095\n" + twelve.tobytes())
    assert np.array_equal(decode(tmp_path / "a.pgm", 1)[..., 0], RAMP)


def test_one_range_for_the_whole_source(tmp_path: Path) -> None:
    """A dark image stays dark beside bright ones."""
    dark = tiff(tmp_path / "dark.tif", np.full((2, 2), 0.5, np.float32), FLOAT)
    tiff(tmp_path / "bright.tif", np.full((2, 2), 200, np.float32), FLOAT)
    names = ["bright.tif", "dark.tif", "absent.tif", "notes.txt"]
    ranges = measure_ranges(names, lambda name: (tmp_path / name).open("rb"))
    assert ranges == {"float": (0, 255)}
    assert decode(dark, 1, ranges).max() <= 1 and decode(dark, 1).min() == 128


@pytest.mark.parametrize(
    ("pixels", "kind", "reason"),
    [
        (np.array([[-1000, 3000]], np.int16), SIGNED, "signed 16-bit values from -1000 to 3000"),
        (np.array([[-2.0, 2.0]], np.float32), FLOAT, "float values from -2 to 2"),
        (np.array([[np.nan, 0.5]], np.float32), FLOAT, "float values from nan to nan"),
    ],
)
def test_an_unclear_range_is_refused(
    tmp_path: Path, pixels: np.ndarray, kind: int, reason: str
) -> None:
    with pytest.raises(UnreadableImage, match=f"{reason}: black and white unclear; save as 8"):
        decode(tiff(tmp_path / "a.tif", pixels, kind), 1)


def test_a_turned_deep_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png", 1)[..., 0], np.rot90(RAMP, -1))


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".webp", ".jp2", ".j2k", ".tga",
                                    ".ppm", ".pcx", ".sgi", ".dds", ".qoi", ".ico", ".dib"])  # fmt: skip
def test_what_pillow_writes_is_read_back(tmp_path: Path, suffix: str) -> None:
    assert suffix in SUFFIXES
    tones = np.kron(np.array([[30, 220], [120, 60]], np.uint8), np.ones((16, 16), np.uint8))
    Image.fromarray(np.stack([tones] * 3, -1)).save(tmp_path / f"a{suffix}")
    found = decode(tmp_path / f"a{suffix}", 1)[..., 0].astype(int)
    assert found.shape == (32, 32) and np.abs(found[4:12, 4:12] - 30).max() < 12
    assert np.abs(found[4:12, 20:28] - 220).max() < 12


def test_every_suffix_has_a_reader() -> None:
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    assert known >= SUFFIXES
