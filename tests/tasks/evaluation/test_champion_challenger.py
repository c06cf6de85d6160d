from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.common.errors import InputError
from models.evaluation.base import Interval
from tasks.evaluation import champion_challenger as comparison
from tasks.evaluation.champion_challenger import Round, decide
from tasks.stages import student
from tests.tasks.distillation import make_root, settings

PARAMS = settings(
    student={"steps": 0},
    evaluation={"samples": 8, "bootstrap": 0, "neighbours": 2, "batch_size": 4},
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a student of the steps 4 and 2."""
    root = make_root(tmp_path_factory.mktemp("contest"))
    student.run(PARAMS, root)
    return root


def other(root: Path, folder: Path, spoil: float = 0.0, **config: object) -> Path:
    """A copy of the student with noise on its weights and other settings."""
    shutil.copytree(root / "data/student", folder)
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    generator = torch.Generator().manual_seed(0)
    save_file(
        {k: v + spoil * torch.randn(v.shape, generator=generator) for k, v in weights.items()}, path
    )
    for name, changes in config.items():
        file = folder / f"{name}/config.json" if name != "index" else folder / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(changes)))  # type: ignore[call-overload]
    return folder


def test_equal_students_draw_exactly(root: Path, tmp_path: Path) -> None:
    rounds = comparison.compare(PARAMS, root, other(root, tmp_path / "same"))
    assert [each.nfe for each in rounds] == [2, 4]
    for each in rounds:
        assert each.challenger == each.champion and each.challenger.low < each.challenger.high
        assert each.difference == Interval(0.0, 0.0, 0.0)
    better, reason = decide(rounds)
    assert (
        not better
        and reason.startswith("not better beyond chance: KID ")
        and "at 2 steps" in reason
    )
    comparison.save(rounds, tmp_path / "rounds.json")
    assert comparison.load(tmp_path / "rounds.json") == rounds


def test_sides_are_told_apart(root: Path, tmp_path: Path) -> None:
    (two, _) = comparison.compare(PARAMS, root, other(root, tmp_path / "spoiled", spoil=0.3))
    swapped = tmp_path / "p"
    shutil.copytree(root / "data", swapped / "data")
    shutil.rmtree(swapped / "data/student")
    shutil.copytree(tmp_path / "spoiled", swapped / "data/student")
    (back, _) = comparison.compare(PARAMS, swapped, root / "data/student")
    assert two.challenger == back.champion and two.champion == back.challenger != back.champion
    assert two.difference.value == pytest.approx(two.challenger.value - two.champion.value)
    assert two.difference.value == pytest.approx(-back.difference.value)
    assert two.difference.low == pytest.approx(-back.difference.high)


def test_students_that_cannot_meet_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="champion makes states of size 1x16x16, this evaluation set has 1x8x8"
    ):
        large = other(root, tmp_path / "large", index={"shape": [1, 16, 16]})
        comparison.compare(PARAMS, root, large)
    plans = json.loads((root / "data/student/model_index.json").read_text())["plans"]
    with pytest.raises(
        InputError, match=r"made for \[2, 4\] steps, the champion for \[8\]: none in common"
    ):
        comparison.compare(
            PARAMS, root, other(root, tmp_path / "eight", index={"plans": {"8": plans["4"] * 2}})
        )
    with pytest.raises(InputError, match="the champion cannot be opened"):
        comparison.compare(PARAMS, root, tmp_path / "nothing")


@pytest.mark.parametrize("lower_is_better", [True, False])
@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.3, -0.1, "better"),
        (-0.3, 0.0, "not better beyond chance"),
        (-0.1, 0.2, "not better beyond chance"),
        (0.0, 0.3, "not better beyond chance"),
        (0.1, 0.3, "worse"),
    ],
)
def test_only_a_whole_interval_on_one_side_of_zero_decides(
    low: float, high: float, verdict: str, lower_is_better: bool
) -> None:
    kid = Interval(0.1, 0.0, 0.2)
    if not lower_is_better:
        low, high = -high, -low
    gap, clear = Interval((low + high) / 2, low, high), Interval(-1.0, -1.0, -1.0)
    rounds = [  # more steps do not decide
        Round(nfe, kid, kid, difference, lower_is_better=lower_is_better)
        for nfe, difference in ((10, clear), (5, gap))
    ]
    better, reason = decide(rounds)
    assert better is (verdict == "better") and reason.startswith(f"{verdict}: KID ")
