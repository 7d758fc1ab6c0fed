"""From grades and embeddings to a report: the whole analysis, without a Trainer, a logger or a disk.

It runs in a notebook as in the callback. The order is that of the questions: which classes fail by a pattern
(directions), how it reads in words (captions), which rules on robust features hold the failures (trees).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.arrays import as_array
from lightning_failures.candidates import ClassCaptions
from lightning_failures.captions import caption_p_value, score_captions
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.enrichment import Attribute, enrichment, read_attribute
from lightning_failures.errors import DataError
from lightning_failures.records import ClassReport, FailureReport, Grades, GroupReport, LeafReport, ValueReport
from lightning_failures.statistics import benjamini_hochberg
from lightning_failures.threads import one_thread
from lightning_failures.trees import FailureTree, fit_failure_tree

__all__ = ["analyse"]

LEVEL = 0.05
"""False discovery rate at which a pattern is called one."""

Rows = NDArray[np.int64]
Values = Tensor | NDArray[Any]
_SHARED = (torch.float16, torch.float32, torch.float64)  # dtypes that NumPy has too
Grouping = Literal["label", "prediction"]
GROUPINGS: tuple[Grouping, ...] = ("label", "prediction")


def analyse(
    grades: Grades,
    embeddings: Values | None = None,
    *,
    features: Values | None = None,
    reference: Values | None = None,
    captions: Callable[[int], ClassCaptions | None] | None = None,
    metadata: Mapping[str, Any] | None = None,
    permutations: int = 999,
    n_directions: int = 1,
    top_captions: int = 5,
    top_examples: int = 8,
    captioned_classes: int = 50,
    delta: float = 0.1,
    tau: float = 0.2,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> FailureReport:
    """Explain the errors of one evaluation.

    Args:
        grades: Right and wrong; N rows.
        embeddings: (N, D) float in the order of ``grades`` rows, or (U, D) one row for each of the U distinct ids,
            ascending. None: no directions. Large ones may be float16 and mapped from disk: they are read a class at a
            time, not copied as a whole, and never written to.
        features: Likewise, of an adversarially robust model. None: no trees.
        reference: (M, D) embeddings that phi is standardised with. None: ``embeddings``.
        captions: Gives the embedded candidates of a class (by index), or None; see
            :func:`~lightning_failures.candidates.caption_source`. Asked only for classes with a direction.
        metadata: Known attributes of the examples, by name: (N,) or (U,) integers, strings or booleans, aligned like
            ``embeddings``; see :func:`~lightning_failures.enrichment.read_attribute`. Nothing is fitted to them: each
            class reports how often every value occurs among all, the failures and the flagged.
        permutations: Of the screening test.
        n_directions: Directions a class.
        top_captions: How many hardest and easiest captions a class keeps.
        top_examples: How many hardest and easiest examples a class keeps.
        captioned_classes: Only this many classes get captions, those with a pattern and the lowest accuracy first.
        delta: A valid leaf has an error rate above the base error rate + delta ...
        tau: ... and an error coverage above tau.
        seed: The only source of randomness.
        device: Where Gram matrices are computed.

    Returns:
        The report; ``.directions`` and ``.trees`` hold the fitted results.

    Raises:
        DataError: rows that do not match, or metadata that cannot be counted.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(300, 8, generator=generator)
    >>> failed = x[:, 0] + 0.5 * torch.randn(300, generator=generator) < -0.5
    >>> grades = Grades(torch.arange(300), torch.zeros(300).long(), failed.long(), torch.ones(300), ("cat", "dog"))
    >>> report = analyse(grades, x)
    >>> report["classes"][0]["pattern"], report["classes"][1]["skipped"]
    (True, 'no examples')
    """
    attributes = _attributes(metadata, grades)
    timings: dict[str, float] = {}
    directions = None
    if embeddings is not None:
        embedded = _PerRow.of(embeddings, grades, "embeddings")
        with _timed(timings, "directions"):
            directions = fit_failure_directions(
                embedded.all(),
                grades.labels,
                grades.correct,
                ids=grades.ids,
                groups=grades.groups,
                reference=reference,
                n_directions=n_directions,
                permutations=permutations,
                seed=seed,
                device=device,
            )
    groups: tuple[GroupReport, ...] = ()
    trees: dict[tuple[str, str], FailureTree] = {}
    if features is not None:
        with _timed(timings, "trees"):
            featured = _PerRow.of(features, grades, "features")
            groups, trees = _grow_trees(grades, featured, delta=delta, tau=tau, seed=seed)
    members = _members(grades, "label")
    classes = _class_reports(members, directions, groups, top_examples)
    if embeddings is not None and directions is not None and captions is not None:
        with _timed(timings, "captions"):
            wanted = _worth_words(classes, captioned_classes)
            classes = tuple(
                _with_captions(
                    entry, k, captions(k), directions, members[k], embedded, top_captions, permutations, seed
                )
                if k in wanted
                else entry
                for k, entry in enumerate(classes)
            )
    if attributes:
        with _timed(timings, "enrichment"):
            classes = tuple(
                replace(entry, enrichment=_enrichment(attributes, one, grades, directions))
                for entry, one in zip(classes, members, strict=True)
            )
    return FailureReport(
        examples=len(torch.unique(grades.ids)),
        accuracy=_mean(grades.correct),
        classes=classes,
        groups=groups,
        summary=_summary(grades, directions, groups, tuple(trees.values())),
        timings=timings,
        coverage=grades.coverage,
        directions=directions,
        trees=trees,
    )


@dataclass(frozen=True)
class _Members:
    """The n examples with one label, or one prediction."""

    name: str
    rows: Rows  # their places among the grades, ascending
    ids: Rows
    failed: NDArray[np.bool_]
    sources: Rows | None


def _members(grades: Grades, grouping: Grouping) -> list[_Members]:
    """Sort the examples by class once: the work does not grow with the number of classes."""
    column = as_array(grades.labels if grouping == "label" else grades.predictions)
    ids, failed = as_array(grades.ids), as_array(grades.failed)
    sources = None if grades.groups is None else as_array(grades.groups)
    order = np.argsort(column, kind="stable")
    bounds = np.searchsorted(column[order], np.arange(len(grades.class_names) + 1))
    return [
        _Members(name, rows, ids[rows], failed[rows], None if sources is None else sources[rows])
        for name, rows in zip(grades.class_names, (order[a:b] for a, b in pairwise(bounds)), strict=True)
    ]


@dataclass(frozen=True)
class _PerRow:
    """Embeddings, and which of them belongs to a row of the grades; gathered only where they are read."""

    values: Values
    place: Rows | None  # None: they stand in the order of the rows

    @classmethod
    def of(cls, values: Values, grades: Grades, name: str) -> _PerRow:
        if isinstance(values, Tensor) and values.device.type == "cpu" and values.dtype in _SHARED:
            values = values.detach().numpy()  # gathering tensors left 1 MiB a class behind in the heap
        if len(values) == len(grades):
            return cls(values, None)
        unique, place = np.unique(as_array(grades.ids), return_inverse=True)
        if len(values) != len(unique):
            raise DataError(f"{name} has {len(values)} rows; grades have {len(grades)} rows of {len(unique)} examples.")
        return cls(values, place)

    def __getitem__(self, rows: Rows) -> Values:
        return self.values[rows if self.place is None else self.place[rows]]

    def all(self) -> Values:
        return self.values if self.place is None else self.values[self.place]


def _class_reports(
    classes: list[_Members], directions: FailureDirections | None, groups: tuple[GroupReport, ...], top: int
) -> tuple[ClassReport, ...]:
    label_groups = {g.class_name: g for g in groups if g.grouping == "label"}
    patterns = (
        {}
        if directions is None
        else dict(zip(directions.classes.tolist(), benjamini_hochberg(directions.p_value, LEVEL).tolist(), strict=True))
    )
    reports = []
    for k, members in enumerate(classes):
        group = label_groups.get(members.name)
        values: dict[str, Any] = {}
        if directions is not None and k in patterns:
            row = directions.row(k)
            scores = as_array(directions.out_of_fold)[members.rows]
            order = np.argsort(scores, kind="stable")
            values = {
                "cv_score": _defined(directions.cv_score[row]),
                "cv_score_stderr": _defined(directions.cv_score_stderr[row]),
                "p_value": _defined(directions.p_value[row]),
                "pattern": patterns[k],
                "c": float(directions.c[row]),
                "flagged": int((scores < 0).sum()),
                "hardest_ids": tuple(members.ids[order[:top]].tolist()),
                "easiest_ids": tuple(members.ids[order[::-1][:top]].tolist()),
            }
        elif directions is not None:
            values = {"skipped": directions.skipped.get(k, "no examples")}
        reports.append(
            ClassReport(
                name=members.name,
                examples=len(members.rows),
                accuracy=_mean(~members.failed),
                aler=group.aler if group else None,
                base_error_rate=_mean(members.failed),
                **values,
            )
        )
    return tuple(reports)


def _worth_words(classes: tuple[ClassReport, ...], limit: int) -> set[int]:
    fitted = [k for k, entry in enumerate(classes) if entry.cv_score is not None]
    fitted.sort(key=lambda k: (not classes[k].pattern, classes[k].accuracy))
    return set(fitted[:limit])


def _with_captions(
    entry: ClassReport,
    k: int,
    candidates: ClassCaptions | None,
    directions: FailureDirections,
    members: _Members,
    embeddings: _PerRow,
    top: int,
    permutations: int,
    seed: int,
) -> ClassReport:
    if candidates is None or not candidates.texts:
        return entry
    with one_thread():
        scores = score_captions(directions, k, candidates.embeddings, candidates.reference)
        p_value = caption_p_value(
            directions,
            k,
            embeddings[members.rows],
            ~members.failed,
            candidates.embeddings,
            candidates.reference,
            ids=members.ids,
            groups=members.sources,
            permutations=permutations,
            seed=seed,
        )
    order = torch.argsort(scores, stable=True)
    hardest, easiest = order[:top].tolist(), order.flip(0)[:top].tolist()
    return replace(
        entry,
        reference_caption=candidates.reference_text,
        hardest_captions=tuple(candidates.texts[i] for i in hardest),
        hardest_caption_scores=tuple(float(scores[i]) for i in hardest),
        easiest_captions=tuple(candidates.texts[i] for i in easiest),
        easiest_caption_scores=tuple(float(scores[i]) for i in easiest),
        caption_p_value=_defined(p_value),
    )


def _attributes(metadata: Mapping[str, Any] | None, grades: Grades) -> dict[str, Attribute]:
    """One code a row of the grades."""
    attributes = {str(name): read_attribute(values, str(name)) for name, values in (metadata or {}).items()}
    return {
        name: Attribute(as_array(_PerRow.of(attribute.codes, grades, f"metadata[{name!r}]").all()), attribute.values)
        for name, attribute in attributes.items()
    }


def _enrichment(
    attributes: dict[str, Attribute], members: _Members, grades: Grades, directions: FailureDirections | None
) -> tuple[ValueReport, ...]:
    scores = None if directions is None else as_array(directions.out_of_fold)[members.rows]
    return enrichment(
        {name: attribute[members.rows] for name, attribute in attributes.items()},
        members.failed,
        as_array(grades.confidence)[members.rows],
        None if scores is None or np.isnan(scores).all() else scores < 0,
        sources=members.sources,
    )


def _grow_trees(
    grades: Grades, features: _PerRow, *, delta: float, tau: float, seed: int
) -> tuple[tuple[GroupReport, ...], dict[tuple[str, str], FailureTree]]:
    groups = [(grouping, members) for grouping in GROUPINGS for members in _members(grades, grouping)]
    trees: dict[tuple[str, str], FailureTree] = {
        (grouping, members.name): fit_failure_tree(
            features[members.rows], members.failed, ids=members.ids, groups=members.sources, seed=seed
        )
        for grouping, members in groups
        if len(members.rows)
    }
    p_values = np.array([tree.p_value for tree in trees.values()])
    patterns = dict(zip(trees, benjamini_hochberg(p_values, LEVEL).tolist(), strict=True))
    reports = []
    for grouping, members in groups:
        key = grouping, members.name
        if key in trees:
            reports.append(_group_report(*key, len(members.rows), trees[key], patterns[key], delta, tau))
        else:
            reports.append(GroupReport(*key, size=0, skipped="no examples"))
    return tuple(reports), trees


def _group_report(
    grouping: str, name: str, size: int, tree: FailureTree, pattern: bool, delta: float, tau: float
) -> GroupReport:
    valid = {id(leaf) for leaf in tree.valid_leaves(delta, tau)}
    return GroupReport(
        grouping,
        name,
        size=size,
        base_error_rate=_defined(tree.base_error_rate),
        aler=_defined(tree.aler),
        heldout_aler=_defined(tree.heldout_aler),
        heldout_aler_minus_ber=_defined(tree.heldout_aler_minus_ber),
        heldout_stderr=_defined(tree.heldout_aler_stderr),
        pattern=pattern,
        skipped=tree.skipped,
        leaves=tuple(
            LeafReport(
                rule=leaf.rule,
                size=leaf.size,
                error_rate=leaf.error_rate,
                error_coverage=leaf.error_coverage,
                importance=leaf.importance,
                valid=id(leaf) in valid,
                interval=leaf.interval,
            )
            for leaf in tree.leaves
        ),
    )


def _summary(
    grades: Grades,
    directions: FailureDirections | None,
    groups: tuple[GroupReport, ...],
    trees: tuple[FailureTree, ...],
) -> dict[str, float]:
    """The aggregates that are defined; every one of them lies in [0, 1] or near it, and lower is better."""
    values: dict[str, float | None] = {"accuracy": _mean(grades.correct), "coverage": grades.coverage}
    if directions is not None:
        judged = directions.out_of_fold[~torch.isnan(directions.out_of_fold)]
        values["cv_score_mean"] = _mean(directions.cv_score)
        values["flagged_fraction"] = _mean(judged < 0)
    grown = [g for g in groups if g.leaves and g.skipped is None]
    with_heldout = [g.heldout_aler_minus_ber for g in grown if g.heldout_aler_minus_ber is not None]
    gains = [g.aler - g.base_error_rate for g in grown if g.aler is not None and g.base_error_rate is not None]
    values["aler_minus_ber_mean"] = _mean(torch.tensor(gains))
    values["heldout_aler_minus_ber_mean"] = _mean(torch.tensor(with_heldout))
    values["valid_leaf_fraction"] = _mean(
        torch.tensor([max(g.leaves, key=lambda leaf: leaf.importance).valid for g in grown])
    )
    slices = [leaf for tree in trees if (leaf := tree.worst_leaf) is not None and leaf.interval is not None]
    if slices:
        values["worst_slice_error_rate"] = max(
            slices, key=lambda leaf: leaf.interval[0] if leaf.interval else 0.0
        ).error_rate
    return {key: value for key, value in values.items() if value is not None and np.isfinite(value)}


def _defined(value: Tensor | float) -> float | None:
    return float(value) if np.isfinite(float(value)) else None


def _mean(values: Values) -> float | None:
    return float(as_array(values).mean(dtype=np.float64)) if len(values) else None


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = round(time.perf_counter() - start, 4)
