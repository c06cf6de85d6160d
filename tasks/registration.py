"""MLflow's model registry: versions of the student, and which of them is the champion."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from models.errors import InputError
from tasks import lineage
from tasks.atomic import sha256_file
from tasks.params import Params
from tasks.store import calm, open_store
from tasks.tracking import read_metrics

CHALLENGER, CHAMPION = "challenger", "champion"
CONTENT, SCORES, SET = "student.sha256", "evaluation.scores", "evaluation.set"
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
REQUIREMENTS = ("mlflow", "diffusers", "torch", "safetensors", "accelerate", "numpy", "pandas")


@dataclass(frozen=True)
class Version:
    """A registered model version; `created` is False if this very student had been registered before."""

    name: str
    number: str
    created: bool


@dataclass(frozen=True)
class Score:
    """KID at one number of steps, with its 95 % bootstrap interval when there is one."""

    kid: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Decision:
    """Whether a version is champion now, and why, in one line."""

    champion: bool
    reason: str


def register_student(root: Path, params: Params, run_id: str) -> Version:
    """Register data/student as a version of `registration.name` and give it the alias `challenger`.

    The same folder content gives the same version; its evaluation tags are brought up to date.
    """
    client = open_store(root, params)
    name, folder = params.registration.name, root / "data/student"
    content = folder_hash(folder)
    number = _find_version(client, name, content)
    created = number is None
    if number is None:
        number = _create_version(client, name, run_id, _log_model(folder, run_id))
        client.set_model_version_tag(name, number, CONTENT, content)
    for key, value in _origin_tags(root, params, run_id).items():
        client.set_model_version_tag(name, number, key, value)
    client.set_registered_model_alias(name, CHALLENGER, number)
    return Version(name, number, created)


def promote(root: Path, params: Params, number: str, force: bool = False) -> Decision:
    """Make version `number` the champion if there is none, if it is better, or by `force`."""
    client = open_store(root, params)
    name = params.registration.name
    present = aliased_version(client, name, CHAMPION)
    if present == number:
        return Decision(True, f"version {number} is the champion already")
    if present is None:
        decision = Decision(True, f"version {number} is the first champion")
    elif force:
        decision = Decision(True, f"version {number} replaces version {present} as asked")
    else:
        decision = _judge(client, name, number, present)
    if decision.champion:
        client.set_registered_model_alias(name, CHAMPION, number)
    return decision


def aliased_version(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version with that alias, or None if the model or the alias does not exist."""
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            return None
        raise


def compare(new: Mapping[int, Score], old: Mapping[int, Score]) -> Decision:
    """Is `new` better than `old`? Both map numbers of steps to scores on the same evaluation set.

    The lower KID at the smallest common number of steps wins. If the intervals overlap there, the difference
    may be chance, so the mean KID over all common numbers has to be lower too.
    """
    common = sorted(new.keys() & old.keys())
    if not common:
        return Decision(False, "no number of steps in common with the champion")
    nfe = common[0]
    a, b = new[nfe], old[nfe]
    figures = f"KID {a.kid:.5f} against {b.kid:.5f} at {nfe} steps"
    if not a.kid < b.kid:
        return Decision(False, f"not better: {figures}")
    if a.high is None or b.low is None or a.high < b.low:
        return Decision(True, f"better: {figures}")
    if sum(new[n].kid for n in common) < sum(old[n].kid for n in common):
        return Decision(True, f"better: {figures} (intervals overlap), and in the mean over {common} steps")
    return Decision(
        False, f"not clearly better: {figures}, intervals overlap, and worse in the mean over {common} steps"
    )


def student_scores(metrics: Mapping[str, Any]) -> dict[int, Score]:
    """The student's scores by number of steps, from metrics.json: {"student": {"nfe10": {"kid": ...}}}."""
    rows = {key: row for key, row in metrics.get("student", {}).items() if re.fullmatch(r"nfe\d+", key)}
    return {int(key[3:]): Score(row["kid"], row.get("kid_low"), row.get("kid_high")) for key, row in rows.items()}


def folder_hash(folder: Path) -> str:
    """SHA-256 over a student folder's file names and contents.

    Raises InputError if there is no student or if it has pickled weights.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder}: no model_index.json: expected a finished student; run `make run` first")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if pickled := [path.name for path in files if path.suffix in PICKLED]:
        raise InputError(
            f"{folder}/{pickled[0]}: only safetensors weights are registered; convert the file or remove it"
        )
    lines = [f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _find_version(client: MlflowClient, name: str, content: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' and tags.`{CONTENT}` = '{content}'")
    return max((str(item.version) for item in found), key=int, default=None)


def _create_version(client: MlflowClient, name: str, run_id: str, model_id: str) -> str:
    try:
        client.create_registered_model(name, description="A few-step student of a diffusion model.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(client.create_model_version(name, f"models:/{model_id}", run_id=run_id, model_id=model_id).version)


def _log_model(folder: Path, run_id: str) -> str:
    """Log the student as models-from-code and try it on its example; returns MLflow's model id."""
    with calm(), mlflow.start_run(run_id=run_id, log_system_metrics=False):
        info = mlflow.pyfunc.log_model(
            name="student",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"student": str(folder)},
            signature=_signature(),
            input_example=(pd.DataFrame({"request": ["example"]}), {"num_images": 2, "seed": 0}),
            pip_requirements=[f"{package}=={installed(package).partition('+')[0]}" for package in REQUIREMENTS],
        )
    return str(info.model_id)


def _signature() -> ModelSignature:
    params = [("num_images", 4), ("seed", 0), ("steps", 0), ("class_label", -1)]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "request")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1, -1, -1))]),
        params=ParamSchema([ParamSpec(name, DataType.long, default) for name, default in params]),
    )


def _origin_tags(root: Path, params: Params, run_id: str) -> dict[str, str]:
    hashes = lineage.stage_hashes(root)
    scores = {nfe: vars(score) for nfe, score in student_scores(read_metrics(root)).items()}
    return lineage.git_state(root) | {
        "run_id": run_id,
        "dvc.student": hashes["student"],
        "dvc.trajectories": hashes["trajectories"],
        SET: lineage.evaluation_set(params, hashes),
        SCORES: json.dumps(scores),
    }


def _judge(client: MlflowClient, name: str, number: str, present: str) -> Decision:
    new, old = (client.get_model_version(name, item).tags for item in (number, present))
    if new.get(SET) != old.get(SET):
        return Decision(
            False,
            f"version {present} stays champion: it was measured on another evaluation set; "
            "`python -m flows.register --force` promotes all the same",
        )
    decision = compare(_scores(new), _scores(old))
    verdict = (
        f"version {number} replaces version {present}" if decision.champion else f"version {present} stays champion"
    )
    return Decision(decision.champion, f"{verdict}: {decision.reason}")


def _scores(tags: Mapping[str, str]) -> dict[int, Score]:
    return {int(nfe): Score(**fields) for nfe, fields in json.loads(tags.get(SCORES, "{}")).items()}
