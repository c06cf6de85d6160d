"""Results from a plain web server: whole and compared, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import httpx
import pytest
import yaml

from flows import published_cache
from flows.dvc import published
from flows.dvc.repro import outdated_stages
from flows.published_cache import LATEST, RESULTS, publish, pull
from models.common.errors import InputError
from tasks.utils.stage_names import STAGES
from tests.flows.project import make_project, python, runs
from tests.flows.served import free_port


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with all results, and beside it the folder where they are published."""
    root = make_project(tmp_path_factory.mktemp("made") / "project")
    done = python(root, "-m", "dvc", "repro")
    assert done.returncode == 0, done.stderr
    before = os.umask(0o077)
    try:
        with chdir(root):
            told = publish(root, root.with_name("published"))
    finally:
        os.umask(before)
    assert "of 6 results" in told
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of what was published."""
    return shutil.copytree(made.with_name("published"), tmp_path / "published")


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as server:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                httpx.get(address)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address
        server.terminate()


@pytest.fixture
def clone(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of the project, the current folder."""
    root = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(made), str(root)], check=True)
    monkeypatch.chdir(root)
    return root


def lock_of(folder: Path) -> Path:
    (found,) = (folder / RESULTS).glob("*/dvc.lock")
    return found


def test_a_clone_takes_them_and_runs_nothing(made: Path, clone: Path, url: str) -> None:
    assert outdated_stages(clone) == list(STAGES)
    assert "all up to date" in pull(clone, url)
    assert outdated_stages(clone) == []
    assert "up to date" in python(clone, "-m", "dvc", "repro").stdout
    assert set(runs(clone).values()) == {0}
    for path in (made / "data").rglob("*"):
        if path.is_file():
            assert (clone / path.relative_to(made)).read_bytes() == path.read_bytes()
    told = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True)
    assert told.stdout.decode().split("\n")[:-1] == ["?? dvc.lock"]
    assert pull(clone, "http://127.0.0.1:9") == "all results are here and up to date"


@pytest.mark.slow
def test_dvc_alone_takes_them_with_a_committed_lock(made: Path, clone: Path, url: str) -> None:
    shutil.copy(made / "dvc.lock", clone)
    assert python(clone, "-m", "dvc", "remote", "add", "-d", "published", url).returncode == 0
    told = python(clone, "-m", "dvc", "pull")
    assert told.returncode == 0, told.stderr
    assert "up to date" in python(clone, "-m", "dvc", "repro").stdout
    assert set(runs(clone).values()) == {0}


def test_results_of_other_params_are_not_taken(clone: Path, url: str) -> None:
    with pytest.raises(InputError, match=r"its latest differ in: params \(commit [0-9a-f]{10}, "):
        pull(clone, url, overrides=["student.steps=7"])
    assert not (clone / "dvc.lock").exists()
    with (clone / "stages/student.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(InputError, match="its latest differ in: code"):
        pull(clone, url)


def test_everybody_may_read_what_was_published(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        wanted = 0o555 if path.is_dir() else 0o444
        assert stat.S_IMODE(path.stat().st_mode) & wanted == wanted, path


@pytest.mark.slow
def test_a_damaged_file_is_refused(folder: Path, clone: Path, url: str) -> None:
    (clone / "dvc.lock").write_text("schema: '2.0'\n")
    out = yaml.safe_load(lock_of(folder).read_text())["stages"]["teacher"]["outs"][0]["md5"]
    listed = json.loads((folder / "files/md5" / out[:2] / out[2:]).read_text())
    (file,) = [folder / "files/md5" / item["md5"][:2] / item["md5"][2:] for item in listed]
    file.chmod(0o644)
    file.write_text("other weights")
    with pytest.raises(InputError, match="data/teacher are missing there or damaged"):
        pull(clone, url)
    assert (clone / "dvc.lock").read_text() == "schema: '2.0'\n"


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "./x", "a/..", "a/"])
def test_places_outside_a_folder(path: str) -> None:
    with pytest.raises(InputError, match="expected a place inside it"):
        published.check_places(["a", "b/..c", path], "data/teacher", "x")
    published.check_places(["a", "b/..c", "..."], "data/teacher", "x")


def test_a_file_outside_its_folder_is_refused(folder: Path, clone: Path, url: str) -> None:
    """The list of files is sound by its hash; whoever serves it has made both."""
    lock = yaml.safe_load(lock_of(folder).read_text())
    out = lock["stages"]["teacher"]["outs"][0]
    listed = json.loads((folder / "files/md5" / out["md5"][:2] / out["md5"][2:]).read_text())
    listed.append(listed[0] | {"relpath": "../../stolen"})
    text = json.dumps(listed, sort_keys=True)
    oid = f"{hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()}.dir"
    (folder / "files/md5" / oid[:2]).mkdir(exist_ok=True)
    (folder / "files/md5" / oid[:2] / oid[2:]).write_text(text)
    for stage in lock["stages"].values():
        for part in (*stage["outs"], *stage.get("deps", ())):
            part["md5"] = oid if part["path"] == "data/teacher" else part["md5"]
    lock_of(folder).write_text(yaml.safe_dump(lock))
    with pytest.raises(InputError, match="expected a place inside it; nothing was taken"):
        pull(clone, url)
    assert not (clone / "stolen").exists() and not (clone / "data/dataset").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../teacher"},
        {"path": "data/student"},
        {"md5": "0" * 32},
        {"md5": "../../../../etc/passwd"},
        {"cache": False},
        {"remote": "other"},
    ],
)
def test_another_lock_is_refused(made: Path, change: dict[str, object]) -> None:
    lock = yaml.safe_load((made / "dvc.lock").read_text())
    assert published_cache.check_lock(yaml.safe_dump(lock), "x")
    lock["stages"]["teacher"]["outs"][0].update(change)
    with pytest.raises(InputError, match="nothing was taken from there"):
        published_cache.check_lock(yaml.safe_dump(lock), "x")


@pytest.mark.parametrize(
    "text", ["", "[]", "stages: 3", "stages: {}", "a: !!python/name:os.system"]
)
def test_what_is_no_lock_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="nothing was taken from there"):
        published_cache.check_lock(text, "x")


@pytest.mark.slow
def test_a_server_without_results(folder: Path, clone: Path, url: str) -> None:
    shutil.rmtree(folder / RESULTS)
    (folder / LATEST).unlink()
    with pytest.raises(InputError, match="that `fewstep publish-cache` has filled"):
        pull(clone, url)
    with pytest.raises(InputError, match="no web server answers there"):
        pull(clone, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match="expected the address of a web server"):
        pull(clone, str(folder))


@pytest.mark.slow
def test_only_finished_results_that_are_whole_are_published(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(made, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(root)
    content = (root / "data/teacher/w.txt").read_bytes()
    oid = hashlib.md5(content, usedforsecurity=False).hexdigest()
    (root / ".dvc/cache/files/md5" / oid[:2] / oid[2:]).unlink()
    with pytest.raises(InputError, match="out of date: teacher: expected finished stages"):
        publish(root, tmp_path / "none")
    shutil.rmtree(root / "data/evaluation")
    with pytest.raises(
        InputError, match="out of date: teacher, evaluation: expected finished stages"
    ):
        publish(root, tmp_path / "none")
    assert not (tmp_path / "none" / RESULTS).exists()
