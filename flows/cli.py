"""The command `fewstep`, also `python -m flows.cli`: run in the project's root folder.

Each command is a module that also runs by itself (`python -m flows.distill`); the targets of the
Makefile are the same commands.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

from flows.console import complain, refuse, say
from models.common.errors import InputError
from tasks.config.presets import DEFAULT, presets
from tasks.utils.cli import INPUT_ERROR, overrides_parser
from tasks.utils.stage_names import STAGES

SERVICES, PUBLISHED = "flows.services.services", "flows.published_cache"
# command: the module that does it, its first arguments, what it is for
MODULES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "run": ("flows.distill", (), "the whole job of a preset: --preset NAME key=value ..."),
    "stage": ("tasks.stages", (), f"one stage by itself: NAME key=value ...; {', '.join(STAGES)}"),
    "estimate": (
        "flows.estimate",
        (),
        "what a job will cost before it starts: --preset NAME --device H100 key=value ...",
    ),
    "up": (SERVICES, ("up",), "start Prefect's server and worker and MLflow's server"),
    "down": (SERVICES, ("down",), "end what `up` started"),
    "status": (SERVICES, ("status",), "what `up` started, its addresses and logs"),
    "doctor": ("flows.doctor.doctor", (), "check the installation and say how to fix it"),
    "register": ("flows.register", (), "record, register and promote what `dvc repro` made"),
    "rollback": ("flows.rollback", (), "make the previous champion champion again"),
    "export": ("flows.export", (), "the student for its teacher's own pipeline, as a folder: DIR"),
    "push": ("flows.push", (), "send the student to a hub: OWNER/NAME; --dry-run shows what goes"),
    "publish-cache": (PUBLISHED, ("publish",), "copy the results to a web server's FOLDER"),
    "pull-cache": (PUBLISHED, ("pull",), "fetch them: --from URL --preset NAME key=value ..."),
}
OWN = {
    "presets": "list the presets of conf/preset",
    "params": "write params.yaml for a preset: --preset NAME key=value ...",
}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status of the command."""
    given = sys.argv[1:] if argv is None else argv
    _use_this_folder(given)
    command, rest = (given[0], given[1:]) if given else ("--help", [])
    if command in ("-h", "--help"):
        print(usage())
        return 0
    try:
        if command in MODULES:
            return _run_module(command, rest)
        if command not in OWN:
            known = ", ".join([*MODULES, *OWN])
            raise InputError(f"fewstep {command}: no such command, expected one of {known}")
        return {"presets": list_presets, "params": write_params}[command](rest)
    except Exception as error:
        return refuse(error)


def usage() -> str:
    """What the commands are for, one line each."""
    about = {name: text for name, (_, _, text) in MODULES.items()} | OWN
    lines = [f"  {name:<13} {text}" for name, text in about.items()]
    return "\n".join(["usage: fewstep COMMAND [ARGUMENT ...]", "", *lines])


def list_presets(argv: list[str]) -> int:
    """Print every preset with the line that its file begins with."""
    argparse.ArgumentParser("fewstep presets").parse_args(argv)
    found = presets(Path.cwd())
    width = max(map(len, found), default=0)
    for name, about in found.items():
        say(f"  {name:<{width}} {about}{' (default)' if name == DEFAULT else ''}")
    return 0


def write_params(argv: list[str]) -> int:
    """Compose a preset into params.yaml without running anything."""
    from flows.dvc.params_file import as_list, write_preset
    from tasks.config.overrides import nested

    about = "Compose a preset into params.yaml; nothing is run."
    parser = overrides_parser("fewstep params", about, params_file=False)
    parser.add_argument("--preset", default=DEFAULT, metavar="NAME", help="see `fewstep presets`")
    arguments = parser.parse_intermixed_args(argv)
    texts = as_list(nested(arguments.overrides))
    _, changes = write_preset(Path.cwd(), arguments.preset, texts)
    say("\n".join(changes) or "params.yaml is as it was")
    return 0


def _run_module(command: str, rest: list[str]) -> int:
    """Run the command's module as a program of its own in this process, as `python -m` does."""
    module, first, _ = MODULES[command]
    if command == "stage":
        if not rest or rest[0] not in STAGES:
            found = rest[0] if rest else "nothing"
            raise InputError(f"fewstep stage: got {found}, expected one of {', '.join(STAGES)}")
        module, rest = f"{module}.{rest[0]}", rest[1:]
    sys.argv = [module, *first, *rest]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _use_this_folder(given: list[str]) -> None:
    """Hand over to the code of the project in the current folder, where the installed command
    belongs to another checkout.
    """
    here = Path("flows/cli.py").resolve()
    if here.is_file() and here != Path(__file__).resolve():
        os.execv(sys.executable, [sys.executable, "-m", "flows.cli", *given])
    if not Path("dvc.yaml").is_file() and given and given[0] not in ("-h", "--help"):
        complain(f"{Path.cwd()}: no dvc.yaml here: expected the project's root folder")
        raise SystemExit(INPUT_ERROR)


if __name__ == "__main__":
    sys.exit(main())
