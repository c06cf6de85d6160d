"""The section `dataset`: where images come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from models.common import config as common
from models.common.config import Count, Section, Seed, Size
from tasks.config import types as fields
from tasks.config.types import LocalPath


class _Dataset(Section):
    size: Size = 16
    holdout: Count = 1000
    exclude: fields.Exclude | None = None
    seed: Seed = 0


class MnistDataset(_Dataset):
    kind: Literal["mnist"] = "mnist"
    holdout: Count = 2000


class DigitsDataset(_Dataset):
    kind: Literal["digits"] = "digits"


class FolderDataset(_Dataset):
    kind: Literal["folder"] = "folder"
    path: LocalPath
    digest: fields.Digest | None = None
    channels: fields.Channels = 3


class NpzDataset(_Dataset):
    kind: Literal["npz"] = "npz"
    path: LocalPath
    digest: fields.Digest | None = None
    images: fields.Text = "images"
    labels: fields.Text | None = None
    pad: Annotated[int, Field(strict=True, ge=0, le=256)] = 0


class IconsDataset(_Dataset):
    kind: Literal["icons"] = "icons"
    packs: Annotated[tuple[LocalPath, ...], Field(min_length=1), AfterValidator(common.distinct)]
    leave_out: fields.Pattern | None = "skin-tone"
    digest: fields.Digest | None = None


Dataset = Annotated[
    MnistDataset | DigitsDataset | FolderDataset | NpzDataset | IconsDataset,
    Field(discriminator="kind"),
]
