"""Git as the project sees it: the repository that holds the project's own files, and no other."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Variables by which a hook, or a shell, points git at one repository (`git rev-parse
# --local-env-vars`). They would answer for every folder.
LOCAL_VARIABLES = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_PARAMETERS",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NAMESPACE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
)
OWN_FILES = ("dvc.yaml", "tasks", "models")  # one of them in HEAD: that commit is the project's


@dataclass(frozen=True)
class Checkout:
    """The repository of a project: `top` is its root folder, None if the project is in none.

    `why` says in one line why git cannot tell, where there is a repository; else it is "".
    """

    top: Path | None
    why: str = ""


def run_git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run git in `folder`, in English and without the variables that name another repository.

    Raises FileNotFoundError where git is not installed.
    """
    env = {name: value for name, value in os.environ.items() if name not in LOCAL_VARIABLES}
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=env | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def find_checkout(root: Path) -> Checkout:
    """The repository whose commits hold the project at `root`.

    A repository counts only if its commit holds the project's files: an archive that was unpacked
    inside another repository is in none.
    """
    try:
        found = run_git(root, "rev-parse", "--show-toplevel")
    except FileNotFoundError:
        has_repository = any((folder / ".git").exists() for folder in _upwards(root))
        return Checkout(None, "git is not installed" if has_repository else "")
    if found.returncode:
        line = next(iter(found.stderr.splitlines()), "").removeprefix("fatal: ")
        return Checkout(None, "" if line.startswith("not a git repository") else line)
    top = Path(found.stdout.rstrip("\n"))
    own = top.resolve() == root.resolve()
    listed = run_git(root, "ls-tree", "--name-only", "HEAD", "--", *OWN_FILES)
    unborn = listed.returncode != 0
    if listed.stdout.strip() or (own and (unborn or not _has_program(root))):
        return Checkout(top)
    return Checkout(None, f"the repository {top} does not hold the project's files")


def _has_program(root: Path) -> bool:
    return any((root / name).exists() for name in OWN_FILES)


def _upwards(root: Path) -> list[Path]:
    return [root.resolve(), *root.resolve().parents]
