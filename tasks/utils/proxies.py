"""Proxies of the environment: what goes to this machine goes past them."""

from __future__ import annotations

from collections.abc import MutableMapping

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")
KNOWN = ("http", "https", "socks5", "socks5h")  # schemes of httpx, which Prefect's client uses


def spare_loopback(environ: MutableMapping[str, str]) -> list[str]:
    """Keep loopback out of every proxy, in `environ`; returns one line for each proxy that cannot
    be used and was therefore dropped.

    `socks://`, which desktops write, means `socks5://`. A value without a scheme means `http://`.
    """
    excluded = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    names = [name.strip() for name in excluded.split(",") if name.strip()]
    if "*" not in names:
        names += [name for name in LOOPBACK if name not in names]
    environ["no_proxy"] = environ["NO_PROXY"] = ",".join(names)
    dropped = []
    for name in (*PROXIES, *(name.lower() for name in PROXIES)):
        scheme, separator, rest = environ.get(name, "").partition("://")
        if not separator or scheme.lower() in KNOWN:
            continue
        if scheme.lower() == "socks":
            environ[name] = f"socks5://{rest}"
            continue
        del environ[name]
        dropped.append(f"{name} = {scheme}://...: ignored; expected one of {', '.join(KNOWN)}")
    return dropped
