"""The files of finished results between DVC's cache and a folder that a web server shows.

That folder is a DVC remote like any other, which clients only read. DVC's run cache, by which
other remotes find results, cannot be listed over HTTP; flows/published_cache.py keeps dvc.lock
there instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.dvc.repro import open_repository, reason
from models.common.errors import InputError
from tasks.utils.redaction import redact
from tasks.utils.stage_names import STAGES

if TYPE_CHECKING:
    from dvc.repo import Repo

REMOTE = "fewstep-published"  # a name in this process alone; no settings are written


def copy_to(root: Path, place: Path) -> int:
    """Copy the files of all stages' present results to the folder `place`; returns their number.

    Files that are there already stay. Raises InputError for a file that DVC's cache lacks.
    """
    count = 0
    with _repository(root, str(place)) as repository:
        for out in _results(repository):
            for objects in out.get_used_objs(force=True).values():
                repository.cloud.push(objects, remote=REMOTE)
            names = _names(out)
            lost = [path for path, oid in names.items() if not _file(place, oid).is_file()]
            if not names or lost:
                raise InputError(
                    f"{out.def_path}: not whole in DVC's cache ({', '.join(lost[:1]) or 'no list'})"
                    f"; `dvc commit --force` puts it there"
                )
            count += len(names)
    return count


def fetch_from(root: Path, url: str) -> int:
    """Bring the results that dvc.lock names from the web server at `url` into DVC's cache, then
    into data/; returns the number of files.

    Every file is compared with its hash. Raises InputError for one that is missing or damaged, and
    for a list of files with a place outside its own folder.
    """
    count = 0
    with _repository(root, url) as repository, repository.lock:
        outs = _results(repository)
        for out in outs:
            out.get_dir_cache(remote=REMOTE)
            names = _names(out)
            if not names:
                raise InputError(f"{redact(url)}: the list of files of {out.def_path} is missing")
            check_places(names, out.def_path, url)
            for objects in out.get_used_objs(remote=REMOTE, force=True).values():
                repository.cloud.pull(objects, remote=REMOTE)
            if out.changed_cache():
                raise InputError(
                    f"{redact(url)}: files of {out.def_path} are missing there or damaged"
                )
            count += len(names)
        for out in outs:
            out.checkout()
    return count


def check_places(paths: Iterable[str], folder: str, url: str) -> None:
    """Raise InputError for a path that leads out of the folder: DVC joins them as they are."""
    for path in paths:
        if set(path.split("/")) & {"", ".", ".."}:
            raise InputError(
                f"{redact(url)}: names {path!r} as a file of {folder}: expected a place inside it; "
                "nothing was taken from there"
            )


@contextmanager
def _repository(root: Path, place: str) -> Iterator[Repo]:
    """The project with a remote at `place`; DVC's errors become an InputError of one line."""
    from dvc.exceptions import DvcException

    # It would name every file that was not transferred.
    speakers = [logging.getLogger(name) for name in ("dvc_objects", "dvc_data")]
    levels = [speaker.level for speaker in speakers]
    try:
        for speaker in speakers:
            speaker.setLevel(logging.CRITICAL)
        settings = {"remote": {REMOTE: {"url": place, "verify": True}}}
        with open_repository(root, settings) as repository:
            yield repository
    except (DvcException, OSError) as error:
        raise InputError(f"{redact(place)}: {redact(reason(error))}") from error
    finally:
        for speaker, level in zip(speakers, levels, strict=True):
            speaker.setLevel(level)


def _results(repository: Repo) -> list[Any]:
    """The outputs of the stages, in the stages' order."""
    found = {stage.name: stage.outs for stage in repository.index.stages}
    return [out for name in STAGES for out in found.get(name, ())]


def _names(out: Any) -> dict[str, str]:
    """Hashes (hex) by path within the output's folder; {} if DVC's cache has no list of them."""
    tree = out.get_obj()
    return {"/".join(key): str(info.value) for key, _, info in tree} if tree else {}


def _file(place: Path, oid: str) -> Path:
    """Where a DVC remote keeps the object with that hash."""
    return place / "files" / "md5" / oid[:2] / oid[2:]
