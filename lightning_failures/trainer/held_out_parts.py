"""The parts of a validation set while interventions are on: decision values of those that nothing was fitted to."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.arrays import finite_rows
from lightning_failures.data.digests import UNKNOWN_DIGEST
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.data.held_out import HeldOutParts, HeldOutSplit
from lightning_failures.interventions import Discovery
from lightning_failures.interventions.validation_split import Part, judge_split, take_grades


def judge_parts(
    grades: Grades, split: Tensor, sampled: NDArray[np.bool_], whole: Tensor | None, result: AnalysisResult
) -> tuple[HeldOutParts, Discovery | None]:
    """Return the held-out parts with their decision values, and the discovery examples if all have an embedding.

    Args:
        grades: N rows.
        split: (N,) int64, the part of each row.
        sampled: (N,) bool, the rows that may be fitted on.
        whole: (U, D) embeddings, one row for each distinct id of those, NaN if it has none; or None.
        result: The analysis of the discovery part.
    """
    has_embedding = torch.from_numpy(sampled)
    ids = torch.unique(grades.ids[has_embedding])
    if whole is not None and not (known := finite_rows(whole)).all():
        ids, whole = ids[known], whole[known]
        has_embedding = has_embedding & torch.isin(grades.ids, ids)

    def embeddings_of(some: Grades) -> Tensor | None:
        return None if whole is None else whole[torch.isin(ids, some.ids)]

    def judged(part: int) -> HeldOutSplit:
        mine = split == part
        seen = take_grades(grades, mine & has_embedding)
        values = torch.full((int(mine.sum()),), float("nan"))
        values[has_embedding[mine]] = judge_split(seen, embeddings_of(seen), result.directions).values
        return HeldOutSplit(take_grades(grades, mine), values)

    kept = take_grades(grades, (split == Part.DISCOVERY) & has_embedding)
    found = embeddings_of(kept)
    discovery = None
    if found is not None:
        digests = None if grades.digests is None else torch.unique(grades.digests[grades.digests != UNKNOWN_DIGEST])
        discovery = Discovery(found, kept.labels, kept.correct, kept.ids, kept.groups, whole, digests)
    spent = judged(Part.SPENT) if bool((split == Part.SPENT).any()) else None
    return HeldOutParts(judged(Part.REPORT), judged(Part.DECISION), spent), discovery


def whole_table(grades: Grades, split: Tensor, result: AnalysisResult) -> ExampleTable:
    """Return the table of all parts; held-out rows have decision values by the directions of the discovery part."""
    assert result.table is not None
    assert result.parts is not None
    values = torch.full((len(grades),), float("nan"))
    values[split == Part.DISCOVERY] = result.table.values
    values[split == Part.REPORT] = result.parts.report.values
    values[split == Part.DECISION] = result.parts.decision.values
    if result.parts.spent is not None:
        values[split == Part.SPENT] = result.parts.spent.values
    return ExampleTable.of(grades, values, result.trees)
