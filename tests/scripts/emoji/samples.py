"""A small file of captioned emoji: discs and squares in three colours, by all four vendors.

Of the last and the third caption one drawing is held out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

CAPTIONS = ("red heart", "green heart", "yellow heart", "red apple", "green apple", "doughnut")
VENDORS = ("noto", "twemoji", "fluent-emoji-flat", "emojione")
COLOURS = {"red": (220, 20, 20), "green": (20, 180, 40), "yellow": (240, 200, 20)}


def write_emoji(path: Path) -> Path:
    """Write the .npz: hearts are discs, fruit is square, vendors differ in size."""
    y, x = np.mgrid[:64, :64] - 31.5
    images, captions, vendors = [], [], []
    for caption in CAPTIONS:
        for i, vendor in enumerate(VENDORS):
            side = 14 + 4 * i
            inside = np.hypot(x, y) < side
            if "heart" not in caption:
                inside = np.maximum(abs(x), abs(y)) < side - 4 * ("doughnut" in caption)
            image = np.full((64, 64, 3), 255, np.uint8)
            image[inside] = COLOURS.get(caption.split()[0], COLOURS["red"])
            images.append(image)
            captions.append(caption)
            vendors.append(vendor)
    np.savez(path, images=np.stack(images), captions=np.array(captions), vendor=np.array(vendors))
    return path
