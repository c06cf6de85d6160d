"""What one check of `make doctor` found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """A check's result: `found` in a few words; `fix` says what to do, and is empty only where all
    is well.
    """

    check: str
    state: State
    found: str
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, fix: str) -> Finding:
    """Works, but something should be done."""
    return Finding(check, "warn", found, fix)


def fail(check: str, found: str, fix: str) -> Finding:
    """Something will not work."""
    return Finding(check, "fail", found, fix)


def examine(checks: Iterable[tuple[str, Callable[[], Finding]]]) -> list[Finding]:
    """The results of all checks in order; one that breaks is a failure of its own and stops no
    other.
    """
    findings = []
    for name, check in checks:
        try:
            findings.append(check())
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            findings.append(
                fail(
                    name,
                    f"the check itself failed: {reason}",
                    "set up anew: rm -r .venv; make .venv",
                )
            )
    return findings


def size(count: float) -> str:
    """Bytes for people: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
