from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.distill import distill
from flows.dvc.params_file import as_list
from tasks.config.presets import compose, presets
from tasks.config.schema import params_dict
from tests.flows.project import REPOSITORY

SCHEMA = json.loads(parameter_schema(distill.fn).model_dump_json())
DEPLOYMENTS = {
    f"{item['entrypoint'].rpartition('.')[2]}/{item['name']}": item
    for item in yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
}


@pytest.mark.parametrize(
    "parameters",
    [
        {"overrides": {"student": {"steps": 600}, "method": {"nfe": [6]}}},
        {"overrides": {"trajectories": {"grid": {"kind": "given", "points": [0, 5, 10]}}}},
        {"overrides": {"method": {"kind": "swd", "schedule": {"kind": "preset", "steps": 6}}}},
        {"overrides": {"evaluation": {"reference": {"kind": "npz", "path": "/a b/c.npz"}}}},
        {"preset": "mnist-swd", "overrides": {"method": {"dmd": {"weight": 0.0}}}},
        {"preset": "tiny", "overrides": {}, "revision": "v1.2~3"},
        {"overrides": {}, "revision": None},
    ],
)
def test_parts_of_the_params_pass(parameters: dict[str, Any]) -> None:
    validate(parameters, SCHEMA, raise_on_error=True)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"overrides": {"studnt": {"steps": 3}}}, r"\('studnt' was unexpected\)"),
        ({"overrides": {"student": {"step": 5}}}, r"\('step' was unexpected\)"),
        ({"overrides": {"student": {"steps": -3}}}, "-3 is less than the minimum of 0"),
        ({"overrides": {"student": {"steps": "many"}}}, "student.steps'. .* 'many' is not valid"),
        ({"overrides": {"student": {"schedule": "cosin"}}}, "'cosin' is not one of"),
        ({"overrides": {"method": {"kind": "sigdog"}}}, "'sigdog' is not one of"),
        ({"overrides": {"method": {"kind": "swd", "nfe": [4]}}}, "'nfe' is not one of"),
        ({"overrides": {"method": {"windw": {"start": 3}}}}, "'windw' was unexpected"),
        ({"overrides": {"registration": {"name": "a/b"}}}, "does not match"),
        ({"overrides": ["student.step=5"]}, "is not of type 'object'"),
        ({"preset": "mnist-sigdog"}, "is not one of"),
        ({"method": "swd"}, "'method' was unexpected"),
        ({"revision": "--upload-pack=x"}, "does not match"),
        ({"revision": 7}, "is not of type"),
    ],
)
def test_mistakes_are_refused_with_their_reason(parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        validate(parameters, SCHEMA | {"additionalProperties": False}, raise_on_error=True)


def fields(schema: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """The schema of every plain key, by its dotted name."""
    found: dict[str, dict[str, Any]] = {}
    for name, below in schema.get("properties", {}).items():
        options = [below, *below.get("anyOf", []), *below.get("oneOf", [])]
        deeper = [part for part in options if "properties" in part]
        for part in deeper:
            found |= fields(part, f"{prefix}{name}.")
        if not deeper or "anyOf" in below:
            found[f"{prefix}{name}"] = below
    return found


def test_the_form_has_a_typed_field_for_every_key_of_every_preset() -> None:
    known = fields(SCHEMA["properties"]["overrides"])
    assert all({"type", "anyOf", "enum", "const"} & set(schema) for schema in known.values())
    for name in presets(REPOSITORY):
        asked = {text.partition("=")[0] for text in as_list(params_dict(compose(REPOSITORY, name)))}
        assert asked <= set(known), name
    assert known["student.learning_rate"]["exclusiveMinimum"] == 0
    assert known["method.loss.path"]["description"] == "Weight of the path error."


def test_what_passes_as_a_mapping_can_be_laid_over() -> None:
    given = as_list({"student": {"steps": 7}, "method": {"nfe": [6]}})
    params = compose(REPOSITORY, "mnist-sigdeg", given)
    assert params.student.steps == 7 and params.method.nfe == (6,)


@pytest.mark.parametrize("entrypoint", sorted({d["entrypoint"] for d in DEPLOYMENTS.values()}))
def test_a_worker_loads_a_flow_and_still_finds_the_package_dvc(entrypoint: str) -> None:
    code = (
        "from prefect.flows import load_flow_from_entrypoint as load; "
        f"load({entrypoint!r}, use_placeholder_flow=False); from dvc.config import Config; "
        "print(Config.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "dvc.config", done.stderr


def test_deployments_are_what_operations_says() -> None:
    assert set(DEPLOYMENTS) == {
        "distill/preset",
        "retrain/nightly",
        "retrain/manual",
        "rollback/manual",
    }
    for name, item in DEPLOYMENTS.items():
        module, _, function = item["entrypoint"].rpartition(".")
        flow = getattr(import_module(module), function)
        assert flow.name == name.partition("/")[0]
        given = item.get("parameters", {})
        validate(
            given, json.loads(parameter_schema(flow.fn).model_dump_json()), raise_on_error=True
        )
        assert given.get("revision") == (None if name.startswith("rollback") else "HEAD")
    nightly, manual = DEPLOYMENTS["retrain/nightly"], DEPLOYMENTS["retrain/manual"]
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    (schedule,) = nightly["schedules"]
    assert len(schedule["cron"].split()) == 5 and ZoneInfo(schedule["timezone"])
    assert manual["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert manual["triggers"][0]["expect"] == ["data.updated"]
