"""The typed params.yaml: every key, its type, its range and its default.

Scalars are strict (a bool is no number, a string is no number); unknown keys are errors.
`load_params` is the only way in for files; see `tasks.config.overrides` for reading, overriding and
wording errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, Union

from pydantic import BaseModel, Field, create_model, field_validator, model_validator

from models.common.config import Flag, Section
from models.methods.registry import METHODS, config_class
from models.methods.sigdeg.config import SigDEGConfig
from tasks.config.conditions import DATASET, Conditions
from tasks.config.dataset import Dataset
from tasks.config.evaluation import Evaluation, check_metrics
from tasks.config.extensions import load_extensions
from tasks.config.overrides import read_overridden, validated
from tasks.config.student import Student
from tasks.config.teacher import PretrainedTeacher, Teacher, TrainedTeacher
from tasks.config.trajectories import Trajectories
from tasks.config.types import Digest, Text
from tasks.data.sources import SOURCES, settings_class
from tasks.data.sources.mnist import MnistDataset
from tasks.data.sources.none import NoDataset

if TYPE_CHECKING:
    from models.methods.consistency_config import ConsistencyConfig
    from models.methods.sfd_config import SFDConfig
    from models.methods.swd.config import SwDConfig

    Method = SigDEGConfig | SwDConfig | SFDConfig | ConsistencyConfig
else:
    Method = Annotated[Union[tuple(map(config_class, METHODS))], Field(discriminator="kind")]  # noqa: UP007

BUILT_IN = (tuple(SOURCES), tuple(METHODS))


class Registration(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)] = (
        "fewstep-mnist16"
    )
    """Of the registered model."""
    tracking_uri: Text | None = None
    """null: SQLite below mlruns/."""
    promote: Flag = True
    """Make it champion if it is better."""


class Params(Section):
    """All sections; what spans two of them is checked here."""

    dataset: Dataset = MnistDataset()
    teacher: Teacher = PretrainedTeacher()
    conditions: Conditions = Conditions()
    trajectories: Trajectories = Trajectories()
    method: Method = SigDEGConfig()
    student: Student = Student()
    evaluation: Evaluation = Evaluation()
    registration: Registration = Registration()
    extensions: tuple[Text, ...] = ()
    """Modules or .py files that add methods, metrics, sources or teachers; they are run."""
    extensions_digest: Digest | None = None
    """Of the content of the extensions; composing fills it in, so that DVC sees changes."""

    @field_validator("method", mode="before")
    @classmethod
    def _sigdeg_if_unsaid(cls, value: Any) -> Any:
        return {"kind": "sigdeg", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        intervals = self.trajectories.intervals
        along_paths = self.method.nfe if getattr(self.method, "on_cached_grid", False) else ()
        if bad := [nfe for nfe in along_paths if nfe > intervals]:
            expected = f"expected at most trajectories.intervals = {intervals}"
            raise ValueError(f"method.nfe = {bad[0]}: {expected}")
        if getattr(self.method, "deterministic_paths", False) and self.trajectories.eta:
            follows = f"method.kind = {self.method.kind} follows the teacher's deterministic paths"
            raise ValueError(f"trajectories.eta = {self.trajectories.eta}: {follows}, expected 0.0")
        for key in ("validation_samples", "batch_size"):
            pool = "validation" if key == "validation_samples" else "train"
            asked, there = getattr(self.student, key), getattr(self.trajectories, pool)
            if asked > there:
                raise ValueError(
                    f"student.{key} = {asked}: expected at most trajectories.{pool} = {there}"
                )
        self._check_without_dataset()
        if isinstance(self.teacher, TrainedTeacher):
            self.teacher.check_resolution(self.dataset)
            if self.trajectories.guidance_range is not None:
                raise ValueError(
                    "trajectories.guidance_range: teacher.source = train makes teachers whose "
                    "students have no input for the weight of guidance; expected null, or a "
                    "pretrained teacher of prompts"
                )
        kind = self.dataset.data_kind
        if kind not in getattr(self.method, "data_kinds", (kind,)):
            made = f"makes images, the dataset makes {kind}"
            raise ValueError(f"method.kind = {self.method.kind}: {made}; use sigdeg")
        self.evaluation.check_data(kind)
        check_metrics((self.student.criterion,), kind, "student.criterion")
        return self

    def _check_without_dataset(self) -> None:
        """ValueError for settings that need the images which `dataset.kind = none` has not."""
        if not isinstance(self.dataset, NoDataset):
            return
        none = "dataset.kind = none has no images"
        if isinstance(self.teacher, TrainedTeacher):
            raise ValueError(f"teacher.source = train: {none} to train on; use pretrained")
        if self.conditions.prompts == DATASET:
            raise ValueError(f"conditions.prompts = dataset: {none}; give a file of prompts")
        there, samples = self.trajectories.validation, self.evaluation.samples
        if self.evaluation.reference is None and there <= samples:
            raise ValueError(
                f"trajectories.validation = {there}: {none}, so the teacher's images beyond "
                f"evaluation.samples = {samples} are what samples are compared with; expected more,"
                " such as twice as many"
            )


def params_model() -> type[Params]:
    """`Params` with the variants that are registered now, those of extensions included."""
    return _params_model(tuple(SOURCES), tuple(METHODS))


@cache
def _params_model(sources: tuple[str, ...], methods: tuple[str, ...]) -> type[Params]:
    if (sources, methods) == BUILT_IN:
        return Params
    fields: dict[str, Any] = {
        "dataset": (_one_of(map(settings_class, sources)), MnistDataset()),
        "method": (_one_of(map(config_class, methods)), SigDEGConfig()),
    }
    extended: type[Params] = create_model("Params", __base__=Params, **fields)
    return extended


def _one_of(variants: Iterable[type[Section]]) -> Any:
    union: Any = Union[tuple(variants)]  # noqa: UP007
    return Annotated[union, Field(discriminator="kind")]


def load_params(path: Path, overrides: Sequence[str] = ()) -> Params:
    """Read and validate a parameter file after applying `key.sub=value` overrides (values are
    YAML); its extensions are imported first.

    Raises InputError, one line that names the dotted key, what came and what is allowed.
    """
    names = read_overridden(Params, path, ()).get("extensions", ())
    load_extensions(names, path.parent)
    model = params_model()
    return validated(model, read_overridden(model, path, overrides), source=path.name)


def params_from_dict(content: dict[str, Any], root: Path) -> Params:
    """Params again from :func:`params_dict`, in another process: their extensions, below `root`,
    are imported first.
    """
    load_extensions(content.get("extensions", ()), root)
    return params_model().model_validate_json(json.dumps(content))


def params_dict(params: BaseModel) -> dict[str, Any]:
    """Plain JSON-ready form of a section or of all params (tuples become lists)."""
    return params.model_dump(mode="json")
