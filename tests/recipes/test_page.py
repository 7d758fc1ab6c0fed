"""Claims beside findings: what holds, what is unclear, and what was not measured on data of another kind."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lightning_failures.recipes import RECIPES
from lightning_failures.recipes.base import Claim, Measured
from lightning_failures.recipes.page import judge, result_text, write_result

CLAIM = Claim("a is above b", "a", "b", "0.8 against 0.2", "Paper, 3")


def seeds(*pairs, complete=True):
    return [Measured(k, {"a": a, "b": b}, "r.html", complete, ()) for k, (a, b) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (seeds((0.8, 0.2), (0.7, 0.15), (0.9, 0.25)), "holds"),
        (seeds((0.2, 0.8), (0.15, 0.7), (0.2, 0.9)), "does not hold"),
        (seeds((0.5, 0.2), (0.2, 0.5)), "unclear"),
        (seeds((0.8, 0.2)), "unclear: one seed has no interval"),
        (seeds((0.8, 0.2), (0.7, 0.15), complete=False), "not measured here: these are not the data of the paper"),
        ([], "not measured here: the run has no such figure"),
    ],
)
def test_judge__by_the_paired_interval_and_only_on_the_papers_data(measured, verdict):
    assert judge(CLAIM, measured).verdict == verdict


def test_judge__figures_without_comparison_are_left_to_the_eye():
    found = judge(replace(CLAIM, above=None), seeds((0.8, 0.2), (0.6, 0.2)))
    assert (found.verdict, found.found, found.compared) == ("to compare by eye", pytest.approx(0.7), None)


def test_page__escapes_and_links_the_reports(tmp_path):
    recipe = replace(RECIPES["folder"], name="folder", summary="<b>bold</b>", claims=(CLAIM,))
    measured = [Measured(0, {"a": 0.5, "b": 0.25}, "seed-0/fail ures/report.html", True, ("a <note>",))]
    page = write_result(recipe, measured, tmp_path)
    text = page.read_text()
    assert "&lt;b&gt;" in text
    assert "<b>bold" not in text
    assert "a &lt;note&gt;" in text
    assert 'href="seed-0/fail%20ures/report.html"' in text
    content = json.loads((tmp_path / "folder.json").read_text())
    assert content["claims"][0]["verdict"].startswith("unclear")
    assert content["seeds"][0]["figures"] == {"a": 0.5, "b": 0.25}
    assert "a is above b: unclear" in result_text(recipe, measured)
