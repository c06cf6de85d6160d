from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.registry import registration, store, tracking
from tasks.registry.registration import Version
from tests.flows.served import free_port, wait_until_up
from tests.tasks.results import NAME, write_kid, write_lock


def aliases(root: Path, params: Params) -> dict[str, str | None]:
    client = store.open_store(root, params)
    return {
        alias: registration.aliased_version(client, NAME, alias)
        for alias in ("challenger", "champion")
    }


def test_the_same_student_is_the_same_version(copy: tuple[Path, Params]) -> None:
    root, params = copy
    write_kid(root, 0.02)
    write_lock(root, {"evaluation": "again"})
    run = tracking.track_run(root, params)
    assert run.created
    assert registration.register_student(root, params, run.run_id) == Version(
        NAME, "1", created=False
    )
    tags = store.open_store(root, params).get_model_version(NAME, "1").tags
    assert json.loads(tags[registration.SCORES])["10"]["value"] == 0.02
    assert aliases(root, params) == {"challenger": "1", "champion": "1"}


def test_a_model_has_the_figures_of_its_run_by_one_request(
    copy: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, params = copy
    client = store.open_store(root, params)
    run = tracking.track_run(root, params)
    asked: list[str] = []

    def ask(client: MlflowClient, run_id: str, key: str) -> list[Metric]:
        asked.append(key)
        return []

    monkeypatch.setattr(MlflowClient, "get_metric_history", ask)
    model = registration._log_model(root / "data/student", run.run_id, "content")
    assert asked == [] and MlflowClient.get_metric_history is ask
    figures = {
        metric.key: metric.value
        for metric in client.get_run(run.run_id).data._metric_objs
        if metric.step == 0
    }
    assert figures and figures == {m.key: m.value for m in client.get_logged_model(model).metrics}


def test_a_missing_alias_or_model_is_none(registered: tuple[Path, Params]) -> None:
    client = store.open_store(*registered)
    assert registration.aliased_version(client, NAME, "nobody") is None
    assert registration.aliased_version(client, "no-such-model", "champion") is None


def test_pickled_or_missing_weights_are_refused(
    registered: tuple[Path, Params], tmp_path: Path
) -> None:
    student = shutil.copytree(registered[0] / "data/student", tmp_path / "student")
    before = registration.folder_hash(student)
    assert before == registration.folder_hash(registered[0] / "data/student")
    (student / "unet/weights.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="only safetensors"):
        registration.folder_hash(student)
    with pytest.raises(InputError, match="finished student"):
        registration.folder_hash(tmp_path / "nothing")


def test_results_that_are_links_into_a_cache_are_registered(copy: tuple[Path, Params]) -> None:
    """DVC's cache.type = symlink: each file of data/ is a link to one elsewhere."""
    root, params = copy
    write_kid(root, 0.02)
    write_lock(root, {"student": "of links"})
    (root / "data/student/student.json").write_text('{"kind": "sigdeg", "nfe": [10]}')
    cache = root.parent / "cache"
    cache.mkdir()
    for number, path in enumerate(sorted((root / "data").rglob("*"))):
        if path.is_file():
            path.rename(cache / str(number))
            path.symlink_to(cache / str(number))
    run = tracking.track_run(root, params)
    version = registration.register_student(root, params, run.run_id)
    assert version == Version(NAME, "2", created=True)
    client = store.open_store(root, params)
    model = registration.fetch_version(client, NAME, "2", root.parent / "fetched")
    assert registration.folder_hash(model / registration.STUDENT) == registration.folder_hash(
        root / "data/student"
    )
    kept = list((root / "mlruns").rglob("*"))
    assert kept and not any(path.is_symlink() for path in kept)


def test_the_logged_model_holds_no_pickle(registered: tuple[Path, Params]) -> None:
    (folder,) = (registered[0] / "mlruns/artifacts" / NAME / "models").iterdir()
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes and not suffixes & registration.PICKLED


@pytest.fixture(scope="module")
def served(
    registered: tuple[Path, Params], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """`mlflow models serve` of the champion, in a folder that knows nothing of this project."""
    root, _ = registered
    uri = f"sqlite:///{root / 'mlruns/mlflow.db'}"
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "MLFLOW_TRACKING_URI": uri
    }
    command = [
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{NAME}@champion",
        "--env-manager",
        "local",
    ]
    server = subprocess.Popen(
        [
            str(Path(sys.executable).with_name(command[0])),
            *command[1:],
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        ],
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


def post(url: str, **params: int) -> Any:
    body = {"dataframe_records": [{"request": "test"}], "params": params}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["predictions"]


def test_the_served_champion_answers_with_images(
    served: str, registered: tuple[Path, Params]
) -> None:
    images = np.array(post(served, num_images=3, seed=7, steps=5))
    assert (
        images.shape == (3, 8, 8, 1)
        and images.min() >= 0
        and images.max() <= 1
        and images.std() > 0.05
    )
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
