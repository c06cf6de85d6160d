from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.registry import store, turns
from tests.tasks.results import NAME


@pytest.fixture
def client(copy: tuple[Path, Params]) -> store.Client:
    return store.open_store(*copy)


def claims(client: store.Client) -> list[str]:
    (model,) = client.search_registered_models(f"name = '{NAME}'")
    return [tag for tag in model.tags if tag.startswith(turns.CLAIM)]


def most_at_once(client: store.Client, hold: Callable[..., Any]) -> int:
    """How many of four are inside the block at the same moment."""
    inside, most, lock = [0], [0], threading.Lock()

    def work() -> None:
        with hold(client, NAME):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.2)
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most[0]


def test_one_at_a_time(client: store.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PAUSE", 0.05)
    assert most_at_once(client, turns.turn) == 1
    assert claims(client) == []
    assert most_at_once(client, lambda *_: nullcontext()) > 1  # the control


def test_what_a_killed_process_left_is_removed(
    client: store.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PAUSE", 0.02)
    monkeypatch.setattr(turns, "LONGEST_TURN", 0.3)
    here, elsewhere = f"{turns.owner().split('|')[0]}|1|0.00", "elsewhere|1|0.00"
    for owner, least in ((here, 0.0), (elsewhere, 0.3)):
        # clocks differ: what the other machine has written as its time does not count
        left = json.dumps({"owner": owner, "time": time.time() + 300})
        client.set_registered_model_tag(NAME, f"{turns.CLAIM}0", left)
        start = time.monotonic()
        with turns.turn(client, NAME):
            assert time.monotonic() - start >= least
            assert len(claims(client)) == 1
    assert claims(client) == []


def test_a_wait_ends_with_one_line(client: store.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PAUSE", 0.02)
    monkeypatch.setattr(turns, "LONGEST_WAIT", 0.2)
    for name in ("0", "z"):  # before and after every claim of this process
        claim = f"{turns.CLAIM}{name}"
        text = json.dumps({"owner": "elsewhere|1|0.00", "time": 0})
        client.set_registered_model_tag(NAME, claim, text)
        with (
            pytest.raises(InputError, match="elsewhere.* is promoting; run again"),
            turns.turn(client, NAME),
        ):
            pass
        assert claims(client) == [claim]
        client.delete_registered_model_tag(NAME, claim)


def test_without_a_model_there_is_no_turn(client: store.Client) -> None:
    with turns.turn(client, "no-such-model"):
        pass
