from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flows.dvc import repro as pipeline
from flows.dvc.params_file import apply_overrides
from models.common.errors import InputError
from tasks.data.sources import SOURCES as SOURCES_BY_NAME
from tests.flows.project import REPOSITORY, make_project, python, runs
from tests.flows.test_subprocess_stream import gone, wait_for

# Shared by all stages to read parameters, show progress and write files: a change there changes no
# results.
PLUMBING = {
    "models",
    "models.common.errors",
    "tasks",
    "tasks.utils.atomic",
    "tasks.utils.cli",
    "tasks.utils.cpus",
    "tasks.utils.environment",
    "tasks.utils.git",
    "tasks.utils.proxies",
    "tasks.utils.sqlite_files",
    "tasks.utils.streams",
    "tasks.utils.failpoints",
    "tasks.config.types",
    "tasks.utils.locks",
    "tasks.utils.resource_usage",
    "tasks.utils.parent_death",
    "tasks.utils.os_errors",
    "tasks.config.overrides",
    "tasks.config.schema",
    "tasks.utils.progress",
    "tasks.utils.redaction",
    *(f"tasks.config.{name}" for name in ("dataset", "evaluation", "student", "teacher")),
    "tasks.config.trajectories",
    "models.common.config",
    "models.methods.registry",
    "models.methods.sigdeg.config",
    "models.methods.swd.config",
}

# Imported by a stage for other purposes than its results: what another stage is made by (whose
# results are
# inputs already), how work is spread over processes, and how it is kept while unfinished.
ELSEWHERE = {
    "trajectories": {
        "tasks.stages.teacher",
        "tasks.training.trainer",
        "models.methods.denoising",
        "models.training.loop",
    },
    "student": {
        "tasks.stages.teacher",
        "tasks.stages.trajectories",
        "models.methods.denoising",
        *(
            "tasks.stages.evaluation",
            "tasks.evaluation.benchmark",
            "tasks.evaluation.samplers",
            "tasks.evaluation.load",
            "tasks.evaluation.results",
        ),
        *(
            "tasks.evaluation.report.figures",
            "tasks.evaluation.report.image_grids",
            "tasks.evaluation.report.html",
            "models.sampling.baselines",
        ),
    },
    "evaluation": {
        "tasks.stages.teacher",
        "tasks.stages.trajectories",
        "tasks.training.trainer",
        "models.methods.denoising",
    },
}
KEEPING = {
    "tasks.data.dataset",
    "tasks.data.student",
    "tasks.data.teacher",
    "tasks.data.trajectories",
    "tasks.training.checkpoints",
    "tasks.data.shards",
    "tasks.training.ray_cluster",
    "tasks.registry.lineage",
    "models.methods.base",
}
READERS = {f"tasks.data.{name}" for name in ("images", "depths", "files", "labels", "tables")}
DATA = {"tasks.stages.dataset", "tasks.data.icons", *READERS}
SOURCES = "tasks.data.sources"  # their settings are part of the params of every stage


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


@pytest.mark.parametrize("name", ["me@corp.example", "a b#c%41?[x]*"])
def test_folders_with_characters_that_dvc_reads_as_syntax(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    root = make_project(tmp_path / name / "project", git=False)
    done = python(root, "-m", "flows.dvc.repro", "dataset")
    assert done.returncode == 0, done.stderr
    assert (root / "data/dataset/n.txt").is_file()
    assert not pipeline.outdated(root, "dataset") and pipeline.outdated(root, "teacher")


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def test_an_archive_inside_a_repository_that_ignores_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a home folder under git: the project is in none of its commits, and DVC works without."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("*\n")
    git(tmp_path, "add", "-f", ".gitignore")
    git(tmp_path, "commit", "-qm", "my settings")
    root = make_project(tmp_path / "archive", git=False)
    (root / ".dvc/config.local").write_text("[cache]\n    type = copy\n")
    done = python(root, "-m", "flows.dvc.repro", "dataset")
    assert done.returncode == 0, done.stderr
    assert not pipeline.outdated(root, "dataset")
    settings = (root / ".dvc/config.local").read_text()
    assert "type = copy" in settings and "no_scm = True" in settings


def test_a_repository_that_comes_later_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    root = make_project(tmp_path / "archive", git=False)
    pipeline.prepare_repository(root)
    assert (root / ".dvc/config.local").read_text() == pipeline.WITHOUT_GIT
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "start")
    pipeline.prepare_repository(root)
    assert not (root / ".dvc/config.local").exists()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="project's root folder"):
        pipeline.outdated(tmp_path, "dataset")


def test_stages_name_the_code_that_makes_their_results() -> None:
    import grimp

    graph = grimp.build_graph("tasks", "models")
    for name, stage in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].items():
        named = {dep for dep in stage["deps"] if dep.endswith(".py")}
        module = f"tasks.stages.{name}"
        used = {module} | graph.find_upstream_modules(module)
        if name in ("dataset", "evaluation"):
            assert "tasks/data/sources" in stage["deps"], name
            for kind in SOURCES_BY_NAME.values():  # found by name, so no import tells of them
                used |= graph.find_upstream_modules(str(kind).partition(":")[0])
        used = (
            {item for item in used if not item.startswith(SOURCES)}
            - PLUMBING
            - KEEPING
            - ELSEWHERE.get(name, set())
        )
        used -= {"dataset": set(), "evaluation": {"tasks.stages.dataset"}}.get(name, DATA)
        files = {f"{item.replace('.', '/')}.py" for item in used}
        lacks, needless = sorted(files - named), sorted(named - files)
        assert not lacks and not needless, (
            f"dvc.yaml, stage {name}: lacks {lacks}, needless {needless}"
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
