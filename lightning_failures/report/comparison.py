"""Comparison of two runs, or of two epochs of one run, from their files: fixed, new and persistent failures.

The same images with the same label in both runs are compared in pairs, whatever their ids; all others are counted
(:mod:`lightning_failures.report.example_pairs`). Whether a class
changed is an exact McNemar test (McNemar, 1947): among the examples that exactly one run fails on, is the split
more uneven than chance allows? The test assumes independent examples; if several come from one source (frames of a
video), it reports a difference too often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array, defined
from lightning_failures.core.serialization import to_jsonable
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.directions.matching import CHANGE_LEVEL
from lightning_failures.errors import DataError
from lightning_failures.report.example_pairs import (
    JOINED_BY,
    ExamplePairs,
    Join,
    pair_examples,
    paired_rows,
    ways_to_join,
)
from lightning_failures.report.mode_comparison import ModeChange, mode_changes
from lightning_failures.report.run_folder import Run
from lightning_failures.stats.agreement import cohen_kappa
from lightning_failures.stats.intervals import benjamini_hochberg, sign_test


@dataclass(frozen=True)
class Side:
    """The last report of one of the two runs. ``accuracy`` is that of all its examples, not of the compared ones."""

    folder: str
    epoch: int | None
    global_step: int | None
    stage: str | None
    examples: int
    accuracy: float | None
    encoder: str | None
    summary: dict[str, float]


_OUTCOMES = ("right", "wrong")
"""Names in place of predicted classes, for tasks without them."""


@dataclass(frozen=True)
class ExampleChange:
    """One example that at least one run fails on: its label, and the predictions of the first and the second run.

    A run without predicted classes has "right" or "wrong" in their place.
    ``id`` is that of the first run.
    """

    id: int
    label: str
    a: str
    b: str


@dataclass(frozen=True)
class ClassChange:
    """The compared examples of one class.

    ``fixed`` counts failures of the first run only, ``new`` of the second run only, ``persistent`` of both. ``change``
    is the error rate of the second run minus that of the first. ``different`` is whether the p-value survives
    Benjamini-Hochberg over classes at level 0.05; otherwise the change is consistent with chance.
    """

    name: str
    examples: int
    fixed: int
    new: int
    persistent: int
    error_rate_a: float | None = None
    error_rate_b: float | None = None
    change: float | None = None
    p_value: float | None = None
    different: bool = False


@dataclass(frozen=True)
class Comparison:
    """The changes from run a to run b.

    Attributes:
        a: The first run.
        b: The second run.
        examples: Number of compared examples: in both runs, with the same label. In a multilabel task an example
            counts once for each condition.
        only_a: Number of examples that only the first run has.
        only_b: Number of examples that only the second run has.
        relabelled: Number of examples with different labels in the two runs.
        classes_only_a: Names of classes that only the first run has.
        classes_only_b: Names of classes that only the second run has.
        overall: All compared examples as one class.
        classes: Classes with compared examples, in the order of the first run.
        fixed: Failures of the first run only, by id.
        new: Failures of the second run only, by id.
        persistent: Failures of both runs, by id.
        same_predictions: Share of the compared examples with the same prediction in both runs, in [0, 1]; None if a
            run has no predicted classes.
        agreement: Cohen's kappa of the failures of the two runs, or None if it is undefined.
        modes: Failure modes of the classes in which at least one run has one.
        notes: What to know before reading the numbers, one sentence each.
        joined_by: What identified an example: "digest" (its image), "name" (of its file), "id" (from ``read_batch``),
            "index" (in its dataset), or "former": its id, because a run of a former version has no digests.
        moved: Number of examples in both runs whose ids differ.
    """

    a: Side
    b: Side
    examples: int
    only_a: int
    only_b: int
    relabelled: int
    classes_only_a: tuple[str, ...]
    classes_only_b: tuple[str, ...]
    overall: ClassChange
    classes: tuple[ClassChange, ...]
    fixed: tuple[ExampleChange, ...]
    new: tuple[ExampleChange, ...]
    persistent: tuple[ExampleChange, ...]
    same_predictions: float | None
    agreement: float | None
    modes: tuple[ModeChange, ...]
    notes: tuple[str, ...] = ()
    joined_by: str = "digest"
    moved: int = 0
    schema: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain Python values."""
        values: dict[str, Any] = to_jsonable(self)
        return values


def compare(a: Run, b: Run, *, join: Join | None = None) -> Comparison:
    """Compare two runs.

    Args:
        a: The earlier run, or the one without the change.
        b: The other run.
        join: What identifies an example in both runs: "name" of its file, "id" from ``read_batch``, or "index" in the
            dataset. None: its image; of runs of former versions, its id.

    Raises:
        DataError: A run has no table of examples or lacks what ``join`` names, the runs have no example in common, or
            most ids have different labels.
    """
    examples = pair_examples(_table(a), _table(b), join)
    pairs = _Pairs.of(_table(a), _table(b), examples)
    classes = _classes(pairs)
    return Comparison(
        a=_side(a),
        b=_side(b),
        examples=len(pairs.ids),
        only_a=pairs.only_a,
        only_b=pairs.only_b,
        relabelled=pairs.relabelled,
        classes_only_a=_missing_classes(_table(a), _table(b)),
        classes_only_b=_missing_classes(_table(b), _table(a)),
        overall=_overall(pairs),
        classes=classes,
        fixed=pairs.changes(pairs.fixed),
        new=pairs.changes(pairs.new),
        persistent=pairs.changes(pairs.persistent),
        same_predictions=_same_predictions(pairs, _table(a), _table(b)),
        agreement=cohen_kappa(pairs.failed_a, pairs.failed_b),
        modes=mode_changes(
            a,
            b,
            pairs.names,
            pairs.labels,
            pairs.failed_a & pairs.flagged_a,
            pairs.failed_b & pairs.flagged_b,
        ),
        notes=(*_notes(a, b, pairs), *_join_notes(_table(a), _table(b), examples)),
        joined_by=examples.by,
        moved=examples.moved,
    )


@dataclass(frozen=True)
class _Pairs:
    """The n compared examples by id, as (n,) arrays; labels and predictions are indices into ``names``."""

    names: tuple[str, ...]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    prediction_a: NDArray[np.int64]
    prediction_b: NDArray[np.int64]
    failed_a: NDArray[np.bool_]
    failed_b: NDArray[np.bool_]
    flagged_a: NDArray[np.bool_]
    flagged_b: NDArray[np.bool_]
    only_a: int
    only_b: int
    relabelled: int

    @classmethod
    def of(cls, a: ExampleTable, b: ExampleTable, examples: ExamplePairs) -> _Pairs:
        # the classes of both runs in one list of names
        outcomes = () if _have_predictions(a, b) else _OUTCOMES
        names = tuple(dict.fromkeys((*a.class_names, *b.class_names, *outcomes)))
        index_of = {name: index for index, name in enumerate(names)}
        first = np.array([index_of[name] for name in a.class_names], dtype=np.int64)
        rows_a, rows_b = paired_rows(a, b, examples, names)
        if not examples.joined and examples.by == "digest":
            raise DataError(
                "the runs have no example in common: 0 examples are in both, for no image of one run is an image of the"
                " other. If both models see the same images in other preprocessing (size, crop, normalisation), join"
                f" them by something else: {ways_to_join(a, b)}"
            )
        if not len(rows_a):
            raise DataError("the runs have no example in common: no example has the same label in both")

        # ids that mean different images in the two runs show as different labels
        both = np.intersect1d(examples.a, examples.b)
        relabelled = len(np.setdiff1d(both, examples.a[rows_a]))
        if 2 * relabelled > len(both) and examples.by != "digest":
            raise DataError(
                f"{relabelled} of the {len(both)} ids that both runs have differ in their label: the runs are on"
                " different data, so the same id is another image"
            )
        return cls(
            names,
            a.ids.numpy()[rows_a],
            first[a.labels.numpy()[rows_a]],
            _predictions(a, index_of)[rows_a],
            _predictions(b, index_of)[rows_b],
            a.failed.numpy()[rows_a],
            b.failed.numpy()[rows_b],
            a.flagged.numpy()[rows_a],
            b.flagged.numpy()[rows_b],
            only_a=int((~np.isin(examples.a, both)).sum()),
            only_b=int((~np.isin(examples.b, both)).sum()),
            relabelled=relabelled,
        )

    @property
    def fixed(self) -> NDArray[np.bool_]:
        """(n,) bool: failures of the first run only."""
        return self.failed_a & ~self.failed_b

    @property
    def new(self) -> NDArray[np.bool_]:
        """(n,) bool: failures of the second run only."""
        return ~self.failed_a & self.failed_b

    @property
    def persistent(self) -> NDArray[np.bool_]:
        """(n,) bool: failures of both runs."""
        return self.failed_a & self.failed_b

    def changes(self, which: NDArray[np.bool_]) -> tuple[ExampleChange, ...]:
        """Return the selected examples, (n,) bool, by id."""
        return tuple(
            ExampleChange(
                int(self.ids[row]),
                self.names[self.labels[row]],
                self.names[self.prediction_a[row]],
                self.names[self.prediction_b[row]],
            )
            for row in np.flatnonzero(which)
        )


def _have_predictions(*tables: ExampleTable) -> bool:
    return all(table.predictions is not None for table in tables)


def _predictions(table: ExampleTable, index_of: dict[str, int]) -> NDArray[np.int64]:
    """Return (n,) the index of the name of each prediction, or of "right" or "wrong" without predictions."""
    names = _OUTCOMES if table.predictions is None else table.class_names
    rows = table.failed if table.predictions is None else table.predictions
    return as_array(np.array([index_of[name] for name in names], dtype=np.int64)[rows.long().numpy()])


def _same_predictions(pairs: _Pairs, a: ExampleTable, b: ExampleTable) -> float | None:
    return float((pairs.prediction_a == pairs.prediction_b).mean()) if _have_predictions(a, b) else None


class _Counts(NamedTuple):
    """Numbers of the compared examples of one class."""

    name: str
    examples: int
    fixed: int
    new: int
    persistent: int


def _table(run: Run) -> ExampleTable:
    if run.table is None:
        raise DataError(
            f"{run.folder} has no table of examples (examples.safetensors), which is needed to pair examples. Runs of "
            "this version write one next to each report."
        )
    return run.table


def _side(run: Run) -> Side:
    report = run.report
    return Side(
        str(run.folder),
        report.epoch,
        report.global_step,
        report.stage,
        len(_table(run)),
        defined(_table(run).failed.logical_not().double().mean()),
        report.encoder,
        report.summary,
    )


def _classes(pairs: _Pairs) -> tuple[ClassChange, ...]:
    """Return the changes of all classes with compared examples."""

    def per_class(which: NDArray[np.bool_]) -> list[int]:
        counts: list[int] = np.bincount(pairs.labels[which], minlength=len(pairs.names)).tolist()
        return counts

    everything = np.ones(len(pairs.ids), dtype=np.bool_)
    columns = (per_class(everything), per_class(pairs.fixed), per_class(pairs.new), per_class(pairs.persistent))
    compared = [_Counts(*row) for row in zip(pairs.names, *columns, strict=True) if row[1]]
    # McNemar's exact test is a sign test on the examples that exactly one run fails on
    p_values = [sign_test(counts.new, counts.fixed) for counts in compared]
    significant = benjamini_hochberg(p_values, CHANGE_LEVEL).tolist()
    return tuple(map(_change, compared, p_values, significant))


def _overall(pairs: _Pairs) -> ClassChange:
    """Return the change of all compared examples as one class."""
    fixed, new, persistent = int(pairs.fixed.sum()), int(pairs.new.sum()), int(pairs.persistent.sum())
    p_value = sign_test(new, fixed)
    return _change(_Counts("all", len(pairs.ids), fixed, new, persistent), p_value, p_value <= CHANGE_LEVEL)


def _change(counts: _Counts, p_value: float, different: bool) -> ClassChange:
    return ClassChange(
        *counts,
        error_rate_a=(counts.fixed + counts.persistent) / counts.examples,
        error_rate_b=(counts.new + counts.persistent) / counts.examples,
        change=(counts.new - counts.fixed) / counts.examples,
        p_value=p_value,
        different=different,
    )


def _missing_classes(here: ExampleTable, there: ExampleTable) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys(here.class_names) if name not in set(there.class_names))


def _notes(a: Run, b: Run, pairs: _Pairs) -> list[str]:
    one, other = a.report, b.report
    notes = [f"Run {name}: {note}" for name, run in (("a", a), ("b", b)) for note in run.notes]
    if (one.stage == "test") != (other.stage == "test") or one.dataloader != other.dataloader:
        notes.append("The runs report on different parts of the data: the same id may be another image.")
    if pairs.relabelled > 0.1 * (pairs.relabelled + len(np.unique(pairs.ids))):
        notes.append("Many examples have different labels in the two runs: the data were changed.")
    if one.encoder_fingerprint != other.encoder_fingerprint:
        notes.append("The encoders of the directions differ, so failure modes are matched by their common failures.")
    if all(entry.p_value is None for report in (one, other) for entry in report.classes):
        notes.append("Neither run has failure directions, so there are no failure modes to compare.")
    return notes


def _join_notes(a: ExampleTable, b: ExampleTable, examples: ExamplePairs) -> list[str]:
    """Return how examples were joined, where that is worth a sentence."""
    notes = []
    smaller = min(len(np.unique(examples.a)), len(np.unique(examples.b)))
    if examples.by == "former":
        both = a.digests is None and b.digests is None
        without = "the runs have" if both else f"run {'a' if a.digests is None else 'b'} has"
        notes.append(
            f"Examples are joined by id, because {without} no digests of images: the same id may be another image."
        )
    elif examples.by != "digest":
        notes.append(f"Examples are joined by {JOINED_BY[examples.by]}.")
    if examples.moved:
        notes.append(f"{examples.moved} examples have another id in run b.")
    if examples.changed:
        notes.append(f"The images of {examples.changed} of the {examples.joined} examples in both runs differ.")
    if examples.by == "digest" and 2 * examples.joined < smaller:
        notes.append(
            f"Only {examples.joined} of {smaller} examples have the same image in both runs. If the models see the same"
            f" images in other preprocessing, join them by something else: {ways_to_join(a, b)}."
        )
    return notes
