"""What other methods find in the same embeddings, as a method beside failure directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lightning_failures.analysis.method import Contribution, FitTask
from lightning_failures.baselines.ranking import FINDERS, hardness_by_class
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.core.arrays import as_array, as_rows
from lightning_failures.core.budget import SKIPPED_FOR_TIME
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.errors import ConfigurationError, DataError, did_you_mean

TOP = 50
"""Number of examples of each class that a ranking keeps."""

MOST_CAPTIONED = 50
"""Most classes of a process whose hardest examples get captions."""

MOST_EXAMPLES = 20_000
"""Most examples whose known attributes the report keeps."""

CONFIDENCE, MARGIN = "confidence", "margin"
"""Rankings that the answers of the model give."""


@dataclass(frozen=True)
class BaselinesFit:
    """Rank the examples of each class by baselines, cross-fitted; see :mod:`lightning_failures.baselines`.

    Beside the baselines that are fitted to embeddings, the confidence in the label ranks the examples, and the margin
    before the best other class where it is known. A loss orders the examples as the confidence does.

    The section of the report holds, by baseline and class, the ids of the hardest examples, the hardest first; and,
    where there are candidate captions, the one nearest to (mean of the hardest - mean of the class), as in Domino. With
    at most ``MOST_EXAMPLES`` examples it holds their known attributes, by which a report says whom each method finds.

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
        known = {
            name: -as_array(values)[mine].astype(np.float64)
            for name, values in ((CONFIDENCE, grades.confidence), (MARGIN, grades.margin))
            if values is not None
        }
        late: list[str] = []  # baselines for which no time was left

        def rank_own_classes() -> _Found:
            ranked: dict[str, dict[int, IntArray]] = {}
            for name in (*self.finders, *known):
                if task.deadline is not None and task.deadline.passed:
                    late.append(name)
                    continue
                hardness = known.get(name)
                if hardness is None:
                    hardness = hardness_by_class(FINDERS[name], x, labels, failed, groups=sources, seed=task.seed)
                ranked[name] = {
                    label: _hardest(ids, hardness, labels == label, self.top)
                    for label in np.unique(labels[np.isfinite(hardness)]).tolist()
                }
            names = grades.class_names
            rankings = {
                name: {names[k]: ids[rows].tolist() for k, rows in of_class.items()}
                for name, of_class in ranked.items()
            }
            return _Found(rankings, _captions_of(task, ranked, x, labels, failed))

        joined = _Found({name: {} for name in (*self.finders, *known)}, {})
        for part in partition.workers.gather_results(rank_own_classes):
            for name, classes in part.rankings.items():
                joined.rankings[name] |= classes
            for name, captions in part.captions.items():
                joined.captions[name] = joined.captions.get(name, {}) | captions
        notes = tuple(f"Baseline {name}: {SKIPPED_FOR_TIME}." for name in late)
        section = {"top": self.top, "rankings": joined.rankings, "captions": joined.captions} | _attributes(task)
        return Contribution(joined.rankings, section=section, notes=notes)


@dataclass(frozen=True)
class _Found:
    """By baseline and class: ids of the hardest examples, and a caption."""

    rankings: dict[str, dict[str, list[int]]]
    captions: dict[str, dict[str, str]]


def _attributes(task: FitTask) -> dict[str, Any]:
    """Return the known attributes of the examples for the section; nothing if there are none, or too many examples."""
    if not task.attributes or len(task.grades) > MOST_EXAMPLES:
        return {}
    values = {name: {"values": list(one.values), "codes": one.codes.tolist()} for name, one in task.attributes.items()}
    return {"attributes": {"ids": as_array(task.grades.ids).tolist(), "by_name": values}}


def _hardest(ids: Any, hardness: FloatArray, members: BoolArray, top: int) -> IntArray:
    """Return the rows of the hardest members, the hardest first; ties by id."""
    rows = np.flatnonzero(members & np.isfinite(hardness))
    return rows[np.lexsort((ids[rows], -hardness[rows]))[:top]]


def _captions_of(
    task: FitTask, ranked: Mapping[str, Mapping[int, IntArray]], x: Any, labels: IntArray, failed: BoolArray
) -> dict[str, dict[str, str]]:
    """Return captions by method and class name, of the classes with most failures among those that all methods rank."""
    if task.captions is None or not ranked:
        return {}
    failures = np.bincount(labels[failed], minlength=len(task.grades.class_names))
    common = sorted(set.intersection(*(set(of_class) for of_class in ranked.values())), key=lambda k: -failures[k])
    found: dict[str, dict[str, str]] = {}
    for k in sorted(common[:MOST_CAPTIONED]):
        for name, of_class in ranked.items():
            text = _caption(task.captions, k, x, labels == k, of_class[k])
            if text is not None:
                found.setdefault(name, {})[task.grades.class_names[k]] = text
    return found


def _caption(
    captions: Callable[[int], ClassCaptions | None], label: int, x: Any, members: BoolArray, rows: IntArray
) -> str | None:
    """Return the caption of a class nearest to what is special about some of its rows; None without candidates."""
    try:
        candidates = captions(label)
    except DataError:  # the captions of directions say so
        return None
    if candidates is None or not candidates.texts or not len(rows):
        return None
    rows = rows[: max(1, int(members.sum()) // 2)]
    direction = x[rows].mean(axis=0, dtype=np.float64) - x[members].mean(axis=0, dtype=np.float64)
    return candidates.texts[int((as_array(candidates.embeddings) @ direction).argmax())]
