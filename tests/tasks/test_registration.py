from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import InputError
from tasks import registration, store, tracking
from tasks.params import Params, load_params
from tasks.registration import Score, Version, compare
from tests.tasks.results import write_kid, write_lock, write_results

NAME = "fewstep-mnist16"


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A project whose student is version 1, challenger and champion."""
    root = write_results(tmp_path_factory.mktemp("registration") / "project")
    params = load_params(root / "params.yaml")
    run = tracking.track_run(root, params)
    assert registration.register_student(root, params, run.run_id) == Version(NAME, "1", created=True)
    assert registration.promote(root, params, "1").champion
    return root, params


@pytest.fixture
def copy(registered: tuple[Path, Params], tmp_path: Path) -> tuple[Path, Params]:
    return shutil.copytree(registered[0], tmp_path / "copy"), registered[1]


def second_student(root: Path, params: Params, kid: float, dataset: str = "d") -> registration.Decision:
    write_results(root, kid, seed=1, dataset=dataset)
    version = registration.register_student(root, params, tracking.track_run(root, params).run_id)
    assert version == Version(NAME, "2", created=True)
    return registration.promote(root, params, "2")


def aliases(root: Path, params: Params) -> dict[str, str | None]:
    client = store.open_store(root, params)
    return {alias: registration.aliased_version(client, NAME, alias) for alias in ("challenger", "champion")}


def test_the_same_student_is_the_same_version(copy: tuple[Path, Params]) -> None:
    root, params = copy
    write_kid(root, 0.02)
    write_lock(root, {"evaluation": "again"})
    run = tracking.track_run(root, params)
    assert run.created
    assert registration.register_student(root, params, run.run_id) == Version(NAME, "1", created=False)
    tags = store.open_store(root, params).get_model_version(NAME, "1").tags
    assert json.loads(tags[registration.SCORES])["10"]["kid"] == 0.02
    assert aliases(root, params) == {"challenger": "1", "champion": "1"}


def test_a_better_student_becomes_champion(copy: tuple[Path, Params]) -> None:
    decision = second_student(*copy, kid=0.005)
    assert decision.champion and "0.00500 against 0.01000 at 5 steps" in decision.reason
    assert aliases(*copy) == {"challenger": "2", "champion": "2"}


def test_a_worse_student_stays_challenger_unless_forced(copy: tuple[Path, Params]) -> None:
    decision = second_student(*copy, kid=0.05)
    assert not decision.champion and decision.reason.startswith("version 1 stays champion: not better")
    assert aliases(*copy) == {"challenger": "2", "champion": "1"}
    assert registration.promote(*copy, "2", force=True).champion
    assert aliases(*copy)["champion"] == "2"


def test_figures_on_another_evaluation_set_do_not_count(copy: tuple[Path, Params]) -> None:
    decision = second_student(*copy, kid=0.001, dataset="other")
    assert not decision.champion and "another evaluation set" in decision.reason


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        ({5: Score(0.1)}, {5: Score(0.2)}, True),
        ({5: Score(0.2)}, {5: Score(0.2)}, False),
        ({10: Score(0.1)}, {5: Score(0.2)}, False),
        ({5: Score(0.3), 10: Score(0.1)}, {5: Score(0.2), 10: Score(0.9)}, False),
        ({5: Score(0.2), 10: Score(0.1)}, {10: Score(0.2), 20: Score(0.1)}, True),
        ({5: Score(0.10, 0.05, 0.15)}, {5: Score(0.20, 0.16, 0.3)}, True),
        ({5: Score(0.10, 0.0, 0.2), 10: Score(0.3)}, {5: Score(0.11, 0.0, 0.2), 10: Score(0.1)}, False),
        ({5: Score(0.10, 0.0, 0.2), 10: Score(0.1)}, {5: Score(0.11, 0.0, 0.2), 10: Score(0.1)}, True),
        ({5: Score(float("nan"))}, {5: Score(0.2)}, False),
    ],
)
def test_what_counts_as_better(new: dict[int, Score], old: dict[int, Score], better: bool) -> None:
    assert compare(new, old).champion is better


def test_a_missing_alias_or_model_is_none(registered: tuple[Path, Params]) -> None:
    client = store.open_store(*registered)
    assert registration.aliased_version(client, NAME, "nobody") is None
    assert registration.aliased_version(client, "no-such-model", "champion") is None


def test_pickled_or_missing_weights_are_refused(registered: tuple[Path, Params], tmp_path: Path) -> None:
    student = shutil.copytree(registered[0] / "data/student", tmp_path / "student")
    before = registration.folder_hash(student)
    assert before == registration.folder_hash(registered[0] / "data/student")
    (student / "unet/weights.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="only safetensors"):
        registration.folder_hash(student)
    with pytest.raises(InputError, match="finished student"):
        registration.folder_hash(tmp_path / "nothing")


def test_the_logged_model_holds_no_pickle(registered: tuple[Path, Params]) -> None:
    (folder,) = (registered[0] / "mlruns/artifacts" / NAME / "models").iterdir()
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes and not suffixes & registration.PICKLED


@pytest.fixture(scope="module")
def served(registered: tuple[Path, Params], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`mlflow models serve` of the champion, in a folder that knows nothing of this project."""
    root, _ = registered
    uri = f"sqlite:///{root / 'mlruns/mlflow.db'}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"MLFLOW_TRACKING_URI": uri}
    command = ["mlflow", "models", "serve", "-m", f"models:/{NAME}@champion", "--env-manager", "local"]
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name(command[0])), *command[1:], "-h", "127.0.0.1", "-p", str(port)],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until_up(f"http://127.0.0.1:{port}/ping", server)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_until_up(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(480):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"no answer from {url}")


def post(url: str, **params: int) -> Any:
    body = {"dataframe_records": [{"request": "test"}], "params": params}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["predictions"]


def test_the_served_champion_answers_with_images(served: str, registered: tuple[Path, Params]) -> None:
    images = np.array(post(served, num_images=3, seed=7, steps=5))
    assert images.shape == (3, 8, 8, 1) and images.min() >= 0 and images.max() <= 1 and images.std() > 0.05
    assert np.array_equal(images, np.array(post(served, num_images=3, seed=7, steps=5)))
    assert not np.array_equal(images, np.array(post(served, num_images=3, seed=8, steps=5)))
    assert not np.array_equal(images, np.array(post(served, num_images=3, seed=7, steps=10)))
    assert post(served, num_images=3, seed=7, steps=5, class_label=2)[0] != images[0].tolist()
    for wrong in ({"num_images": 0}, {"steps": 7}, {"seed": -1}):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            post(served, **wrong)
        assert refusal.value.code == 400
        (key,) = wrong
        assert f"{key} = " in refusal.value.read().decode()
