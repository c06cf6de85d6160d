"""What the machine can do to a program, in one line: a full disk, a folder that cannot be
written.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

KEPT = "finished work is kept"
_ADVICE = {
    errno.ENOSPC: f"no space left on the disk: free some and run again; {KEPT}",
    errno.EDQUOT: f"the disk quota is used up: free some space and run again; {KEPT}",
    errno.EFBIG: (
        f"a file would exceed the size limit: raise it (`ulimit -f`) and run again; {KEPT}"
    ),
    errno.EROFS: f"the file system is read-only: make it writable and run again; {KEPT}",
    errno.EACCES: f"no permission: make the path accessible and run again; {KEPT}",
    errno.EPERM: f"not permitted: make the path accessible and run again; {KEPT}",
    errno.EIO: f"the disk reports an error: check it (`dmesg`) and run again; {KEPT}",
}
# How libraries word the same thing: safetensors, numpy and sqlite lose the number on their way.
_WORDS = (
    (re.compile(r"os error (\d+)"), None),
    (
        re.compile(r"No space left on device|requested and \d+ written|database or disk is full"),
        errno.ENOSPC,
    ),
    (re.compile(r"attempt to write a readonly database"), errno.EROFS),
)


def os_error_line(error: BaseException) -> str | None:
    """One line about what the machine refused, with the path if it is known; None for any other
    error.
    """
    for cause in _causes(error):
        number = _number(cause)
        if number in _ADVICE:
            path = getattr(cause, "filename", None)
            return f"{path}: {_ADVICE[number]}" if path else _ADVICE[number]
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    for pattern, number in _WORDS:
        if found := pattern.search(str(error)):
            return number if number is not None else int(found.group(1))
    return None
