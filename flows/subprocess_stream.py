"""A child process whose output is seen live and which never outlives its parent's call."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from tasks.utils.redaction import redact

LOG_PROGRESS_SECONDS = 10.0
GRACE_SECONDS = 10.0
# What this process reads is UTF-8, whatever the locale. What is passed on is in the terminal's.
IN_UTF8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")


class Lines:
    """Cut a stream of terminal output into plain lines.

    Colours and cursor movements are dropped. Of a line that is drawn over and over (a progress bar)
    only the last drawing counts; while it is being redrawn, it is reported at most once in `every`
    seconds.
    """

    def __init__(self, report: Callable[[str], None], every: float = LOG_PROGRESS_SECONDS) -> None:
        self.report, self.every = report, every
        self.pending = ""
        self.reported = ""
        self.last = time.monotonic()

    def feed(self, text: str) -> None:
        """Take more output; complete lines are reported at once."""
        *complete, self.pending = (self.pending + text).split("\n")
        for line in complete:
            self._report(_visible(line))
        if "\r" in self.pending and time.monotonic() - self.last >= self.every:
            self._report(_visible(self.pending))

    def close(self) -> None:
        """Report what is left of an unfinished last line."""
        self._report(_visible(self.pending))
        self.pending = ""

    def _report(self, line: str) -> None:
        if line and line != self.reported:
            self.last, self.reported = time.monotonic(), line
            self.report(redact(line))


class Discreet:
    """Write text to `output` without secrets: whole lines, or on a terminal at once, so that bars
    move.
    """

    def __init__(self, output: TextIO) -> None:
        self.output, self.pending = output, ""
        self.at_once = output.isatty()

    def write(self, text: str) -> None:
        """Take more text; on other than terminals an unfinished line is kept until its end
        comes.
        """
        self.pending += text
        end = (
            len(self.pending)
            if self.at_once
            else max(self.pending.rfind("\n"), self.pending.rfind("\r")) + 1
        )
        self._pass(end)

    def close(self) -> None:
        """Write what is left of an unfinished last line."""
        self._pass(len(self.pending))

    def _pass(self, end: int) -> None:
        self.output.write(redact(self.pending[:end]))
        self.output.flush()
        self.pending = self.pending[end:]


def stream(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], report: Callable[[str], None]
) -> int:
    """Run `command` in its own process group and return its exit status (negative: killed by that
    signal).

    Output goes to this terminal as it comes, progress bars included (the child gets a
    pseudo-terminal when stdout is one), and to `report` as plain lines. Whatever ends this call
    (the child's end, an exception, Ctrl-C or a signal turned into an exception), the whole group is
    ended: a stage never runs on alone.
    """
    lines, output = Lines(report), Discreet(sys.stdout)
    read_end, write_end = _channel(output.at_once)
    child = subprocess.Popen(
        command,
        cwd=cwd,
        env={**env, **IN_UTF8},
        stdin=subprocess.DEVNULL,
        stdout=write_end,
        stderr=write_end,
        start_new_session=True,
    )
    os.close(write_end)
    # A chunk may end inside a character.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    try:
        for chunk in _chunks(read_end, child):
            text = decoder.decode(chunk).replace("\r\n", "\n")
            output.write(text)
            lines.feed(text)
        return child.wait()
    finally:
        lines.close()
        output.close()
        _end_group(child)
        os.close(read_end)


def _visible(line: str) -> str:
    drawings = [_CONTROL.sub("", part).rstrip() for part in line.split("\r")]
    return next((drawing for drawing in reversed(drawings) if drawing), "")


def _channel(terminal: bool) -> tuple[int, int]:
    if not terminal:
        return os.pipe()
    read_end, write_end = pty.openpty()
    with contextlib.suppress(OSError):  # the same width, so that bars fit
        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(write_end, termios.TIOCSWINSZ, size)
    return read_end, write_end


def _chunks(descriptor: int, child: subprocess.Popen[bytes]) -> Iterator[bytes]:
    while True:
        ended = child.poll() is not None
        if not select.select([descriptor], [], [], 0 if ended else 0.5)[0]:
            if ended:  # a daemon left behind may hold the other end open for ever
                return
            continue
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # EIO is how a pseudo-terminal says that the other end is closed
            return
        if not chunk:
            return
        yield chunk


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Ask the child's group to end, insist after a while, and reap the child."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while _group_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _group_alive(child: subprocess.Popen[bytes]) -> bool:
    child.poll()  # an unreaped child would keep its group alive
    try:
        os.killpg(child.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
