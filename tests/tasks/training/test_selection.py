"""Keeping the best: scores of averaged weights, and nothing else changed by looking."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from models.common.errors import InputError
from models.common.random import generator_for
from models.evaluation.kid import kid
from models.methods.sigdeg.method import SigDEG
from models.training.loop import TrainState
from tasks.config.schema import Params
from tasks.stages.student import build_training
from tasks.training.checkpoints import save_checkpoint
from tasks.training.selection import Selection
from tasks.training.trainer import Training
from tests.tasks.distillation import make_root, settings
from tests.tiny import perturbed, weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("labelled"), classes=3)


def parts(
    root: Path, scratch: Path, params: Params | None = None
) -> tuple[SigDEG, TrainState, Selection]:
    """The stage's own method, state and selection."""
    training: Training = build_training(params or settings(), root, scratch, CPU)
    selection: Any = getattr(training.validate, "__self__")  # noqa: B009
    return training.method, training.state, selection  # type: ignore[return-value]


def scored(selection: Selection, scratch: Path, sequence: list[tuple[float, float]]) -> list[int]:
    """Steps kept as best after each pair of KIDs."""
    best = []
    for step, (four, two) in enumerate(sequence):
        figures = {"kid_4": four, "path_rmse_4": 0.1, "kid_2": two, "path_rmse_2": 0.1}
        selection._keep(step, figures, {"w": torch.tensor([float(step)])})
        best.append(selection.record["best_step"])
        assert Selection.best_weights(scratch, best[-1])["w"].tolist() == [best[-1]]
    return best


def test_the_mean_ratio_to_the_untrained_decides(root: Path, tmp_path: Path) -> None:
    """0.4 and 0.2 at first; a large gain at one number of steps may pay for a small loss at the
    other.
    """
    _, _, selection = parts(root, tmp_path)
    sequence = [
        (0.4, 0.2),
        (0.5, 0.3),
        (0.6, 0.04),
        (0.4, 0.1),
        (0.1, 0.1),
        (math.nan, 0.0),
        (0.0, 0.2),
    ]
    assert scored(selection, tmp_path, sequence) == [0, 0, 2, 3, 4, 4, 4]
    assert selection.record["untrained"] == {"kid_4": 0.4, "kid_2": 0.2}
    assert selection.record["best_score"] == pytest.approx(0.375)
    assert selection.record["scores"] == {"kid_4": 0.1, "kid_2": 0.1}


def test_a_criterion_of_which_more_is_better(root: Path, tmp_path: Path) -> None:
    params = settings(student={"criterion": "recall"})
    _, _, selection = parts(root, tmp_path, params)
    for step, (four, two) in enumerate(
        [(0.4, 0.2), (0.3, 0.2), (0.4, 0.4), (math.nan, 1.0), (0, 1)]
    ):
        figures = {"recall_4": four, "path_rmse_4": 0.1, "recall_2": two, "path_rmse_2": 0.1}
        selection._keep(step, figures, {"w": torch.zeros(1)})
    assert selection.record["best_step"] == 2
    assert selection.record["best_score"] == pytest.approx((1 + 0.5) / 2)
    with pytest.raises(
        InputError, match="student.criterion = pixel_mean: expected a metric of quality: kid"
    ):
        parts(root, tmp_path, settings(student={"criterion": "pixel_mean"}))


def test_a_start_that_is_perfect_by_chance(root: Path, tmp_path: Path) -> None:
    """KID is unbiased, so a good one may be below 0: differences are then measured on a small
    scale.
    """
    _, _, selection = parts(root, tmp_path)
    sequence = [(-0.0001, 0.2), (0.02, 0.1), (-0.0002, 0.19)]
    assert scored(selection, tmp_path, sequence) == [0, 0, 2]


def test_validation_looks_at_averages_and_changes_nothing(root: Path, tmp_path: Path) -> None:
    method, state, selection = parts(root, tmp_path)
    network = method.pipeline.unet
    perturbed(network).train()
    assert (
        len(selection._validation.metric.real.features) > 1000
    )  # loaded before, so that only looking is seen below
    live, noise = weights(network), torch.random.get_rng_state()
    first = selection.validate(0, state)
    assert torch.equal(torch.random.get_rng_state(), noise) and network.training
    assert all(torch.equal(live[name], value) for name, value in weights(network).items())
    assert set(first) == {"kid_4", "kid_2", "path_rmse_4", "path_rmse_2"}
    kept = Selection.best_weights(tmp_path, 0)
    assert all(
        torch.equal(kept[name], value) for name, value in state.ema_weights["student"].items()
    )
    assert (kept["conv_in.bias"] - live["conv_in.bias"]).abs().max() > 0
    assert selection.validate(1, state) == first and selection.record["best_step"] == 0


@pytest.mark.parametrize("which", ["root", "labelled"])
def test_figures_are_those_of_the_pipeline(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """KID of rollouts on the same noise, and the end's distance to cached paths, computed anew."""
    folder: Path = request.getfixturevalue(which)
    params = settings(student={"validation_samples": 6, "seed": 2})
    method, state, selection = parts(folder, tmp_path, params)
    found = selection.validate(0, state)
    validation = selection._validation
    extractor, real = validation.extractor, validation.metric.real.features
    generator = generator_for("cpu", 2, 13, 4, 0)
    noise = torch.randn(6, 1, 8, 8, generator=generator)
    xi = torch.randn(6, 4, 3, 1, 8, 8, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1, 2]) if which == "labelled" else None
    condition = method.teacher.encode_condition(labels)
    x0 = method.pipeline.rollout(noise, xi, condition, 4)[0]
    with torch.no_grad():
        expected = float(kid(extractor(x0.clamp(-1, 1)), real))
    assert found["kid_4"] == pytest.approx(expected, rel=1e-4)
    assert real.shape[0] > 1000 and found["path_rmse_4"] > 0


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    made = save_checkpoint(tmp_path / "best", 3, {"w": torch.zeros(4)}, {})
    file = made.path / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="step-00000003"):
        Selection.best_weights(tmp_path, 3)
