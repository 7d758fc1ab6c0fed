"""Figures of a test set and of captions, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.recipes import figures
from lightning_failures.recipes.base import Schedule, Setting
from tests.helpers.results import analysed


def test_figures__shares_among_flagged_and_first():
    values = np.array([-3.0, -2, -1, 1, 2, np.nan, -1, 1])
    labels = np.array([0, 0, 0, 0, 0, 1, 2, 2])
    failed = np.array([1, 1, 0, 0, 0, 1, 1, 0], bool)
    hard = np.array([1, 1, 0, 0, 1, 1, 0, 1], bool)
    found = figures.test_figures(values, np.linspace(1, 0, 8), labels, failed, hard)
    assert found["error rate of flagged"] == pytest.approx(3 / 4)
    assert found["error rate of others"] == 0
    assert found["hard among flagged"] == pytest.approx(2 / 4)
    assert found["hard in all"] == pytest.approx(4 / 7)
    assert found["hard in top 10"] == pytest.approx((3 / 5 + 1 / 2) / 2)
    assert figures.test_figures(np.full(8, np.nan), np.ones(8), labels, failed, hard) == {}


def test_captions__whole_words_at_their_ranks():
    captions = {0: ("a photo of a man", "a photo of a woman"), 1: ("a photo of a boy", "a photo of a girl")}
    classes = tuple(ClassReport(name, 9, hardest_captions=captions[k]) for k, name in enumerate(("old", "young")))
    setting = Setting(
        *([], [], []), ("old", "young"), Schedule(1, 0.1, 1, 8), 8, ((0.5,) * 3, (0.5,) * 3),
        hard_words={0: ("woman",), 1: ("man", "boy")},
    )  # fmt: skip
    assert figures.caption_figures(analysed(18, 0.5, classes), setting) == {
        "hard caption first": 0.5,
        "hard caption in two": 1.0,
    }
    assert isinstance(analysed(18, 0.5, classes).report, FailureReport)
