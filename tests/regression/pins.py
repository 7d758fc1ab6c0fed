"""Pins made of plain numbers."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightning_failures.data.grades import Grades
from lightning_failures.regression import Pin, PinnedDirection
from lightning_failures.stats.rates import Rate

FIRST = 1000  # digest of the first image


def pin(members: int = 40, others: int = 60, *, failures: int = 4, rest: int = 6, **changes) -> Pin:
    """A pin of the class "cat" whose slice is every image with a negative first coordinate."""
    digests = torch.arange(FIRST, FIRST + members + others)
    values = {
        "name": "cat 1",
        "class_name": "cat",
        "encoder": "tests-colours",
        "encoder_name": "colours",
        "ids": torch.arange(members),
        "digests": digests[:members],
        "known": digests[members:],
        "slice": Rate(members, failures, float(members)),
        "rest": Rate(others, rest, float(others)) if others else None,
        "level_of": "slice",
        "direction": PinnedDirection(torch.tensor([1.0, 0.0]), torch.zeros(2), torch.ones(2), 0.0),
        "caption": "a photo of a dark cat",
    }
    return Pin(**(values | changes))


def grades(failed: list[bool], digests: list[int], labels: list[int] | None = None, **changes) -> Grades:
    """Grades of images of "cat", unless ``labels`` says something else."""
    truth = torch.zeros(len(failed), dtype=torch.int64) if labels is None else torch.tensor(labels)
    wrong = torch.tensor(failed, dtype=torch.bool)
    columns = {"class_names": ("cat", "dog"), "digests": torch.tensor(digests, dtype=torch.int64)}
    return Grades(torch.arange(len(failed)), truth, (truth + wrong.long()) % 2, None, **(columns | changes))


def looked_at(in_slice: int, in_rest: int, members: int = 40, others: int = 60, **changes) -> Grades:
    """Grades of the images of :func:`pin` of which so many fail now."""
    failed = [i < in_slice for i in range(members)] + [i < in_rest for i in range(others)]
    return replace(grades(failed, list(range(FIRST, FIRST + members + others))), **changes)
