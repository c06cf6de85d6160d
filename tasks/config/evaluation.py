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
Baseline = Literal[
    "ddim", "ddpm", "dpmpp_2m", "sde_dpmpp_2m", "unipc", "dpmpp_3m", "deis", "ipndm", "ipndm3",
    "ipndm2", "heun", "sde_heun",
]  # fmt: skip


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
    """null: the held-out images; or other real images, {kind: npz, path: x.npz} or {kind:
    folder, path: x}.
    """
    samples: Annotated[int, Field(strict=True, ge=2)] = 2000
    """Images per sampler; noise beyond that of the validation paths is drawn."""
    nfe: (
        Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(common.distinct)] | None
    ) = None
    """Numbers of network calls; null = those of the method."""
    baselines: Annotated[tuple[Baseline, ...], AfterValidator(common.distinct)] = (
        "ddim", "ddpm", "dpmpp_2m", "sde_dpmpp_2m", "unipc",
    )  # fmt: skip
    rivals: Annotated[tuple[LocalPath, ...], AfterValidator(common.distinct)] = ()
    """Folders of other students to compare with."""
    bootstrap: Natural = 200
    """Resamples for the intervals."""
    neighbours: Count = 3
    """Of precision and recall."""
    batch_size: Count = 125
    seed: Seed = 1

    @model_validator(mode="after")
    def _enough_neighbours(self) -> Self:
        if self.neighbours >= self.samples:
            raise ValueError(
                f"neighbours = {self.neighbours}: expected fewer than samples = {self.samples}"
            )
        return self
