"""The section `evaluation`: what quality is measured with and against."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from models.common import config as common
from models.common.config import Count, Natural, Section, Seed, Size, Workers
from models.evaluation.registry import METRICS, data_of
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


class TransformersFeatures(Section):
    kind: Literal["transformers"] = "transformers"
    path: LocalPath
    size: Size | None = None


class NoFeatures(Section):
    """Metrics of series look at the series themselves."""

    kind: Literal["none"] = "none"


Features = Annotated[
    MnistFeatures | EfficientNetFeatures | TorchScriptFeatures | TransformersFeatures | NoFeatures,
    Field(discriminator="kind"),
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


class ClipModel(Section):
    path: LocalPath
    """A transformers folder with a CLIP model, its image processor and its tokenizer."""
    aesthetic: LocalPath | None = None
    """A .safetensors of linear layers that rate its image embeddings."""


class Evaluation(Section):
    features: Features = MnistFeatures()
    """The feature extractor of both criteria; of series {kind: none}."""
    more_features: tuple[Features, ...] = ()
    """Further extractors for the table, such as [{kind: efficientnet}]."""
    clip: ClipModel | None = None
    """For the metrics clip_score and aesthetic: {path: a transformers folder}."""
    metrics: Annotated[
        tuple[fields.MetricName, ...],
        BeforeValidator(fields.as_list),
        Field(min_length=1),
        AfterValidator(common.distinct),
    ] = ("kid", "frechet", "precision", "recall", "pixel_mean", "pixel_std")
    """Figures of the table; names of metrics."""
    criterion: fields.MetricName = "kid"
    """The metric that ranks samplers and decides about promotion."""
    reference: Reference | None = None
    """null: the held-out images; or other real images, {kind: npz, path: x.npz} or {kind:
    folder, path: x}.
    """
    samples: Annotated[int, Field(strict=True, ge=2)] = 2000
    """Images or series per sampler; noise beyond that of the validation paths is drawn."""
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
    workers: Workers = 0
    """Ray workers that make the samples; 0 = in this process."""
    seed: Seed = 1
    digest: fields.Digest | None = None
    """Of the content of reference, rivals and clip; runs fill it in."""
    features_digest: fields.Digest | None = None
    """Of the content behind an extractor's path; runs fill it in."""

    @field_validator("features", mode="before")
    @classmethod
    def _one_extractor_decides(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            raise ValueError("expected one extractor; name further ones in more_features")
        return value

    @model_validator(mode="after")
    def _criterion_is_measured(self) -> Self:
        if self.criterion not in self.metrics:
            measured = ", ".join(self.metrics)
            raise ValueError(f"criterion = {self.criterion}: expected one of metrics: {measured}")
        return self

    @model_validator(mode="after")
    def _models_are_there(self) -> Self:
        lacking = {
            "clip_score": "path" if self.clip is None else None,
            "aesthetic": "aesthetic" if self.clip is None or not self.clip.aesthetic else None,
        }
        for metric, key in lacking.items():
            if key and metric in self.metrics:
                example = "" if key == "path" else ", aesthetic: a .safetensors of its predictor"
                raise ValueError(
                    f"metrics: {metric} needs evaluation.clip.{key}; set evaluation.clip="
                    f"'{{path: a transformers folder{example}}}', or leave the metric out"
                )
        return self

    @model_validator(mode="after")
    def _enough_neighbours(self) -> Self:
        if self.neighbours >= self.samples:
            raise ValueError(
                f"neighbours = {self.neighbours}: expected fewer than samples = {self.samples}"
            )
        return self

    def check_data(self, made: str) -> None:
        """ValueError, of one line, where a setting does not fit data of the kind `made`."""
        check_metrics(self.metrics, made, "evaluation.metrics")
        without = isinstance(self.features, NoFeatures)
        if made == "series":
            if not without:
                raise ValueError(
                    f"evaluation.features = {self.features.kind}: the dataset makes series, "
                    "expected {kind: none}"
                )
            for key in ("more_features", "reference"):
                if getattr(self, key):
                    raise ValueError(
                        f"evaluation.{key}: the dataset makes series, expected none; remove it"
                    )
        elif without:
            raise ValueError(
                "evaluation.features = none: the dataset makes images, expected an extractor such "
                "as {kind: mnist}"
            )


def check_metrics(names: Iterable[str], made: str, key: str) -> None:
    """ValueError, which begins with the key, for a metric that does not measure data so made."""
    for name in names:
        if data_of(name) not in (None, made):
            usable = ", ".join(other for other in sorted(METRICS) if data_of(other) == made)
            hint = "; the preset paths has a whole set" if made == "series" else ""
            raise ValueError(
                f"{key} = {name}: a metric of {data_of(name)}, the dataset makes {made}: expected "
                f"{usable}{hint}"
            )
