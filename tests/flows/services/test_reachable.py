"""A server that asks for a password, for real: Python's own, with the answers of the real ones."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import requests

from flows.console import refuse
from flows.services.reachable import check_prefect, check_tracking
from models.common.errors import InputError
from tasks.config.schema import Params

KNOWN = f"Basic {b64encode(b'ana:secret').decode()}"


class Guarded(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = self.path.removeprefix("/")
        self._answer(int(status) if status.isdigit() else 200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(200 if self.headers.get("Authorization") == KNOWN else 401)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("USERNAME", "PASSWORD", "TOKEN", "AUTH"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def params(uri: str) -> Params:
    return Params.model_validate({"registration": {"tracking_uri": uri}})


def test_mlflow_lets_in_whom_it_knows(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"refuses whoever gives none; set MLFLOW_TRACKING_USER"):
        check_tracking(params(server))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "old")
    with pytest.raises(InputError, match="refuses these credentials"):
        check_tracking(params(server))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    check_tracking(params(server))


def test_prefect_lets_in_whom_it_knows(server: str) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

    with pytest.raises(InputError, match=r"refuses whoever gives none; set PREFECT_API_AUTH"):
        check_prefect(f"{server}/api")
    with (
        temporary_settings({PREFECT_API_AUTH_STRING: "ana:old"}),
        pytest.raises(InputError, match="refuses these credentials"),
    ):
        check_prefect(f"{server}/api")
    with temporary_settings({PREFECT_API_AUTH_STRING: "ana:secret"}):
        check_prefect(f"{server}/api")


@pytest.mark.parametrize("get", [httpx.get, requests.get])
def test_a_server_that_goes_amid_the_work_is_one_line(
    get: object, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        try:
            get("http://127.0.0.1:9/x", timeout=5)  # type: ignore[operator]
        except Exception as error:
            raise RuntimeError("what a library makes of it") from error
    except RuntimeError as error:
        assert refuse(error) == 1
    told = capsys.readouterr().err
    assert told == (
        "error: the server 127.0.0.1:9 does not answer any more: see to it, to its log and to its "
        "storage, and run again; finished work is kept\n"
    )


def test_a_server_that_fails_amid_the_work_is_one_line(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for status, known in ((500, True), (404, False)):
        try:
            requests.get(f"{server}/{status}", timeout=5).raise_for_status()
        except requests.HTTPError as error:
            if known:
                assert refuse(error) == 1
                continue
            with pytest.raises(requests.HTTPError):
                refuse(error)
    assert f"the server {server.removeprefix('http://')} fails: see to" in capsys.readouterr().err
