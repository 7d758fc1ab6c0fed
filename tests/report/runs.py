"""Runs made of ids, labels and predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.report.run_folder import Run

NAMES = ("cat", "dog", "eel")


def run(ids, labels, guesses, values=None, names=NAMES, *, modes=None, directions=None, **options) -> Run:
    """A run from plain lists; ``modes`` are the classes in which a pattern was found."""
    n = len(ids)
    order = torch.argsort(torch.tensor(ids, dtype=torch.int64), stable=True)
    values = torch.full((n,), float("nan")) if values is None else torch.tensor(values, dtype=torch.float32)
    columns = (torch.tensor(column, dtype=torch.int64)[order] for column in (ids, labels, guesses))
    table = ExampleTable(*columns, torch.ones(n), values[order], *torch.full((2, n), -1).unbind(), tuple(names))
    classes = []
    for k, name in enumerate(names):
        mine = [guess == label for label, guess in zip(labels, guesses, strict=True) if label == k]
        tested = {} if modes is None else {"p_value": 0.001, "pattern": name in modes, "cv_score": 0.9}
        accuracy = float(np.mean(mine)) if mine else None
        classes.append(ClassReport(name, len(mine), accuracy=accuracy, hardest_captions=(f"a red {name}",), **tested))
    report = FailureReport(n, None, tuple(classes), **({"stage": "fit", "epoch": 3, "global_step": 9} | options))
    return Run(Path("/runs/a"), report, (report,), table, directions=directions)
