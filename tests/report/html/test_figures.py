"""Numbers are shown as they are in the records, and say where they stand."""

import dataclasses
import math
import re

import pytest
import torch

from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.report.html.figures import NO_NUMBER, Figures, show
from lightning_failures.report.html.render import render
from tests.report.html.a_run import a_run
from tests.report.html.reading import looked_up, shown, wrong_numbers

REPORT = FailureReport(9, 0.75, (ClassReport("cat", 4, accuracy=0.2512, cv_null_interval=(0.4, math.nan), aler=0.5),))
FIGURES = Figures({"report": REPORT, "history": (REPORT,), "examples": {"values": torch.tensor([0.5, -0.25])}})


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (1234, "count", "1,234"),
        (0.005, "rate", "0.5\u202f%"),
        (-0.125, "points", "\u221212.5\u202fpoints"),
        (0.031, "points", "+3.1\u202fpoints"),
        (-1.006, "signed", "\u22121.01"),
        (0.00012345, "p", "\u2264 0.001"),
        (0.36312, "threshold", "0.363"),
        (None, "score", NO_NUMBER),
        (math.nan, "count", NO_NUMBER),
    ],
)
def test_show(value, kind, text):
    assert show(value, kind) == text


def test_figures__say_what_they_are_of():
    at = FIGURES.at("report/classes/0/accuracy", "rate")
    assert at == '<data value="0.2512" data-of="report/classes/0/accuracy">25.1\u202f%</data>'
    assert 'data-of="1 - report/accuracy">25.0\u202f%<' in FIGURES.complement("report/accuracy")
    change = FIGURES.minus("history/0/accuracy", "report/classes/0/accuracy")
    assert 'data-of="history/0/accuracy - report/classes/0/accuracy">+0.50<' in change
    assert 'value="-0.25"' in FIGURES.at("examples/values/1", "signed")


@pytest.mark.parametrize(
    "path", ["report/epoch", "report/classes/7/accuracy", "report/nothing", "report/classes/0/name", "else/0"]
)
def test_figures__no_number(path):
    assert FIGURES.value(path) is None
    assert "<data" not in FIGURES.at(path)
    assert "<data" not in FIGURES.minus(path, "report/accuracy")
    assert "<data" not in FIGURES.complement(path)


def test_interval__half_of_one():
    assert FIGURES.interval("report/classes/0/cv_null_interval").count("<data") == 1
    assert "<data" not in FIGURES.interval("report/classes/0/enrichment")


@pytest.mark.parametrize(("looked_at", "ending"), [(None, "of 40"), (40, "of 40"), (12, "of 12 analysed")])
def test_card__flagged_of_those_that_were_looked_at(looked_at, ending):
    run = a_run(("cat",), pictured=0, thumbnails=1, analyses=1)
    sampled = tuple(dataclasses.replace(entry, looked_at=looked_at) for entry in run.report.classes)
    report = dataclasses.replace(run.report, classes=sampled)
    page = render(dataclasses.replace(run, report=report, history=(report,), gallery=None))
    flagged = re.search("<dt>Flagged</dt><dd>(.*?)</dd>", page)[1]
    assert re.sub("<.*?>", "", flagged).endswith(ending)


def test_reading__can_find_a_wrong_number():
    known = {"report": {"accuracy": 0.75, "classes": [{"accuracy": 0.2512}]}}
    assert looked_up("1 - report/classes/0/accuracy", known) == pytest.approx(0.7488)
    assert shown("\u22121,234.5\u202f%") == pytest.approx((-12.345, 0.0005))
    right = [["25.1\u202f%", "0.2512", "report/classes/0/accuracy"], ["+0.5", "0.4988", "report/accuracy - report/classes/0/accuracy"]]  # fmt: skip  # noqa: E501
    assert wrong_numbers(right, known) == []
    assert (
        len(wrong_numbers([["25.2\u202f%", "0.2512", right[0][2]], ["25.1\u202f%", "0.26", right[0][2]]], known)) == 2
    )
