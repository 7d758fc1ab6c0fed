"""Small results of analyses with one hostile class name, and what TensorBoard wrote of them."""

from __future__ import annotations

from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_failures.analysis import AnalysisResult
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import ClassReport
from lightning_failures.report.gallery import Thumbnails
from tests.helpers.results import analysed

NASTY = "dog\t=1\r\n<b>\x00\u2028\udcff"


ENTRY = ClassReport("cat", 40, accuracy=0.5, cv_score=0.7, p_value=0.01, aler=0.4)


SUMMARY = {"accuracy": 0.5, "coverage": 1.0, "cv_score_mean": 0.7}


def report(**options) -> AnalysisResult:
    classes = (ENTRY, ClassReport(NASTY, 40, accuracy=0.8))
    return analysed(80, 0.65, **({"classes": classes, "summary": SUMMARY, "epoch": 3, "stage": "fit"} | options))


def table(n: int = 12, names: tuple[str, ...] = ("cat", NASTY)) -> ExampleTable:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    guesses = (labels + (torch.arange(n) % 3 == 0)) % 2
    grades = Grades(torch.arange(n) * 5, labels, guesses, torch.rand(n, generator=rng), names)
    values = torch.linspace(-1, 1, n)
    values[1] = float("nan")
    return ExampleTable.of(grades, values, {})


def thumbnails(of: ExampleTable, dim: int = 4) -> Thumbnails:
    n = len(of)
    images = torch.zeros(n, 3, 8, 8, dtype=torch.uint8) + torch.arange(n, dtype=torch.uint8)[:, None, None, None]
    return Thumbnails(of.ids, images, torch.arange(n * dim).view(n, dim).float() / 7)


def read_back(folder: str | Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events
