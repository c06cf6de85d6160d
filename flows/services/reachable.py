"""Are the servers there that a run has to use? Asked before its work begins."""

from __future__ import annotations

import os
import socket
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import requests

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.utils.redaction import redact

SECONDS = 10.0
LOST = (
    httpx.TransportError,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.RetryError,
)
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # databases that MLflow can use


def check_prefect(url: str) -> None:
    """Raise InputError unless a Prefect server answers at `url`, an API's address."""
    if why := _refusal(f"{url.rstrip('/')}/health"):
        raise InputError(
            f"PREFECT_API_URL = {redact(url)}: no Prefect server answers there ({why}); start it, "
            "or unset PREFECT_API_URL so that the run starts its own"
        )
    given = _prefect_login()
    if _denied(f"{url.rstrip('/')}/flows/count", given):
        raise InputError(
            f"PREFECT_API_URL = {redact(url)}: the server refuses {_who(given)}; set "
            "PREFECT_API_AUTH_STRING to user:password"
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
    if kind in ("http", "https"):
        _check_user(uri)


def unreached(error: BaseException) -> str | None:
    """What to tell of a server that could not be reached, or not for long enough, amid the work;
    None for any other error.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, LOST) or _status(cause) >= 500:
            url = getattr(getattr(cause, "request", None), "url", None)
            place = f"{urlsplit(str(url)).netloc} " if url else ""
            what = "fails" if _status(cause) else "does not answer any more"
            return (
                f"the server {redact(place)}{what}: see to it, to its log and to its storage, and "
                "run again; finished work is kept"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _status(error: BaseException) -> int:
    """With which a server answered; 0 if it is no such error."""
    known = isinstance(error, httpx.HTTPStatusError | requests.HTTPError)
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0) if known else 0


def _check_user(uri: str) -> None:
    """Raise InputError if MLflow's server asks for a user and does not know this one."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    login = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    given = _basic(login) if user else {"Authorization": f"Bearer {token}"} if token else {}
    elsewhere = (
        "MLFLOW_TRACKING_AUTH" in os.environ or Path("~/.mlflow/credentials").expanduser().exists()
    )
    path = "/api/2.0/mlflow/experiments/search"
    denied = _denied(f"{uri.rstrip('/')}{path}", given, {"max_results": 1})
    if denied and (given or not elsewhere):
        raise InputError(
            f"registration.tracking_uri = {redact(uri)}: the server refuses {_who(given)}; set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


def _prefect_login() -> dict[str, str]:
    """What Prefect's client sends to be let in, from variables or a profile."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    headers = dict(settings.client.custom_headers)
    if key := settings.api.key:
        headers["Authorization"] = f"Bearer {key.get_secret_value()}"
    if login := settings.api.auth_string:
        headers |= _basic(login.get_secret_value())
    return headers


def _who(given: Mapping[str, str]) -> str:
    return "these credentials" if given else "whoever gives none"


def _basic(login: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}


def _denied(url: str, headers: Mapping[str, str], body: Mapping[str, int] | None = None) -> bool:
    """Whether the server asks for other credentials; what else may be wrong shows later."""
    try:
        answer = httpx.post(url, headers=dict(headers), json=body or {}, timeout=SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError):
        return False
    return answer.status_code == 401


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
