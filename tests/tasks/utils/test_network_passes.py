from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from tasks.utils.network_passes import count_passes
from tasks.utils.resource_usage import FOLDER, costs, measure_resources, measurement, note
from tasks.utils.scratch import scratch_for
from tests.tiny import tiny_teacher


def test_rows_of_networks_count_with_and_without_gradients() -> None:
    teacher = tiny_teacher()
    teacher.network.requires_grad_(True)
    x, t = torch.randn(3, *teacher.shape), torch.tensor(500.0)
    with count_passes() as passes:
        teacher.predict(x, t)
        with torch.no_grad():
            teacher.predict(x[:2], t)
        teacher.network.requires_grad_(False)
        teacher.predict(x[:1], t)
    assert (passes.rows, passes.trained) == (6, 3)
    teacher.predict(x, t)  # after the block nothing is counted
    assert passes.record() == {"network_evaluations": 6, "trained_evaluations": 3}


def test_an_autoencoder_is_no_evaluation() -> None:
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, latent_channels=1
    )
    with count_passes() as passes:
        vae(torch.randn(2, 1, 8, 8))
    assert passes.record() == {}


def test_a_number_that_cannot_be_told_is_left_out() -> None:
    network = tiny_teacher().network
    x = torch.randn(3, network.config.in_channels, 8, 8)
    with count_passes() as passes:
        network(x, 1)
        network(sample=x, timestep=1)
    assert passes.rows == 3 and passes.record() == {}


def write(root: Path, stage: str) -> None:
    (root / "data" / stage).mkdir(parents=True, exist_ok=True)
    (root / "data" / stage / "result.json").write_text("{}")


def test_a_stages_measurement_has_them(tmp_path: Path) -> None:
    teacher = tiny_teacher()
    x = torch.randn(4, *teacher.shape)
    for stage in ("student", "trajectories"):
        with measure_resources(tmp_path, stage):
            write(tmp_path, stage)
            teacher.predict(x, torch.tensor(1.0))
    found = measurement(tmp_path, "student")
    assert found["network_evaluations"] == 4 and found["cpu_seconds"] >= 0
    assert "resumed" not in found
    # where networks may be compiled they are not counted
    assert "network_evaluations" not in measurement(tmp_path, "trajectories")
    assert set(costs(tmp_path, ["student"])) == {"stage_seconds/student", "peak_memory_mib/student"}


def test_work_that_was_gone_on_with_is_marked(tmp_path: Path) -> None:
    scratch = scratch_for(tmp_path, "student", 1)
    for times in range(2):
        with measure_resources(tmp_path, "student"):
            assert scratch_for(tmp_path, "student", 1) == scratch
            scratch.mkdir(parents=True, exist_ok=True)
            write(tmp_path, "student")
        (record,) = (tmp_path / FOLDER / "student").iterdir()
        assert ("resumed" in json.loads(record.read_text())) == bool(times)


def test_cpu_time_counts_work_and_not_waiting(tmp_path: Path) -> None:
    def spend(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    for work, wait in ((0.3, 0.0), (0.0, 0.3)):
        with measure_resources(tmp_path, "student"):
            write(tmp_path, "student")
            spend(work)
            time.sleep(wait)
            note(done=True)
        found = measurement(tmp_path, "student")
        assert found["done"] is True
        assert (found["cpu_seconds"] >= 0.3) == (work > 0)
