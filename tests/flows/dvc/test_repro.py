from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from flows.dvc import repro as pipeline
from flows.dvc.params_file import apply_overrides
from models.common.errors import InputError
from models.methods.registry import METHODS
from tasks.data.sources import SOURCES
from tests.flows.project import REPOSITORY, make_project, python, runs
from tests.flows.test_subprocess_stream import gone, wait_for

# Shared by all stages to read parameters, show progress, write files, find methods by name and
# spread work over processes: a change there changes no results.
PLUMBING = (
    "tasks.config",
    "tasks.utils",
    "tasks.registry.lineage",
    "tasks.training.ray_cluster",
    "tasks.training.node_folder",  # carry files, whatever is in them
    "tasks.training.keeper",
    "models.common.config",
    "models.common.errors",
    "models.methods.registry",
    "models.methods.sigdeg.config",
    "models.methods.swd.config",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return make_project(tmp_path / "project")


def reproduce_all(root: Path) -> None:
    for name in pipeline.STAGES:
        done = python(root, "-m", "flows.dvc.repro", name)
        assert done.returncode == 0, done.stderr


def test_dvc_repro_and_the_flow_share_their_work(project: Path) -> None:
    assert pipeline.outdated_stages(project) == list(pipeline.STAGES)
    done = subprocess.run(["dvc", "repro"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert pipeline.outdated_stages(project) == []
    apply_overrides(project / "params.yaml", ["student.seed=5"])
    assert pipeline.outdated_stages(project) == ["student"]
    reproduce_all(project)
    assert runs(project) == {
        "dataset": 1,
        "teacher": 1,
        "conditions": 1,
        "trajectories": 1,
        "student": 2,
        "evaluation": 1,
    }
    status = subprocess.run(["dvc", "status"], cwd=project, capture_output=True, text=True)
    assert "up to date" in status.stdout


def test_a_former_result_comes_back_from_the_cache(project: Path) -> None:
    reproduce_all(project)
    before = (project / "dvc.lock").read_text()
    apply_overrides(project / "params.yaml", ["trajectories.seed=5"])
    reproduce_all(project)
    apply_overrides(project / "params.yaml", ["trajectories.seed=0"])
    reproduce_all(project)
    assert runs(project)["trajectories"] == 2
    assert (project / "data/trajectories/y.txt").read_text() == "0"
    assert (project / "dvc.lock").read_text() == before


def test_a_result_of_somebody_else_comes_from_the_remote(project: Path, tmp_path: Path) -> None:
    def dvc(root: Path, *arguments: str) -> None:
        command = ["dvc", *arguments]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    dvc(project, "remote", "add", "-d", "store", str(tmp_path / "store"))
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, "commit", "-qam", "remote"], cwd=project, check=True)
    other = tmp_path / "other"
    subprocess.run(["git", "clone", "-q", str(project), str(other)], check=True)
    reproduce_all(project)
    dvc(project, "push", "--run-cache")
    dvc(other, "fetch", "--run-cache")
    reproduce_all(other)
    assert runs(other) == dict.fromkeys(pipeline.STAGES, 0)
    assert (other / "dvc.lock").read_text() == (project / "dvc.lock").read_text()
    shutil.rmtree(other / "data/student")
    shutil.rmtree(other / ".dvc/cache/files")
    (tmp_path / "store").rename(tmp_path / "away")  # what the remote has not is made
    done = python(other, "-m", "flows.dvc.repro", "student")
    told = "warning: the DVC remote lacks files of student; the stage runs here\n"
    assert (done.returncode, done.stderr) == (0, told)
    assert runs(other) == dict.fromkeys(pipeline.STAGES, 0) | {"student": 1}


def test_a_lost_result_is_noticed(project: Path) -> None:
    reproduce_all(project)
    (project / "data/teacher/w.txt").unlink()
    assert "teacher" in pipeline.outdated_stages(project)


def test_the_status_of_the_stage_is_passed_on(project: Path) -> None:
    (project / "refuse").touch()
    (project / "crash-once").touch()
    assert python(project, "-m", "flows.dvc.repro", "dataset").returncode == 0
    refused = python(project, "-m", "flows.dvc.repro", "teacher")
    assert (refused.returncode, refused.stderr) == (2, "error: teacher.path: no such folder\n")
    (project / "refuse").unlink()
    assert python(project, "-m", "flows.dvc.repro", "teacher").returncode == 0
    assert python(project, "-m", "flows.dvc.repro", "trajectories").returncode == 1
    missing = python(project, "-m", "flows.dvc.repro", "evaluation")
    assert missing.returncode == 1 and "data/student" in missing.stderr


def test_an_unpacked_archive_without_git_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    root = make_project(tmp_path / "archive", git=False)
    reproduce_all(root)
    assert pipeline.outdated_stages(root) == []


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="project's root folder"):
        pipeline.outdated(tmp_path, "dataset")


def by_name(stage: str) -> set[str]:
    """Modules that a stage finds by their name in a registry, which imports do not show."""
    if stage == "dataset":
        return {place.partition(":")[0] for place in SOURCES.values()}
    if stage == "student":
        return {entry.method.partition(":")[0] for entry in METHODS.values()}
    return set()


def test_stages_name_the_code_that_makes_their_results() -> None:
    import grimp

    graph = grimp.build_graph("tasks", "models")
    for module in list(graph.modules):
        if module.startswith(PLUMBING) and module in graph.modules:
            graph.remove_module(module)
    # a teacher's own training takes from the methods' base class the frame alone
    frame = deepcopy(graph)
    for imported in graph.find_modules_directly_imported_by("models.methods.base"):
        frame.remove_import(importer="models.methods.base", imported=imported)
    # a check of the teacher changes nothing of it
    frame.remove_import(importer="tasks.stages.teacher", imported="models.methods.own_network")
    for name, stage in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].items():
        named = {dep.removesuffix(".py") for dep in stage["deps"] if not dep.startswith("data/")}
        roots = {f"tasks.stages.{name}"} | by_name(name)
        seen = frame if name == "teacher" else graph
        used = roots.union(*(seen.find_upstream_modules(root) for root in roots))
        paths = {module.replace(".", "/") for module in used - {"tasks", "models"}}
        lacks = {p for p in paths if not any(f"{p}/".startswith(f"{dep}/") for dep in named)}
        needless = {dep for dep in named if not any(f"{p}/".startswith(f"{dep}/") for p in paths)}
        assert not lacks and not needless, (
            f"dvc.yaml, stage {name}: lacks {sorted(lacks)}, needless {sorted(needless)}"
        )


def test_declared_inputs_and_outputs_fit_together() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert tuple(stages) == pipeline.STAGES
    for name, stage in stages.items():
        assert stage["outs"] == [f"data/{name}"]
        assert stage["cmd"] == f"python -m tasks.stages.{name}"
        for dep in stage["deps"]:
            made_here = dep.startswith("data/") and dep.removeprefix("data/") in stages
            assert made_here or os.path.exists(REPOSITORY / dep), (
                f"stage {name}: {dep} does not exist"
            )


def test_a_stage_ends_when_its_caller_is_killed(project: Path) -> None:
    with (project / "stages/dataset.py").open("a") as file:
        file.write("\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n")
    code = """if True:
        import os, pathlib, sys
        from flows.subprocess_stream import stream
        command = [sys.executable, "-m", "flows.dvc.repro", "dataset", "--with-parent"]
        stream(command, pathlib.Path.cwd(), os.environ, print)
    """
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=project, stdout=subprocess.DEVNULL)
    stage = wait_for(project / "pid")
    caller.kill()
    caller.wait()
    deadline = time.monotonic() + 15
    while not gone(stage) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert gone(stage)
