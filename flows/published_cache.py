"""Finished results for everybody, from a plain web server: `fewstep publish-cache FOLDER` copies
those of the project into a folder, `fewstep pull-cache URL` brings them into a clone.

A result is found by the name of what it is made from: code, params, data and teacher. So results of
several presets and commits lie side by side, and none is taken for another.
"""

from __future__ import annotations

import argparse
import json
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from flows.console import refuse, say
from flows.dvc import fingerprints, published
from flows.dvc.params_file import as_list, write_preset
from flows.dvc.repro import outdated_stages
from models.common.errors import InputError
from tasks.config.overrides import nested
from tasks.config.presets import DEFAULT
from tasks.registry.lineage import git_state
from tasks.utils import environment
from tasks.utils.atomic import atomic_write_json, atomic_write_text
from tasks.utils.cli import overrides_parser
from tasks.utils.hashing import fingerprint
from tasks.utils.redaction import redact
from tasks.utils.stage_names import STAGES

LOCK = "dvc.lock"
RESULTS, LATEST = "results", "latest.json"  # in the folder, beside DVC's own files/
SECONDS = 30.0
_DIRECTORY = re.compile(r"[0-9a-f]{32}\.dir")
_COMMAND = re.compile(r"`fewstep run (.*)`")


def publish(root: Path, place: Path) -> str:
    """Copy the present results to the folder `place`; returns one line that says what is there.

    Raises InputError unless they are those of the present code, params and inputs.
    """
    if stale := outdated_stages(root):
        raise InputError(
            f"out of date: {', '.join(stale)}: expected finished stages; run `make run` or `make "
            "repro` first"
        )
    place.mkdir(parents=True, exist_ok=True)
    count = published.copy_to(root, place.resolve())
    inputs = fingerprints.inputs_of(root)
    name = fingerprint(inputs)
    header = (root / "params.yaml").read_text(encoding="utf-8").partition("\n")[0]
    command = _COMMAND.search(header)
    about = {"name": name, "inputs": inputs, "arguments": command.group(1) if command else ""}
    # Last, so that whoever finds it finds all its files.
    atomic_write_text(place / RESULTS / name / LOCK, (root / LOCK).read_text(encoding="utf-8"))
    atomic_write_json(place / LATEST, about | git_state(root))
    _readable(place)
    return f"{place}: {count} files of {len(STAGES)} results, {name[:12]}"


def pull(root: Path, url: str, preset: str = DEFAULT, overrides: Sequence[str] = ()) -> str:
    """Bring the results of a preset with overrides from the web server at `url` into data/; returns
    one line.

    params.yaml and dvc.lock are written as a run would. Raises InputError if the server has none
    that are made from the same code, params, data and teacher; the former dvc.lock stays then.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(
            f"{redact(url)}: expected the address of a web server, https://...; other remotes are "
            "set by `dvc remote add` (docs/team.md)"
        )
    params, _ = write_preset(root, preset, overrides)
    if found := fingerprints.digests(root, root, params):
        write_preset(root, preset, [*overrides, *found])
    if not outdated_stages(root):
        return "all results are here and up to date"
    inputs = fingerprints.inputs_of(root)
    lock = _get(f"{url.rstrip('/')}/{RESULTS}/{fingerprint(inputs)}/{LOCK}")
    if lock is None:
        raise InputError(_none_there(url, inputs))
    count = _take(root, url, check_lock(lock, redact(url)))
    return f"{count} files of {len(STAGES)} results from {redact(url)}; all up to date"


def check_lock(text: str, source: str) -> str:
    """The same text, if it is a dvc.lock of these stages' results and of nothing else; else
    InputError.
    """
    try:
        stages = dict(yaml.safe_load(text)["stages"])
        outs = {name: list(stage["outs"]) for name, stage in stages.items()}
        sound = set(outs) == set(STAGES) and all(_is_result(n, outs[n]) for n in STAGES)
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise InputError(
            f"{source}: its {LOCK} is not one of the results of {', '.join(STAGES)}; nothing was "
            "taken from there"
        )
    return text


def _is_result(name: str, outs: list[dict[str, Any]]) -> bool:
    (out,) = outs
    kind = (out["path"], out.get("hash"), set(out) & {"cache", "remote", "cloud", "files"})
    return kind == (f"data/{name}", "md5", set()) and bool(_DIRECTORY.fullmatch(str(out["md5"])))


def _take(root: Path, url: str, lock: str) -> int:
    """Make data/ and dvc.lock those of the server, or leave dvc.lock as it was."""
    path = root / LOCK
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    atomic_write_text(path, lock)
    try:
        count = published.fetch_from(root, url.rstrip("/"))
        if stale := outdated_stages(root):
            raise InputError(
                f"{redact(url)}: what it has of {', '.join(stale)} is not the result of the "
                "present code, params and inputs; `make run` makes it here"
            )
        return count
    except BaseException:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            atomic_write_text(path, before)
        raise


def _get(url: str) -> str | None:
    """What the server has at `url`; None if there is nothing (404). InputError if it fails."""
    try:
        answer = httpx.get(url, timeout=SECONDS, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{redact(url)}: no web server answers there ({why})") from None
    if answer.status_code == 404:
        return None
    if not answer.is_success:
        raise InputError(f"{redact(url)}: the web server answers with {answer.status_code}")
    return answer.text


def _none_there(url: str, inputs: Mapping[str, str]) -> str:
    """That the server has no such results, and in what its latest ones differ."""
    told = f"{redact(url)}: no results made from this code, these params, data and teacher"
    text = _get(f"{url.rstrip('/')}/{LATEST}")
    if text is None:
        return f"{told}; expected a folder that `fewstep publish-cache` has filled"
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        latest = json.loads(text)
        differs = ", ".join(fingerprints.changed(inputs, latest["inputs"]))
        commit = str(latest.get("git.commit", "unknown"))[:10]
        told += f"; its latest differ in: {differs} (commit {commit}, {latest['arguments']})"
    return f"{told}; `make run` makes them here"


def _readable(place: Path) -> None:
    """Let the web server's user read all of it."""
    for path in (place, *place.rglob("*")):
        wanted = 0o555 if path.is_dir() else 0o444
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & wanted != wanted:
            with suppress(PermissionError):  # another publisher's
                path.chmod(mode | wanted)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fewstep publish-cache", description=publish.__doc__)
    parser.add_argument("folder", type=Path, help="of a web server; made if it is not there")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line, `publish FOLDER` or `pull URL [key=value ...]`; returns the exit status."""
    command, *rest = sys.argv[1:] if argv is None else argv
    root = Path.cwd()
    try:
        environment.prepare(root)
        if command == "publish":
            say(publish(root, _parser().parse_args(rest).folder))
            return 0
        parser = overrides_parser("fewstep pull-cache", (pull.__doc__ or ""), params_file=False)
        parser.add_argument("--from", dest="url", required=True, metavar="URL", help="web server")
        parser.add_argument("--preset", default=DEFAULT, metavar="NAME", help="`fewstep presets`")
        given = parser.parse_intermixed_args(rest)
        say(pull(root, given.url, given.preset, as_list(nested(given.overrides))))
    except Exception as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
