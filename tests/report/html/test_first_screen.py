"""The first screen, 1280 x 800 and not scrolled, says what is wrong, how sure, and what next: in a real browser."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from docs.screens import CASES
from lightning_failures.analysis.analyse import analyse
from lightning_failures.data.grades import Grades
from lightning_failures.report import save_html
from tests.report.html.reading import first_screen, flaws

pytest_plugins = ["tests.helpers.browser"]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES)
def test_first_screen__says_what_is_wrong_how_sure_and_what_next(visit, tmp_path, name):
    case = CASES[name]
    made = case.make()
    path = save_html(made.result, tmp_path / "report.html", images=made.images, embeddings=made.embeddings)
    assert path.stat().st_size < 5_000_000
    seen = visit(path, width=1280, height=800)
    shown = first_screen(seen.page)
    text = " ".join(shown["text"].split())
    assert shown["wrong"] >= 3
    assert shown["right"] >= 3
    assert shown["rates"] >= 6  # two rates, their intervals, the failures
    assert case.words in text
    assert re.search(r"are wrong \d+\.\d\s%", text)
    assert re.search(rf"(Mistaken for:|read as).*({case.mistaken_for})", text)
    assert re.search("How sure (high|moderate|low)", text)
    assert "Next:" in text
    assert seen.page.locator("#map-view").count() == (made.embeddings is not None)
    assert flaws(seen.page) == []
    assert (seen.errors, seen.refused) == ([], [])


def test_first_screen__nothing_found(visit, tmp_path):
    labels = np.arange(300) % 3
    failed = np.arange(300) < 6
    grades = Grades(np.arange(300), labels, (labels + failed) % 3, None, ("ash", "birch", "cedar"))
    result = analyse(grades, torch.randn(300, 5, generator=torch.Generator().manual_seed(0)), permutations=99)
    page = visit(save_html(result, tmp_path / "report.html"), width=1280, height=800).page
    text = " ".join(first_screen(page)["text"].split())
    assert "Nothing found. Too few failures: 6 in 3 classes" in text
    assert "What it would take: About 1500 validation images" in text
    assert flaws(page) == []


def test_first_screen__statistics_on_hover_and_by_keyboard(visit, tmp_path):
    made = CASES["2 classes"].make()
    page = visit(save_html(made.result, tmp_path / "report.html", images=made.images), width=1280, height=800).page
    tip = page.locator("#why-0")
    assert not tip.is_visible()
    page.locator("#finding-0 .sure").focus()
    assert tip.is_visible()
    assert "The error rates differ by" in tip.inner_text()
