"""The numbers of an estimate against those of tiny runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.common.errors import InputError
from models.methods.registry import config_class
from tasks.config.schema import Params
from tasks.data.shards import ShardSet
from tasks.estimate import work
from tasks.estimate.blueprint import blueprint
from tasks.estimate.job import Job, take_apart
from tasks.evaluation import load, load_back, sample_generator, validation
from tasks.stages import student, trajectories
from tasks.training import selection
from tasks.utils.network_passes import count_passes
from tests.tasks import prompts
from tests.tasks.distillation import make_root, settings

TEACHER = {"source": "pretrained", "path": "data/teacher"}
SFD = {"kind": "sfd", "nfe": [4, 2]}
SCORE = {"score": 1.0, "path": 0.0, "mmd": 0.0}
SCALES = {
    "pairs": [[1.0, 4], [0.9, 8]],
    "limit": 1e9,
    "samples": 8,
}  # a teacher with random weights
ODE = {"eta": 0.0, "depth": 1}
DMD = {"steps": 3, "samples": 8}
SWD_PAIRS = {"kind": "given", "pairs": [[1.0, 4], [0.6, 6], [0.3, 8]]}


def taken(root: Path, **sections: dict[str, Any]) -> tuple[Params, Job]:
    method = sections.pop("method", {"nfe": [4, 2]})
    params = settings(**{"teacher": TEACHER} | sections)
    chosen = config_class(method.get("kind", "sigdeg")).model_validate_json(json.dumps(method))
    params = params.model_copy(update={"method": chosen})
    return params, take_apart(params, root)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("counts") / "project")


@pytest.fixture(scope="module")
def ode_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With deterministic paths."""
    root = make_root(tmp_path_factory.mktemp("ode") / "project", prediction="epsilon")
    trajectories.run(settings(trajectories=ODE), root)
    return root


def test_a_cache_of_paths_costs_and_takes_what_is_told(root: Path) -> None:
    """With shards that share a lane, and with none."""
    for sizes in ({"seed": 1}, {"seed": 2, "shard_size": 6, "lane": 4, "train": 14}):
        params, job = taken(root, trajectories=sizes)
        with count_passes() as passes:
            trajectories.run(params, root)
        assert job.evaluations("trajectories") == (passes.rows, 0)
        files = (root / "data" / "trajectories").rglob("*.npy")
        assert job.disk("trajectories").result == sum(file.stat().st_size for file in files)
        shards = ShardSet(root / "data" / "trajectories")
        assert shards.rows("train") == params.trajectories.train
    trajectories.run(settings(), root)


@pytest.mark.parametrize(
    ("method", "training"),
    [
        ({"window": {"start": 1, "grow_until": 0.9}}, {"steps": 6}),
        ({"loss": SCORE, "calibrate": False, "memory": True}, {"accumulate": 2}),
        ({"loss": {"mmd": 1.0, "features": 1.0}, "calibrate": False}, {"validate_every": 3}),
        ({"scales": SCALES, "calibrate": False}, {}),
    ],
    ids=["calibrated", "score", "mmd", "scales"],
)
def test_training_of_sigdeg(root: Path, method: dict[str, Any], training: dict[str, Any]) -> None:
    _compare(root, method={"nfe": [4, 2]} | method, student=training)


def test_a_frozen_network_beside_the_student_is_counted(ode_root: Path) -> None:
    """Predictions of noise amplify errors at high noise, so that the first step is damped."""
    paths = ODE | {"grid": {"kind": "index"}}
    trajectories.run(settings(trajectories=paths), ode_root)
    _, job = taken(ode_root, trajectories=paths, method={"nfe": [4, 2], "calibrate": False})
    assert job.costs.copies == ("frozen",) and any(job.costs.damped[4])  # type: ignore[attr-defined]
    _compare(ode_root, trajectories=paths, method={"nfe": [4, 2], "calibrate": False})
    trajectories.run(settings(trajectories=ODE), ode_root)


@pytest.mark.parametrize(
    "choices",
    [
        {"dmd": DMD, "mmd": {"target": "teacher"}},
        {"dmd": DMD | {"gate": "off"}, "fake_updates": 2},
        {"dmd": {"weight": 0.0}, "backward_simulation": False},
    ],
    ids=["gate", "fake", "mmd alone"],
)
def test_training_of_swd(ode_root: Path, choices: dict[str, Any]) -> None:
    method = {"kind": "swd", "schedule": SWD_PAIRS} | choices
    _compare(ode_root, trajectories=ODE, method=method, student={"steps": 5})


@pytest.mark.parametrize("method", [SFD, {"kind": "consistency", "nfe": [4, 2]}])
def test_training_along_deterministic_paths(ode_root: Path, method: dict[str, Any]) -> None:
    _compare(ode_root, trajectories=ODE, method=method)


def _compare(root: Path, **sections: Any) -> None:
    params, job = taken(root, **sections)
    with count_passes() as passes:
        student.run(params, root)
    assert passes.known and passes.trained > 0
    assert job.evaluations("student") == (passes.rows, passes.trained)


def test_guidance_as_an_input_asks_the_teacher_twice(tmp_path: Path) -> None:
    """Who cannot take it is refused here already."""
    root, given = prompts.write_inputs(tmp_path), {"guidance_range": [1.5, 6.0]}

    def rows(**trajectories: Any) -> int:
        params = prompts.settings(trajectories=trajectories)
        context = work.method_context(params, blueprint(params, root, None))
        return work.evaluations(work.trajectories_work(params, context))[0]

    assert rows(**given) == rows() == 2 * rows(guidance=1.0)
    prompts.write_inputs(tmp_path, "sd3")
    with pytest.raises(InputError, match=r"guidance_range = \[1.5, 6\]: students of a SD3Trans"):
        rows(**given)


@pytest.mark.slow
def test_a_student_s_input_for_guidance_is_counted(tmp_path: Path) -> None:
    root = prompts.write_inputs(tmp_path)
    ranged = take_apart(prompts.settings(trajectories={"guidance_range": [1.5, 6.0]}), root)
    one = take_apart(prompts.settings(), root)
    for stage in ("trajectories", "student", "evaluation"):
        assert ranged.evaluations(stage) == one.evaluations(stage)
    (whole, _), (without, _) = ranged.networks.student_weights, one.networks.student_weights
    assert whole - without == 256 * 4
    assert ranged.networks.flops("student") == one.networks.flops("student") + 2 * 256 * 4
    assert ranged.networks.flops("teacher") == one.networks.flops("teacher")


def test_the_numbers_that_stages_keep_to_themselves() -> None:
    """Where one of them changes, the estimate has to follow."""
    assert work.PATH_FIGURES == selection.PATHS
    assert work.VALIDATION_BATCH == validation.BATCH
    assert work.PATH_SAMPLES == load.PATH_SAMPLES
    assert work.WARM_UP == sample_generator.LATENCY_CALLS + 1
    assert work.PROOF == load_back.IMAGES
