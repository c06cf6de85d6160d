"""Which factories may be called: those that the params of this process name and trust.

A teacher's folder also names its factory, and is only data: it may come from elsewhere.
"""

from __future__ import annotations

_TRUSTED: set[str] = set()


def trust_factory(name: str) -> None:
    """Allow calls of the factory "module:function" in this process."""
    _TRUSTED.add(name)


def is_trusted(name: str) -> bool:
    return name in _TRUSTED
