"""Images as arrays: cropped, reduced, enlarged, decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.data.images import UnreadableImage, decode, fit, with_channels


def gradient(rows: int, columns: int, channels: int = 3) -> np.ndarray:
    values = np.arange(rows * columns * channels) % 251
    return values.reshape(rows, columns, channels).astype(np.uint8)


def test_fit_reduces_by_area_exactly() -> None:
    image = gradient(12, 12)
    expected = (
        image.reshape(4, 3, 4, 3, 3).astype(float).mean(axis=(1, 3)).round().transpose(2, 0, 1)
    )
    assert np.array_equal(fit(image, 4), expected)


def test_fit_crops_the_centre() -> None:
    image = gradient(4, 10)
    assert np.array_equal(fit(image, 4), image[:, 3:7].transpose(2, 0, 1))
    assert np.array_equal(fit(image.transpose(1, 0, 2), 4), image[:, 3:7].transpose(2, 1, 0))


def test_fit_enlarges_bicubically() -> None:
    ramp = np.repeat(np.arange(0, 128, 8, dtype=np.uint8)[None, :, None], 16, axis=0)
    inner = fit(ramp, 32)[0, 16, 8:24].astype(int)
    assert set(np.diff(inner)) == {4}  # cubic interpolation keeps a straight line straight
    assert np.array_equal(fit(np.full((4, 4, 1), 77, np.uint8), 9), np.full((1, 9, 9), 77))


def test_decode_composites_alpha_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0], rgba[0, :, 3] = 200, (0, 255, 51)  # red, alpha 0, 1 and 0.2
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 3).tolist() == [
        [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
    ]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    assert decode(tmp_path / "p.png", 3).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_decode_turns_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(gradient(2, 3)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png", 3), np.rot90(gradient(2, 3), -1))


def test_decode_channels_and_depths(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)).save(
        tmp_path / "c.png"
    )
    assert decode(tmp_path / "c.png", 1)[..., 0].tolist() == [[76, 150, 29]]  # 0.299, 0.587, 0.114
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png", 1)[..., 0].tolist() == [[0, 1, 255]]
    assert decode(tmp_path / "deep.png", 3)[0, 2].tolist() == [255, 255, 255]
    assert with_channels(np.full((2, 2, 1), 9, np.uint8), 3).tolist() == [[[9, 9, 9]] * 2] * 2


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.png", b""), ("text.jpg", b"not an image"), ("half.png", None), ("flipped.png", None)],
)
def test_decode_refuses_damage(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is None:
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 255
        content = bytes(whole) if name == "flipped.png" else bytes(whole[: len(whole) // 2])
    path.write_bytes(content)
    with pytest.raises(UnreadableImage):
        decode(path, 3)
