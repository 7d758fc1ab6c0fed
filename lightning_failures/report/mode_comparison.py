"""The failure modes of one run, matched with those of another.

The mode of a class is its first direction, if a pattern was found; its members are the flagged failures. If the
directions of both runs are in the same space, modes are matched as in the diary
(:mod:`lightning_failures.directions.matching`), otherwise by their common members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_failures.core.arrays import defined
from lightning_failures.data.report import ClassReport
from lightning_failures.directions.matching import SAME_MODE_SIMILARITY, ModeSimilarity
from lightning_failures.directions.one_class import MIN_PER_OUTCOME
from lightning_failures.report.run_folder import Run

SHARED = 0.5
"""If directions cannot be compared, modes match if they share at least this part of the smaller set of members."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ModeChange:
    """The failure mode of one class in both runs.

    ``fate`` is "gone", "new", "persistent", or "unknown" if the data do not decide. ``size`` counts flagged failures
    among the compared examples. ``matched_by`` is "directions" (the cosine of the two directions) or "members" (the
    share of the smaller set of flagged failures that is in both). ``why`` is the reason why a run has no mode.
    """

    class_name: str = field(metadata={"key": "class"})
    fate: Literal["gone", "new", "persistent", "unknown"]
    size_a: int | None = None
    size_b: int | None = None
    cv_score_a: float | None = None
    cv_score_b: float | None = None
    caption_a: str | None = None
    caption_b: str | None = None
    matched_by: Literal["directions", "members"] | None = None
    cosine: float | None = None
    shared: float | None = None
    why: str | None = None


def mode_changes(
    a: Run, b: Run, names: Sequence[str], labels: NDArray[np.int64], members_a: Mask, members_b: Mask
) -> tuple[ModeChange, ...]:
    """Match the failure mode of each class in one run with that in the other.

    Args:
        a: The first run.
        b: The second run.
        names: K class names.
        labels: (n,) class of each compared example, an index into ``names``.
        members_a: (n,) bool, flagged failures of the first run.
        members_b: (n,) bool, flagged failures of the second run.
    """
    entries_a = {entry.name: entry for entry in a.report.classes}
    entries_b = {entry.name: entry for entry in b.report.classes}
    comparable = _aligned(a, b)  # else the cosine of two directions has no meaning
    changes = []
    for index, name in enumerate(names):
        members = members_a & (labels == index), members_b & (labels == index)
        cosine = _cosine(_direction(a, name), _direction(b, name)) if comparable else None
        changes += _fates(name, entries_a.get(name), entries_b.get(name), members, cosine)
    return tuple(changes)


def _fates(
    name: str,
    here: ClassReport | None,
    there: ClassReport | None,
    members: tuple[Mask, Mask],
    cosine: float | None,
) -> list[ModeChange]:
    """Return the changes of one class: none, one change, or one mode that is gone and another that is new."""
    first = _mode_fields(here, members[0], "a") if here is not None and here.pattern else {}
    second = _mode_fields(there, members[1], "b") if there is not None and there.pattern else {}
    # a mode in both runs: the same one, or one that is gone and another that is new
    if first and second:
        shared = _overlap(*members)
        same = _same(cosine, shared)
        match: dict[str, Any] = {"cosine": cosine, "shared": shared}
        match["matched_by"] = None if same is None else "members" if cosine is None else "directions"
        if same is False:
            return [ModeChange(name, "gone", **first, **match), ModeChange(name, "new", **second, **match)]
        return [ModeChange(name, "persistent" if same else "unknown", **first, **second, **match)]
    # a mode in one run: the other must have tested for one
    if first:
        return [ModeChange(name, "gone" if _could_find_mode(there) else "unknown", **first, why=_why_no_mode(there))]
    if second:
        return [ModeChange(name, "new" if _could_find_mode(here) else "unknown", **second, why=_why_no_mode(here))]
    return []


def _same(cosine: float | None, shared: float | None) -> bool | None:
    """Return whether two modes of one class are the same; None if the data do not decide."""
    if cosine is not None:
        return ModeSimilarity(cosine, shared).similarity >= SAME_MODE_SIMILARITY
    return None if shared is None else shared >= SHARED


def _mode_fields(entry: ClassReport, members: Mask, side: str) -> dict[str, Any]:
    caption = entry.hardest_captions[0] if entry.hardest_captions else None
    return {f"size_{side}": int(members.sum()), f"cv_score_{side}": entry.cv_score, f"caption_{side}": caption}


def _could_find_mode(entry: ClassReport | None) -> bool:
    """Return whether a run tested for a mode, or had too few failures for one to exist."""
    if entry is None or entry.accuracy is None:
        return False
    return entry.p_value is not None or round(entry.examples * (1 - entry.accuracy)) < MIN_PER_OUTCOME


def _why_no_mode(entry: ClassReport | None) -> str:
    if entry is None:
        return "no such class"
    return entry.skipped or ("no directions were fitted" if entry.p_value is None else "no pattern")


def _aligned(a: Run, b: Run) -> bool:
    """Return whether the directions of both runs are in one space: the same encoder, mean and standard deviation."""
    one, other = a.directions, b.directions
    return (
        one is not None
        and other is not None
        and a.report.encoder_fingerprint is not None
        and a.report.encoder_fingerprint == b.report.encoder_fingerprint
        and one.whiten == other.whiten
        and one.mean.shape == other.mean.shape
        and all(torch.allclose(x, y, rtol=1e-3, atol=1e-6) for x, y in ((one.mean, other.mean), (one.std, other.std)))
    )


def _direction(run: Run, name: str) -> NDArray[np.float64] | None:
    """Return the direction of a class, (D,), or None."""
    names = [entry.name for entry in run.report.classes]
    if run.directions is None or name not in names:
        return None
    rows = (run.directions.classes == names.index(name)).nonzero()
    return run.directions.weight[int(rows[0])].double().numpy() if len(rows) else None


def _cosine(a: NDArray[np.float64] | None, b: NDArray[np.float64] | None) -> float | None:
    if a is None or b is None:
        return None
    sizes = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    return defined(a @ b / sizes[0] / sizes[1]) if all(sizes) else None


def _overlap(a: Mask, b: Mask) -> float | None:
    """Return the share of the smaller set that is in both sets; None if it is empty."""
    smaller = min(int(a.sum()), int(b.sum()))
    return int((a & b).sum()) / smaller if smaller else None
