"""Command line shared by the stages: `python -m tasks.stages.NAME [key=value ...]`."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from models.common.errors import InputError
from tasks.config.schema import Params, load_params
from tasks.config.written import check_written
from tasks.utils.locks import scratch_lock
from tasks.utils.os_errors import os_error_line
from tasks.utils.parent_death import exit_with_parent
from tasks.utils.redaction import redact
from tasks.utils.resource_usage import measure_resources
from tasks.utils.spinning import watch_cores
from tasks.utils.streams import tolerate_encodings, visible

MACHINE_ERROR, INPUT_ERROR, INTERRUPTED = 1, 2, 130


def stage_main(run: Callable[[Params, Path], None], argv: Sequence[str] | None = None) -> None:
    """Run one stage in the current folder with params.yaml and the overrides in `argv` (or
    sys.argv[1:]).

    Returns on success. Raises SystemExit(2) after one line `error: ...` on stderr for an
    InputError, SystemExit(1) after such a line for a full disk and the like, and SystemExit(130) on
    Ctrl-C; any other exception passes through (traceback, status 1). A stage that DVC has started
    ends when DVC is killed; one that another process is making in this folder is waited for.
    """
    if "DVC_STAGE" in os.environ:
        exit_with_parent()
    tolerate_encodings()
    set_up_logging()
    watch_cores()
    module = inspect.getmodule(run)
    spec = getattr(module, "__spec__", None)
    name = spec.name if spec else run.__module__
    about = (inspect.getdoc(module) or "").split("\n")[0]
    with user_errors():
        arguments = overrides_parser(f"python -m {name}", about).parse_args(argv)
        params, root = load_params(arguments.params, arguments.overrides), Path.cwd()
        if "DVC_STAGE" in os.environ:
            check_written(arguments.params, params)
        stage = name.rpartition(".")[2]
        with scratch_lock(root / ".fewstep" / "stages" / stage), measure_resources(root, stage):
            run(params, root)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn InputError, an error of the machine and Ctrl-C into one line on stderr and the exit
    statuses 2, 1, 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if (told := in_one_line(error)) is None:
            raise
        line, status = told
        print(f"error: {visible(redact(line))}", file=sys.stderr)
        raise SystemExit(status) from None


def in_one_line(error: Exception) -> tuple[str, int] | None:
    """What a user sees of a mistake in the input or an error of the machine, and the exit
    status; None: a bug.
    """
    if isinstance(error, InputError):
        return str(error), INPUT_ERROR
    line = os_error_line(error)
    return None if line is None else (line, MACHINE_ERROR)


def overrides_parser(prog: str, about: str, params_file: bool = True) -> argparse.ArgumentParser:
    """A parser with `key=value` positionals (`.overrides`) and, unless there is none to read,
    `--params FILE` (`.params`).
    """
    parser = _Parser(
        prog=prog,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        f"  {prog} student.steps=600 student.learning_rate=2e-4\n"
        f"  {prog} method.nfe='[10, 5]' trajectories.grid='{{kind: logsnr}}'\n"
        "params.yaml explains every key.",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="replace a value of params.yaml; value is YAML",
    )
    if params_file:
        parser.add_argument(
            "--params",
            type=Path,
            default=Path("params.yaml"),
            help="parameter file (default: params.yaml)",
        )
    return parser


def set_up_logging() -> None:
    """Log this project's INFO lines, and other libraries' warnings, to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Discreet("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("models", "tasks", "flows", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)


class _Discreet(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(redact(super().format(record)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")
