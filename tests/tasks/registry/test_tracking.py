from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from models.common.errors import InputError
from tasks.config.schema import Params, load_params
from tasks.registry import lineage, store, tracking
from tasks.utils.resource_usage import measure_resources
from tests.tasks.results import write_kid, write_lock, write_results


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params, tracking.TrackedRun]:
    """A project whose results have been recorded once; tests that add to it say so in their own
    run.
    """
    root = write_results(tmp_path_factory.mktemp("tracking") / "my project")
    (root / "tracked.txt").write_text("as committed\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "start"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    params = load_params(root / "params.yaml", ["student.steps=321"])
    with measure_resources(root, "student"):
        pass
    return root, params, tracking.track_run(root, params, prefect_run="flow-1")


def test_a_run_tells_what_it_was_made_of(tracked: tuple[Path, Params, tracking.TrackedRun]) -> None:
    root, params, recorded = tracked
    client = store.open_store(root, params)
    run = client.get_run(recorded.run_id)
    assert recorded.created and run.info.status == "FINISHED"
    assert run.data.params["student.steps"] == "321" and run.data.params["method.nfe"] == "[3, 2]"
    assert run.data.metrics["student.nfe10.kid"] == 0.01
    cost = {
        name for name in run.data.metrics if name.startswith(("stage_seconds", "peak_memory_mib"))
    }
    assert cost == {"stage_seconds/student", "peak_memory_mib/student"}
    assert 1 < run.data.metrics["peak_memory_mib/student"] < 10_000
    tags = run.data.tags
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True
    ).stdout.strip()
    assert (tags["git.commit"], tags["git.dirty"]) == (commit, "false")
    assert tags["dvc.trajectories"] == lineage.stage_hashes(root)["trajectories"]
    assert (tags["prefect.flow_run"], tags["student.kind"]) == ("flow-1", "sigdeg")
    assert tags["teacher.fingerprint"] == "abc"
    (source,) = run.inputs.dataset_inputs
    assert (source.dataset.name, source.dataset.digest) == (
        "trajectories",
        tags["dvc.trajectories"],
    )


def test_the_training_curve_keeps_its_steps_and_gaps(
    tracked: tuple[Path, Params, tracking.TrackedRun],
) -> None:
    root, params, recorded = tracked
    client = store.open_store(root, params)
    losses = client.get_metric_history(recorded.run_id, "train.loss")
    assert [(point.step, point.value) for point in losses] == [(0, 2.0), (50, 1.0)]
    kids = client.get_metric_history(recorded.run_id, "train.kid")
    assert [(point.step, point.value) for point in kids] == [(50, 0.5)]


def test_report_and_figures_lie_under_mlruns(
    tracked: tuple[Path, Params, tracking.TrackedRun],
) -> None:
    root, params, recorded = tracked
    folder = root / "mlruns/artifacts" / params.registration.name / recorded.run_id / "artifacts"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "report.html",
        "metrics.json",
        "figures/frontier.png",
        "params.yaml",
        "dvc.lock",
    }


def test_the_same_results_are_recorded_once(
    tracked: tuple[Path, Params, tracking.TrackedRun],
) -> None:
    root, params, recorded = tracked
    again = tracking.track_run(root, params, prefect_run="flow-2")
    assert again == tracking.TrackedRun(recorded.run_id, created=False)


def test_a_moved_project_keeps_its_runs(
    tracked: tuple[Path, Params, tracking.TrackedRun], tmp_path: Path
) -> None:
    root, params, recorded = tracked
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    client = store.open_store(moved, params)
    place = client.get_run(recorded.run_id).info.artifact_uri
    assert place == str(
        moved / "mlruns/artifacts" / params.registration.name / recorded.run_id / "artifacts"
    )
    assert "report.html" in {item.path for item in client.list_artifacts(recorded.run_id)}
    assert tracking.track_run(moved, params) == tracking.TrackedRun(recorded.run_id, created=False)
    experiment = client.get_experiment_by_name(params.registration.name)
    assert Path(experiment.artifact_location).is_relative_to(moved)


def test_a_failure_on_the_way_ends_the_run_as_failed(
    tracked: tuple[Path, Params, tracking.TrackedRun], tmp_path: Path
) -> None:
    root = shutil.copytree(tracked[0], tmp_path / "copy")
    params = tracked[1]
    write_kid(root, 0.5)
    write_lock(root, {"evaluation": "new"})
    (root / "data/evaluation/metrics.json").write_text("not json")
    with pytest.raises(ValueError):
        tracking.track_run(root, params)
    client = store.open_store(root, params)
    experiment = client.get_experiment_by_name(params.registration.name).experiment_id
    states = sorted(run.info.status for run in client.search_runs([experiment]))
    assert states == ["FAILED", "FINISHED"]
    write_kid(root, 0.5)
    assert tracking.track_run(root, params).created  # a failed record is not taken for a record


def test_runs_of_dead_processes_are_ended(
    tracked: tuple[Path, Params, tracking.TrackedRun], tmp_path: Path
) -> None:
    root = shutil.copytree(tracked[0], tmp_path / "copy")
    client = store.open_store(root, tracked[1])
    experiment = client.create_experiment("reaping")
    host, pid, started = tracking.owner().split("|")
    owners = {
        "alive": f"{host}|{pid}|{started}",
        "reused": f"{host}|{pid}|1.00",
        "dead": f"{host}|4194304|{started}",
        "far": "another-host|4194304|1.00",
        "foreign": "",
    }
    runs = {
        name: client.create_run(experiment, tags={tracking.OWNER: owner})
        for name, owner in owners.items()
    }
    reaped = tracking.reap(client, experiment)
    assert sorted(reaped) == sorted(runs[name].info.run_id for name in ("reused", "dead"))
    assert client.get_run(runs["dead"].info.run_id).info.status == "FAILED"
    assert client.get_run(runs["alive"].info.run_id).info.status == "RUNNING"


def test_unfinished_stages_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dvc.lock not found"):
        lineage.stage_hashes(tmp_path)
    (tmp_path / "dvc.lock").write_text("stages: {dataset: {outs: [{path: data/dataset, md5: a}]}}")
    with pytest.raises(
        InputError, match="no results of teacher, conditions, trajectories, student, evaluation"
    ):
        lineage.stage_hashes(tmp_path)


def test_the_lock_file_does_not_make_a_tree_dirty(
    tracked: tuple[Path, Params, tracking.TrackedRun], tmp_path: Path
) -> None:
    root = shutil.copytree(tracked[0], tmp_path / "copy")
    write_lock(root, {"student": "other"})
    assert lineage.git_state(root)["git.dirty"] == "false"
    # every run writes params.yaml anew: a difference there is not an edit
    with (root / "params.yaml").open("a") as file:
        file.write("# edited\n")
    assert lineage.git_state(root)["git.dirty"] == "false"
    with (root / "tracked.txt").open("a") as file:
        file.write("edited\n")
    assert lineage.git_state(root)["git.dirty"] == "true"
    assert lineage.git_state(tmp_path) == {}
