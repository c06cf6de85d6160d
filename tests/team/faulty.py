"""A place in front of a server where faults are made: refused, slow, cut, full."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PASS, CUT, SLOW, BUSY, FULL = "pass", "cut", "slow", "busy", "full"
DELAY = 2.0  # s before each piece of an answer when slow
PIECE = 65536
BODY = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
WRITES = (b"PUT", b"POST")


@dataclass
class Faulty:
    """Hands connections on to `target`, a port of loopback; `mode` holds for what comes from now on.

    cut: nothing passes in either direction, nothing is answered, as when a network drops packets;
    busy: every request is answered by 503; full: every one that writes by 507; slow: DELAY before
    each piece of an answer.
    """

    target: int
    mode: str = PASS
    answered: int = 0  # requests that got 503 or 507
    _listener: socket.socket = field(default_factory=socket.socket)
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while self.mode == CUT and not self._over.is_set():
                time.sleep(0.1)
            with socket.create_connection(("127.0.0.1", self.target), timeout=30) as server:
                self._exchange(client, server)

    def _exchange(self, client: socket.socket, server: socket.socket) -> None:
        """Until one side is done; what was sent while the connection was cut arrives later."""
        while not self._over.is_set():
            if self.mode == CUT:
                time.sleep(0.1)
                continue
            for side in select.select([client, server], [], [], 0.2)[0]:
                if self.mode == CUT:
                    break
                piece = side.recv(PIECE)
                if not piece:
                    return
                if side is client and self._refuses(piece):
                    self._refuse(client)
                    return
                if side is server and self.mode == SLOW:
                    time.sleep(DELAY)
                (server if side is client else client).sendall(piece)

    def _refuses(self, piece: bytes) -> bool:
        return self.mode == BUSY or (self.mode == FULL and piece.startswith(WRITES))

    def _refuse(self, client: socket.socket) -> None:
        code, status = ("SlowDown", 503) if self.mode == BUSY else ("InsufficientStorage", 507)
        body = BODY.format(code=code)
        self.answered += 1
        head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        client.sendall((head + body).encode())
        client.shutdown(socket.SHUT_WR)
        client.settimeout(5)
        while client.recv(PIECE):  # the rest of the request, so that the answer is not lost
            pass


@contextmanager
def in_front_of(port: int) -> Iterator[Faulty]:
    """Such a place before the server at `port` of loopback."""
    made = Faulty(port)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def for_seconds(place: Faulty, mode: str, seconds: float) -> Iterator[threading.Thread]:
    """The fault from now on, for so long; the block goes on meanwhile."""

    def end() -> None:
        time.sleep(seconds)
        place.mode = PASS

    place.mode = mode
    timer = threading.Thread(target=end, daemon=True)
    timer.start()
    yield timer
    timer.join()
