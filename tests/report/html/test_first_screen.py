"""The first screen, 1280 x 800 and not scrolled, says what is wrong, how sure, and what next: in a real browser."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from lightning_failures.analysis.analyse import analyse
from lightning_failures.data.grades import Grades
from lightning_failures.report import save_html
from tests.report.html.reading import first_screen, flaws

pytest_plugins = ["tests.helpers.browser"]
pytestmark = pytest.mark.slow


def images(marked):
    """Gray noise; marked images are red on the left."""
    generator = torch.Generator().manual_seed(0)
    pixels = 0.4 + 0.2 * torch.rand(len(marked), 3, 24, 24, generator=generator)
    pixels[torch.from_numpy(marked), 0, :, :8] = 1.0
    return pixels


def planted(classes, size, *, rate=0.75, share=0.3):
    """Labels of K classes, which images are marked, and which fail: mostly the marked ones."""
    rng = np.random.default_rng(0)
    n = classes * size
    marked = rng.random(n) < share
    return np.arange(n) % classes, marked, rng.random(n) < np.where(marked, rate, 0.04)


def classes(number, size, *, words=True):
    """A run of K classes with a known attribute, or with embeddings and neither captions nor attributes."""
    labels, marked, failed = planted(number, size)
    names = tuple(f"kind {k}" for k in range(number))
    confidence = np.where(failed, 0.3, 0.9)
    grades = Grades(np.arange(len(labels)), labels, (labels + failed) % number, confidence, names)
    if words:
        return analyse(grades, metadata={"light": np.where(marked, "night", "day")}), marked
    embeddings = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(1))
    embeddings[:, 0] += 4.0 * torch.from_numpy(marked)
    return analyse(grades, embeddings, permutations=99), marked


def conditions():
    """A multilabel task: two conditions of 500 images; one is missed in marked images."""
    _, marked, failed = planted(1, 500)
    rng = np.random.default_rng(1)
    present = rng.random((500, 2)) < 0.5
    missed = failed & present[:, 0]
    labels = (2 * np.arange(2) + present).ravel()
    predictions = (2 * np.arange(2) + (present & ~np.stack([missed, np.zeros(500, bool)], 1))).ravel()
    names = ("no edema", "edema", "no mass", "mass")
    grades = Grades(np.repeat(np.arange(500), 2), labels, predictions, None, names)
    return analyse(grades, metadata={"view": np.where(np.repeat(marked, 2), "lateral", "frontal")}), marked


RUNS = {
    "2 classes": (lambda: classes(2, 250), "light night", "kind"),
    "10 classes without captions": (lambda: classes(10, 80, words=False), "share a look without a name yet", "kind"),
    "100 classes": (lambda: classes(100, 20), "light night", "kind"),
    "1,000 classes of five images": (lambda: classes(1000, 5), "light night", "kind"),
    "multilabel": (conditions, "view lateral", "no edema"),
}


@pytest.mark.parametrize("name", RUNS)
def test_first_screen__says_what_is_wrong_how_sure_and_what_next(visit, tmp_path, name):
    make, words, mistaken = RUNS[name]
    result, marked = make()
    path = save_html(result, tmp_path / "report.html", images=images(marked))
    assert path.stat().st_size < 5_000_000
    seen = visit(path, width=1280, height=800)
    shown = first_screen(seen.page)
    text = " ".join(shown["text"].split())
    assert shown["wrong"] >= 3
    assert shown["right"] >= 3
    assert shown["rates"] >= 6  # two rates, their intervals, the failures
    assert words in text
    assert re.search(r"are wrong \d+\.\d\s%", text)
    assert re.search(rf"(Mistaken for:|read as).*{mistaken}", text)
    assert re.search("How sure (high|moderate|low)", text)
    assert "Next:" in text
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
    result, marked = classes(2, 250)
    page = visit(save_html(result, tmp_path / "report.html", images=images(marked)), width=1280, height=800).page
    tip = page.locator("#why-0")
    assert not tip.is_visible()
    page.locator("#finding-0 .sure").focus()
    assert tip.is_visible()
    assert "The error rates differ by" in tip.inner_text()
