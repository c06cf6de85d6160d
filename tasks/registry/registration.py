"""MLflow's model registry: versions of the student, registered, fetched and tried."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.registry import lineage
from tasks.registry.scores import criterion_of, criterion_to_tag, student_scores, to_tag
from tasks.registry.store import calm, open_store
from tasks.registry.tracking import OWNER, owner, read_metrics
from tasks.utils.atomic import sha256_file
from tasks.utils.failpoints import reach

CHALLENGER, CHAMPION = "challenger", "champion"
CONTENT, SCORES, SET = "student.sha256", "evaluation.scores", "evaluation.set"
CRITERION = "evaluation.criterion"
STUDENT = Path("artifacts/student")  # inside a logged model
TRIAL_SAMPLES = 4
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
REQUIREMENTS = ("mlflow", "diffusers", "torch", "safetensors", "accelerate", "numpy", "pandas")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """A registered model version; `created` is False if this very student had been registered
    before.
    """

    name: str
    number: str
    created: bool


def register_student(
    root: Path, params: Params, run_id: str, inputs: Mapping[str, str] | None = None
) -> Version:
    """Register data/student as a version of `registration.name` and give it the alias `challenger`.

    The same folder content gives the same version, unless the registry's copy is damaged; its tags
    are brought up to date: the evaluation's figures, and `inputs`, which name what it was made
    from.
    """
    client = open_store(root, params)
    name, folder = params.registration.name, root / "data/student"
    content = folder_hash(folder)
    known = find_version(client, name, {CONTENT: content})
    if known is not None and not _is_sound(client, name, str(known.version)):
        known = None
    number = "" if known is None else str(known.version)
    created = known is None
    if created:
        number = _create_version(client, name, run_id, _log_model(folder, run_id, content), content)
    reach("registration.created")
    for key, value in (_origin_tags(root, params, run_id) | dict(inputs or {})).items():
        client.set_model_version_tag(name, number, key, value)
    client.set_registered_model_alias(name, CHALLENGER, number)
    return Version(name, number, created)


def aliased_version(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version with that alias, or None if the model or the alias does not exist."""
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise


def find_version(client: MlflowClient, name: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """The latest version that has all these tags."""
    wanted = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
    found = client.search_model_versions(" and ".join([f"name = '{name}'", *wanted]))
    return max(found, key=lambda item: int(item.version), default=None)


def fetch_version(client: MlflowClient, name: str, number: str, folder: Path) -> Path:
    """Copy a version's model into `folder` and return it, checked against the hash of its
    registration.

    Raises InputError if the registry lacks files of it or has damaged ones.
    """
    wanted = client.get_model_version(name, number).tags.get(CONTENT)
    try:  # a copy, since loading from the registry writes into its folder
        model = Path(
            mlflow.artifacts.download_artifacts(f"models:/{name}/{number}", dst_path=str(folder))
        )
        found = folder_hash(model / STUDENT)
    except (MlflowException, OSError, InputError) as error:
        raise InputError(
            f"{name} version {number} cannot be read from the registry ({_first_line(error)})"
        ) from error
    if wanted is not None and found != wanted:
        raise InputError(
            f"{name} version {number}: files in the registry are not those that were registered"
        )
    return model


def try_version(client: MlflowClient, name: str, number: str, otherwise: str) -> None:
    """Load a version from the registry and let it make samples; InputError, which ends with
    `otherwise`, if it cannot.

    The samples have to be finite and none may be of one value.
    """
    with tempfile.TemporaryDirectory() as folder, calm():
        try:
            place = fetch_version(client, name, number, Path(folder))
            model = mlflow.pyfunc.load_model(str(place))
            makes = "series" if _dimensions(model) == 3 else "images"
            asked = {f"num_{makes}": TRIAL_SAMPLES, "seed": 0}
            made = np.asarray(model.predict(example_of(place / STUDENT), params=asked))
        except InputError as error:
            raise InputError(f"{error}: {otherwise}") from error
        except Exception as error:  # whatever a student's own code may raise
            raise InputError(
                f"{name} version {number} cannot be sampled ({_first_line(error)}): {otherwise}"
            ) from error
    if wrong := _what_is_wrong(made, makes):
        raise InputError(f"{name} version {number} makes {makes} that {wrong}: {otherwise}")


def example_of(student: Path) -> pd.DataFrame:
    """A request of one row: of a student of prompts one that its folder knows."""
    prompts = _index(student).get("prompts")
    if prompts is None:
        return pd.DataFrame({"request": ["example"]})
    return pd.DataFrame({"prompt": prompts["examples"][:1]})


def _index(student: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((student / "model_index.json").read_text(encoding="utf-8"))
    return found


def _dimensions(model: Any) -> int:
    """Of what the model makes, as its signature has it."""
    return len(model.metadata.get_output_schema().inputs[0].shape)


def _what_is_wrong(made: np.ndarray, makes: str) -> str:
    layout, dimensions = {
        "images": ("height, width, 1 or 3", 4),
        "series": ("channels, length", 3),
    }[makes]
    fits = made.ndim == dimensions and len(made) == TRIAL_SAMPLES
    if not fits or (makes == "images" and made.shape[-1] not in (1, 3)):
        return f"have the shape {made.shape}, expected ({TRIAL_SAMPLES}, {layout})"
    if not np.isfinite(made).all():
        return "hold NaN or infinite values"
    least = 1e-4 if makes == "images" else 0.0  # series are in units of their own
    if min(float(sample.std()) for sample in made) <= least:
        return "are of one value"
    return ""


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def folder_hash(folder: Path) -> str:
    """SHA-256 over a student folder's file names and contents.

    Raises InputError if there is no student or if it has pickled weights.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"{folder}: no model_index.json: expected a finished student; run `make run` first"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if pickled := [path.name for path in files if path.suffix in PICKLED]:
        raise InputError(
            f"{folder}/{pickled[0]}: only safetensors weights are registered; convert the file or "
            "remove it"
        )
    lines = [f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_sound(client: MlflowClient, name: str, number: str) -> bool:
    """Whether the registry's files of a version are those that were registered."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            fetch_version(client, name, number, Path(folder))
        except InputError as error:
            logger.warning("%s; it is registered again", error)
            return False
    return True


def _create_version(
    client: MlflowClient, name: str, run_id: str, model_id: str, content: str
) -> str:
    try:
        client.create_registered_model(name, description="A few-step student of a diffusion model.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    reach("registration.logged")
    source, tags = f"models:/{model_id}", {CONTENT: content}
    return str(
        client.create_model_version(
            name, source, run_id=run_id, model_id=model_id, tags=tags
        ).version
    )


def _log_model(folder: Path, run_id: str, content: str) -> str:
    """Log the student as models-from-code and try it on its example; returns MLflow's model id."""
    about, example = _index(folder), example_of(folder)
    shape, weighted = about.get("shape"), "guidance_range" in (about.get("prompts") or {})
    makes = "series" if shape is not None and len(shape) == 2 else "images"
    mine = {
        OWNER: owner()
    }  # the run is RUNNING again meanwhile, perhaps in another process than the one that made it
    with (
        tempfile.TemporaryDirectory() as place,
        calm(),
        mlflow.start_run(run_id=run_id, tags=mine, log_system_metrics=False),
        _figures_at_once(),
    ):
        files = folder
        if any(path.is_symlink() for path in folder.rglob("*")):
            # DVC's cache.type = symlink: MLflow refuses links as paths out of its folder.
            files = shutil.copytree(folder, Path(place) / STUDENT.name)
        info = mlflow.pyfunc.log_model(
            name="student",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={STUDENT.name: str(files)},
            model_config={"sha256": content},  # whoever loads it compares
            signature=_signature(makes, example.columns[0], weighted),
            input_example=(example, {f"num_{makes}": 2, "seed": 0}),
            pip_requirements=[
                f"{package}=={installed(package).partition('+')[0]}"
                for package in (*REQUIREMENTS, *(("transformers",) if "prompt" in example else ()))
            ],
        )
        reach("registration.uploaded")
    return str(info.model_id)


@contextmanager
def _figures_at_once() -> Iterator[None]:
    """Within the block the history of a run's metric is its latest value, known from one request.

    To copy a run's figures to a model, MLflow asks for the history of each of the hundreds of
    metrics: minutes, where a server asks for a password each time.
    """
    asked = MlflowClient.get_metric_history
    latest = cache(lambda client, run_id: client.get_run(run_id).data._metric_objs)

    def known(client: MlflowClient, run_id: str, key: str) -> list[Metric]:
        return [metric for metric in latest(client, run_id) if metric.key == key]

    MlflowClient.get_metric_history = known
    try:
        yield
    finally:
        MlflowClient.get_metric_history = asked


def _signature(makes: str, column: str, weighted: bool) -> ModelSignature:
    """``weighted``: whether the student takes a weight of guidance."""
    dimensions = 3 if makes == "series" else 4
    params = [(f"num_{makes}", 4), ("seed", 0), ("steps", 0), ("class_label", -1)]
    known = [ParamSpec(name, DataType.long, default) for name, default in params]
    if weighted:
        known.append(ParamSpec("guidance_scale", DataType.double, -1.0))
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, column)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1,) * dimensions)]),
        params=ParamSchema(known),
    )


def _origin_tags(root: Path, params: Params, run_id: str) -> dict[str, str]:
    hashes, metrics = lineage.stage_hashes(root), read_metrics(root)
    content = metrics.get("evaluation", {}).get("content")
    return lineage.git_state(root) | {
        "run_id": run_id,
        "dvc.student": hashes["student"],
        "dvc.trajectories": hashes["trajectories"],
        SET: lineage.evaluation_set(params, hashes, content),
        CRITERION: criterion_to_tag(criterion_of(metrics)),
        SCORES: to_tag(student_scores(metrics)),
    }
