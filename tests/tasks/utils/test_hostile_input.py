"""What others send is refused in one line or shown as text: archives, checkpoints, cards, prompts,
YAML. Other users of the machine do not see the services' files.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flows.console import complain, say
from flows.services import daemons
from models.common.errors import InputError
from tasks.config.conditions import Conditions
from tasks.config.presets import compose
from tasks.config.schema import load_params
from tasks.data.prompts import collect, open_prompts
from tasks.methods.model_card import licence_of, render
from tasks.training.checkpoints import SEAL, TENSORS, latest_checkpoint, save_checkpoint
from tasks.utils.atomic import sha256_file
from tasks.utils.cli import set_up_logging, user_errors
from tasks.utils.environment import private_folder
from tasks.utils.streams import visible
from tests.inputs.making import made, png
from tests.paths import PROJECT
from tests.tasks.utils.test_security import Payload

CLEAR = "\x1b[2J\x1b]0;owned\x07"  # empties a terminal and names its window
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "the-payload-ran"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can enter, as those below pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="fewstep-public-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_an_archive_writes_nothing_outside(tmp_path: Path) -> None:
    """Archives are read, never unpacked: a name with .. or / is the name of an image and no more."""
    root = tmp_path / "a/b"
    root.mkdir(parents=True)
    names = [
        f"{start}{index}.png" for index in range(4) for start in ("../../out", "/tmp/fewstep-out")
    ]
    with zipfile.ZipFile(root / "in.zip", "w") as archive:
        for index, name in enumerate(names):
            archive.write(png(root / f"{index}.png", index), name)
    before = {path for path in tmp_path.rglob("*") if root / "data" not in path.parents}
    made(root, path="in.zip")
    after = {path for path in tmp_path.rglob("*") if root / "data" not in path.parents}
    assert after - before <= {root / "data", root / ".fewstep"}
    assert not list(Path("/tmp").glob("fewstep-out*"))


def test_a_checkpoint_with_a_pickle_is_not_unpickled(mark: Path, tmp_path: Path) -> None:
    """Its checksums are right: whoever writes into the folder writes those, too."""
    folder = save_checkpoint(tmp_path, 3, {"w": torch.ones(2)}, {}).path
    (folder / TENSORS).unlink()
    torch.save({"w": Payload(mark)}, folder / TENSORS)
    seal = json.loads((folder / SEAL).read_text())
    seal["sha256"][TENSORS] = sha256_file(folder / TENSORS)
    (folder / SEAL).write_text(json.dumps(seal))
    found = latest_checkpoint(tmp_path)
    assert found is not None
    with pytest.raises(InputError, match=r"tensors\.safetensors: not readable as safetensors"):
        found.load()
    assert not mark.exists()


def test_a_teacher_s_card_is_text_in_the_student_s(mark: Path, tmp_path: Path) -> None:
    tell = lambda head: (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# Card\n")  # noqa: E731
    tell(f"license: '{SCRIPT}|x'")
    origin = {"title": "Sig-DEG", "teacher": f"{SCRIPT}\n# no heading", "data": f"{CLEAR}digits"}
    origin |= {
        "licence": licence_of(tmp_path),
        "makes": "images",
        "shape": "1x8x8",
        "classes": None,
    }
    record = {
        "origin": origin, "method": {"kind": "sigdeg"}, "nfe": [2], "trajectories": {"steps": 8},
        "teacher": "f" * 64, "steps": 6, "best_step": 6,
    }  # fmt: skip
    _, _, body = render(record).removeprefix("---\n").partition("\n---\n")
    assert "<script>" not in body and "\x1b" not in body and "\n# no heading" not in body
    assert r"&lt;script&gt;alert(1)&lt;/script&gt;\|x" in body and r"\x1b[2J" in body
    tell(f"license: !!python/object/apply:os.mkdir ['{mark}']")
    assert licence_of(tmp_path) is None and not mark.exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/name:os.system", "!mine"]
)
def test_tags_of_yaml_make_nothing(tag: str, mark: Path, tmp_path: Path) -> None:
    value = f"{tag} ['{mark}']"
    (tmp_path / "params.yaml").write_text(f"student: {value}\n")
    with pytest.raises(InputError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(InputError):
        load_params(PROJECT / "params.yaml", [f"student.steps={value}"])
    shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    preset = tmp_path / "conf/preset/tiny.yaml"
    preset.write_text(f"{preset.read_text()}\nregistration: {value}\n")
    with pytest.raises(InputError):
        compose(tmp_path, "tiny")
    (tmp_path / "conf/student/swd.yaml").write_text(f"steps: {value}\n")
    with pytest.raises(InputError) as error:
        compose(tmp_path, "mnist-swd")
    assert "\n" not in str(error.value) and not mark.exists()


def test_control_characters_of_prompts_reach_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text(f"id,{CLEAR}\n1,a cat\n")
    section = Conditions.model_validate({"prompts": "in.csv", "holdout": 1})
    with pytest.raises(SystemExit), user_errors():
        collect(open_prompts(section, tmp_path), section, tmp_path)
    said = capsys.readouterr().err
    assert said.isascii() and "\x1b" not in said and "\x07" not in said
    assert r"has the columns id, \x1b[2J\x1b]0;owned\x07, expected text" in said


def test_control_characters_are_shown_by_every_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    set_up_logging()
    logging.getLogger("tasks").warning("image %s left out", CLEAR)
    complain(CLEAR)
    say(CLEAR)
    found = capsys.readouterr()
    assert (found.out + found.err).count(r"\x1b[2J\x1b]0;owned\x07") == 3
    assert "\x1b" not in found.out + found.err
    assert visible("a\tb\nZoë 猫 \u202egnp\r\x85") == "a\tb\nZoë 猫 \\u202egnp\\r\\x85"


def test_others_cannot_look_into_the_services_folder(public: Path) -> None:
    """Tried by another user where this one is root, else by the folder's bits."""
    before = os.umask(0o022)
    try:
        private_folder(public / ".fewstep/prefect")
        mine = daemons.start(public, "nothing", ["sleep", "60"], "", os.environ)
        (public / ".fewstep/prefect/profiles.toml").write_text("PREFECT_API_KEY = 'secret'")
    finally:
        os.umask(before)
    daemons.end(public, mine)
    for name in ("prefect", "services"):
        folder = public / ".fewstep" / name
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        if os.getuid() == 0 and shutil.which("setpriv"):
            other = [
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "ls",
                str(folder),
            ]
            assert subprocess.run(other, capture_output=True).returncode != 0
            above = [*other[:-1], str(folder.parent)]
            assert subprocess.run(above, capture_output=True).returncode == 0
    folder.chmod(0o755)  # of an earlier version
    private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    folder.chmod(0o770)  # meant for a group
    private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o770
