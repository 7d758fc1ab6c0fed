"""What other methods find in the same embeddings, as a method beside failure directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lightning_failures.analysis.method import Contribution, FitTask
from lightning_failures.baselines.ranking import FINDERS, hardness_by_class
from lightning_failures.core.arrays import as_array, as_rows
from lightning_failures.core.budget import SKIPPED_FOR_TIME
from lightning_failures.errors import ConfigurationError, did_you_mean

TOP = 50
"""Number of examples of each class that a ranking keeps."""


@dataclass(frozen=True)
class BaselinesFit:
    """Rank the examples of each class by baselines, cross-fitted; see :mod:`lightning_failures.baselines`.

    The section of the report holds, by baseline and class, the ids of the hardest examples, the hardest first.

    Attributes:
        finders: Names of baselines: "domino", "clusters".
        top: Number of examples of each class that are kept.

    >>> import torch
    >>> from lightning_failures import Grades, analyse
    >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> failed = (x[:, 0] > 0.8).long()
    >>> grades = Grades(torch.arange(200), torch.zeros(200).long(), failed, torch.ones(200), ("cat", "dog"))
    >>> result = analyse(grades, x, methods=[(BaselinesFit(("domino",), top=3), x)])
    >>> len(result.report.methods["baselines"]["rankings"]["domino"]["cat"])
    3
    """

    name: ClassVar[str] = "baselines"
    by_prediction: ClassVar[bool] = False
    finders: Sequence[str] = tuple(FINDERS)
    top: int = TOP

    def __post_init__(self) -> None:
        for name in self.finders:
            if name not in FINDERS:
                raise ConfigurationError(f"There is no baseline {name!r}.{did_you_mean(name, FINDERS)}")

    def fit(self, task: FitTask) -> Contribution:
        """Rank the examples of the classes that this process owns, and join the rankings of all. Collective."""
        grades, partition = task.grades, task.partition
        mine = np.flatnonzero(partition.rows)
        ids, labels, failed = (as_array(values)[mine] for values in (grades.ids, grades.labels, grades.failed))
        sources = ids if grades.groups is None else as_array(grades.groups)[mine]
        x = as_rows(task.values.all(), "embeddings")
        late: list[str] = []  # baselines for which no time was left

        def rank_own_classes() -> dict[str, dict[str, list[int]]]:
            found: dict[str, dict[str, list[int]]] = {}
            for name in self.finders:
                if task.deadline is not None and task.deadline.passed:
                    late.append(name)
                    continue
                hardness = hardness_by_class(FINDERS[name], x, labels, failed, groups=sources, seed=task.seed)
                found[name] = {
                    grades.class_names[label]: _hardest(ids, hardness, labels == label, self.top)
                    for label in np.unique(labels[np.isfinite(hardness)]).tolist()
                }
            return found

        rankings: dict[str, dict[str, list[int]]] = {name: {} for name in self.finders}
        for part in partition.workers.gather_results(rank_own_classes):
            for name, classes in part.items():
                rankings[name] |= classes
        notes = tuple(f"Baseline {name}: {SKIPPED_FOR_TIME}." for name in late)
        return Contribution(rankings, section={"top": self.top, "rankings": rankings}, notes=notes)


def _hardest(ids: Any, hardness: Any, members: Any, top: int) -> list[int]:
    """Return the ids of the hardest members, the hardest first; ties by id."""
    rows = np.flatnonzero(members & np.isfinite(hardness))
    return [int(one) for one in ids[rows[np.lexsort((ids[rows], -hardness[rows]))[:top]]]]
