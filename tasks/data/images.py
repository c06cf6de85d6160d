"""One image at a time: decoding, channels, cropping and resizing to a square."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tasks.data.depths import Ranges, is_deep, to_8_bits

# Pictures that Pillow reads everywhere, by its own plugins.
# fmt: off
SUFFIXES = frozenset((
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".avifs", ".bmp", ".dib",
    ".gif", ".tif", ".tiff", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pbm", ".pgm", ".ppm",
    ".pnm", ".pfm", ".tga", ".icb", ".vda", ".vst", ".ico", ".icns", ".pcx", ".sgi", ".bw", ".rgb",
    ".rgba", ".dds", ".qoi", ".psd", ".ras", ".xbm", ".xpm", ".msp", ".fits", ".fit",
))
# fmt: on


class UnreadableImage(ValueError):
    """A file that cannot be decoded; the message is the reason."""


def decode(file: Path | IO[bytes], channels: int, ranges: Ranges | None = None) -> np.ndarray:
    """An image file as uint8 (H, W, channels), upright (EXIF) and, if transparent, on white.

    The first frame of an animation is taken. ``ranges``: what is black and white in deeper images
    than 16 bits, see `tasks.data.depths`. Raises UnreadableImage for anything Pillow cannot decode
    whole.
    """
    try:
        with Image.open(file) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            shown = to_8_bits(image, ranges or {}) if is_deep(image) else _on_white(image)
            return _pixels(shown, channels)
    except UnidentifiedImageError:
        raise UnreadableImage("not an image, or of an unknown format") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("too many pixels") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise all sorts: OSError, SyntaxError, struct.error
        raise UnreadableImage(str(error).split("\n")[0] or type(error).__name__) from None


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 (H, W, 1 or 3) -> (H, W, channels); grey is the luma of ITU-R 601."""
    if image.shape[2] == channels:
        return image
    return _pixels(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image), channels)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, C) -> (C, size, size): the centre square, reduced by area or enlarged
    bicubically.
    """
    import torch  # here, so that settings that name a source do not wait for it

    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = np.ascontiguousarray(image[top : top + side, left : left + side].transpose(2, 0, 1))
    if side == size:
        return square
    pixels = torch.from_numpy(square)[None].float()
    if side > size:
        resized = torch.nn.functional.interpolate(pixels, (size, size), mode="area")
    else:
        resized = torch.nn.functional.interpolate(
            pixels, (size, size), mode="bicubic", align_corners=False
        )
    return resized[0].round().clamp(0, 255).to(torch.uint8).numpy()


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)
