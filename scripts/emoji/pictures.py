"""Pictures of images with a line of text below each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SCALE, MARGIN, LINE = 2, 6, 12


def save_grid(
    path: Path, images: Tensor, columns: int, texts: Sequence[str] = (), scale: int = SCALE
) -> None:
    """Write images (n, 3, S, S) in [-1, 1] as a PNG of `columns` columns, `texts` below them."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    side = pixels.shape[1] * scale
    wide, high = side + MARGIN, side + MARGIN + (2 * LINE if texts else 0)
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * wide, rows * high), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, image in enumerate(pixels):
        x, y = i % columns * wide, i // columns * high
        sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS), (x, y))
        if texts:
            draw.multiline_text((x, y + side), _wrap(texts[i], side // 6), "black", font, spacing=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256).save(path, optimize=True)


def _wrap(text: str, width: int) -> str:
    """The text in two lines of at most `width` letters, where it fits."""
    if len(text) <= width:
        return text
    cut = text.rfind(" ", 0, width + 1)
    cut = width if cut <= 0 else cut
    return f"{text[:cut]}\n{text[cut:].strip()[:width]}"
