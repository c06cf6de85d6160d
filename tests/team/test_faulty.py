"""The place where faults are made makes them."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.team import faulty
from tests.team.faulty import BUSY, CUT, FULL, PASS, SLOW, Faulty, in_front_of


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"got"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def place() -> Iterator[Faulty]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with in_front_of(server.server_port) as found:
        yield found
    server.shutdown()
    server.server_close()


def ask(
    place: Faulty, method: str = "GET", body: bytes = b"", seconds: float = 20
) -> tuple[int, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", place.port, timeout=seconds)
    client.request(method, "/x", body)
    answer = client.getresponse()
    return answer.status, answer.read()


def test_what_passes_is_unchanged(place: Faulty) -> None:
    large = bytes(range(256)) * 4000
    assert ask(place, "PUT", large) == (200, large)


def test_busy_and_full(place: Faulty) -> None:
    place.mode = BUSY
    assert ask(place)[0] == 503
    place.mode = FULL
    assert ask(place)[0] == 200
    status, body = ask(place, "PUT", b"x" * 500_000)
    assert status == 507 and b"<Code>InsufficientStorage</Code>" in body
    assert place.answered == 2


def test_slow(place: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulty, "DELAY", 0.5)
    place.mode = SLOW
    start = time.monotonic()
    assert ask(place) == (200, b"got")
    assert time.monotonic() - start >= 0.5


def test_a_cut_connection_is_silent_and_goes_on(place: Faulty) -> None:
    place.mode = CUT
    with pytest.raises(TimeoutError):
        ask(place, seconds=1)
    with faulty.for_seconds(place, CUT, 1.5):
        start = time.monotonic()
        assert ask(place) == (200, b"got")
        assert time.monotonic() - start >= 1
    assert place.mode == PASS
