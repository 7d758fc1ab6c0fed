"""Fits of the two built-in methods: failure directions and failure trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_failures.analysis.method import Contribution, FitTask
from lightning_failures.core.arrays import as_array, as_rows
from lightning_failures.core.text import is_failed_fit
from lightning_failures.core.threads import one_thread
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import GROUPINGS, Grouping, check_processes
from lightning_failures.data.members import Values
from lightning_failures.data.tree_report import GroupReport, LeafReport, NodeReport
from lightning_failures.directions.fit import Doubted, fit_failure_directions
from lightning_failures.directions.one_class import MIN_PER_OUTCOME
from lightning_failures.directions.probe import Sums, class_support, label_margins
from lightning_failures.directions.result import FailureDirections, join_directions, rows_by_class
from lightning_failures.directions.standardize import Moments, standardize
from lightning_failures.trees.groups import grow_trees


@dataclass(frozen=True)
class DirectionsFit:
    """Fit of the failure directions; see :func:`~lightning_failures.directions.fit_failure_directions`.

    Attributes:
        n_directions: Maximum number of directions per class.
        permutations: Number of permutations of the screening test.
        doubted: Which examples leave the fit if a probe doubts their label.
    """

    name: ClassVar[str] = "directions"
    by_prediction: ClassVar[bool] = False
    n_directions: int = 1
    permutations: int = 999
    doubted: Doubted = "failures"

    def fit(self, task: FitTask) -> Contribution:
        """Fit the directions of the classes that this process owns, and join those of all processes. Collective."""
        directions = _fit_directions(task, self)
        values = directions.out_of_fold[~torch.isnan(directions.out_of_fold)]
        summary = {"cv_score_mean": mean_of(directions.cv_score), "flagged_fraction": mean_of(values < 0)}
        return Contribution(directions, defined_numbers(summary), notes=_doubtful_labels(directions, task.grades))


@dataclass(frozen=True)
class TreesFit:
    """Fit of the failure trees; see :func:`~lightning_failures.trees.fit_failure_tree`.

    Attributes:
        delta: Minimum excess of a valid leaf's error rate over the base error rate.
        tau: Minimum error coverage of a valid leaf.
        groupings: Groupings of the examples; every group gets a tree.
    """

    name: ClassVar[str] = "trees"
    by_prediction: ClassVar[bool] = True
    delta: float = 0.1
    tau: float = 0.2
    groupings: Sequence[Grouping] = GROUPINGS

    def fit(self, task: FitTask) -> Contribution:
        """Grow the trees of the classes that this process owns, and join those of all processes. Collective.

        Raises:
            ConfigurationError: There are several processes, and a grouping has groups of several classes.
        """
        check_processes(self.groupings, task.partition.workers.world_size)
        groups, trees = grow_trees(
            task.grades,
            task.values,
            task.partition,
            delta=self.delta,
            tau=self.tau,
            seed=task.seed,
            deadline=task.deadline,
            raise_errors=task.raise_class_errors,
            groupings=self.groupings,
        )
        return Contribution(trees, _tree_summary(groups), groups)


def mean_of(values: Values) -> float | None:
    """Return the mean of (n,) values in float64; None if there are none."""
    return float(as_array(values).mean(dtype=np.float64)) if len(values) else None


def defined_numbers(values: dict[str, float | None]) -> dict[str, float]:
    """Return the entries that are finite numbers."""
    return {key: value for key, value in values.items() if value is not None and np.isfinite(value)}


def _doubtful_labels(directions: FailureDirections, grades: Grades) -> tuple[str, ...]:
    """Return a sentence where most failures look like doubtful labels; none where single ones do.

    Label margins alone are no evidence of wrong labels: an image of a rare subpopulation has a lower margin too, and
    where validation is as unbalanced as training, the probe supports its label as little as that of a wrong one.
    """
    failed = as_array(grades.failed)
    if not directions.failures_look_doubtful(failed):
        return ()
    in_doubt, failures = int(np.count_nonzero(as_array(directions.in_doubt) & failed)), int(np.count_nonzero(failed))
    return (
        f"Most failures look like doubtful labels: for {in_doubt} of {failures} the embeddings speak for another class"
        " than the label. Either the labels are wrong, or the failures are a minority of their class too small for the"
        " probe of labels to learn. Review the labels before acting on a pattern.",
    )


def _tree_summary(groups: tuple[GroupReport, ...]) -> dict[str, float]:
    """Return the aggregates of the trees: rates, or differences of rates; validity and the worst slice are held out."""
    grown = [g for g in groups if g.leaves and g.skipped is None]
    with_heldout = [g.heldout_aler_minus_ber for g in grown if g.heldout_aler_minus_ber is not None]
    gains = [g.aler - g.base_error_rate for g in grown if g.aler is not None and g.base_error_rate is not None]
    best_leaves = [max(g.leaves, key=lambda leaf: leaf.importance) for g in grown]
    values: dict[str, float | None] = {
        "aler_minus_ber_mean": mean_of(torch.tensor(gains)),
        "heldout_aler_minus_ber_mean": mean_of(torch.tensor(with_heldout)),
        "valid_leaf_fraction": mean_of(torch.tensor([bool(leaf.heldout_valid) for leaf in best_leaves])),
    }
    worst = max((one for group in groups for one in _slices(group)), key=lambda one: one.lower_bound, default=None)
    values["worst_slice_error_rate"] = None if worst is None else worst.heldout_error_rate
    return defined_numbers(values)


def _slices(group: GroupReport) -> list[LeafReport | NodeReport]:
    """Return what may be the worst slice: the leaves of a tree with a pattern, else the whole group."""
    slices = group.leaves if group.pattern else group.nodes[:1]
    return [one for one in slices if one.interval is not None]


def _fit_directions(task: FitTask, options: DirectionsFit) -> FailureDirections:
    """Fit the directions of the classes that this process owns, and join those of all processes. Collective."""
    grades, partition = task.grades, task.partition
    workers = partition.workers
    mine = np.flatnonzero(partition.rows)
    ids, labels, correct = (as_array(values) for values in (grades.ids, grades.labels, grades.correct))
    x = as_rows(task.values.all(), "embeddings")

    # mean and standard deviation over all processes; rows sorted by id, so that sums do not depend on their order
    standardised_with: tuple[Any, ...]
    if task.reference is None:
        standardised_with = (x, np.argsort(ids[mine], kind="stable"))
    else:
        standardised_with = (as_rows(task.reference, "reference"),)
    with one_thread():
        moments = Moments.joined(workers.gather_results(lambda: Moments.of(*standardised_with)))
        margins, support = None, None
        if options.doubted is not None:
            margins = _label_margins(task, x, moments)
            supports = workers.gather_results(lambda: class_support(margins, labels[mine]))
            support = float(np.concatenate(supports).mean()) if any(map(len, supports)) else None

    errors: list[Exception] = []  # of this process

    def fit_own_classes() -> tuple[FailureDirections, IntArray]:
        fitted = fit_failure_directions(
            x,
            labels[mine],
            correct[mine],
            ids=ids[mine],
            groups=None if grades.groups is None else as_array(grades.groups)[mine],
            reference=moments,
            classes_in_all=_n_fittable(labels, correct, partition.sampled),
            n_directions=options.n_directions,
            permutations=options.permutations,
            doubted=options.doubted,
            margins=margins,
            probe_support=support,
            seed=task.seed,
            device=task.device,
            deadline=task.deadline,
            on_class_error=None if task.raise_class_errors else lambda label, error: errors.append(error),
        )
        return fitted, mine

    parts, rows = zip(*workers.gather_results(fit_own_classes), strict=True)
    whole = len(parts) == 1 and len(mine) == len(grades)
    directions: FailureDirections = parts[0] if whole else join_directions(parts, rows, len(grades))
    directions = replace(directions, centres=_class_centres(task, x, moments))
    if not len(directions.classes) and any(map(is_failed_fit, directions.skipped.values())):
        partition.raise_first(errors)
    errors.clear()  # an error keeps alive what its frames hold
    return directions


def _class_centres(task: FitTask, x: NDArray[Any], moments: Moments) -> torch.Tensor:
    """Return the mean of phi over the examples of each class, (K, D) float32; NaN for one without examples. Collective.

    Args:
        task: The task; each process owns whole classes.
        x: (n, D), the embeddings of this process.
        moments: Moments that phi standardises with.
    """
    grades, partition = task.grades, task.partition
    labels = as_array(grades.labels)[partition.rows]

    def own_centres() -> dict[int, NDArray[np.float32]]:
        mean, std = (column.astype(np.float32) for column in (moments.mean, moments.std))
        with np.errstate(over="ignore", invalid="ignore"):
            return {label: standardize(x[rows], mean, std).mean(axis=0) for label, rows in rows_by_class(labels)}

    centres = np.full((len(grades.class_names), x.shape[1]), np.nan, dtype=np.float32)
    for label, centre in partition.merge_results(own_centres).items():
        centres[label] = centre
    return torch.from_numpy(centres)


def _label_margins(task: FitTask, x: NDArray[Any], moments: Moments) -> FloatArray:
    """Return the label margins of the examples of this process, by a probe of the examples of all. Collective."""
    grades, partition = task.grades, task.partition
    ids, labels = as_array(grades.ids), as_array(grades.labels)
    classes = np.unique(labels[partition.sampled])
    one_row_each = len(np.unique(ids)) == len(ids)

    def add_up(own: Callable[[], Sums]) -> Sums:
        moments_of_ranks, averages_of_ranks = zip(*partition.workers.gather_results(own), strict=True)
        return sum(moments_of_ranks), sum(averages_of_ranks)

    return label_margins(
        x,
        labels[partition.rows],
        (ids if grades.groups is None else as_array(grades.groups))[partition.rows],
        moments.mean,
        moments.std,
        classes=classes,
        rivals=None if one_row_each else classes // 2,  # multilabel: a condition absent, and the same present
        seed=task.seed,
        add_up=add_up,
    )


def _n_fittable(labels: IntArray, correct: BoolArray, sampled: BoolArray) -> int:
    """Return the number of classes with enough failures and successes for a direction."""
    failures = np.bincount(labels[sampled & ~correct])
    successes = np.bincount(labels[sampled & correct])
    n_both = min(len(failures), len(successes))  # later classes have no failure or no success
    enough = (failures[:n_both] >= MIN_PER_OUTCOME) & (successes[:n_both] >= MIN_PER_OUTCOME)
    return int(enough.sum())
