"""Is a port free, who has it, and does a server answer there?"""

from __future__ import annotations

import json
import socket
import urllib.request
from datetime import datetime

import psutil

from models.common.errors import InputError

LOOPBACK = "127.0.0.1"


def reachable(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    return LOOPBACK if host in ("0.0.0.0", "localhost", "::", "") else host


def check_free(host: str, port: int, option: str) -> None:
    """Raise InputError, naming the holder where it can be seen, unless a server may listen on
    `host`:`port`.
    """
    if not 1 <= port <= 65535:
        raise InputError(f"{option}={port}: expected a port number, 1 to 65535")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: a port just left is free
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno not in (13, 98, 48):
                raise InputError(
                    f"cannot listen on {host}: {error.strerror}; expected an address of this "
                    "machine"
                ) from None
            why = "needs more rights" if error.errno == 13 else f"is in use{holder(port)}"
            raise InputError(
                f"port {port} {why}: expected a free one; end that process, or make up "
                f"{option}={port + 10}"
            ) from None


def any_free_port() -> int:
    """A port of loopback that nothing listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def holder(port: int) -> str:
    """ " by process 12 (name)", or "" where the system does not tell."""
    try:
        for item in psutil.net_connections("tcp"):
            if item.status == psutil.CONN_LISTEN and item.laddr.port == port and item.pid:
                return f" by process {item.pid} ({psutil.Process(item.pid).name()})"
    except psutil.Error:
        pass
    return ""


def worker_reported(server: str, since: float) -> bool:
    """Whether a worker of the pool `local` has reported to the Prefect server after `since` (s
    since 1970).
    """
    body = json.dumps({}).encode()
    url = f"{server}/api/work_pools/local/workers/filter"
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            beats = [str(item.get("last_heartbeat_time") or "") for item in json.load(reply)]
    except (OSError, ValueError):
        return False
    return any(beat and datetime.fromisoformat(beat).timestamp() >= since - 1 for beat in beats)


def answers(url: str, seconds: float = 3.0) -> bool:
    """Whether a GET of `url` is answered with a success."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as reply:
            return bool(reply.status < 400)
    except (OSError, ValueError):
        return False
