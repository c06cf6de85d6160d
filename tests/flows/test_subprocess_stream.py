from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from flows.subprocess_stream import Lines, stream


def run(code: str, tmp_path: Path, report=lambda line: None) -> int:
    return stream([sys.executable, "-u", "-c", textwrap.dedent(code)], tmp_path, os.environ, report)


def wait_for(path: Path) -> int:
    for _ in range(200):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_redrawn_line_counts_once_and_without_colours() -> None:
    seen: list[str] = []
    lines = Lines(seen.append)
    lines.feed("\x1b[1mstart\x1b[0m\n 10%\r 50%")
    lines.feed("\r\x1b[2K100%\n\n")
    lines.feed("tail")
    assert seen == ["start", "100%"]
    lines.close()
    assert seen == ["start", "100%", "tail"]


def test_a_bar_in_progress_is_reported_now_and_then() -> None:
    seen: list[str] = []
    lines = Lines(seen.append, every=0.0)
    lines.feed("10%\r")
    lines.feed("20%\r")
    assert seen == ["10%", "20%"]


def test_status_and_both_streams_are_passed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(7)"
    assert run(code, tmp_path, seen.append) == 7
    assert seen == ["one", "two"]
    assert capsys.readouterr().out == "one\ntwo\n"


def test_output_in_any_encoding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child whose locale is ASCII, bytes that are no UTF-8, a character in two pieces."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("LC_ALL", "C")
    code = """
        import sys, time
        print("\u2713 done", flush=True)
        sys.stdout.buffer.write(b"caf\\xe9\\n")
        for piece in ("\u00fc".encode()[:1], "\u00fc".encode()[1:] + b"ber\\n"):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            time.sleep(0.3)
    """
    seen: list[str] = []
    assert run(code, tmp_path, seen.append) == 0
    assert seen == ["\u2713 done", "caf\ufffd", "\u00fcber"]
    assert capsys.readouterr().out == "\u2713 done\ncaf\ufffd\n\u00fcber\n"


def test_death_by_a_signal_is_a_negative_status(tmp_path: Path) -> None:
    assert run("import os; os.kill(os.getpid(), 9)", tmp_path) == -9


def test_an_exception_ends_the_whole_group(tmp_path: Path) -> None:
    code = """
        import pathlib, subprocess, time
        child = subprocess.Popen(["sleep", "60"])
        pathlib.Path("pid").write_text(str(child.pid))
        print("ready")
        time.sleep(60)
    """

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(code, tmp_path, stop)
    assert gone(wait_for(tmp_path / "pid"))
    assert time.monotonic() - start < 10


def test_a_process_that_ignores_the_request_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.subprocess_stream.GRACE_SECONDS", 0.3)
    code = """
        import os, pathlib, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path("pid").write_text(str(os.getpid()))
        print("ready")
        time.sleep(60)
    """

    def stop(line: str) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run(code, tmp_path, stop)
    assert gone(wait_for(tmp_path / "pid"))


def test_a_daemon_that_keeps_the_output_open_does_not_hold_the_stage(tmp_path: Path) -> None:
    code = "import subprocess; print('over'); subprocess.Popen(['sleep', '60'], start_new_session=True)"
    start = time.monotonic()
    assert run(code, tmp_path) == 0
    assert time.monotonic() - start < 20


def test_a_terminal_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    seen: list[str] = []
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert (
            run(
                "import sys; print(sys.stdout.isatty(), sys.stderr.isatty())", tmp_path, seen.append
            )
            == 0
        )
        monkeypatch.undo()
    os.close(ours)
    assert seen == ["True True"]


def test_an_interrupt_of_the_parent_ends_the_child(tmp_path: Path) -> None:
    program = """
        import os, pathlib, sys
        from flows.subprocess_stream import stream
        code = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
        stream([sys.executable, "-c", code], pathlib.Path(sys.argv[1]), os.environ, print)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], stderr=subprocess.DEVNULL
    )
    pid = wait_for(tmp_path / "pid")
    parent.send_signal(2)
    assert parent.wait(timeout=20) != 0
    assert gone(pid)
