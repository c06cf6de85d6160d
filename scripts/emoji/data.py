"""Captioned emoji: images of 64x64 with a caption and the vendor who drew them.

The file is an .npz with `images` uint8 (n, 64, 64, 3), `captions` and `vendor`, both (n,) text.
`python -m scripts.emoji.pack` makes it from icon packs.
"""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.common.errors import InputError

CAPTIONS = Path(__file__).with_name("captions.txt")
"""What the teacher learns."""
KNOWN_CAPTIONS = Path(__file__).with_name("captions_judge.txt")
"""What the judge tells apart: these and more."""
STYLES = {  # the pack's name -> the word for it in prompts
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent-emoji-flat": "fluent",
    "emojione": "emojione",
}
SYNONYMS = {  # names of one pack -> the name that the other packs have
    "bear face": "bear",
    "frog face": "frog",
    "hamster face": "hamster",
    "lion face": "lion",
    "panda face": "panda",
    "unicorn face": "unicorn",
}
HELD_OUT = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Emoji:
    """`images` uint8 (n, 3, 64, 64); `captions` and `styles`, n texts each."""

    images: Tensor
    captions: list[str]
    styles: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: Tensor) -> Emoji:
        """The rows of a mask (n,) or of indices."""
        rows = torch.arange(len(self))[index].tolist()
        return Emoji(
            self.images[rows], [self.captions[i] for i in rows], [self.styles[i] for i in rows]
        )

    @property
    def prompts(self) -> list[str]:
        """What the teacher is asked for, such as "red apple, noto style"."""
        return [f"{c}, {s} style" for c, s in zip(self.captions, self.styles, strict=True)]


def load_emoji(path: Path) -> Emoji:
    """All emoji of the file by vendors of `STYLES`; InputError for another kind of file."""
    names = ("images", "captions", "vendor")
    try:
        with np.load(path, allow_pickle=False) as file:
            images, captions, vendor = (file[name] for name in names)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such file; expected an .npz of captioned emoji; make one with "
            "python -m scripts.emoji.pack"
        ) from error
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: {error}; expected an .npz with {', '.join(names)}; make it with "
            "python -m scripts.emoji.pack"
        ) from error
    if images.dtype != np.uint8 or images.shape[1:] != (64, 64, 3):
        raise InputError(
            f"{path}: images {images.dtype} {images.shape}; expected uint8 (n, 64, 64, 3)"
        )
    if not len(images) == len(captions) == len(vendor):
        raise InputError(
            f"{path}: {len(images)} images, {len(captions)} captions, {len(vendor)} vendors; "
            "expected as many of each"
        )
    known = [i for i, name in enumerate(vendor) if name in STYLES]
    if not known:
        raise InputError(
            f"{path}: vendors {sorted({str(v) for v in vendor})}; expected {', '.join(STYLES)}"
        )
    texts = [str(captions[i]) for i in known]
    return Emoji(
        torch.from_numpy(images[known]).permute(0, 3, 1, 2).contiguous(),
        [SYNONYMS.get(text, text) for text in texts],
        [STYLES[str(vendor[i])] for i in known],
    )


def read_captions(path: Path = CAPTIONS) -> list[str]:
    """The captions that are learnt, one a line; lines with # are headings."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def of_captions(emoji: Emoji, captions: list[str]) -> Emoji:
    """The emoji with one of these captions; InputError if there is none, a warning that names the
    captions without an emoji.
    """
    wanted = set(captions)
    chosen = emoji[torch.tensor([caption in wanted for caption in emoji.captions])]
    if not len(chosen):
        raise InputError(
            f"emoji of {len(emoji)} captions such as {emoji.captions[0]!r}: none is wanted; "
            f"expected some like {captions[0]!r}"
        )
    if missing := sorted(wanted - set(chosen.captions)):
        logger.warning("%d captions have no emoji: %s", len(missing), ", ".join(missing[:5]))
    return chosen


def held_out(emoji: Emoji, fraction: float = HELD_OUT, seed: int = 0) -> Tensor:
    """A mask (n,) of pairs of caption and style to test on: of about this fraction of the judge's
    captions that at least three styles have, one style each.
    """
    styles: dict[str, list[str]] = {}
    for caption, style in zip(emoji.captions, emoji.styles, strict=True):
        styles.setdefault(caption, []).append(style)
    rng, pairs = np.random.default_rng(seed), set()
    # the same draw whatever other captions the emoji have
    for caption in sorted(read_captions(KNOWN_CAPTIONS)):
        drawn, place = rng.random(), rng.random()
        drawings = styles.get(caption, [])
        if len(drawings) >= 3 and drawn < fraction:
            pairs.add((caption, drawings[int(place * len(drawings))]))
    rows = zip(emoji.captions, emoji.styles, strict=True)
    return torch.tensor([pair in pairs for pair in rows])


def learnt(emoji: Emoji) -> tuple[Emoji, Emoji]:
    """(training, held-out) emoji of the captions that the teacher learns."""
    taught = of_captions(emoji, read_captions())
    rows = held_out(taught)
    return taught[~rows], taught[rows]


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
