"""Modules outside this package that add methods, metrics, data sources or teachers.

The params name them: `extensions: [my_package.methods, ideas/toy.py]`. They are imported before
the params are validated, so that their registrations count. Nothing else ever names them: a
teacher's or a student's folder cannot.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from models.common.errors import InputError


def load_extensions(names: object, root: Path) -> None:
    """Import the modules or .py files (relative to `root`); each is run once in a process.

    Raises InputError for a name that cannot be imported, with the reason.
    """
    for name in _checked(names):
        try:
            if name.endswith(".py"):
                _run_file(root / name)
            else:
                importlib.import_module(name)
        except InputError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise InputError(f"extensions: {name} cannot be imported ({reason})") from error


def extension_digest(names: Sequence[str], root: Path) -> str:
    """Hex SHA-256 of the files behind the names: of a package, all its Python files."""
    digest = hashlib.sha256()
    for name in names:
        for file in _files(name, root):
            digest.update(f"{name}\0{file.name}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def extension_files(names: Sequence[str], root: Path) -> list[Path]:
    """The Python files behind the names."""
    return [file for name in names for file in _files(name, root)]


def check_extensions(names: Sequence[str], digest: str | None, root: Path) -> None:
    """Raise InputError if the files have changed since the params were composed: DVC watches the
    params, not these files.
    """
    if names and digest != extension_digest(names, root):
        raise InputError(
            f"extensions: {', '.join(names)} changed since params.yaml was written; compose it "
            "again with `make run` or `fewstep params`"
        )


def _checked(names: object) -> list[str]:
    if isinstance(names, list | tuple) and all(isinstance(name, str) and name for name in names):
        return list(names)
    raise InputError(
        f"extensions = {names!r}: expected a list of modules and .py files, such as [ideas/toy.py]"
    )


def _run_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"extensions: {path} not found; expected a .py file of the project")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None:
        if Path(getattr(known, "__file__", None) or "").resolve() == path.resolve():
            return
        raise InputError(
            f"extensions: {path}: a module {name} is loaded already; give the file another name"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its registrations name it: "toy:ToyMethod"
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _files(name: str, root: Path) -> list[Path]:
    if name.endswith(".py"):
        return [root / name]
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise InputError(f"extensions: {name} not found; expected a module or a .py file")
    if spec.submodule_search_locations:
        folders = [Path(place) for place in spec.submodule_search_locations]
        return sorted(file for folder in folders for file in folder.rglob("*.py"))
    return [Path(str(spec.origin))]
