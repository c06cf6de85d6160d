"""The section `evaluation`: what quality is measured with and against."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from models.common import config as common
from models.common.config import Count, Natural, Section, Seed, Size
from tasks.config import types as fields
from tasks.config.types import LocalPath


class MnistFeatures(Section):
    kind: Literal["mnist"] = "mnist"


class EfficientNetFeatures(Section):
    kind: Literal["efficientnet"] = "efficientnet"
    size: Annotated[int, Field(strict=True, ge=32, le=1024)] = 112


class TorchScriptFeatures(Section):
    kind: Literal["torchscript"] = "torchscript"
    path: LocalPath
    size: Size = 299


Features = Annotated[
    MnistFeatures | EfficientNetFeatures | TorchScriptFeatures, Field(discriminator="kind")
]
Baseline = Literal["ddim", "ddpm", "dpmpp_2m", "sde_dpmpp_2m", "unipc"]


class FolderReference(Section):
    kind: Literal["folder"] = "folder"
    path: LocalPath


class NpzReference(Section):
    kind: Literal["npz"] = "npz"
    path: LocalPath
    images: fields.Text = "images"
    pad: Annotated[int, Field(strict=True, ge=0, le=256)] = 0


Reference = Annotated[FolderReference | NpzReference, Field(discriminator="kind")]


class Evaluation(Section):
    features: Features = MnistFeatures()
    reference: Reference | None = None
    samples: Annotated[int, Field(strict=True, ge=2)] = 2000
    nfe: (
        Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(common.distinct)] | None
    ) = None
    baselines: Annotated[tuple[Baseline, ...], AfterValidator(common.distinct)] = (
        "ddim", "ddpm", "dpmpp_2m", "sde_dpmpp_2m", "unipc",
    )  # fmt: skip
    rivals: Annotated[tuple[LocalPath, ...], AfterValidator(common.distinct)] = ()
    bootstrap: Natural = 200
    neighbours: Count = 3
    batch_size: Count = 125
    seed: Seed = 1

    @model_validator(mode="after")
    def _enough_neighbours(self) -> Self:
        if self.neighbours >= self.samples:
            raise ValueError(
                f"neighbours = {self.neighbours}: expected fewer than samples = {self.samples}"
            )
        return self
