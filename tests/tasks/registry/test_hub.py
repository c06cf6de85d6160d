"""The model card says what is known and nothing else; a push sends the folder with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError

from flows import push as flows_push
from models.common.errors import InputError
from tasks.methods.model_card import figures_of, licence_of, render
from tasks.registry.hub import push

RECORD: dict[str, Any] = {
    "method": {"kind": "sigdeg", "nfe": [10, 5], "order": 2, "trainable": "full"},
    "nfe": [10, 5],
    "steps": 60,
    "best_step": 40,
    "teacher": "0123456789abcdef",
    "trajectories": {"steps": 100},
    "origin": {
        "title": "Sig-DEG",
        "teacher": "data/pretrained/mnist16",
        "data": "MNIST digits, 4000 training images",
        "shape": "1x16x16",
        "classes": None,
        "licence": "apache-2.0",
    },
}
METRICS: dict[str, Any] = {
    "evaluation": {"features": "KID-MNIST-CNN", "samples": 2000, "real": 1000},
    "student": {
        "nfe10": {"title": "Student", "kid": 0.0276, "kid_low": 0.02, "kid_high": 0.035},
        "nfe5": {"title": "Student", "kid": 0.0337, "recall": 0.5},
    },
    "teacher": {"full": {"title": "Teacher", "kid": 0.044, "kid_low": float("nan")}},
    "load_back": {"ok": True, "max_abs_difference": 0.0, "seconds": 9.1},
}


def project(root: Path, licence: str | None = "apache-2.0") -> Path:
    folder = root / "data" / "student"
    (folder / "unet").mkdir(parents=True)
    record = RECORD | {"origin": RECORD["origin"] | {"licence": licence}}
    (folder / "student.json").write_text(json.dumps(record))
    (folder / "history.csv").write_text("step\n0\n")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 1000)
    return root


def measured(root: Path) -> Path:
    (root / "data" / "evaluation").mkdir()
    (root / "data" / "evaluation" / "metrics.json").write_text(json.dumps(METRICS))
    return root


def test_the_card_without_figures() -> None:
    card = ModelCard(render(RECORD))
    assert (card.data.library_name, card.data.license) == ("diffusers", "apache-2.0")
    assert "sigdeg" in card.data.tags
    for text in ("Sig-DEG", "data/pretrained/mnist16", "0123456789ab", "4000 training images",
                 "10 or 5 network calls", "weights of step 40", "Not measured yet",
                 "trust_remote_code=True", "manual_seed(0)"):  # fmt: skip
        assert text in card.text, text
    assert "class_labels" not in card.text and "KID-MNIST-CNN" not in card.text


def test_the_card_with_figures() -> None:
    card = ModelCard(render(RECORD, METRICS, repo="me/digits", licence="mit"))
    assert card.data.license == "mit" and 'from_pretrained("me/digits"' in card.text
    assert "| Student | 10 | 0.0276 [0.02, 0.035] |  |" in card.text
    assert "2000 samples against 1000 real images" in card.text
    assert "largest difference 0.0" in card.text and "Not measured" not in card.text
    conditional = RECORD | {"origin": RECORD["origin"] | {"classes": 10}}
    assert "class_labels=0" in render(conditional)


def test_columns_are_those_that_were_measured() -> None:
    names, rows = figures_of(METRICS)
    assert names == ["kid", "recall"]
    assert [row[1] for row in rows] == ["10", "5", "full"]
    assert rows[1][2:] == ["0.0337", "0.5"]
    assert figures_of({}) == ([], [])


def test_the_licence_is_the_teachers(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text("# No head\n")
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Head\n")
    assert licence_of(tmp_path) == "mit"


def test_a_dry_run_shows_what_would_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.registry.hub._upload", lambda *_: pytest.fail("sent"))
    root = measured(project(tmp_path))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    found = push(root, "me/digits")
    assert set(found.files) == {
        "README.md", "student.json", "unet/diffusion_pytorch_model.safetensors"
    }  # fmt: skip
    assert found.files["unet/diffusion_pytorch_model.safetensors"] == 1000
    lines = "\n".join(found.lines())
    assert "me/digits: 3 files" in lines and "0.0276 [0.02, 0.035]" in lines
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_push_sends_the_folder_and_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        sent[repo_id] = {p.name: p.read_bytes() for p in folder_path.rglob("*") if p.is_file()}

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, private, exist_ok: None)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    push(measured(project(tmp_path)), "me/digits", dry_run=False)
    assert set(sent) == {"me/digits"}
    assert b"0.0276" in sent["me/digits"]["README.md"] and "history.csv" not in sent["me/digits"]


def test_what_cannot_be_pushed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise LocalTokenNotFoundError("no token\nmore")

    with pytest.raises(InputError, match=r"no student; run python -m tasks.stages.student first"):
        push(tmp_path, "me/digits")
    root = project(tmp_path / "p", licence=None)
    with pytest.raises(InputError, match="'digits' is no repository, expected owner/name"):
        push(root, "digits")
    assert "state one before you publish" in push(root, "me/digits").card
    with pytest.raises(InputError, match="states no licence.* give --license NAME"):
        push(root, "me/digits", dry_run=False)
    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(InputError, match=r"was not written \(no token\); log in with") as caught:
        push(root, "me/digits", dry_run=False, licence="mit")
    assert "\n" not in str(caught.value)


def test_the_command_shows_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tasks.registry.hub._upload", lambda *_: pytest.fail("sent"))
    monkeypatch.chdir(measured(project(tmp_path, licence=None)))
    assert flows_push.main(["me/digits", "--dry-run"]) == 0
    assert "student.json" in capsys.readouterr().out
    assert flows_push.main(["me/digits"]) == 2
    assert "give --license NAME" in capsys.readouterr().err
