"""Grey images of more than 8 bits: which value is white.

Unsigned 16 bits fill their range. Signed, 32-bit and float files do not say which range they use,
so it is the smallest usual one that holds every image of the source: one range for all of them, or
a dark image would be brightened. Images that no usual range holds are refused one by one and say
nothing of the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
SIGNED, WHITE_IS_ZERO = 2, 0
# Highest values by kind, smallest first.
USUAL: dict[str, tuple[float, ...]] = {
    "float": (1, 255, 65535),
    "signed 8-bit": (127,),
    "signed 16-bit": (255, 32767),
    "32-bit": (255, 65535, 2**31 - 1, 2**32 - 1),
}
Range = tuple[float, float]
Ranges = Mapping[str, Range | str]
"""(black, white) by kind of depth, or why images of that kind cannot be read."""
ONE_BY_ONE: Ranges = {
    kind: f"{kind} values in a table, of which black and white are not known; save as 8 or 16 bits"
    for kind in USUAL
}

logger = logging.getLogger(__name__)


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow would clip this grey image at 255 instead of scaling it."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or _is_signed_8(image)


def to_8_bits(image: Image.Image, ranges: Ranges) -> Image.Image:
    """A grey image of any depth as mode L, a transparent value as white.

    ``ranges``: as from `measure_ranges`; a kind that is not there is measured on this image alone.
    Raises ValueError where no usual range holds the values.
    """
    pixels, (kind, fixed) = _pixels(image), _kind(image)
    found = fixed or ranges.get(kind) or _usual_range(kind, *_extremes(pixels))
    if isinstance(found, str):
        raise ValueError(found)
    low, high = found
    if pixels.min() < low or pixels.max() > high or not np.isfinite(pixels).all():
        raise ValueError(_refusal(kind, *_extremes(pixels)))
    grey = np.rint((pixels - low) * (255 / (high - low))).astype(np.uint8)
    if _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[pixels == transparent] = 255
    return Image.fromarray(grey)


def measure_ranges(
    names: Iterable[str], open_file: Callable[[str], IO[bytes]]
) -> dict[str, Range | str]:
    """(black, white) by kind over all files whose range is not given by their format; the reason
    where their images have no usual range in common.

    Only TIFF, FITS and PFM files are looked into. What cannot be read is left to the reader. Files
    of several pages are named in a warning.
    """
    seen: dict[str, list[float]] = {}
    stacks: list[str] = []
    for name in names:
        if not name.lower().endswith((".tif", ".tiff", ".fit", ".fits", ".pfm")):
            continue
        try:
            with open_file(name) as file, Image.open(file) as image:
                if getattr(image, "n_frames", 1) > 1:
                    stacks.append(name)
                if not is_deep(image) or _kind(image)[1] is not None:
                    continue
                kind, extremes = _kind(image)[0], _extremes(_pixels(image))
                _usual_range(kind, *extremes)
                seen.setdefault(kind, []).extend(extremes)
        except MemoryError:
            raise
        except Exception:  # damaged files raise all sorts; decoding names them
            continue
    if stacks:
        what = "%d images have several pages, of which the first is taken: %s"
        logger.warning(what, len(stacks), stacks[0])
    found: dict[str, Range | str] = {}
    for kind, values in seen.items():
        try:
            low, high = _usual_range(kind, min(values), max(values))
        except ValueError as error:
            found[kind] = f"over all images {error}"
            continue
        found[kind] = low, high
        logger.info("%s images: %g is black and %g is white", kind, low, high)
    return found


def _kind(image: Image.Image) -> tuple[str, Range | None]:
    """The kind, and its range where the format says it."""
    bits = _tag(image, BITS) or 16
    if image.mode.startswith("I;16"):
        return "16-bit", (0, 2**bits - 1)
    if image.mode == "F":
        return "float", None
    if image.mode == "L":
        return "signed 8-bit", None
    if image.format in ("PPM", "PNG"):  # Pillow scales them to 16 bits
        return "16-bit", (0, 65535)
    return ("signed 16-bit" if bits == 16 else "32-bit"), None


def _is_signed_8(image: Image.Image) -> bool:
    return image.mode == "L" and _tag(image, SAMPLE_FORMAT) == SIGNED


def _pixels(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    if image.mode == "L":
        pixels = pixels.view(np.int8)  # Pillow reads them as unsigned
    if image.mode == "I" and _tag(image, BITS) == 32 and _tag(image, SAMPLE_FORMAT) != SIGNED:
        pixels = pixels.view(np.uint32)  # Pillow reads them as signed
    return pixels.astype(np.float64)


def _usual_range(kind: str, low: float, high: float) -> Range:
    if kind == "float" and -1 <= low < 0 and high <= 1:
        return -1, 1
    for top in USUAL[kind]:
        if low >= 0 and high <= top:
            return 0, top
    raise ValueError(_refusal(kind, low, high))


def _refusal(kind: str, low: float, high: float) -> str:
    return f"{kind} values from {low:g} to {high:g}: black and white unclear; save as 8 or 16 bits"


def _extremes(pixels: np.ndarray) -> tuple[float, float]:
    return float(pixels.min()), float(pixels.max())


def _tag(image: Image.Image, number: int) -> Any:
    tags = getattr(image, "tag_v2", None) if isinstance(image, ImageFile.ImageFile) else None
    value = tags.get(number) if tags is not None else None
    return value[0] if isinstance(value, tuple) else value
