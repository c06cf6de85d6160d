"""Series through the evaluation: right samplers are at the floor, wrong ones are not; files and
report speak of series.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.data.sources.processes import AR1Dataset, GBMDataset, OUDataset
from tasks.evaluation import validation
from tasks.evaluation.benchmark import evaluate
from tasks.evaluation.identity import series_digest
from tasks.evaluation.laws import law_of
from tasks.evaluation.report import figures
from tasks.evaluation.report import html as report
from tasks.evaluation.report.style import LIGHT
from tasks.evaluation.results import Result, SamplerKey
from tasks.evaluation.tables import format_table, write_outputs
from tests.tasks.evaluation.series import CHANNELS, LENGTH, SERIES, N, drawn, series_inputs

DATA = {"kind": "ar1", "length": LENGTH}


@pytest.fixture(scope="module")
def result() -> Result:
    return evaluate(series_inputs(law=True), (), SERIES)


def test_right_samplers_are_at_the_floor_and_wrong_ones_are_not(result: Result) -> None:
    for nfe in (4, 2):
        student, wrong = result.row("student", nfe), result.row("untrained", nfe)
        for name in ("sig_w1", "marginal", "sig_mmd"):
            floor = result.row("real")[name]
            assert student[name].value < 2 * max(floor.value, 0.02) < wrong[name].value
        assert wrong["acf"].value == pytest.approx(student["acf"].value, abs=0.02)  # scale alone
        assert student["sig_mmd_p"].value > 0.01 > wrong["sig_mmd_p"].value
        gap = result.difference(nfe, wrong)
        assert gap is not None and gap.high < 0
        assert result.kind(gap) == "better"
    assert result.teacher["sig_w1"].value == pytest.approx(
        result.row("student", 4)["sig_w1"].value, abs=1e-5
    )  # the same series here


def test_training_free_samplers_run_on_the_same_noise(result: Result) -> None:
    """The exact teacher in 4 steps of DDIM is better than in 2, and both lack spread or memory."""
    four, two = (result.row("ddim", nfe)["sig_w1"].value for nfe in (4, 2))
    assert result.row("real")["sig_w1"].value < four < two
    # one call more: the student here costs as much as one of the teacher's
    assert {row.nfe for row in result.rows if row.group == "baseline"} == {4, 2, 1}


def test_the_exact_law_is_kept_by_right_samplers(result: Result) -> None:
    right, wrong = (result.law[SamplerKey(name, 2)] for name in ("student", "untrained"))
    assert right.covariance < 0.35 < wrong.covariance  # 1 - 0.36 for a scale of 0.6
    assert wrong.covariance == pytest.approx(0.64, abs=0.15)
    assert right.ks.max() < 0.13 and wrong.ks.mean() > right.ks.mean()


def test_files_speak_of_series(result: Result, tmp_path: Path) -> None:
    write_outputs(result, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["evaluation"]["data"] == "series" and "features" not in metrics["evaluation"]
    student = metrics["student"]["nfe4"]
    assert student["series"] == 150 and "images" not in student and student["ms_per_series"] > 0
    assert student["sig_w1_low"] <= student["sig_w1"] <= student["sig_w1_high"]
    assert set(student["law"]) >= {"mean_error", "covariance_error", "ks_mean", "ks_max"}
    law = pd.read_csv(tmp_path / "law.csv")
    assert len(law) == len(result.rows) and law["ks_max"].between(0, 1).all()
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as samples:
        kept = samples["student_nfe4"]
        assert kept.dtype == np.float32 and kept.shape == (150, CHANNELS, LENGTH)
        assert abs(kept.mean() - 5) < 0.5 and abs(kept.std() - 3) < 0.5  # the data's own units
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(format_table(metrics))
    text = console.export_text()
    assert "150 series per sampler; Sig-W1 with 95 % interval" in text and "ms per series" in text


def test_the_report_speaks_of_series_and_draws_them(result: Result, tmp_path: Path) -> None:
    params = Params.model_validate(
        {
            "dataset": DATA,
            "evaluation": SERIES.model_dump(mode="json"),
            "student": {"criterion": "sig_w1"},
        }
    )
    page = report.render(result, None, params, series_inputs().lineage)
    words = page.split("<details")[0]
    assert "150 series per sampler from the same start noise, measured against 200 real series" in (
        words
    )
    for word in ("images", "pixel", "features", "precision"):
        assert word not in words.replace("data:image", "").split("</style>")[1].lower(), word
    assert "Figures against the exact law" in words and "Autocorrelation" in words
    figures.write_all(result, None, tmp_path)
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        "frontier", "marginals", "autocorrelation", "law", "path_error",
    }  # fmt: skip
    assert (tmp_path / "grids" / "student_nfe2.png").is_file()


def test_pictures_show_the_figures(result: Result) -> None:
    drawings = figures.figures_of(result, None)
    curves = drawings["autocorrelation"](LIGHT).axes
    assert len(curves) == 2 * CHANNELS
    data = next(line for line in curves[0].lines if line.get_label() == "Data")
    np.testing.assert_allclose(data.get_ydata()[:4], 0.8 ** np.arange(4), atol=0.08)
    assert {line.get_label() for line in curves[0].lines} >= {"Student S", "Untrained S"}
    ks = drawings["law"](LIGHT).axes[0]
    student = next(line for line in ks.lines if line.get_label() == "Student S")
    np.testing.assert_array_equal(student.get_ydata(), result.law[SamplerKey("student", 2)].ks)


def test_trained_scores_can_decide() -> None:
    """The classifier runs inside the evaluation, also as the criterion."""
    settings = SERIES.model_copy(
        update={"metrics": ("discriminative",), "criterion": "discriminative", "baselines": ()}
    )
    found = evaluate(series_inputs(untrained=0.3), (), settings)
    assert found.row("student", 4)["discriminative"].value < 0.2
    assert found.row("untrained", 4)["discriminative"].value > 0.3


def test_what_does_not_fit_is_refused() -> None:
    one = series_inputs()
    for name, message in (
        ("kid", "kid needs features, the dataset makes series"),
        ("pixel_std", "pixel_std needs images, the dataset makes series"),
    ):
        wrong = SERIES.model_copy(update={"metrics": ("sig_w1", name)})
        with pytest.raises(InputError, match=message):
            evaluate(one, (), wrong)
    single = replace(one, real=drawn(1)[:, :1])
    with pytest.raises(InputError, match="cross_correlation: needs 2 channels or more"):
        evaluate(single, (), SERIES.model_copy(update={"metrics": ("sig_w1", "cross_correlation")}))


@pytest.mark.parametrize(
    ("channels", "metric", "message"),
    [
        (1, "cross_correlation", "cross_correlation: needs 2 channels or more, the series have 1"),
        (16, "sig_w1", "signatures of 16 channels: expected at most 15"),
        (2, "cross_correlation", None),
    ],
)
def test_channels_that_a_metric_cannot_measure_are_refused_before_training(
    channels: int, metric: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "load_manifest", lambda root: {"shape": [channels, LENGTH]})
    params = Params.model_validate(
        {
            "dataset": DATA,
            "student": {"criterion": "acf"},
            "evaluation": {"metrics": ["acf", metric], "criterion": "acf"}
            | {"features": {"kind": "none"}},
        }
    )
    if message is None:
        validation.check_metrics(params, Path())
    else:
        with pytest.raises(InputError, match=message):
            validation.check_metrics(params, Path())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {},
            "evaluation.metrics = kid: a metric of images, the dataset makes series: expected acf",
        ),
        ({"metrics": ["sig_w1"]}, "evaluation.features = mnist: the dataset makes series"),
        (
            {"metrics": ["sig_w1"], "features": {"kind": "none"}, "reference": {"path": "x"}},
            "evaluation.reference: the dataset makes series, expected none",
        ),
        (
            {"metrics": ["sig_w1"], "features": {"kind": "none"}},
            "student.criterion = kid: a metric of images",
        ),
    ],
)
def test_params_that_do_not_fit_are_refused_at_once(
    changes: dict[str, object], message: str
) -> None:
    evaluation = {"criterion": "kid" if not changes else "sig_w1", **changes}
    if "reference" in changes:
        evaluation["reference"] = {"kind": "folder", "path": "x"}
    with pytest.raises(ValueError, match=message):
        Params.model_validate({"dataset": DATA, "evaluation": evaluation})


def test_images_need_an_extractor_and_metrics_of_images() -> None:
    with pytest.raises(ValueError, match="evaluation.features = none: the dataset makes images"):
        Params.model_validate({"evaluation": {"features": {"kind": "none"}}})
    with pytest.raises(ValueError, match="evaluation.metrics = acf: a metric of series, the data"):
        Params.model_validate({"evaluation": {"metrics": ["kid", "acf"]}})


@pytest.mark.parametrize(
    "dataset",
    [
        AR1Dataset(length=8, phi=0.7, noise=2.0, count=20000),
        OUDataset(length=8, theta=0.5, mu=3.0, sigma=0.4, dt=0.3, count=20000),
        OUDataset(length=8, theta=0.5, mu=3.0, sigma=0.4, dt=0.3, start=1.0, count=20000),
    ],
)
def test_the_law_is_that_of_the_simulated_series(
    dataset: AR1Dataset | OUDataset, tmp_path: Path
) -> None:
    law = law_of(dataset)
    assert law is not None
    x = dataset.open(tmp_path).train[:, 0]
    np.testing.assert_allclose(x.mean(0), law.mean, atol=4 * law.std.max() / len(x) ** 0.5)
    np.testing.assert_allclose(
        np.cov(x, rowvar=False), law.covariance, atol=0.04 * law.covariance.max()
    )
    assert law_of(GBMDataset()) is None


def test_the_digest_names_content_and_shape() -> None:
    series = drawn(0, 6)
    assert series_digest(series) == series_digest(series.clone())
    moved = series.clone()
    moved[0, 0, 0] += 1e-3
    assert len({series_digest(series), series_digest(moved), series_digest(series[:5])}) == 3
    assert N > 6
