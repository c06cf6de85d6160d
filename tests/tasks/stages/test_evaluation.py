"""The evaluation on a teacher with a known answer: Gaussian images, exact and spoiled
generators.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from torch import Tensor

from models.common.errors import InputError
from models.evaluation.base import Estimate, Interval, Metric, Samples
from models.evaluation.registry import METRICS
from tasks.config.evaluation import Evaluation
from tasks.config.schema import Params
from tasks.data.kinds import KINDS
from tasks.evaluation import benchmark
from tasks.evaluation.benchmark import evaluate
from tasks.evaluation.evaluator import Evaluator
from tasks.evaluation.extractor import FEATURES
from tasks.evaluation.identity import images_digest
from tasks.evaluation.metrics_file import read_metrics
from tasks.evaluation.report import html as report
from tasks.evaluation.results import Result, SamplerKey
from tasks.evaluation.samplers import Inputs, Paths, choose_nfe, to_bytes
from tasks.evaluation.tables import format_table, metrics_of, write_outputs
from tasks.stages.evaluation import run
from tests.models.evaluation.test_features import SHIPPED
from tests.models.sampling.gaussian import GaussianTeacher

N, SHAPE, MEAN, STD = 120, (1, 8, 8), 0.1, 0.4
OFFSET = 0.25


class Flat:
    """Pixels as features."""

    label, dim = "pixels", 64

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1).float()


class Teacher(GaussianTeacher):
    def decode(self, x0: Tensor) -> Tensor:
        return x0.clamp(-1, 1)


def gaussian(seed: int, n: int = N) -> Tensor:
    return MEAN + STD * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def shifted(by: float):  # type: ignore[no-untyped-def]
    """A generator whose images are right but for `by`, and whose path error is by * (step /
    nfe).
    """

    def rollout(noise, xi, labels, nfe, generator):  # type: ignore[no-untyped-def]
        clean = (MEAN + STD * noise).float()
        ramp = torch.linspace(0, 1, nfe + 1).view(1, -1, 1, 1, 1)
        states = noise[:, None] * (1 - ramp) + clean[:, None] * ramp + by * ramp
        return states[:, -1], states.float()

    return rollout


def make_inputs(student: float = 0.0, untrained: float = OFFSET) -> Inputs:
    noise = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(9))
    _, states = shifted(0.0)(noise, None, None, 20, None)
    xi = {n: torch.zeros(40, n, 2, *SHAPE) for n in (10, 5)}
    return Inputs(
        teacher=Teacher(),
        generators={"student": shifted(student), "untrained": shifted(untrained)},
        paths=Paths(noise, states, xi, None),
        real=gaussian(1),
        other_real=gaussian(2),
        nfe=(10, 5),
        steps=100,
        calls={("student", 5): 6},
        lineage={"teacher fingerprint": "<b>ab</b>", "git.commit": "0" * 40},
    )


def gap(result: Result, nfe: int, rival: str, rival_nfe: int | None = None) -> Interval:
    found = result.difference(nfe, result.row(rival, rival_nfe))
    assert found is not None
    return found


SETTINGS = Evaluation(
    samples=100, bootstrap=100, batch_size=50, baselines=("ddim", "ddpm", "unipc")
)


@pytest.fixture(scope="module")
def result() -> Result:
    return evaluate(make_inputs(), [Flat()], SETTINGS)


def test_table_has_every_sampler_once_per_nfe(result: Result) -> None:
    generated = {
        (row.sampler, row.nfe)
        for row in result.rows
        if row.group in ("student", "untrained", "baseline")
    }
    names = ("student", "untrained", "ddim", "ddpm", "unipc")
    assert generated == {(name, nfe) for name in names for nfe in (10, 5)}
    full = {SamplerKey("teacher"), SamplerKey("real")}
    assert {row.key for row in result.rows} - {SamplerKey(n, k) for n, k in generated} == full
    assert all(len(images) == 100 for key, images in result.images.items() if key.name != "real")
    assert result.calls == {SamplerKey("student", 5): 6}


def test_exact_samplers_are_at_the_floor_and_spoiled_ones_are_not(result: Result) -> None:
    floor, student, spoiled = (
        result.row(*key) for key in (("real",), ("student", 10), ("untrained", 10))
    )
    assert student["kid"].low < floor["kid"].high and student["kid"].high > floor["kid"].low
    assert spoiled["kid"].low > max(student["kid"].high, floor["kid"].high)
    assert spoiled["frechet"].value > student["frechet"].value
    assert student["kid"].value == pytest.approx(
        result.teacher["kid"].value, abs=1e-9
    )  # the same images here
    assert gap(result, 10, "untrained", 10).high < 0 < spoiled["kid"].value
    assert gap(result, 5, "teacher").value == pytest.approx(0, abs=1e-9)
    assert student["pixel_std"].value == pytest.approx(STD, abs=0.02) and spoiled[
        "pixel_mean"
    ].value == pytest.approx(MEAN + OFFSET, abs=0.03)


def test_more_images_than_cached_paths(result: Result) -> None:
    """KID takes all of them; what depends on the number of images takes as many of each set as the
    teacher has.
    """
    more = evaluate(make_inputs(), [Flat()], SETTINGS.model_copy(update={"samples": 170}))
    whole = evaluate(make_inputs(), [Flat()], SETTINGS.model_copy(update={"samples": N}))
    assert {row.group: row.images for row in more.rows} == {
        "student": 170, "untrained": 170, "baseline": 170, "teacher": N, "real": N,
    }  # fmt: skip
    for key in (SamplerKey("student", 10), SamplerKey("ddim", 5)):
        first, longer = (found.row(key.name, key.nfe) for found in (whole, more))
        assert (longer["frechet"].value, longer["precision"].value, longer["recall"].value) == (
            first["frechet"].value,
            first["precision"].value,
            first["recall"].value,
        )
        assert longer["kid"].value != first["kid"].value
        assert (more.images[key][:N] == whole.images[key]).all()
        assert (
            len(np.unique(more.images[key].reshape(170, -1), axis=0)) == 170
        )  # drawn, not repeated
    again = evaluate(make_inputs(), [Flat()], SETTINGS.model_copy(update={"samples": 170}))
    assert (again.images[SamplerKey("student", 5)] == more.images[SamplerKey("student", 5)]).all()
    assert more.row("untrained", 10)["kid"].low > more.row("student", 10)["kid"].high
    assert (more.samples, more.real, more.few) == (170, N, N) and result.few == 100


def test_best_training_free_is_the_lowest_kid_and_its_spacing_was_chosen(result: Result) -> None:
    for nfe in (10, 5):
        ranked = result.baselines(nfe)
        assert (
            ranked[0]["kid"].value == min(row["kid"].value for row in ranked) and len(ranked) == 3
        )
        assert result.spacing[SamplerKey("ddim", nfe)] == "trailing"
        assert result.spacing[SamplerKey("unipc", nfe)] in ("trailing", "logsnr", "karras")
        difference = result.difference(nfe, ranked[0])
        assert difference is not None and difference.value == pytest.approx(
            result.row("student", nfe)["kid"].value - ranked[0]["kid"].value, abs=1e-12
        )


def test_time_grids_are_chosen_by_training_data_alone() -> None:
    training, made = gaussian(2) + OFFSET, gaussian(3)
    held_out = {
        shift: Evaluator([Flat()], gaussian(1) + shift, SETTINGS, training=training)
        for shift in (0.0, 2 * OFFSET)
    }
    costs = {shift: e.pilot_cost(made + OFFSET) for shift, e in held_out.items()}
    assert costs[0.0] == costs[2 * OFFSET] < held_out[0.0].pilot_cost(made)
    with pytest.raises(ValueError, match="no training data"):
        Evaluator([Flat()], gaussian(1), SETTINGS).pilot_cost(made)


def test_path_errors_are_those_that_were_put_in(result: Result) -> None:
    for nfe in (10, 5):
        spoiled = [e.value for e in result.path_error[SamplerKey("untrained", nfe)]]
        assert spoiled == pytest.approx([OFFSET * (i + 1) / nfe for i in range(nfe)], rel=1e-4)
        assert max(e.value for e in result.path_error[SamplerKey("student", nfe)]) < 1e-6
    assert len(result.path_images[SamplerKey("teacher")]) == 40


def test_same_seed_same_figures(result: Result) -> None:
    again = evaluate(make_inputs(), [Flat()], SETTINGS)
    timeless = [replace(row, ms_per_image=None) for row in again.rows]
    assert timeless == [replace(row, ms_per_image=None) for row in result.rows]
    other = evaluate(make_inputs(), [Flat()], SETTINGS.model_copy(update={"seed": 2}))
    assert other.row("ddpm", 10)["kid"].value != result.row("ddpm", 10)["kid"].value


def test_files(result: Result, tmp_path: Path) -> None:
    write_outputs(result, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    student = metrics["student"]["nfe10"]
    assert student["kid"] == result.row("student", 10)["kid"].value
    assert student["kid_low"] <= student["kid"] <= student["kid_high"]
    assert metrics["untrained"]["nfe5"]["path_rmse"] == pytest.approx(OFFSET, rel=1e-4)
    assert metrics["best_training_free"]["nfe5"]["kid"] == result.baselines(5)[0]["kid"].value
    assert metrics["difference"]["nfe10"]["to_untrained"]["kid_high"] < 0
    assert (
        "ms_per_image" not in metrics["real"]["full"]
        and metrics["teacher"]["full"]["ms_per_image"] > 0
    )
    table = pd.read_csv(tmp_path / "table.csv")
    assert len(table) == len(result.rows)
    frontier = pd.read_csv(tmp_path / "frontier.csv")
    assert set(frontier["nfe"]) == {5, 10} and "teacher" not in set(frontier["sampler"])
    steps = pd.read_csv(tmp_path / "path_error.csv")
    assert len(steps) == 2 * (10 + 5)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as samples:
        assert np.array_equal(samples["student_nfe10"], result.images[SamplerKey("student", 10)])


def test_terminal_table_lists_all_and_marks_the_student(result: Result) -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(format_table(metrics_of(result)))
    lines = [line for line in console.export_text().splitlines() if "│" in line]
    assert len(lines) == len(result.rows)
    assert sum("Student" in line for line in lines) == 2
    first = [line.split("│")[1].strip() for line in lines[:2]]
    assert set(first) == {"Real images", "Teacher, full run"}


def test_terminal_table_shows_what_training_changed(result: Result) -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(format_table(metrics_of(result)))
    lines = console.export_text().splitlines()
    start = next(i for i, line in enumerate(lines) if "KID, student minus untrained" in line)
    for nfe, line in zip((5, 10), lines[start + 1 :], strict=False):
        change = gap(result, nfe, "untrained", nfe)
        values = f"{change.value:+.4f} (95 % {change.low:+.4f} to {change.high:+.4f})"
        assert line.strip() == f"{nfe} calls: {values}"


@pytest.mark.parametrize(
    ("wanted", "supported", "chosen"),
    [(None, [5, 10], (10, 5)), ([5], [5, 10], (5,)), ([5, 10], [5, 10], (10, 5))],
)
def test_choice_of_nfe(
    wanted: list[int] | None, supported: list[int], chosen: tuple[int, ...]
) -> None:
    assert choose_nfe(wanted, supported) == chosen
    with pytest.raises(
        InputError, match=r"evaluation\.nfe = 7: the student was trained for \[5, 10\]"
    ):
        choose_nfe([7], [5, 10])


def test_bytes_round_trip() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    assert np.array_equal(to_bytes(KINDS["images"].to_float(every)), every)


def test_too_few_paths_or_a_grid_that_is_too_coarse() -> None:
    inputs = make_inputs()
    with pytest.raises(InputError, match=r"expected more than evaluation\.neighbours = 3"):
        evaluate(replace(inputs, real=inputs.real[:3]), [Flat()], SETTINGS)
    with pytest.raises(InputError, match="method.nfe 21: expected 1 to 20"):
        inputs.paths.coarse(21)


def test_stage_writes_the_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(SHIPPED, tmp_path / FEATURES)
    (tmp_path / "data" / "student").mkdir()
    (tmp_path / "data" / "student" / "history.csv").write_text("step,loss\n0,2.0\n10,1.0\n")
    record = {"ok": False, "max_abs_difference": None, "images": 4, "reason": "no <weights>"}
    monkeypatch.setattr("tasks.stages.evaluation.prove_loadable", lambda folder: record)
    monkeypatch.setattr("tasks.stages.evaluation.load_inputs", lambda params, root: make_inputs())
    run(Params.model_validate({"evaluation": SETTINGS.model_dump(mode="json")}), tmp_path)
    folder = tmp_path / "data" / "evaluation"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {"metrics.json", "table.csv", "frontier.csv", "path_error.csv", "samples.npz"}
    assert names >= {
        "report.html",
        *(f"figures/{name}.png" for name in ("frontier", "path_error", "training")),
    }
    assert names >= {
        "grids/student_nfe10.png",
        "grids/teacher_full.png",
        "grids/side_by_side_nfe5.png",
    }
    metrics = read_metrics(tmp_path)
    content = metrics["evaluation"].pop("content")
    assert metrics["evaluation"] == {
        "features": "MNIST-CNN", "samples": 100, "real": N, "criterion": "kid",
        "lower_is_better": True,
    }  # fmt: skip
    assert set(content) == {"real", "features"} and content["real"] == images_digest(gaussian(1))
    assert metrics["untrained"]["nfe10"]["frechet"] > metrics["student"]["nfe10"]["frechet"]
    assert metrics["load_back"] == record
    assert "does not work on its own" in (folder / "report.html").read_text()
    assert "no &lt;weights&gt;" in (folder / "report.html").read_text()


def test_a_baseline_that_cannot_run_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = benchmark.baselines.sample_baseline

    def sample(teacher, name, nfe, *rest):  # type: ignore[no-untyped-def]
        if name == "ddim" and nfe == 5:
            raise InputError("no grid of 5 steps <here>")
        return real(teacher, name, nfe, *rest)

    monkeypatch.setattr("models.sampling.baselines.sample_baseline", sample)
    found = evaluate(make_inputs(), [Flat()], SETTINGS)
    assert found.left_out == {SamplerKey("ddim", 5): "no grid of 5 steps <here>"}
    assert {row.nfe for row in found.rows if row.sampler == "ddim"} == {10}
    metrics = metrics_of(found)
    assert metrics["left_out"] == {"ddim": {"nfe5": "no grid of 5 steps <here>"}}
    write_outputs(found, tmp_path)
    table = pd.read_csv(tmp_path / "table.csv").set_index(["sampler", "nfe"])
    assert table.loc[("ddim", 5), "left_out"] == "no grid of 5 steps <here>"
    page = report.render(found, None, Params(), {})
    assert "left out: no grid of 5 steps &lt;here&gt;" in page
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(format_table(metrics))
    assert "ddim, left out: no grid of 5 steps <here>" in console.export_text()


class Brightness:
    """One feature per image, its mean."""

    label, dim = "brightness 2.0", 1

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1).mean(1, keepdim=True).float()


def test_several_extractors_in_one_table(result: Result) -> None:
    both = evaluate(make_inputs(), [Flat(), Brightness()], SETTINGS)
    alone = evaluate(make_inputs(), [Brightness()], SETTINGS)
    student = both.row("student", 10)
    assert student["kid"] == result.row("student", 10)["kid"]
    for name in ("kid", "frechet", "precision", "recall"):
        assert student[f"{name}_brightness_2_0"] == alone.row("student", 10)[name]
    assert set(both.columns) - set(result.columns) == {
        f"{name}_brightness_2_0" for name in ("kid", "frechet", "precision", "recall")
    }
    figures = metrics_of(both)["student"]["nfe10"]
    assert figures["kid_brightness_2_0_low"] < figures["kid_brightness_2_0_high"]
    with pytest.raises(InputError, match="two extractors are called alike"):
        evaluate(make_inputs(), [Flat(), Flat()], SETTINGS)


def test_the_criterion_ranks_and_is_compared(result: Result) -> None:
    settings = SETTINGS.model_copy(update={"criterion": "recall", "baselines": ("ddim", "ddpm")})
    found = evaluate(make_inputs(), [Flat()], settings)
    ranked = [found.score(row).value for row in found.baselines(10)]
    assert ranked == sorted(ranked, reverse=True)
    assert found.row("student", 10)["recall"].value == result.row("student", 10)["recall"].value
    against = gap(found, 10, "untrained", 10)
    assert against.low <= against.value <= against.high
    assert found.kind(Interval(0.2, 0.1, 0.3)) == "better"
    assert found.kind(Interval(-0.2, -0.3, -0.1)) == "worse"
    with pytest.raises(InputError, match="evaluation.criterion = pixel_std: expected a metric of"):
        evaluate(make_inputs(), [Flat()], settings.model_copy(update={"criterion": "pixel_std"}))


def test_images_of_another_shape_are_refused() -> None:
    real = gaussian(1).expand(-1, 3, -1, -1)
    with pytest.raises(InputError, match="images are 1x8x8 .*, the real ones 3x8x8"):
        evaluate(replace(make_inputs(), real=real), [Flat()], SETTINGS)


def test_prompts_are_given_to_metrics_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Metric):
        """The number of different prompts."""

        name, title, lower_is_better = "counted", "Prompts", None
        inputs = frozenset({"prompts"})

        def __call__(self, fake: Samples) -> Estimate:
            assert fake.prompts is not None and fake.images is not None
            return Estimate([len(set(fake.prompts)) + 1000 * len(fake.prompts)])

    monkeypatch.setitem(METRICS, "counted", Counted)
    settings = SETTINGS.model_copy(update={"metrics": ("kid", "counted"), "baselines": ()})
    told = replace(make_inputs(), prompts=("a", "b", "a"))
    assert evaluate(told, [Flat()], settings).row("student", 5)["counted"].value == 100_002
    with pytest.raises(InputError, match="counted needs prompts, the data has none"):
        evaluate(make_inputs(), [Flat()], settings)
