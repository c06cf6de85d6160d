"""Icon packs in Iconify's JSON form, as npm brings them (`npm install @iconify-json/twemoji`), as
images.

A pack is a folder with icons.json and perhaps metadata.json, or one JSON file that holds both. SVG
is rendered by resvg."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.common.errors import InputError
from tasks.data.images import UnreadableImage

LINK = re.compile(r"href\s*=\s*[\"'](?!#)|url\(\s*[\"']?(?!#)", re.IGNORECASE)


@dataclass(frozen=True)
class Icon:
    """``body``: SVG elements inside the box (left, top, width, height); ``turns``: quarter turns
    clockwise.
    """

    name: str
    category: str
    body: str
    box: tuple[float, float, float, float]
    turns: int = 0
    mirrored: tuple[bool, bool] = (False, False)


def read_pack(path: Path, leave_out: str | None = None) -> list[Icon]:
    """The icons of one pack by name, aliases and names that match the pattern ``leave_out`` left
    out.

    Raises InputError if there is no pack at ``path``.
    """
    content = _json(path / "icons.json" if path.is_dir() else path)
    prefix, icons = content.get("prefix", path.stem), content.get("icons")
    if not isinstance(icons, dict) or not icons:
        raise InputError(
            f"dataset.packs: {path} has no icons; expected an npm package folder of @iconify-json"
        )
    metadata = path / "metadata.json"
    listed = (
        content.get("categories")
        or (_json(metadata).get("categories") if metadata.is_file() else None)
        or {}
    )
    category_of: dict[str, str] = {}
    for category, names in listed.items():
        for name in names:
            category_of.setdefault(name, category)
    skipped = re.compile(leave_out) if leave_out else None
    return [
        _icon(f"{prefix}:{name}", category_of.get(name, ""), icons[name], content)
        for name in sorted(icons)
        if not icons[name].get("hidden") and not (skipped and skipped.search(name))
    ]


def _icon(name: str, category: str, entry: dict[str, Any], pack: dict[str, Any]) -> Icon:
    left, top, width, height = (
        float(entry.get(key, pack.get(key, default)))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    mirrored = bool(entry.get("hFlip")), bool(entry.get("vFlip"))
    return Icon(
        name,
        category,
        entry["body"],
        (left, top, width, height),
        int(entry.get("rotate", 0)) % 4,
        mirrored,
    )


def renderer(size: int) -> Callable[[Icon], np.ndarray]:
    """A function that draws an icon on white, uint8 (size, size, 3); InputError if resvg-py is not
    installed.

    The function raises UnreadableImage for SVG that resvg refuses, or that links to other files.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise InputError(
            "dataset.kind = icons: resvg-py, which draws SVG, is not installed; run pip install "
            "resvg-py"
        ) from None

    def draw(icon: Icon) -> np.ndarray:
        if LINK.search(icon.body):
            raise UnreadableImage("links to another file")
        try:
            png = svg_to_bytes(
                svg_string=svg(icon, size),
                width=size,
                height=size,
                background="white",
                skip_system_fonts=True,
            )
        except ValueError as error:
            raise UnreadableImage(str(error).split("\n")[0]) from None
        pixels = np.array(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
        pixels = pixels[:, ::-1] if icon.mirrored[0] else pixels
        pixels = pixels[::-1] if icon.mirrored[1] else pixels
        return np.ascontiguousarray(np.rot90(pixels, -icon.turns))

    return draw


def svg(icon: Icon, size: int) -> str:
    """A whole SVG document, the icon in the middle of a square."""
    left, top, width, height = icon.box
    side = max(width, height)
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}" width="{size}" height="{size}">{icon.body}</svg>'


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            f"dataset.packs: {path} not found; expected an npm package folder such as "
            "@iconify-json/twemoji"
        ) from None
    except ValueError:
        raise InputError(f"dataset.packs: {path} is not JSON; install the package again") from None
    if not isinstance(content, dict):
        raise InputError(
            f"dataset.packs: {path} holds no JSON object; expected an icon set of Iconify"
        )
    return content
