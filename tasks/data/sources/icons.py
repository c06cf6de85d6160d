"""Icons of Iconify packs, drawn on white at the wanted size; labels are their categories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from models.common.config import distinct
from models.common.errors import InputError
from tasks.config.types import Digest, LocalPath, Pattern, Text
from tasks.data.labels import encode_labels
from tasks.data.sources.base import DatasetSettings, Source


class IconsDataset(DatasetSettings):
    """Packs of icons."""

    kind: Literal["icons"] = "icons"
    packs: Annotated[tuple[LocalPath, ...], Field(min_length=1), AfterValidator(distinct)]
    """Folders of npm packages such as @iconify-json/twemoji."""
    """Folders or files of Iconify icon sets, such as npm installs them."""
    leave_out: Pattern | None = "skin-tone"
    """A regular expression; icons whose names match it are left out."""
    """Names that match this pattern are not used."""
    categories: tuple[tuple[Text, Text], ...] | None = None
    """Pairs of category and class, others are left out; null: every category is a class."""
    digest: Digest | None = None
    """Of the content of the packs; runs fill it in, so that new content runs the stage again."""
    """Of the packs' content; runs fill it in, so that new content runs the stage again."""

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
    classes = None if settings.categories is None else dict(settings.categories)
    if classes is not None:
        if missing := sorted(set(classes) - {icon.category for icon in icons}):
            raise InputError(
                f"dataset.categories: {missing[0]} is no category of the packs, expected some of "
                + ", ".join(sorted({icon.category for icon in icons if icon.category}))
            )
        icons = [icon for icon in icons if icon.category in classes]
    draw = renderer(settings.size)
    named = [icon.category if classes is None else classes[icon.category] for icon in icons]
    labels, class_names = encode_labels(named, "dataset.packs")
    title = f"icons of {', '.join(sorted({icon.name.partition(':')[0] for icon in icons}))}"
    names = [icon.name for icon in icons]
    return Source(title, names, labels, class_names, 3, lambda i: draw(icons[i]))
