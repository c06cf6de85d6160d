"""DVC's side of the stages: is there anything to do, and do it.

As a program it reproduces one stage, like `dvc repro --single-item NAME` but quiet and with the
stage's own exit status: `python -m flows.dvc.repro NAME`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from models.common.errors import InputError
from tasks.utils import environment
from tasks.utils.atomic import atomic_write_text
from tasks.utils.git import find_checkout
from tasks.utils.os_errors import os_error_line
from tasks.utils.parent_death import exit_with_parent
from tasks.utils.redaction import redact
from tasks.utils.stage_names import STAGES

if TYPE_CHECKING:
    from dvc.repo import Repo

WITH_PARENT = "--with-parent"
PROBE_SECONDS = 20.0

WITHOUT_GIT = "[core]\n    no_scm = true\n"  # .dvc/config.local

_EXITED = re.compile(r"exited with (\d+)")


def prepare_repository(root: Path) -> None:
    """Let DVC work in a folder that is in no git repository of its own (an unpacked archive, be it
    inside another repository); InputError if it has no .dvc.
    """
    if not (root / ".dvc" / "config").is_file():
        raise InputError(
            f"{root}: no .dvc/config here: expected the project's root folder; change into it"
        )
    local = root / ".dvc" / "config.local"
    own = find_checkout(root).top is not None
    if own and local.is_file() and local.read_text() == WITHOUT_GIT:
        local.unlink()  # written below before the folder came under git
    elif not own and not local.exists():
        atomic_write_text(local, WITHOUT_GIT)
    elif not own:
        _set_without_git(root)


def _set_without_git(root: Path) -> None:
    """Add to settings that the user has made."""
    from dvc.config import Config

    config = Config(str(root / ".dvc"))
    if not config["core"].get("no_scm"):
        with config.edit("local") as local:
            local["core"]["no_scm"] = True


@contextmanager
def open_repository(root: Path, settings: dict[str, Any] | None = None) -> Iterator[Repo]:
    """DVC's view of the project at `root`, with `settings` added to those of its config files."""
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(
        logging.ERROR
    )  # its hints are for people at its own command line
    prepare_repository(root)
    _mend_notes(root / ".dvc" / "tmp" / "rwlock")
    repository = Repo(str(root), config=settings)
    try:
        yield repository
    finally:
        repository.close()


def _mend_notes(path: Path) -> None:
    """Remove DVC's note on who works where if a kill or a full disk has left half of it: DVC would
    stop at it for ever.

    DVC takes a moment to write it, so a damaged one is looked at again first.
    """
    for attempt in range(4):
        try:
            if path.exists():
                json.loads(path.read_text())
            return
        except FileNotFoundError:
            return
        except ValueError:
            if attempt < 3:
                time.sleep(0.3)
    path.unlink(missing_ok=True)


def outdated(root: Path, name: str) -> bool:
    """True if the stage has to run: code, params or inputs changed, or outputs missing or changed.

    Only the stage itself is looked at; call it in the order of the pipeline.
    """
    from dvc.exceptions import DvcException

    with open_repository(root) as repository:
        try:
            return bool(repository.reproduce(**_target(root, name), dry=True))
        except DvcException:  # e.g. an input is missing; running the stage words the reason
            return True


def outdated_stages(root: Path, names: tuple[str, ...] = STAGES) -> list[str]:
    """The stages among `names` whose results are not those of the present code, params and
    inputs.
    """
    return [name for name in names if outdated(root, name)]


def reproduce(root: Path, name: str) -> int:
    """Run or restore one stage; returns 0, or the status of the failed stage's program, or 1.

    A result that the run cache knows (`dvc fetch --run-cache`) comes from the default remote.
    """
    from dvc.exceptions import DvcException

    _restore_from_remote(root, name)
    with open_repository(root) as repository:
        try:
            repository.reproduce(**_target(root, name))
        except DvcException as error:
            return _explain(error)
    return 0


def _restore_from_remote(root: Path, name: str) -> None:
    """Bring the stage's result into data/ if somebody has made it from the same code, params and
    inputs, and only the remote has the files. A remote that fails is no error: the stage runs.
    """
    from dvc.exceptions import DvcException
    from dvc.stage.cache import RunCacheNotFoundError

    # A repository of its own: DVC notes in its stages what it compares with.
    with open_repository(root) as repository:
        known = False
        if not repository.config["core"].get("remote"):
            return
        speaker = logging.getLogger("dvc_objects")  # it would name every file that is not there
        level = speaker.level
        try:
            (stage,) = (found for found in repository.index.stages if found.name == name)
            speaker.setLevel(logging.CRITICAL)
            with repository.lock:
                if stage.changed():
                    repository.stage_cache.restore(stage, pull=True)
                    print(f"{name}: made before; its result comes from the cache")
        except RunCacheNotFoundError:
            # DVC says the same where nobody has made it and where its files could not be fetched.
            known = repository.stage_cache._load(stage) is not None
        except (DvcException, OSError) as error:
            # An input may be missing, too; running the stage words that.
            _warn(f"was not reached: {redact(reason(error))}")
        finally:
            speaker.setLevel(level)
    if known:
        _, why = probe_remote(root, PROBE_SECONDS)
        _warn(f"was not reached: {redact(why)}" if why else f"lacks files of {name}")


def _warn(why: str) -> None:
    print(f"warning: the DVC remote {why}; the stage runs here", file=sys.stderr)


def probe_remote(root: Path, seconds: float) -> tuple[str | None, str]:
    """The default remote's URL (None: there is none) and why it cannot be used ("" if it answers in
    time).
    """
    with open_repository(root) as repository:
        name = repository.config["core"].get("remote")
        url = repository.config["remote"].get(name, {}).get("url") if name else None
        if url is None:
            return (None, "") if name is None else (name, "it has no url")
        problem = ["no answer"]

        def probe() -> None:
            try:
                storage = repository.cloud.get_remote_odb(name)
                problem[0] = "" if storage.fs.exists(storage.path) else _nothing_there(str(url))
            except Exception as error:  # every kind of storage has its own
                problem[0] = " ".join(str(error).split()) or type(error).__name__

        thread = threading.Thread(target=probe, daemon=True)
        thread.start()
        thread.join(seconds)
        return str(url), problem[0]


def _nothing_there(url: str) -> str:
    """Why a remote shows nothing: "" if nothing has been pushed yet, else what is wrong with the
    place itself.
    """
    place = urlsplit(url)
    if not place.scheme:
        return "" if Path(url).parent.is_dir() else "no such folder"
    ports = {"http": 80, "https": 443, "webdav": 80, "webdavs": 443, "ssh": 22}
    if place.hostname and place.scheme in ports:  # other storages raise when they cannot be reached
        socket.create_connection(
            (place.hostname, place.port or ports[place.scheme]), timeout=10
        ).close()
    return ""


def _target(root: Path, name: str) -> dict[str, Any]:
    """Arguments of DVC's `reproduce` for one stage.

    A bare name would be looked up in the current folder, and in a path DVC takes an `@` for a
    stage's key, unless the name is a pattern.
    """
    return {
        "targets": [f"{root.resolve() / 'dvc.yaml'}:{name}"],
        "glob": True,
        "single_item": True,
    }


def _explain(error: BaseException) -> int:
    """Print DVC's innermost reason unless the stage's program has said it; returns the exit
    status.
    """
    why = reason(error)
    if match := _EXITED.search(why):
        return int(match.group(1))
    line = os_error_line(error)
    print(f"error: {line}" if line else f"dvc: {why}", file=sys.stderr)
    return 1


def reason(error: BaseException) -> str:
    """DVC's innermost reason, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def main(argv: list[str]) -> int:
    """Reproduce the stage named by the argument; with `--with-parent` end when the caller has
    died.
    """
    environment.prepare(Path.cwd())
    names = [argument for argument in argv if argument != WITH_PARENT]
    if len(names) != 1:
        print(
            f"usage: python -m flows.dvc.repro {{{'|'.join(STAGES)}}} [{WITH_PARENT}]",
            file=sys.stderr,
        )
        return 2
    if WITH_PARENT in argv:
        exit_with_parent(lambda: os.killpg(0, signal.SIGTERM))  # the group: the stage included
    try:
        return reproduce(Path.cwd(), names[0])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
