"""The section `teacher`: a pretrained one, or one to train."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from models.common import config as common
from models.common.config import Count, Flag, Natural, Precision, Section, Seed, Size
from models.teachers.trust import trust_factory
from tasks.config import types as fields
from tasks.config.types import LocalPath
from tasks.data.sources.base import DataSettings


class PretrainedTeacher(Section):
    source: Literal["pretrained"] = "pretrained"
    """Use one that exists, or train one on the dataset."""
    path: LocalPath = "data/pretrained/mnist16"
    """A diffusers pipeline folder, a hub id, or a checkpoint in one .safetensors file."""
    config: LocalPath | None = None
    """Of a checkpoint in one file: a pipeline folder of the same kind of model, for all that the
    file does not hold.
    """
    lora: LocalPath | None = None
    """A LoRA to add to the weights first: a .safetensors file, or a folder with one."""
    lora_scale: Annotated[float, Field(gt=0, le=4)] = 1.0
    variant: fields.Text | None = None
    """Of the weights' files, such as fp16."""
    dtype: Precision = "float32"
    """Of the network's weights; students are float32."""
    revision: fields.Text | None = None
    """Of a hub id: branch, tag or commit."""
    digest: fields.Digest | None = None
    """Of the content at path; runs fill it in, so that new content runs the stage again."""
    trust_remote_code: Flag = False
    """Run Python code that comes with the model."""
    null_class: Natural | None = None
    """The class that means "no class" for guidance, of conditional UNets; null: that of the
    folder's teacher.json, else none.
    """
    size: Size | None = None
    """Height and width of the images in pixels, of text-to-image teachers; null: the network's
    own.
    """
    scaling: Literal["dataset", "none"] | None = None
    """Of series, how states become data; dataset: by its mean and std; null: as the folder's
    teacher.json says.
    """


class FactoryTeacher(Section):
    source: Literal["factory"] = "factory"
    """A function that returns a models.teachers.base.Denoiser."""
    factory: Annotated[str, Field(strict=True, pattern=r"^[\w.]+:\w+$")]
    """ "module:function", of an installed module or of a file in extensions."""
    arguments: dict[str, JsonValue] = {}  # noqa: RUF012  (pydantic copies it)
    """Its keyword arguments."""
    trust_remote_code: Flag = False
    """Run that function."""

    @model_validator(mode="after")
    def _trusted(self) -> Self:
        if self.trust_remote_code:
            trust_factory(self.factory)
        return self


class TrainedTeacher(Section):
    source: Literal["train"] = "train"
    """Use one that exists, or train one on the dataset."""
    path: LocalPath | None = None
    """Weights to start from: a pipeline folder with the same network; null = random ones."""
    digest: fields.Digest | None = None
    """Of the content at path; runs fill it in, so that new content runs the stage again."""
    steps: Count = 20000
    batch_size: Count = 256
    learning_rate: common.LearningRate = 4e-4
    warmup: Natural = 500
    """Steps in which the rate rises to learning_rate."""
    ema: common.Decay = 0.9995
    """Decay of the moving average of the weights."""
    schedule: Literal["linear", "cosine"] = "cosine"
    """Of the noise levels."""
    prediction_type: Literal["v_prediction", "epsilon", "sample", "flow"] = "v_prediction"
    """What the network predicts."""
    channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=6)] = (32, 64, 96)
    """Of the UNet, one entry per resolution."""
    layers_per_block: Annotated[int, Field(strict=True, ge=1, le=8)] = 2
    dropout: common.Decay = 0.0
    times: Literal["uniform", "lognormal"] = "uniform"
    """Density of the training times; lognormal: in sigma / alpha, where quality is decided."""
    scales: Annotated[tuple[Size, ...], Field(min_length=1)] = (8, 12, 16)
    """Image sizes to train at, in turn, the largest is dataset.size; one may come several times.
    Of series, dataset.length alone.
    """
    conditional: Flag = False
    """Give the network the labels of the dataset."""
    precision: Precision = "float32"
    checkpoint_every: Count = 1000
    seed: Seed = 0

    @model_validator(mode="after")
    def _scales_fit_the_network(self) -> Self:
        factor = 2 ** (len(self.channels) - 1)
        if bad := [scale for scale in self.scales if scale % factor]:
            raise ValueError(
                f"scales {bad}: {len(self.channels)} channel levels need multiples of {factor}"
            )
        return self

    def check_resolution(self, dataset: DataSettings) -> None:
        """ValueError unless the largest scale is what the dataset makes; series have one scale."""
        key, largest = dataset.resolution, max(self.scales)
        wanted = getattr(dataset, key)
        expected = f"expected dataset.{key} = {wanted}"
        if largest != wanted:
            raise ValueError(f"teacher.scales: largest is {largest}, {expected}")
        if dataset.data_kind == "series" and len(self.scales) > 1:
            raise ValueError(
                f"teacher.scales = {list(self.scales)}: {expected} alone, series are learnt whole"
            )


Teacher = Annotated[
    PretrainedTeacher | FactoryTeacher | TrainedTeacher, Field(discriminator="source")
]
