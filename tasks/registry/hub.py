"""Pushing a student's folder to a Hugging Face hub, or showing what would go."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from models.common.errors import InputError
from tasks.methods.model_card import render

HIDDEN = ("history.csv",)  # of training; stays here


@dataclass(frozen=True)
class Push:
    """What goes: relative file names with their sizes in bytes, and the card."""

    repo: str
    files: dict[str, int]
    card: str

    def lines(self) -> list[str]:
        """For people: one line a file, then the card."""
        total = sum(self.files.values())
        listed = [f"{size:>12,}  {name}" for name, size in sorted(self.files.items())]
        return [f"{self.repo}: {len(self.files)} files, {total:,} bytes", *listed, "", self.card]


def push(
    root: Path, repo: str, *, licence: str | None = None, dry_run: bool = True, private: bool = True
) -> Push:
    """Send data/student to the hub's ``repo`` ("owner/name"), its card filled with the figures of
    data/evaluation; a dry run sends nothing and asks nobody.

    Raises InputError where there is no student, the name is none, or no licence is known.
    """
    folder = root / "data" / "student"
    if not (folder / "student.json").is_file():
        raise InputError(f"{folder}: no student; run python -m tasks.stages.student first")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise InputError(f"push: {repo!r} is no repository, expected owner/name")
    record = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    measured = root / "data" / "evaluation" / "metrics.json"
    metrics = json.loads(measured.read_text(encoding="utf-8")) if measured.is_file() else None
    card = render(record, metrics, repo=repo, licence=licence)
    if not (dry_run or licence or record["origin"]["licence"]):
        raise InputError("push: the teacher states no licence, expected one; give --license NAME")
    with tempfile.TemporaryDirectory(prefix="fewstep-push-") as place:
        copy = Path(place, "student")
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*HIDDEN))
        (copy / "README.md").write_text(card, encoding="utf-8")
        files = {
            path.relative_to(copy).as_posix(): path.stat().st_size
            for path in copy.rglob("*")
            if path.is_file()
        }
        if not dry_run:
            _upload(copy, repo, private)
    return Push(repo, files, card)


def _upload(folder: Path, repo: str, private: bool) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload student")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"push: {repo} was not written ({first}); log in with `hf auth login`, or check the "
            "name and the network"
        ) from error
