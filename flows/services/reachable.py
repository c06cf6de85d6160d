"""Are the servers there that a run has to use? Asked before its work begins."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import httpx

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.utils.redaction import redact

SECONDS = 10.0
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # databases that MLflow can use


def check_prefect(url: str) -> None:
    """Raise InputError unless a Prefect server answers at `url`, an API's address."""
    if why := _refusal(f"{url.rstrip('/')}/health"):
        raise InputError(
            f"PREFECT_API_URL = {redact(url)}: no Prefect server answers there ({why}); start it, "
            "or unset PREFECT_API_URL so that the run starts its own"
        )


def check_tracking(params: Params) -> None:
    """Raise InputError unless the MLflow server of `registration.tracking_uri`, if any, answers."""
    uri = params.registration.tracking_uri
    if uri is None:
        return
    place = urlsplit(uri)
    kind = place.scheme.partition("+")[0]
    if kind in ("http", "https"):
        why = _refusal(f"{uri.rstrip('/')}/health")
    elif kind in PORTS and place.hostname:
        why = _closed(place.hostname, place.port or PORTS[kind])
    else:
        return
    if why:
        raise InputError(
            f"registration.tracking_uri = {redact(uri)}: no MLflow server answers there ({why}); "
            "start it, or use null for the project's own store"
        )


def _refusal(url: str) -> str:
    """Why a server does not answer at `url`, in a few words; "" if it does.

    An answer that asks for a password is one.
    """
    try:
        answer = httpx.get(url, timeout=SECONDS, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        return _line(error)
    asked = answer.status_code in (401, 403)
    return "" if answer.is_success or asked else f"status {answer.status_code}"


def _closed(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError as error:
        return _line(error)
    return ""


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
