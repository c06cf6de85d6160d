"""The dvc.lock in git: results of the default preset, by this pipeline and these params."""

from __future__ import annotations

import subprocess
from functools import reduce
from operator import getitem
from typing import Any

import pytest
import yaml

from tasks.utils.stage_names import STAGES
from tests.paths import PROJECT


def committed(name: str) -> dict[str, Any]:
    done = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=PROJECT, capture_output=True)
    if done.returncode:
        pytest.skip(f"{name} is in no commit here")
    return dict(yaml.safe_load(done.stdout))


@pytest.mark.parametrize("name", STAGES)
def test_it_is_of_this_pipeline_and_its_params(name: str) -> None:
    lock = committed("dvc.lock")["stages"][name]
    stage, params = committed("dvc.yaml")["stages"][name], committed("params.yaml")
    assert lock["cmd"] == stage["cmd"]
    assert {dep["path"] for dep in lock["deps"]} == set(stage["deps"])
    assert {out["path"] for out in lock["outs"]} == set(stage["outs"])
    recorded = lock["params"]["params.yaml"]
    assert recorded == {key: reduce(getitem, key.split("."), params) for key in stage["params"]}
