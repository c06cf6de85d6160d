"""Programs that end when whoever started them was killed, so that no work goes on unseen."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

GRACE_SECONDS = 10.0


def exit_with_parent(end: Callable[[], None] | None = None, parent: int | None = None) -> None:
    """Call `end` within about a second after this process's parent has died; by default end this
    process.

    `parent`: its process id, where the parent may have died before this call.
    """
    watched = os.getppid() if parent is None else parent
    threading.Thread(target=_watch, args=(watched, end or _end), daemon=True).start()


def _watch(parent: int, end: Callable[[], None]) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
