"""The files of a folder or a zip archive, without what hides there."""

from __future__ import annotations

import io
import os
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from models.common.errors import InputError
from tasks.data.images import UnreadableImage

# Thumbnails and bins that file managers and NAS systems leave in people's folders.
SYSTEM_FOLDERS = frozenset(("@eadir", "#recycle", "$recycle.bin", "lost+found"))
LARGEST = 2**30  # bytes of one file in an archive


@dataclass(frozen=True)
class Files:
    """``names``: posix paths relative to the top, in the order of their parts; ``hidden``: those
    left out; ``open(name)``: the file, to be closed by the caller.
    """

    title: str
    names: tuple[str, ...]
    hidden: tuple[str, ...]
    open: Callable[[str], IO[bytes]]


def open_files(path: Path, key: str, expected: str) -> Files:
    """What lies at and below a folder, or in a .zip; raises InputError that begins with ``key``.

    As in Hugging Face's imagefolder, names that begin with a dot and folders that begin with two
    underscores (.ipynb_checkpoints, __MACOSX) are left out. Links to folders are followed; every
    folder is read once, so that they may go round in circles. Pipes and devices hide, too.
    """
    if path.is_dir():
        return _of_folder(path, key)
    if path.suffix.lower() == ".zip" and path.is_file():
        return _of_zip(path, key)
    raise InputError(f"{key}: {path} is not a folder, expected {expected}")


def same_name(name: str) -> str:
    """A name as tables and file systems agree on it: no "./", no backslashes, composed accents."""
    plain = str(PurePosixPath(name.strip().replace("\\", "/")))
    return unicodedata.normalize("NFC", plain)


def _of_folder(folder: Path, key: str) -> Files:
    names: list[str] = []
    hidden: list[str] = []
    for place, within in _walk(folder, key):
        (hidden if within else names).append(place.relative_to(folder).as_posix())
    return Files(str(folder), _ordered(names), _ordered(hidden), lambda name: _open(folder / name))


def _walk(folder: Path, key: str) -> Iterator[tuple[Path, bool]]:
    """(file, whether it hides) of every folder; linked folders come after all that are there
    themselves, so that a folder keeps its own name where a link leads to it, too.
    """
    seen: set[tuple[int, int]] = set()
    inside = [(folder, False)]
    linked: list[tuple[Path, bool]] = []
    while inside or linked:
        here, below_hidden = (inside or linked).pop(0)
        try:
            identity, entries = here.stat(), sorted(os.scandir(here), key=lambda e: e.name)
        except OSError as error:
            raise InputError(f"{key}: {here} cannot be read ({error.strerror})") from None
        if (identity.st_dev, identity.st_ino) in seen:
            continue
        seen.add((identity.st_dev, identity.st_ino))
        for entry in entries:
            folder_too = entry.is_dir()
            hides = below_hidden or _hides(entry.name, folder_too) or _is_special(entry)
            if not folder_too:
                yield Path(entry.path), hides
            elif not (hides and entry.is_symlink()):
                (linked if entry.is_symlink() else inside).append((Path(entry.path), hides))


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether it is a pipe, a socket or a device: opening it may wait forever."""
    there = entry.is_dir() or entry.is_file() or not os.path.exists(entry.path)
    return not there  # a link to nothing is named by its reader


def _of_zip(path: Path, key: str) -> Files:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{key}: {path} is not readable as .zip ({error})") from None
    members = {_member_name(item): item for item in archive.infolist() if not item.is_dir()}

    def read(name: str) -> IO[bytes]:
        if members[name].file_size > LARGEST:
            raise UnreadableImage(f"more than {LARGEST >> 30} GiB in an archive")
        try:
            return io.BytesIO(archive.read(members[name]))
        except (RuntimeError, NotImplementedError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise UnreadableImage(str(error)) from None  # a password, a method, damage

    hiding = {name for name in members if _any_hides(name)}
    return Files(str(path), _ordered(set(members) - hiding), _ordered(hiding), read)


def _member_name(item: zipfile.ZipInfo) -> str:
    """The path without the "./" that some programs begin it with, and with slashes."""
    return str(PurePosixPath(item.filename.replace("\\", "/")))


def _open(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except FileNotFoundError:
        raise UnreadableImage("a link to a file that is not there") from None
    except OSError as error:
        raise UnreadableImage(str(error.strerror)) from None


def _any_hides(name: str) -> bool:
    *folders, file = name.split("/")
    return _hides(file, False) or any(_hides(folder, True) for folder in folders)


def _hides(name: str, folder: bool) -> bool:
    return name.startswith(".") or (
        folder and (name.startswith("__") or name.lower() in SYSTEM_FOLDERS)
    )


def _ordered(names: list[str] | set[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: name.split("/")))
