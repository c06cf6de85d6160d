"""Draw icon packs into one .npz of captioned emoji.

`python -m scripts.emoji.pack PACK... --out emoji64.npz`, where a pack is an npm package folder such
as data/icons/node_modules/@iconify-json/noto (conf/preset/emoji-swd.yaml says how to get them).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.common.errors import InputError
from scripts.emoji.data import STYLES
from tasks.data.icons import Icon, read_pack, renderer
from tasks.data.images import UnreadableImage
from tasks.utils.cli import set_up_logging, user_errors

SIZE, LEFT_OUT = 64, "skin-tone"

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("packs", type=Path, nargs="+", help="folders of npm packages")
    parser.add_argument("--out", type=Path, default=Path("emoji64.npz"))
    arguments = parser.parse_args(argv)
    set_up_logging()
    with user_errors():
        icons = [icon for pack in arguments.packs for icon in read_pack(pack, LEFT_OUT)]
        logger.info("%d emoji in %s", write(icons, arguments.out), arguments.out)


def write(icons: Sequence[Icon], path: Path) -> int:
    """Write the icons of known vendors and return their number; one that cannot be drawn is named
    in a warning and left out. InputError if nothing is left.
    """
    draw, images, captions, vendors, categories = renderer(SIZE), [], [], [], []
    for icon in icons:
        vendor, _, name = icon.name.partition(":")
        if vendor not in STYLES:
            continue
        try:
            images.append(draw(icon))
        except UnreadableImage as error:
            logger.warning("%s: left out, %s", icon.name, error)
            continue
        captions.append(name.replace("-", " "))
        vendors.append(vendor)
        categories.append(icon.category)
    if not images:
        raise InputError(f"packs without an emoji; expected icons of {', '.join(STYLES)}")
    np.savez_compressed(
        path,
        images=np.stack(images),
        captions=np.array(captions),
        vendor=np.array(vendors),
        category=np.array(categories),
    )
    return len(images)


if __name__ == "__main__":
    main()
