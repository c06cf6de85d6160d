"""Estimates against whole runs on this machine: hours, memory and disk within 35 %."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.compare_estimate import compare
from tasks.config.presets import compose
from tasks.config.written import params_text
from tasks.utils.stage_names import STAGES
from tests.paths import PROJECT

WITHIN = 0.35
SMALL = {"CPU seconds": 8.0, "disk": 1.0}  # below these a figure counts in the sum alone


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("preset", ["tiny", "paths", "mnist-sigdeg"])
def test_a_preset(preset: str, tmp_path: Path) -> None:
    params = compose(PROJECT, preset)
    (tmp_path / "params.yaml").write_text(params_text(params, "measured"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pretrained").symlink_to(PROJECT / "data" / "pretrained")
    before = compare(params, tmp_path)
    assert before == []  # nothing has run, and the estimate needs nothing
    for stage in STAGES:
        command = [sys.executable, "-m", f"tasks.stages.{stage}"]
        env = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    found = compare(params, tmp_path)
    for each in found:
        print(f"{preset} {each.stage} {each.what}: {each.estimated:.1f}, {each.measured:.1f}")
        if each.what in ("evaluations", "trained"):
            assert each.estimated == each.measured, each
        elif each.measured >= SMALL.get(each.what, 0.0):
            assert abs(each.off) <= WITHIN, each
    for what in ("CPU seconds", "disk"):
        whole = [each for each in found if each.what == what]
        off = sum(e.estimated for e in whole) / sum(e.measured for e in whole) - 1
        assert abs(off) <= WITHIN, f"{what}: {off:+.0%}"
