"""The typed params.yaml: every key, its type, its range and its default.

Scalars are strict (a bool is no number, a string is no number); unknown keys are errors.
`load_params` is the only way in for files; see `tasks.config.overrides` for reading, overriding and
wording errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from tasks.config import types as fields
from tasks.config.overrides import read_overridden, validated
from tasks.config.swd import Swd
from tasks.config.types import Count, Flag, LocalPath, Natural, Precision, Section, Seed, Size


class _Dataset(Section):
    size: Size = 16
    holdout: Count = 1000
    exclude: fields.Exclude | None = None
    seed: Seed = 0


class MnistDataset(_Dataset):
    kind: Literal["mnist"] = "mnist"


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
    packs: Annotated[tuple[LocalPath, ...], Field(min_length=1), AfterValidator(fields.distinct)]
    leave_out: fields.Pattern | None = "skin-tone"
    digest: fields.Digest | None = None


Dataset = Annotated[
    MnistDataset | DigitsDataset | FolderDataset | NpzDataset | IconsDataset,
    Field(discriminator="kind"),
]


class PretrainedTeacher(Section):
    source: Literal["pretrained"] = "pretrained"
    path: LocalPath = "data/pretrained/mnist16"
    revision: fields.Text | None = None
    digest: fields.Digest | None = None
    trust_remote_code: Flag = False


class TrainedTeacher(Section):
    source: Literal["train"] = "train"
    steps: Count = 20000
    batch_size: Count = 256
    learning_rate: fields.LearningRate = 4e-4
    warmup: Natural = 500
    ema: fields.Decay = 0.9995
    schedule: Literal["linear", "cosine"] = "cosine"
    prediction: Literal["v_prediction", "epsilon", "sample", "flow"] = "v_prediction"
    channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=6)] = (32, 64, 96)
    layers_per_block: Annotated[int, Field(strict=True, ge=1, le=8)] = 2
    dropout: fields.Decay = 0.0
    scales: Annotated[tuple[Size, ...], Field(min_length=1), AfterValidator(fields.distinct)] = (
        8,
        12,
        16,
    )
    conditional: Flag = False
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


Teacher = Annotated[PretrainedTeacher | TrainedTeacher, Field(discriminator="source")]


class IndexGrid(Section):
    kind: Literal["index"] = "index"


class AdaptiveGrid(Section):
    kind: Literal["adaptive"] = "adaptive"


class LogSnrGrid(Section):
    kind: Literal["logsnr"] = "logsnr"


class GivenGrid(Section):
    kind: Literal["given"] = "given"
    points: Annotated[tuple[Natural, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _increasing_from_zero(self) -> Self:
        if self.points[0] != 0:
            raise ValueError(f"points start at {self.points[0]}: expected 0")
        if any(left >= right for left, right in zip(self.points, self.points[1:], strict=False)):
            raise ValueError("points: expected strictly increasing step indices")
        return self


Grid = Annotated[AdaptiveGrid | IndexGrid | LogSnrGrid | GivenGrid, Field(discriminator="kind")]


class Trajectories(Section):
    train: Count = 1024
    validation: Count = 1000
    steps: Annotated[int, Field(strict=True, ge=2, le=1000)] = 100
    eta: fields.Fraction = 1.0
    intervals: Annotated[int, Field(strict=True, ge=1, le=1000)] = 20
    grid: Grid = AdaptiveGrid()
    depth: Annotated[int, Field(strict=True, ge=1, le=6)] = 2
    dtype: Literal["float16", "float32"] = "float16"
    precision: Precision = "float32"
    compile: Flag = False
    lane: Count = 64
    batch_size: Count = 128
    shard_size: Count = 128
    workers: Annotated[int, Field(strict=True, ge=0, le=1024)] = 0
    guidance: fields.Nonnegative = 1.0
    classes: Annotated[tuple[Natural, ...], Field(min_length=1)] | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _grid_fits_the_chain(self) -> Self:
        if self.intervals > self.steps:
            raise ValueError(f"intervals = {self.intervals}: expected at most steps = {self.steps}")
        if isinstance(self.grid, GivenGrid):
            if self.grid.points[-1] != self.steps:
                raise ValueError(
                    f"grid.points end at {self.grid.points[-1]}: expected steps = {self.steps}"
                )
            if len(self.grid.points) != self.intervals + 1:
                count = len(self.grid.points)
                expected = f"expected intervals + 1 = {self.intervals + 1}"
                raise ValueError(f"grid.points has {count} entries: {expected}")
        return self


class Student(Section):
    steps: Natural = 300
    batch_size: Count = 32
    accumulate: Count = 1
    learning_rate: fields.LearningRate = 1e-4
    warmup: Natural = 20
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: fields.Nonnegative = 0.0
    ema: fields.Decay = 0.99
    clip: fields.Positive = 1.0
    precision: Precision = "float32"
    gradient_checkpointing: Flag = False
    workers: Annotated[int, Field(strict=True, ge=0, le=1024)] = 0
    validate_every: Count = 50
    validation_samples: Annotated[int, Field(strict=True, ge=2)] = 500
    checkpoint_every: Count = 50
    keep_checkpoints: Count = 2
    max_failures: Natural = 2
    seed: Seed = 0


class Window(Section):
    start: Count = 1
    grow_until: fields.Fraction = 0.5


class SigDegLoss(Section):
    weighting: Literal["marginal", "uniform", "final"] = "marginal"
    power: Annotated[float, Field(strict=True, gt=0, le=4)] = 2.0
    path: fields.Nonnegative = 1.0
    mmd: fields.Nonnegative = 0.0
    mmd_target: Literal["auto", "teacher", "data"] = "auto"
    mmd_bandwidths: Annotated[tuple[fields.Positive, ...], Field(min_length=1)] = (0.5, 1.0, 2.0)
    features: fields.Nonnegative = 0.0


class SigDeg(Section):
    kind: Literal["sigdeg"] = "sigdeg"
    nfe: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(fields.distinct)] = (
        10,
        5,
    )
    order: fields.Order = 2
    look_ahead: fields.Fraction = 0.25
    predict_order: fields.Order = 2
    calibrate: Flag = True
    memory: Flag = False
    conditioning_limit: fields.Positive | None = 10.0
    window: Window = Window()
    loss: SigDegLoss = SigDegLoss()
    trainable: Literal["full", "lora", "input"] = "full"
    lora_rank: Annotated[int, Field(strict=True, ge=1, le=1024)] = 16

    companions: ClassVar[dict[str, dict[str, Any]]] = {
        "student": {key: Student.model_fields[key].default for key in Swd.companions["student"]}
    }


Method = Annotated[SigDeg | Swd, Field(discriminator="kind")]


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
    samples: Annotated[int, Field(strict=True, ge=2)] = 1000
    nfe: (
        Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(fields.distinct)] | None
    ) = None
    baselines: Annotated[tuple[Baseline, ...], AfterValidator(fields.distinct)] = (
        "ddim", "ddpm", "dpmpp_2m", "sde_dpmpp_2m", "unipc",
    )  # fmt: skip
    rivals: Annotated[tuple[LocalPath, ...], AfterValidator(fields.distinct)] = ()
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


class Registration(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)] = (
        "fewstep-mnist16"
    )
    tracking_uri: fields.Text | None = None
    promote: Flag = True


class Params(Section):
    """All sections; what spans two of them is checked here."""

    dataset: Dataset = MnistDataset()
    teacher: Teacher = PretrainedTeacher()
    trajectories: Trajectories = Trajectories()
    method: Method = SigDeg()
    student: Student = Student()
    evaluation: Evaluation = Evaluation()
    registration: Registration = Registration()

    @field_validator("method", mode="before")
    @classmethod
    def _sigdeg_if_unsaid(cls, value: Any) -> Any:
        return {"kind": "sigdeg", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        intervals = self.trajectories.intervals
        along_paths = self.method.nfe if isinstance(self.method, SigDeg) else ()
        if bad := [nfe for nfe in along_paths if intervals % nfe]:
            expected = f"expected a divisor of trajectories.intervals = {intervals}"
            raise ValueError(f"method.nfe = {bad[0]}: {expected}")
        for key in ("validation_samples", "batch_size"):
            pool = "validation" if key == "validation_samples" else "train"
            asked, there = getattr(self.student, key), getattr(self.trajectories, pool)
            if asked > there:
                raise ValueError(
                    f"student.{key} = {asked}: expected at most trajectories.{pool} = {there}"
                )
        if (
            isinstance(self.teacher, TrainedTeacher)
            and max(self.teacher.scales) != self.dataset.size
        ):
            scale, size = max(self.teacher.scales), self.dataset.size
            raise ValueError(f"teacher.scales: largest is {scale}, expected dataset.size = {size}")
        return self


def load_params(path: Path, overrides: Sequence[str] = ()) -> Params:
    """Read and validate a parameter file after applying `key.sub=value` overrides (values are
    YAML).

    Raises InputError, one line that names the dotted key, what came and what is allowed.
    """
    return validated(Params, read_overridden(Params, path, overrides), source=path.name)


def params_dict(params: BaseModel) -> dict[str, Any]:
    """Plain JSON-ready form of a section or of all params (tuples become lists)."""
    return params.model_dump(mode="json")
