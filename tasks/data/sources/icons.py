"""Icons of Iconify packs, drawn on white at the wanted size; labels are their categories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from models.common.config import distinct
from models.common.errors import InputError
from tasks.config.types import Digest, LocalPath, Pattern
from tasks.data.labels import encode_labels
from tasks.data.sources.base import DatasetSettings, Source


class IconsDataset(DatasetSettings):
    kind: Literal["icons"] = "icons"
    packs: Annotated[tuple[LocalPath, ...], Field(min_length=1), AfterValidator(distinct)]
    leave_out: Pattern | None = "skin-tone"
    digest: Digest | None = None

    def open(self, root: Path) -> Source:
        return icons_source([root / pack for pack in self.packs], self)


def icons_source(packs: Sequence[Path], settings: IconsDataset) -> Source:
    """All icons of the packs by name. Raises InputError."""
    from tasks.data.icons import read_pack, renderer

    icons = [icon for pack in packs for icon in read_pack(pack, settings.leave_out)]
    if not icons:
        raise InputError(
            f"dataset.leave_out = {settings.leave_out}: leaves no icon; expected a narrower pattern"
        )
    draw = renderer(settings.size)
    labels, class_names = encode_labels([icon.category for icon in icons], "dataset.packs")
    title = f"icons of {', '.join(sorted({icon.name.partition(':')[0] for icon in icons}))}"
    names = [icon.name for icon in icons]
    return Source(title, names, labels, class_names, 3, lambda i: draw(icons[i]))
