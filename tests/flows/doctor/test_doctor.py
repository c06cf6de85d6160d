from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from flows.doctor import check as findings
from flows.doctor import doctor, machine_checks, project_checks
from flows.services import daemons
from tests.flows.project import REPOSITORY, make_project

GIB = 1024**3
DEAD = 2**22 + 1  # above the kernel's highest process id


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


def versions(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    real = machine_checks.installed
    monkeypatch.setattr(
        machine_checks, "installed", lambda name: changed[name] if name in changed else real(name)
    )


def test_a_sound_machine_has_nothing_to_mend(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 18 and [item for item in found if item["state"] == "fail"] == []
    assert all(bool(item["fix"]) == (item["state"] != "ok") for item in found)


def test_a_failure_gives_status_1_and_a_line_how_to_mend_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = findings.fail("git", "not [found]", "install git")
    monkeypatch.setattr(
        doctor, "diagnose", lambda root, ports: [findings.ok("python", "3.11.7"), bad]
    )
    monkeypatch.chdir(project)
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "python", "3.11.7"] and lines[1].split() == [
        "fail",
        "git",
        "not",
        "[found]",
    ]
    assert lines[2].strip() == "-> install git" and lines[3] == "1 ok, 0 to look at, 1 to fix"


def test_a_broken_check_stops_no_other() -> None:
    def broken() -> findings.Finding:
        raise OSError("unreadable")

    first, second = findings.examine(
        [("disk", broken), ("git", lambda: findings.ok("git", "there"))]
    )
    assert first.state == "fail" and "unreadable" in first.found and second.state == "ok"


def test_python_must_be_new_enough() -> None:
    assert machine_checks.python((3, 11, 0)).state == "ok"
    assert machine_checks.python((3, 10, 14)).state == "fail"


@pytest.mark.parametrize(
    ("changed", "state", "told"),
    [
        ({}, "ok", "as pinned"),
        ({"fastapi": "0.155.0"}, "fail", "Prefect's server does not start with it"),
        ({"sqlalchemy": "2.1.3"}, "fail", "Prefect's scheduler makes no runs with it"),
        ({"alembic": None}, "fail", "missing: alembic"),
        ({"zipp": "9.9"}, "warn", "zipp 9.9 (pinned 4.1.2)"),
        ({"torch": "2.13.0+cu130"}, "ok", "as pinned"),
    ],
)
def test_packages(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str | None], state: str, told: str
) -> None:
    versions(monkeypatch, **changed)
    found = machine_checks.packages(REPOSITORY)
    assert found.state == state and told in found.found
    assert bool(found.fix) == (state != "ok")


def test_bare_ray_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_checks.ray_default().state == "ok"
    versions(monkeypatch, **{"aiohttp_cors": None, "colorful": None})
    found = machine_checks.ray_default()
    assert found.state == "fail" and "colorful" in found.found


def test_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert machine_checks.git().state == "fail"
    assert machine_checks.compiler().state == "ok"  # iisignature is built here
    versions(monkeypatch, iisignature=None)
    assert machine_checks.compiler().state == "fail"


def test_ports(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        taken = machine_checks.port(tmp_path, "prefect", number, "PORT")
        assert taken.state == "warn" and str(os.getpid()) in taken.found
        assert f"make up PORT={number + 10}" in taken.fix
    assert machine_checks.port(tmp_path, "prefect", number, "PORT").state == "ok"


def test_disk_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1,536 paths of 256 pixels in float16, 7 states each
    assert machine_checks.trajectory_bytes(REPOSITORY) == (1024 + 512) * 256 * 7 * 2
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9 * GIB, 8 * GIB, GIB))
    found = machine_checks.disk(REPOSITORY)
    assert found.state == "fail" and found.found.startswith(
        "1.0 GiB free; a run needs about 2.0 GiB"
    )
    seen = namedtuple("seen", "total available")
    monkeypatch.setattr(machine_checks.psutil, "virtual_memory", lambda: seen(4 * GIB, GIB))
    assert machine_checks.memory().state == "warn"


def test_a_gpu_that_torch_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert machine_checks.gpu().state == "warn"


def dvc(root: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True
    )


def test_remote(project: Path, tmp_path: Path) -> None:
    assert project_checks.remote(project).found.startswith("none")
    dvc(project, "remote", "add", "-d", "store", str(tmp_path / "store"))
    assert project_checks.remote(project).state == "ok"
    dvc(project, "remote", "modify", "store", "url", "/nowhere/at/all")
    found = project_checks.remote(project)
    assert found.state == "fail" and "/nowhere/at/all does not answer" in found.found


def test_a_remote_that_refuses_shows_no_password(project: Path) -> None:
    dvc(project, "remote", "add", "-d", "web", "http://anna:geheim@127.0.0.1:9/store")
    found = project_checks.remote(project)
    assert (
        found.state == "fail"
        and "geheim" not in found.found
        and "http://***@127.0.0.1:9" in found.found
    )


@pytest.mark.parametrize(
    ("check", "place"),
    [("prefect_database", ".fewstep/prefect/prefect.db"), ("mlflow_database", "mlruns/mlflow.db")],
)
def test_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: str, place: str) -> None:
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    examine: Any = getattr(project_checks, check)
    assert examine(tmp_path).found.startswith("none yet")
    database = tmp_path / place
    database.parent.mkdir(parents=True)
    store = sqlite3.connect(database)
    store.execute("create table alembic_version (version_num text)")
    store.execute("insert into alembic_version values ('0ld')")
    store.commit()
    found = examine(tmp_path)
    assert found.state == "warn" and found.found.startswith("has 0ld, wanted ")
    store.execute("update alembic_version set version_num = ?", (found.found.split()[-1],))
    store.commit()
    assert examine(tmp_path).state == "ok"


def test_stale_locks(project: Path) -> None:
    assert project_checks.locks(project).state == "ok"
    held = {
        "data/x": {"write": {"pid": DEAD, "cmd": "dvc repro"}},
        "y": {"read": [{"pid": os.getpid(), "cmd": "dvc"}]},
    }
    (project / ".dvc/tmp").mkdir(exist_ok=True)
    (project / ".dvc/tmp/rwlock").write_text(json.dumps(held))
    scratch = project / ".fewstep/scratch/student"
    scratch.mkdir(parents=True)
    (scratch / "a.owner").write_text(f"{DEAD}\n")
    (scratch / "b.owner").write_text(f"{os.getpid()}\n")
    found = project_checks.locks(project)
    assert (
        found.state == "warn"
        and found.found.count(str(DEAD)) == 2
        and str(os.getpid()) not in found.found
    )


def test_unfinished_work(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project / ".fewstep/scratch/student/0123"
    folder.mkdir(parents=True)
    (folder / "tensors").write_bytes(bytes(3 * 1024 * 1024))
    found = project_checks.scratch(project)
    assert found.state == "ok" and found.found.startswith("3.0 MiB in 1 folders")
    monkeypatch.setattr(project_checks, "SCRATCH_LIMIT", 1024)
    assert project_checks.scratch(project).state == "warn"


def test_services_that_ended_by_themselves(project: Path) -> None:
    assert project_checks.services(project).found == "none started"
    daemon = daemons.start(
        project, "worker", [sys.executable, "-c", "raise SystemExit(3)"], "", os.environ
    )
    while daemon.alive():
        pass
    found = project_checks.services(project)
    assert (
        found.state == "warn" and "worker ended by itself" in found.found and "make up" in found.fix
    )


def test_a_remotes_address_is_shown_without_credentials(project: Path) -> None:
    from flows.dvc import storage

    dvc(project, "remote", "add", "-d", "web", "https://anna:geheim@host/store")
    assert storage.default_remote(project) == ("web", "https://***@host/store")


def test_worktrees_left_behind(project: Path) -> None:
    assert project_checks.worktrees(project).state == "ok"
    place = project / ".fewstep/runs/0a1b2c3d"
    subprocess.run(
        ["git", "worktree", "add", "-q", "--detach", str(place)], cwd=project, check=True
    )
    found = project_checks.worktrees(project)
    assert found.state == "warn" and found.found.startswith("1 under .fewstep, 0 with changes")
    (place / "params.yaml").write_text("changed")
    assert "1 with changes: 0a1b2c3d" in project_checks.worktrees(project).found
    (place.parent / "0a1b2c3d.owner").write_text(f"{os.getpid()}\n")
    assert project_checks.worktrees(project).found == "1 in use, none left behind"
