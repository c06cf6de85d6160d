"""One promotion or rollback of a model at a time, on whatever machine: a turn, taken at the
registry itself.

MLflow has no lock. Whoever wants a turn writes a tag of its own first and reads all such tags then:
of two who have both written, each sees the other, so both at once never go on.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from models.common.errors import InputError
from tasks.registry.store import Client
from tasks.registry.tracking import ended, owner

CLAIM = "champion.claim."  # + a random name: tags of the registered model
LONGEST_TURN = 600.0  # s after which the unchanged claim of another machine counts as left behind
LONGEST_WAIT = 1800.0  # s
PAUSE = 0.5  # s between two looks

logger = logging.getLogger(__name__)


@contextmanager
def turn(client: Client, name: str) -> Iterator[None]:
    """Hold the only turn of the registered model `name` during the block.

    Others are waited for. A claim left behind by a killed process is removed: at once if it was one
    of this machine, else after LONGEST_TURN of this machine's own time, whatever the clocks say.
    Raises InputError after LONGEST_WAIT. Without such a model there is nothing to hold.
    """
    if not client.search_registered_models(f"name = '{name}'"):
        yield
        return
    own = f"{CLAIM}{secrets.token_hex(8)}"
    _take(client, name, own)
    try:
        yield
    finally:
        client.delete_registered_model_tag(name, own)


def _take(client: Client, name: str, own: str) -> None:
    seen: dict[str, float] = {}  # when each other claim was first seen, by this machine's clock
    start = time.monotonic()
    text = json.dumps({"owner": owner(), "time": time.time()})
    claimed = False
    while True:
        if not claimed:
            client.set_registered_model_tag(name, own, text)
        others = _others(client, name, own, seen)
        if not others:
            return
        # Of several, the one with the first name keeps its claim; the rest step back.
        claimed = own < min(others)
        if not claimed:
            client.delete_registered_model_tag(name, own)
        if time.monotonic() - start > LONGEST_WAIT:
            if claimed:
                client.delete_registered_model_tag(name, own)
            who = json.loads(next(iter(others.values())))["owner"]
            raise InputError(f"{name}: {who} is promoting; run again when it is done")
        if not seen:
            logger.info("waiting for another promotion of %s", name)
        now = time.monotonic()
        seen.update({claim: seen.get(claim, now) for claim in others})
        time.sleep(PAUSE * (1 + random.random()))


def _others(client: Client, name: str, own: str, seen: dict[str, float]) -> dict[str, str]:
    """The claims of others by name; those left behind are removed."""
    (model,) = client.search_registered_models(f"name = '{name}'")
    claims = {tag: text for tag, text in model.tags.items() if tag.startswith(CLAIM) and tag != own}
    late = time.monotonic() - LONGEST_TURN
    for claim, text in list(claims.items()):
        if ended(json.loads(text)["owner"]) or seen.get(claim, late + 1) < late:
            client.delete_registered_model_tag(name, claim)
            del claims[claim]
    return claims
