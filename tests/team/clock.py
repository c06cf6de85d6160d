"""A wrong clock for a program: its time of day is off, its time between two moments is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

# Stands before libc's functions. Python measures waits by CLOCK_MONOTONIC, which stays as it is.
SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *out) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, out);
    if (status == 0 && clock == CLOCK_REALTIME) out->tv_sec += AHEAD;
    return status;
}
int gettimeofday(struct timeval *out, void *zone) {
    struct timespec now;
    int status = clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return status;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


def ahead(folder: Path, seconds: int) -> dict[str, str]:
    """The environment of programs whose clock is so many seconds ahead; made in `folder` by cc."""
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(SOURCE)
    command = ["cc", "-shared", "-fPIC", f"-DAHEAD={seconds}", "-o", str(library), str(source)]
    subprocess.run([*command, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}
