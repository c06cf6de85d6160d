"""Processes that need not import torch again: forked from one that has, each with its own folder,
environment, output.

Started as a program it reads one JSON object a line, {"root", "env", "stages", "output"}, runs
these stages in a child and answers with the child's wait status. A name with a dot is a module with
a `main(arguments)`, as "flows.register".
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.chaos.project import REPOSITORY, STAGES, environ

LONGEST = 600.0  # seconds


class ForkServer:
    """The parent process, as the tests see it."""

    def __init__(self) -> None:
        env = environ(REPOSITORY) | {"PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "tests.chaos.forkserver"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env=env, stdin=pipe, stdout=pipe, text=True
        )

    def run(
        self,
        root: Path,
        stages: Sequence[str],
        kill: str = "",
        output: Path | None = None,
        **more: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run stages in turn in the project; returncode as of subprocess, stdout holds stderr
        too.
        """
        output = output or root.with_name("output")
        order = {
            "root": str(root), "env": environ(root, kill, more=more), "stages": list(stages), "output": str(output),
        }  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        status = os.waitstatus_to_exitcode(int(self.process.stdout.readline()))
        return subprocess.CompletedProcess(list(stages), status, output.read_text())

    def close(self) -> None:
        """End the parent process."""
        self.process.kill()
        self.process.wait()


def main() -> None:
    """Answer orders from stdin until it closes."""
    for name in (
        *(f"tasks.stages.{stage}" for stage in STAGES),
        "tasks.registry.registration",
        "flows.register",
        "mlflow.pyfunc",
    ):
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _be_stage(order)
        timer = threading.Timer(LONGEST, os.kill, (child, signal.SIGKILL))
        timer.start()
        _, status = os.waitpid(child, 0)
        timer.cancel()
        answers.write(f"{status}\n")
        answers.flush()


def _be_stage(order: Mapping[str, object]) -> None:
    from tasks.utils.cli import stage_main

    code = 1
    try:
        sys.argv = ["stage"]
        output = os.open(str(order["output"]), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(old, new)
        os.chdir(str(order["root"]))
        os.environ.clear()
        os.environ.update(order["env"])  # type: ignore[call-overload]
        code = 0
        for name in order["stages"]:  # type: ignore[attr-defined]
            if "." in name:
                code = code or importlib.import_module(name).main([])
            else:
                stage_main(importlib.import_module(f"tasks.stages.{name}").run, [])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        code = 1
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
