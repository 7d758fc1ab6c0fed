"""Reports made to order: the modes that an analysis detects, and the examples that fail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from lightning_failures.analysis import AnalysisResult
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import ClassReport
from lightning_failures.directions import FailureDirections
from lightning_failures.directions.result import without_effects
from tests.helpers.results import analysed

DIM = 24
SIZE = 100  # examples of each class by default


class PlantedMode(NamedTuple):
    """A detected mode: its direction, and the indices within its class of the examples that it flags."""

    axis: int | Sequence[float]
    flagged: Iterable[int]


def planted_result(
    epoch: int,
    *classes: tuple[str, Iterable[int], Sequence[PlantedMode]],
    skipped: str | None = None,
    ids: Sequence[int] | None = None,
    captions: bool = False,
    **options,
) -> AnalysisResult:
    """Return a report with the classes (name, indices of failures, modes); the first mode is the first direction."""
    places = list(range(SIZE)) if ids is None else list(ids)
    names = tuple(name for name, *_ in classes)
    labels = torch.arange(len(names)).repeat_interleave(len(places))
    failed = torch.cat([torch.tensor([place in set(fails) for place in places]) for _, fails, _ in classes])
    grades = Grades(
        torch.arange(len(names)).repeat_interleave(len(places)) * 10_000 + torch.tensor(places * len(names)),
        labels,
        (labels + failed) % max(len(names), 2) if len(names) > 1 else failed.long(),
        torch.ones(len(labels)),
        names if len(names) > 1 else (*names, "other"),
    )
    ranks = max([len(modes) for *_, modes in classes] + [1])
    directions = [_rank(classes, rank, places, skipped) for rank in range(ranks)]
    entries = [
        ClassReport(
            name,
            len(places),
            pattern=bool(modes),
            skipped=None if modes else skipped,
            hardest_captions=(f"a photo of a hard {name} {epoch}",) if captions and modes else (),
        )
        for name, _, modes in classes
    ]
    return analysed(
        **{
            "examples": len(grades),
            "accuracy": None,
            "classes": tuple(entries),
            "epoch": epoch,
            "global_step": 10 * (epoch + 1),
            "stage": "fit",
            "encoder_fingerprint": "tests",
            "directions": FailureDirections(**{**vars(directions[0]), "further": tuple(directions[1:])}),
            "table": ExampleTable.of(grades, directions[0].out_of_fold, {}),
            **options,
        }
    )


def _rank(classes, rank: int, places: list[int], skipped: str | None) -> FailureDirections:
    weights, mine, values, reasons = [], [], [], {}
    for k, (_, _, modes) in enumerate(classes):
        column = torch.full((len(places),), float("nan"))
        if len(modes) > rank:
            axis, flagged = modes[rank]
            weights.append(-3.0 * np.eye(DIM)[axis] if isinstance(axis, int) else -np.resize([*axis, *[0] * DIM], DIM))
            mine.append(k)
            column = torch.tensor([-1.0 if place in set(flagged) else 1.0 for place in places])
        elif rank == 0:
            reasons[k] = skipped or "3 failures; at least 10 are needed"
        values.append(column)
    nothing = torch.zeros(len(mine), dtype=torch.float64)
    return FailureDirections(
        classes=torch.tensor(mine, dtype=torch.int64),
        weight=torch.tensor(np.array(weights), dtype=torch.float32).reshape(-1, DIM),
        bias=nothing.float(),
        cv_score=nothing,
        cv_score_stderr=nothing,
        c=nothing,
        p_value=nothing,
        mean=torch.zeros(DIM),
        std=torch.ones(DIM),
        out_of_fold=torch.cat(values),
        **without_effects(len(mine), sum(map(len, values))),
        skipped=reasons,
    )
