from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.utils import atomic
from tasks.utils.atomic import (
    atomic_dir,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    read_json,
    sha256_file,
)
from tests.paths import PROJECT


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_sha256_of_known_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == known
    large = bytes(range(256)) * 20000
    (tmp_path / "large").write_bytes(large)
    assert sha256_file(tmp_path / "large") == hashlib.sha256(large).hexdigest()


def test_files_are_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    atomic_write_text(path, "first")
    atomic_write_text(path, "zwölf")
    assert path.read_bytes() == "zwölf".encode() and listing(tmp_path) == ["new", "new/file.txt"]
    atomic_write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    atomic_write_json(path, {"b": [1, 2.5, None], "a": True})
    assert path.read_text() == '{\n  "b": [\n    1,\n    2.5,\n    null\n  ],\n  "a": true\n}\n'


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic_write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    atomic_write_json(path, 1)
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(path, float("nan"))
    assert path.read_text() == "1\n"


def test_a_failed_rename_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken" / "by a folder").mkdir(parents=True)
    with pytest.raises(OSError):
        atomic_write_text(tmp_path / "taken", "x")
    assert listing(tmp_path) == ["taken", "taken/by a folder"]


def test_dir_appears_at_the_end(tmp_path: Path) -> None:
    dest = tmp_path / "deep" / "dest"
    with atomic_dir(dest) as folder:
        assert folder.parent == dest.parent and not dest.exists()
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("new")
    assert listing(tmp_path) == ["deep", "deep/dest", "deep/dest/sub", "deep/dest/sub/file"]


def test_dir_is_replaced_whole(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "old").write_text("old")
    (dest / "old").chmod(0o444)  # as DVC leaves it
    with atomic_dir(dest) as folder:
        (folder / "new").write_text("new")
        assert listing(dest) == ["old"]
    assert listing(tmp_path) == ["dest", "dest/new"]


def test_an_exception_keeps_the_old_dir(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_dir(dest) as folder:
        (folder / "new").write_text("half")
        raise ZeroDivisionError
    assert listing(tmp_path) == ["dest", "dest/old"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.utils.atomic import atomic_dir
with atomic_dir(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_process_go_with_the_next_write(tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(dest)], cwd=PROJECT, check=False)
    assert ended.returncode == -signal.SIGKILL and not dest.exists()
    assert [name.startswith(".dest.tmp-") for name in listing(tmp_path)] == [True, True]
    with atomic_dir(dest) as outer:
        with atomic_dir(dest) as inner:  # a living process keeps its own
            (inner / "file").write_text("inner")
        (outer / "file").write_text("outer")
    assert listing(tmp_path) == ["dest", "dest/file"] and (dest / "file").read_text() == "outer"


def test_half_a_file_of_notes_is_removed_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes = tmp_path / "notes.json"
    assert read_json(notes) is None and not caplog.records
    atomic_write_json(notes, {"a": [1, 2]})
    assert read_json(notes) == {"a": [1, 2]}
    notes.write_text('{"a": [1,')
    assert read_json(notes) is None and not notes.exists()
    assert f"{notes} is damaged and will be made again" in caplog.text


def test_a_folder_of_many_files_is_not_listed_at_every_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the cost of one file grows with the number of all."""
    for number in range(atomic.MANY + 1):
        (tmp_path / str(number)).touch()
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "dest")], cwd=PROJECT, check=False)
    clock, listings, kept = [100.0], [], os.listdir

    def listdir(folder: Path) -> list[str]:
        listings.append(folder)
        clock[0] += 0.03  # what a listing takes
        return kept(folder)

    monkeypatch.setattr(atomic.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(atomic.os, "listdir", listdir)
    for number in range(40):
        atomic_write_bytes(tmp_path / f"new{number}", b"x")
        clock[0] += 0.02  # what a write takes
    assert len(listings) == 2  # the first, and one after 20 x 0.03 s
    names = kept(tmp_path)
    assert len(names) == atomic.MANY + 1 + 40 and not [n for n in names if ".tmp-" in n]
