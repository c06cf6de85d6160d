"""Which registered version is the champion: compared, tried, moved as one transaction, and moved
back.

A version is loaded from the registry and sampled before the alias moves. What a move is about to do
is written first (a tag of the registered model), so that an interrupted one is completed or dropped
by the next promotion or rollback.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.registry.registration import (
    CHALLENGER,
    CHAMPION,
    CRITERION,
    SCORES,
    SET,
    STUDENT,
    aliased_version,
    fetch_version,
    find_version,
    try_version,
)
from tasks.registry.scores import Decision, compare, criterion_from_tag, from_tag
from tasks.registry.store import Client, local_folder, open_store
from tasks.registry.tracking import ended, owner
from tasks.registry.turns import turn
from tasks.utils.failpoints import reach

PENDING, HISTORY = "champion.pending", "champion.history"  # tags of the registered model
SINCE, ROLLED_BACK, DECISION = (
    "champion.since",
    "champion.rolled_back",
    "champion.decision",
)  # tags of a version
LONGEST_HISTORY = 100
LONGEST_MOVE = 600.0  # seconds after which another machine's unfinished move counts as interrupted


@dataclass(frozen=True)
class Finding:
    """The outcome of a direct comparison with version `against`."""

    against: str
    better: bool
    reason: str


@dataclass(frozen=True)
class Move:
    """A move of the alias from one version (None: there was none) to another; `history` holds after
    it.
    """

    source: str | None
    target: str
    history: tuple[str, ...]
    owner: str
    time: float


def promote(
    root: Path, params: Params, number: str, force: bool = False, finding: Finding | None = None
) -> Decision:
    """Make version `number` the champion if there is none, if it is better, or by `force`.

    Better by `finding` where one is given, else by the recorded figures. Raises InputError if the
    version cannot be loaded or makes no images; the champion stays then.
    """
    client, name = open_store(root, params), params.registration.name
    with _exclusive(root), turn(client, name):
        repair(client, name)
        present = aliased_version(client, name, CHAMPION)
        decision = _decide(client, name, number, present, force, finding)
        if decision.champion and present != number:
            try_version(client, name, number, _stays(present))
            earlier = history(client, name)
            _move(client, name, present, number, (*earlier, present) if present else earlier)
            if force:  # emptied: to delete it is more than a user of a team's server may
                client.set_model_version_tag(name, number, ROLLED_BACK, "")
        known = client.get_model_version(name, number).tags
        if (
            present != number or DECISION not in known
        ):  # why it became champion is worth more than that it still is
            client.set_model_version_tag(name, number, DECISION, decision.reason)
    return decision


def rollback(root: Path, params: Params) -> str:
    """Put the previous champion back; returns one line that says which.

    A second rollback goes one champion further back. A version that was rolled back is not promoted
    again unless forced. Raises InputError if there is no earlier champion, or if it cannot be
    loaded.
    """
    client, name = open_store(root, params), params.registration.name
    with _exclusive(root), turn(client, name):
        repair(client, name)
        present = aliased_version(client, name, CHAMPION)
        if present is None:
            raise InputError(
                f"{name} has no champion: nothing to roll back; register a student first (`make "
                "run`)"
            )
        earlier = [
            item
            for item in history(client, name)
            if item != present and _exists(client, name, item)
        ]
        if not earlier:
            raise InputError(
                f"{name} version {present} has no earlier champion: nothing to roll back to"
            )
        target = earlier.pop()
        try_version(client, name, target, _stays(present))
        _move(client, name, present, target, tuple(earlier))
        client.set_model_version_tag(name, present, ROLLED_BACK, _now())
    return f"{name}: version {target} is champion again, in place of version {present}"


def latest_decision(root: Path, params: Params, tags: Mapping[str, str]) -> tuple[str, str] | None:
    """Number of the latest version with these tags and what was decided about it, a later rollback
    included; None if there is no such decision.
    """
    found = find_version(open_store(root, params), params.registration.name, tags)
    decision = None if found is None else found.tags.get(DECISION)
    if found is not None and not params.registration.promote:
        decision = decision or "not promoted: registration.promote is false"
    if found is None or decision is None:
        return None
    since = found.tags.get(ROLLED_BACK)
    return str(found.version), f"{decision}; rolled back on {since}" if since else decision


def latest_tags(root: Path, params: Params) -> dict[str, str]:
    """Tags of the present challenger; {} if there is none."""
    client, name = open_store(root, params), params.registration.name
    number = aliased_version(client, name, CHALLENGER)
    return {} if number is None else dict(client.get_model_version(name, number).tags)


def fetch_champion(root: Path, params: Params, folder: Path) -> tuple[str, Path] | None:
    """The champion's number and a copy of its student folder, made in `folder`; None if there is no
    champion.
    """
    client, name = open_store(root, params), params.registration.name
    number = aliased_version(client, name, CHAMPION)
    return (
        None if number is None else (number, fetch_version(client, name, number, folder) / STUDENT)
    )


def repair(client: Client, name: str) -> str | None:
    """Complete a move that was interrupted after the alias, drop one interrupted before; returns
    what was done.

    Raises InputError if another process is at it right now.
    """
    move = _pending(client, name)
    if move is None:
        return None
    if not _interrupted(move):
        raise InputError(
            f"{name}: version {move.target} is being promoted by {move.owner}; run again when it "
            "is done"
        )
    if aliased_version(client, name, CHAMPION) == move.target:
        _finish(client, name, move)
        return f"the interrupted promotion of version {move.target} was completed"
    client.delete_registered_model_tag(name, PENDING)
    return f"the interrupted promotion of version {move.target} was dropped"


def history(client: Client, name: str) -> tuple[str, ...]:
    """Earlier champions, the latest last."""
    return tuple(json.loads(_tags(client, name).get(HISTORY, "[]")))


def _decide(
    client: Client,
    name: str,
    number: str,
    present: str | None,
    force: bool,
    finding: Finding | None,
) -> Decision:
    if present == number:
        return Decision(True, f"version {number} is the champion already")
    if present is None:
        return Decision(True, f"version {number} is the first champion")
    if force:
        return Decision(True, f"version {number} replaces version {present} as asked")
    new, old = (client.get_model_version(name, item).tags for item in (number, present))
    if since := new.get(ROLLED_BACK):
        return Decision(False, _refused(present, f"version {number} was rolled back on {since}"))
    if finding is not None and finding.against != present:
        return Decision(
            False, f"version {present} became champion during the comparison and stays; run again"
        )
    if finding is not None:
        better = Decision(finding.better, finding.reason)
    elif new.get(SET) != old.get(SET):
        return Decision(False, _refused(present, "it was measured on another evaluation set"))
    else:
        ours, theirs = (criterion_from_tag(tags.get(CRITERION)) for tags in (new, old))
        if ours != theirs:
            why = f"it was ranked by {ours.name}, the champion by {theirs.name}"
            return Decision(False, _refused(present, why))
        better = compare(from_tag(new.get(SCORES)), from_tag(old.get(SCORES)), ours)
    outcome = f"version {number} replaces version {present}" if better.champion else _stays(present)
    return Decision(better.champion, f"{outcome}: {better.reason}")


def _refused(present: str, why: str) -> str:
    return f"{_stays(present)}: {why}; `python -m flows.register --force` promotes all the same"


def _stays(present: str | None) -> str:
    return f"version {present} stays champion" if present else "there is no champion"


def _move(
    client: Client, name: str, source: str | None, target: str, earlier: tuple[str, ...]
) -> None:
    """Move the alias; on any failure it is where it was."""
    move = Move(source, target, earlier[-LONGEST_HISTORY:], owner(), time.time())
    before = _tags(client, name).get(HISTORY, "[]")
    client.set_registered_model_tag(name, PENDING, json.dumps(vars(move)))
    reach("promotion.announced")
    try:
        client.set_registered_model_alias(name, CHAMPION, target)
        reach("promotion.moved")
        _finish(client, name, move)
    except BaseException:
        if source is None:
            client.delete_registered_model_alias(name, CHAMPION)
        else:
            client.set_registered_model_alias(name, CHAMPION, source)
        client.set_registered_model_tag(name, HISTORY, before)
        client.delete_registered_model_tag(name, PENDING)
        raise


def _finish(client: Client, name: str, move: Move) -> None:
    """What follows the alias; the same when done twice."""
    client.set_registered_model_tag(name, HISTORY, json.dumps(move.history))
    client.set_model_version_tag(name, move.target, SINCE, _now())
    reach("promotion.recorded")
    if (found := aliased_version(client, name, CHAMPION)) != move.target:
        raise RuntimeError(
            f"{name}: the registry shows version {found} as champion, not {move.target}"
        )
    client.delete_registered_model_tag(name, PENDING)


def _pending(client: Client, name: str) -> Move | None:
    text = _tags(client, name).get(PENDING)
    if text is None:
        return None
    fields = json.loads(text)
    return Move(**(fields | {"history": tuple(fields["history"])}))


def _interrupted(move: Move) -> bool:
    return move.owner == owner() or ended(move.owner) or time.time() - move.time > LONGEST_MOVE


@contextmanager
def _exclusive(root: Path) -> Iterator[None]:
    """One promotion or rollback of this project at a time."""
    folder = local_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".promotion.lock"):
        yield


def _tags(client: Client, name: str) -> dict[str, str]:
    found = client.search_registered_models(f"name = '{name}'")
    return dict(found[0].tags) if found else {}


def _exists(client: Client, name: str, number: str) -> bool:
    return bool(client.search_model_versions(f"name = '{name}' and version_number = {number}"))


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
