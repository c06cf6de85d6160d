from __future__ import annotations

import json
from importlib import import_module
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.distill import distill
from flows.dvc.params_file import apply_overrides, as_list
from tasks.config.schema import load_params
from tests.flows.project import REPOSITORY

SCHEMA = json.loads(parameter_schema(distill.fn).model_dump_json())
DEPLOYMENTS = {
    f"{item['entrypoint'].partition(':')[2]}/{item['name']}": item
    for item in yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
}


@pytest.mark.parametrize(
    "parameters",
    [
        {"overrides": ["student.steps=600", "method.nfe=[10,5]", "teacher.path=/a b/c=d"]},
        {
            "overrides": {
                "student": {"steps": 600},
                "method": {"nfe": [4]},
                "trajectories": {"grid": {"kind": "index"}},
            }
        },
        {"overrides": {"method": {"kind": "swd", "schedule": {"kind": "preset", "steps": 6}}}},
        {"overrides": {"dataset": {"size": 16}}, "method": "swd", "revision": "v1.2~3"},
        {"overrides": [], "method": None, "revision": None},
    ],
)
def test_parts_of_the_params_pass(parameters: dict[str, Any]) -> None:
    validate(parameters, SCHEMA, raise_on_error=True)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"overrides": ["studnt.steps=3"]}, "'studnt.steps=3' does not match"),
        ({"overrides": ["student.steps"]}, "does not match"),
        ({"overrides": {"student": {"stps": 3}}}, r"\('stps' was unexpected\)"),
        ({"overrides": {"student": {"steps": -3}}}, "-3 is less than the minimum of 0"),
        ({"overrides": {"student": {"steps": "many"}}}, "'many' is not of type 'integer'"),
        ({"overrides": {"registration": {"name": "a/b"}}}, "does not match"),
        ({"overrides": "student.steps=3"}, "is not of type 'object'"),
        ({"method": "sigdog"}, "is not one of"),
        ({"revision": "--upload-pack=x"}, "does not match"),
        ({"revision": 7}, "is not of type"),
    ],
)
def test_mistakes_are_refused_with_their_reason(parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        validate(parameters, SCHEMA, raise_on_error=True)


def test_what_passes_as_a_mapping_can_be_laid_over(tmp_path: Any) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((REPOSITORY / "params.yaml").read_text())
    params, _ = apply_overrides(path, as_list({"student": {"steps": 7}, "method": {"nfe": [4]}}))
    assert params.student.steps == 7 and params.method.nfe == (4,)  # type: ignore[union-attr]
    assert load_params(path) == params


def test_deployments_are_what_operations_says() -> None:
    assert set(DEPLOYMENTS) == {
        "distill/sigdeg",
        "distill/swd",
        "retrain/nightly",
        "retrain/manual",
        "rollback/manual",
    }
    for name, item in DEPLOYMENTS.items():
        module, function = item["entrypoint"].removesuffix(".py").split(".py:")
        flow = getattr(import_module(module.replace("/", ".")), function)
        assert flow.name == name.partition("/")[0]
        given = item.get("parameters", {})
        validate(
            given, json.loads(parameter_schema(flow.fn).model_dump_json()), raise_on_error=True
        )
        assert given.get("revision") == (None if name.startswith("rollback") else "HEAD")
    assert [
        DEPLOYMENTS[f"distill/{kind}"]["parameters"]["method"] for kind in ("sigdeg", "swd")
    ] == ["sigdeg", "swd"]
    nightly, manual = DEPLOYMENTS["retrain/nightly"], DEPLOYMENTS["retrain/manual"]
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    (schedule,) = nightly["schedules"]
    assert len(schedule["cron"].split()) == 5 and ZoneInfo(schedule["timezone"])
    assert manual["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert manual["triggers"][0]["expect"] == ["data.updated"]
