from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tasks.utils.os_errors import os_error_line


def caught(act: object) -> BaseException:
    with pytest.raises(Exception) as raised:
        act()  # type: ignore[operator]
    return raised.value


def test_a_full_disk_in_the_words_of_each_library() -> None:
    """/dev/full answers every write with ENOSPC."""

    def numpy() -> None:
        with open("/dev/full", "wb") as file:
            np.zeros(100_000).tofile(file)

    def plain() -> None:
        with open("/dev/full", "w") as file:
            file.write("x")

    weights = SafetensorError(
        "Error while serializing: IoError(Os { code: 28 }): No space left on device (os error 28)"
    )
    for error in (
        caught(numpy),
        caught(plain),
        weights,
        sqlite3.OperationalError("database or disk is full"),
    ):
        told = os_error_line(error)
        assert told is not None and told.startswith(
            "no space left on the disk: free some and run again"
        ), error


def test_safetensors_names_the_number(tmp_path: Path) -> None:
    error = caught(lambda: save_file({"x": torch.zeros(3)}, tmp_path / "none" / "x"))
    assert isinstance(error, SafetensorError | OSError) and os_error_line(error) is None


def test_the_path_is_named_and_causes_are_looked_at() -> None:
    try:
        try:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/data/x")
        except OSError as error:
            raise RuntimeError("a stage failed") from error
    except RuntimeError as error:
        assert str(os_error_line(error)).startswith(
            "/data/x: the file system is read-only: make it writable"
        )


def test_other_errors_are_not_troubles() -> None:
    assert os_error_line(ValueError("x")) is None
    assert os_error_line(FileNotFoundError(errno.ENOENT, "no such file", "x")) is None
