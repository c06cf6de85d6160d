from __future__ import annotations

import pandas as pd

from flows.artifacts import report_text

TABLE = pd.DataFrame(
    {
        "group": ["student", "real"],
        "sampler": ["student", "real"],
        "nfe": [5, None],
        "kid": [0.0312, -0.001],
    }
)


def test_the_report_is_a_link_to_where_it_can_be_opened() -> None:
    text = report_text(
        TABLE, "http://127.0.0.1:5000/#/experiments/1/runs/ab", "/p/data/evaluation/report.html"
    )
    assert (
        "[Open the report](http://127.0.0.1:5000/#/experiments/1/runs/ab/artifacts/report.html)"
        in text
    )
    assert "`/p/data/evaluation/report.html`" in text and "file://" not in text


def test_without_pages_it_says_how_to_get_them() -> None:
    text = report_text(TABLE, None, "/p/report.html")
    assert "`make up`" in text and "](" not in text


def test_figures_are_a_table_with_gaps_left_empty() -> None:
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in report_text(TABLE, None, "x").splitlines()
        if "|" in line
    ]
    assert lines[0] == ["sampler", "network calls", "KID"]
    assert lines[2:] == [["student", "5", "0.0312"], ["real", "", "-0.001"]]
