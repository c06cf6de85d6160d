"""Workers without the project's folder: what they fetch, send and leave behind; Ray's calls are
plain ones here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.common.errors import InputError
from models.evaluation import caption_retrieval
from tasks.config.external_paths import judging_files, worker_files
from tasks.evaluation.extractor import FEATURES
from tasks.stages import student
from tasks.training import keeper, node_folder
from tasks.training.keeper import Keeper
from tasks.training.node_folder import Mirror, NodeFolder, ProjectFolder, offered
from tests.paths import PROJECT
from tests.tasks.distillation import settings


class Called:
    """A method as an actor has it, called at once."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method

    def remote(self, *given: Any) -> Any:
        return self.method(*given)


class Actor:
    def __init__(self, root: Path) -> None:
        self.own = Keeper(str(root))
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Called:
        def call(*given: Any) -> Any:
            self.asked.append(name)
            return getattr(self.own, name)(*given)

        return Called(call)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of some files; the node's temporary folder is beside it."""
    monkeypatch.setattr(keeper.ray, "get", lambda reference: reference)
    monkeypatch.setattr(keeper, "CHUNK", 1000)
    monkeypatch.setattr(node_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(node_folder, "_held", {})
    monkeypatch.setattr(node_folder.sys, "path", [])
    root = tmp_path / "project"
    write(root / "data/teacher/weights", os.urandom(5300))
    write(root / "data/teacher/model.json", b"{}")
    write(tmp_path / "cache/ab", b"from DVC's cache")
    (root / "data/teacher/link").symlink_to(tmp_path / "cache/ab")
    write(root / "secret", b"not asked for")
    return root


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def opened(root: Path, mark: str = ".fewstep/ray/mark-1") -> NodeFolder:
    return ProjectFolder(str(root), mark, ("data/teacher", "data/nothing"), Actor(root)).open()


def test_a_worker_that_finds_the_mark_uses_the_folder(project: Path) -> None:
    write(project / "mark-1", b"")
    node = opened(project, "mark-1")
    assert node.root == project and node.keeper is None
    with node.made(project / "shard") as here:
        assert here == project / "shard"
    assert Mirror(node, project / "scratch", "rank-0").here == project / "scratch"
    assert ProjectFolder(str(project)).open().root == project


def test_another_one_fetches_what_it_needs_once(project: Path) -> None:
    node = opened(project)
    assert files(node.root / "data/teacher") == files(project / "data/teacher")
    assert sorted(os.listdir(node.root)) == [".whole", "data"]
    assert (node.root.parent.stat().st_mode & 0o777) == 0o700
    again = opened(project)
    assert again.root == node.root and again.keeper.asked == []


def test_workers_of_a_node_use_a_copy_at_once(project: Path) -> None:
    """Another process, which has no lock yet, opens it while this one has it open."""
    node = opened(project)
    program = """
import sys, tempfile
from pathlib import Path
from tasks.training import node_folder
tempfile.gettempdir = lambda: sys.argv[2]
given = node_folder.ProjectFolder(sys.argv[1], ".fewstep/ray/mark-1", keeper="not asked")
print(given.open().root)
"""
    command = [sys.executable, "-c", program, str(project), str(node.root.parents[1])]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(node.root), done.stderr


def test_a_copy_that_nobody_uses_is_removed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, unused = (opened(project, f".fewstep/ray/mark-{i}").root for i in (1, 2))
    node_folder._held.pop(unused).close()  # as when its last process has ended
    half = used.with_name("mark-3")
    write(half / "data/half", b"killed while it was fetched")
    write(half.with_name("mark-3.lock"), b"")
    opened(project, ".fewstep/ray/mark-4")
    assert sorted(os.listdir(used.parent)) == ["mark-1", "mark-1.lock", "mark-4", "mark-4.lock"]


def test_what_is_made_arrives_whole(project: Path) -> None:
    node, place = opened(project), project / ".fewstep/scratch/shard"
    write(place / "old", b"replaced")
    with node.made(place) as here:
        write(here / "x.npy", content := os.urandom(2500))
        write(here / "deep/empty", b"")
    assert files(place) == {"x.npy": content, "deep/empty": b""}
    assert not here.exists() and os.listdir(place.parent) == ["shard"]


@pytest.mark.parametrize("deaths", [2, 3])
def test_a_keeper_that_dies_is_sent_all_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    node, left = opened(project), [None] * deaths
    write_chunk = Keeper.write

    def lossy(self: Keeper, name: str, start: int, content: bytes) -> None:
        if start and left:
            left.pop()
            raise node_folder.RayActorError
        write_chunk(self, name, start, content)

    monkeypatch.setattr(Keeper, "write", lossy)
    write(made := node.root / "made", content := os.urandom(2500))
    if deaths == node_folder.ATTEMPTS:
        with pytest.raises(node_folder.RayActorError):
            node.send(made, project / "there")
        assert not (project / "there").exists()
    else:
        node.send(made, project / "there")
        assert (project / "there").read_bytes() == content


def test_what_was_damaged_on_the_way_never_appears(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = opened(project)
    write_chunk = Keeper.write
    monkeypatch.setattr(
        Keeper, "write", lambda self, name, start, content: write_chunk(self, name, start, b"else")
    )
    write(made := node.root / "made", b"content")
    with pytest.raises(RuntimeError, match="not what was sent"):
        node.send(made, project / "there")
    assert not (project / "there").exists()


def test_a_keeper_writes_below_the_project_alone(project: Path) -> None:
    for name in ("../other", "/etc/passwd", "data/../../other"):
        with pytest.raises(ValueError, match="not below the project's folder"):
            Keeper(str(project)).begin(name)


def test_a_mirror_goes_on_from_the_driver_and_sends_what_is_new(project: Path) -> None:
    scratch = project / ".fewstep/scratch/student"
    for name in ("step-2/checkpoint.json", "best/step-2/checkpoint.json", "facts.json"):
        write(scratch / name, b"2")
    mirror = Mirror(opened(project), scratch, "rank-0")
    assert files(mirror.here) == files(scratch)
    mirror.publish()
    assert "write" not in mirror.node.keeper.asked  # nothing is new
    write(mirror.here / "best/step-4/checkpoint.json", b"4")
    write(mirror.here / "step-4/checkpoint.json", b"4")
    write(mirror.here / "step-4/deep/part", b"of four")
    write(mirror.here / ".step-6.tmp/part", b"being written")
    write(mirror.here / "result.json", b"{}")
    (mirror.here / "step-2/checkpoint.json").unlink()
    (mirror.here / "step-2").rmdir()
    mirror.publish()
    assert files(scratch) == {
        "best/step-2/checkpoint.json": b"2",
        "best/step-4/checkpoint.json": b"4",
        "facts.json": b"2",
        "result.json": b"{}",
        "step-4/checkpoint.json": b"4",
        "step-4/deep/part": b"of four",
    }


def test_progress_is_told_meanwhile(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_folder, "NEWS_SECONDS", 0.01)
    scratch = project / ".fewstep/scratch/student"
    mirror = Mirror(opened(project), scratch, "rank-0")
    with mirror.telling("progress.json"):
        write(mirror.here / "progress.json", b"1")
        for _ in range(500):
            if (scratch / "progress.json").is_file():
                break
            node_folder.threading.Event().wait(0.01)
    assert (scratch / "progress.json").read_bytes() == b"1"


def test_what_workers_read(tmp_path: Path) -> None:
    root = tmp_path / "project"
    for name in ("idea.py", "ideas/toy.py"):
        write(root / name, b"")
    rivals = ["data/benchmark/one", str(root / "two"), "/elsewhere/three"]
    params = settings(evaluation={"rivals": rivals})
    params = params.model_copy(update={"extensions": ("ideas/toy.py",)})
    assert worker_files(params, root, ("teacher", "conditions")) == [
        "data/teacher",
        "data/conditions",
        "ideas/toy.py",
    ]
    assert judging_files(params, root) == [
        str(FEATURES),
        str(caption_retrieval.FOLDER),
        "data/benchmark/one",
        "two",
    ]


def test_parts_of_a_checkpoint_need_a_common_folder(project: Path) -> None:
    work = {
        "params": settings(student={"sharding": "full"}).model_dump(mode="json"),
        "folder": SimpleNamespace(open=lambda: opened(project)),
        "scratch": str(project / ".fewstep/scratch/student"),
    }
    with pytest.raises(InputError, match=rf"sharding = full .* folder {project}: expected one"):
        student._work(work)


@pytest.mark.parametrize("seen", [True, False])
def test_a_driver_whose_own_node_lacks_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    own = Actor(project if seen else project / "data")
    actor = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda root: own))
    killed: list[Any] = []
    context = SimpleNamespace(get_node_id=lambda: "ab" * 28)
    monkeypatch.setattr(
        node_folder,
        "ray",
        SimpleNamespace(
            get=lambda reference: reference,
            remote=lambda **_: lambda kind: actor,
            kill=killed.append,
            get_runtime_context=lambda: context,
        ),
    )
    if seen:
        with offered(project, ["data/teacher"]) as folder:
            assert folder.open().root == project
    else:
        with pytest.raises(InputError, match="run `ray start` where"), offered(project, []):
            pass
    assert killed == [own] and os.listdir(project / ".fewstep/ray") == []
