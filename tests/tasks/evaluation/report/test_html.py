"""The report says what the figures say, stands alone, and its pictures are right."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from models.evaluation.base import Interval
from tasks.config.schema import Params
from tasks.evaluation.benchmark import evaluate
from tasks.evaluation.report import figures, style
from tasks.evaluation.report import html as report
from tasks.evaluation.report import image_grids as grids
from tasks.evaluation.report.training_gain import training_gain
from tasks.evaluation.results import Result, SamplerKey
from tests.tasks.stages.test_evaluation import SETTINGS, Flat, make_inputs

CURVE = pd.DataFrame({"step": [0, 50, 100], "loss": [3.0, 2.0, 1.0], "kid_nfe5": [None, 0.2, 0.1]})
VOID = {"meta", "img", "br", "source", "link"}


@pytest.fixture(scope="module")
def result() -> Result:
    return evaluate(make_inputs(), [Flat()], SETTINGS)


@pytest.fixture(scope="module")
def page(result: Result) -> str:
    return report.render(result, CURVE, Params(), make_inputs().lineage)


class Balanced(HTMLParser):
    """Collects tags and fails on one that closes another."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.alts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag == "img":
            self.alts.append(dict(attrs).get("alt") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_stands_alone(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert parser.links and all(link.startswith("data:image/") for link in parser.links)
    assert all(len(alt) > 10 for alt in parser.alts)
    assert not re.search(r"<script|@import|url\(", page)
    for link in parser.links:
        content = base64.b64decode(link.split(",", 1)[1], validate=True)
        assert content.startswith((b"\x89PNG", b"<?xml"))


def test_page_escapes_and_tells_its_lineage(page: str, result: Result) -> None:
    assert "&lt;b&gt;ab&lt;/b&gt;" in page and "<b>ab</b>" not in page
    assert "0" * 40 in page and "learning_rate:" in page
    for row in result.rows:
        assert row.title in page
    assert page.count('<tr class="student">') == 2


def with_gap(result: Result, gap: Interval) -> Result:
    pair = SamplerKey("student", 5), result.baselines(5)[0].key
    return replace(result, differences={**result.differences, pair: gap})


@pytest.mark.parametrize(
    ("gap", "kind", "words"),
    [
        (Interval(-0.02, -0.03, -0.01), "better", "is better than every training-free sampler"),
        (Interval(0.02, 0.01, 0.03), "worse", "does not reach the best training-free sampler"),
        (Interval(-0.01, -0.03, 0.01), "even", "is not significantly different from"),
        (Interval(0.01, -0.01, 0.03), "even", "is not significantly different from"),
    ],
)
def test_verdict_follows_the_paired_interval(
    result: Result, gap: Interval, kind: str, words: str
) -> None:
    found = report.verdict(with_gap(result, gap), 5)
    assert found["kind"] == kind and words in found["text"]
    assert result.baselines(5)[0].title in found["text"]
    assert "6 network calls, not 5" in found["text"]


def test_verdict_says_where_the_teacher_is(result: Result) -> None:
    assert "not significantly different from the teacher" in report.to_teacher(result, 10)
    pair = SamplerKey("student", 10), SamplerKey("teacher")
    above = replace(result, differences={pair: Interval(0.02, 0.01, 0.03)})
    assert "That is 0.0200 above the teacher's 100 calls" in report.to_teacher(above, 10)
    pair = SamplerKey("student", 5), result.baselines(10)[0].key
    cross = replace(result, differences={pair: Interval(-0.2, -0.3, -0.1)})
    assert "At 5 steps the student is better than" in str(report.cross_verdict(cross))


def test_first_picture_is_the_fewest_steps_before_and_after_distillation(
    result: Result, page: str
) -> None:
    (gain,) = training_gain(result)  # more than four calls: the smallest number alone
    assert gain["nfe"] == 5
    before, after = gain["grids"]
    assert before["title"] == "Before distillation" and after["title"] == "The student"
    for name, grid in (("untrained", before), ("student", after)):
        assert report.shown(result, result.row(name, 5)) in grid["note"]
        pixels = Image.open(io.BytesIO(base64.b64decode(grid["image"].split(",")[1])))
        first = result.images[SamplerKey(name, 5)][0, 0, 0, 0]
        assert pixels.getpixel((0, 0))[0] == first
    assert page.index("What distillation changes") < page.index("Summary")
    assert before["image"] in page and after["image"] in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Interval(-0.02, -0.03, -0.01), "The student is better than before"),
        (Interval(0.02, 0.01, 0.03), "The student is worse than before"),
        (Interval(-0.01, -0.03, 0.01), "There is no significant difference to before"),
    ],
)
def test_the_gain_is_said_as_its_interval_says(
    result: Result, change: Interval, words: str
) -> None:
    pair = SamplerKey("student", 5), SamplerKey("untrained", 5)
    (gain,) = training_gain(replace(result, differences={pair: change}))
    assert gain["text"].startswith(words)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (-0.5, "−0.5000"), (-0.00001, "0.0000"), (12.0, "12.0000")],
)
def test_numbers(value: float, text: str) -> None:
    assert report.fixed(value) == text


def test_labels_are_moved_apart_as_little_as_needed() -> None:
    assert style.spread([0.5, 0.1, 0.9], gap=0.1, low=0, high=1) == pytest.approx([0.5, 0.1, 0.9])
    assert style.spread([0.5, 0.5], gap=0.1, low=0, high=1) == pytest.approx([0.45, 0.55])
    assert style.spread([0.02, 0.0, 0.01], gap=0.1, low=0, high=1) == pytest.approx([0.2, 0.0, 0.1])
    many = np.sort(style.spread([0.9] * 30, gap=0.1, low=0, high=1))
    assert many[0] == pytest.approx(0) and many[-1] == pytest.approx(1)
    assert style.spread([], gap=0.1, low=0, high=1) == []


def test_grid_puts_images_in_reading_order() -> None:
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(2, 2).repeat(2, 3) * 40
    picture = np.asarray(Image.open(io.BytesIO(grids.strip_png([images[:3], images[3:]], least=8))))
    assert picture.shape == (5, 8, 3)
    assert [int(picture[y, x, 0]) for y in (0, 3) for x in (0, 3, 6)] == [0, 40, 80, 120, 160, 200]
    assert (picture[2] == 128).all() and (picture[:, 2] == 128).all()
    enlarged = np.asarray(
        Image.open(io.BytesIO(grids.strip_png([images[:3], images[3:]], least=16)))
    )
    assert np.array_equal(enlarged[::2, ::2], picture)


def test_pictures_draw_in_both_themes_and_repeat_exactly(result: Result) -> None:
    drawings = figures.figures_of(result, CURVE)
    assert set(drawings) == {"frontier", "path_error", "training"}
    assert set(figures.figures_of(result, None)) == {"frontier", "path_error"}
    light, again = (style.render(drawings["frontier"], style.LIGHT, "svg") for _ in range(2))
    assert light == again and light != style.render(drawings["frontier"], style.DARK, "svg")


def test_frontier_shows_the_figures(result: Result) -> None:
    axes = figures.frontier(result, style.LIGHT).axes[0]
    lines = [
        line
        for line in axes.get_lines()
        if len(line.get_xdata()) == 2 and line.get_xdata()[1] == 10
    ]
    shown = {float(line.get_ydata()[1]) for line in lines}
    positive = {row["kid"].value for row in result.rows if row.nfe == 10 and row["kid"].value > 0}
    assert positive <= shown and len(lines) == 5
    assert sorted(int(line.get_xdata()[0]) for line in lines) == [
        5,
        5,
        5,
        5,
        6,
    ]  # the student makes 6 calls
    assert {"Student", "Untrained", "DDIM", "UniPC"} <= {text.get_text() for text in axes.texts}
