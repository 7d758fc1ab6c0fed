"""Fit of the sparse decision layers: one layer for the model, or in a multilabel task a binary one for each condition.

Source: Wong, Santurkar and Madry, Leveraging Sparse Linear Layers for Debuggable Deep Networks, ICML 2021; see
:mod:`lightning_failures.sparse`. Ours: layers of conditions, and balanced accuracy for rare ones.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_failures.analysis.method import Contribution, FitTask, TrainingFeatures
from lightning_failures.analysis.sparse_cards import HeldOut
from lightning_failures.analysis.sparse_findings import (
    LayerFindings,
    examine,
    join_findings,
    sparse_section,
    sparse_summary,
)
from lightning_failures.core.arrays import as_array
from lightning_failures.core.budget import Deadline
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.serialization import to_jsonable
from lightning_failures.core.threads import one_thread
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.class_names import absent_condition
from lightning_failures.data.grades import Grades
from lightning_failures.errors import DataError
from lightning_failures.sparse.debug import right_reasons
from lightning_failures.sparse.layer import ChosenRows, SparseLayer, fit_sparse_layer

MAX_DROP = 0.05
"""How far below the best accuracy the layer may lie."""

N_LAMBDAS = 60
"""Length of the path, down to 0.001 of the largest lambda."""

MAX_SECONDS = 600.0
"""Time for the paths if the analysis has no budget; a path that is cut has a shorter curve."""

RARE = 0.2
"""Share of a condition, or of its absence, below which its layer has balanced classes: in the fit and in accuracies."""

_CELLS = 20_000_000  # of the logits of the held-out examples
_SMALL = 100_000_000  # features of the held-out examples, up to which one thread is used


@dataclass(frozen=True, eq=False)
class SpuriousFeatures:
    """Penultimate features that people call spurious, and the last layer of the model that uses them.

    Attributes:
        features: Their indices.
        weight: (K, D) of the last layer; None if it is not linear.
        bias: (K,) of the last layer; None if it is not linear.
    """

    features: tuple[int, ...]
    weight: NDArray[Any] | None = None
    bias: NDArray[Any] | None = None

    def measure(self, layer: SparseLayer, held_out: HeldOut) -> dict[str, Any] | None:
        """Return the accuracies of the model and of a sparse layer without the features, as plain values."""
        known = [feature for feature in self.features if 0 <= feature < held_out.features.shape[1]]
        if not known or not len(held_out):
            return None
        x, y = held_out.x, held_out.labels
        found: dict[str, Any] = {
            "sparse": to_jsonable(right_reasons(x, y, known, weight=layer.weight, bias=layer.bias))
        }
        fits = self.weight is not None and self.weight.shape[1] == x.shape[1] and len(self.weight) > y.max()
        if fits:
            found["model"] = to_jsonable(right_reasons(x, y, known, weight=self.weight, bias=self.bias))
        return found


@dataclass(frozen=True)
class SparseFit:
    """Fit of a sparse layer to penultimate features of the training set; the examples of the task are held out.

    The layer is fitted once, on the first process. Where the training set cannot be read, it is fitted to half of the
    examples of the task, whole sources, and the other half is held out. In a multilabel task each condition has a
    binary layer, chosen from a path of its own.

    Attributes:
        max_drop: How far below the best accuracy the layer may lie; of a rare condition, balanced accuracy.
        n_lambdas: Length of the path.
        spurious: Features that people call spurious: accuracy is also measured without them, in a task with one label
            for each example. None: no such features.
    """

    name: ClassVar[str] = "sparse"
    by_prediction: ClassVar[bool] = False
    max_drop: float = MAX_DROP
    n_lambdas: int = N_LAMBDAS
    spurious: SpuriousFeatures | None = None

    def fit(self, task: FitTask) -> Contribution:
        """Gather the features on the first process, fit there, and give the findings to all processes. Collective."""
        workers = task.partition.workers
        if (reason := _unsupported(task.grades)) is not None:
            return Contribution(notes=(f"No sparse decision layers: {reason}",))
        if any(workers.gather_results(lambda: task.deadline is not None and task.deadline.passed)):
            return Contribution(notes=("No sparse decision layers: the time budget was spent on other methods.",))
        mine = np.flatnonzero(task.partition.rows & _sampled(task))
        all_ids = as_array(task.grades.ids)
        once = mine[np.unique(all_ids[mine], return_index=True)[1]]  # conditions of an example share its features
        parts = workers.gather_results(lambda: (mine, all_ids[once], np.asarray(as_array(task.values[once]))))
        rows = np.sort(np.concatenate([part for part, _, _ in parts]))
        ids, first = np.unique(np.concatenate([part for _, part, _ in parts]), return_index=True)
        features = np.concatenate([part for *_, part in parts if len(part)])[first] if len(rows) else None
        del parts

        reading = None if task.deadline is None else Deadline.after(task.deadline.left / 2)
        training = None if task.training is None else task.training(reading)

        def study() -> Contribution:
            if workers.rank:
                return Contribution()
            if features is None:
                return Contribution(notes=("No sparse decision layers: no example has penultimate features.",))
            held_out = _held_out(task.grades, rows, ids, features)
            small = len(rows) * features.shape[1] <= _SMALL
            try:
                with one_thread() if small else nullcontext():  # waiting for other threads costs more than they bring
                    return self._study(task, held_out, training)
            except DataError as error:
                return Contribution(notes=(f"No sparse decision layers: {error}",))

        return workers.gather_results(study)[0]

    def _study(self, task: FitTask, held_out: HeldOut, training: TrainingFeatures | None) -> Contribution:
        """Fit the layers, and ask each error on held-out examples which feature did it; on the first process.

        Args:
            task: The task.
            held_out: All sampled examples.
            training: The training examples, or why there are none.
        """
        names = task.grades.class_names
        multilabel = _is_multilabel(task.grades)
        split = _split(held_out, training, task.seed, conditions=len(names) // 2 if multilabel else 0)
        deadline = task.deadline or Deadline.after(MAX_SECONDS)
        notes = list(split.notes)
        if multilabel:
            layers, skipped = self._fit_conditions(task, split, deadline)
            notes += skipped
        else:
            known = split.held_out.labels <= int(split.labels.max(initial=-1))
            if not known.all() and split.source == "train":
                n_unknown = int((~known).sum())
                of = "example is" if n_unknown == 1 else "examples are"
                notes.append(
                    f"{n_unknown} {of} not examined by the sparse layer: of a class without training examples."
                )
            split = replace(split, held_out=split.held_out.take(known))
            layers = [self._fit_one(task, split.features, split.labels, split.held_out, deadline)]
        shortest = min(len(one.layer.curve.lambdas) for one in layers)
        if shortest < self.n_lambdas:
            notes.append(
                f"The path of sparse layers ends after {shortest} of {self.n_lambdas} values of lambda: the time was"
                " spent."
            )
        found = join_findings(layers, split.held_out, multilabel=multilabel)
        if any(one.effects is None for one in layers):
            notes.append("Which features are worth masking is not computed: there are too many classes and features.")
        section = sparse_section(found, names) | {
            "max_drop": self.max_drop,
            "fitted_on": {"source": split.source, "examples": len(split.labels), "of": split.total},
        }
        if self.spurious is not None and not multilabel:
            section |= {"right_reasons": self.spurious.measure(found.layer, split.held_out)}
        return Contribution(found, sparse_summary(found), section=section, notes=tuple(notes))

    def _fit_conditions(
        self, task: FitTask, split: _Split, deadline: Deadline
    ) -> tuple[list[LayerFindings], list[str]]:
        """Return the findings of each condition, and sentences on those that have none.

        Raises:
            DataError: There are none of any condition.
        """
        names = task.grades.class_names
        n_conditions = len(names) // 2
        if split.labels.ndim != 2 or split.labels.shape[1] != n_conditions:
            raise DataError(
                f"labels of the training examples must be (M, {n_conditions}), one for each condition; got"
                f" {split.labels.shape}."
            )
        layers: list[LayerFindings] = []
        problems: dict[str, list[str]] = {}
        for k in range(n_conditions):
            labels, held_out = split.labels[:, k], split.held_out.of_condition(k)
            known = labels >= 0
            share = deadline.left / (n_conditions - k)
            try:
                features = split.features if known.all() else ChosenRows(split.features, known)
                found = self._fit_one(
                    task, features, labels[known], held_out, Deadline.after(share), first=2 * k, n_layers=n_conditions
                )
            except DataError as error:
                problems.setdefault(str(error), []).append(names[2 * k + 1])
            else:
                layers.append(found)
        if not layers:
            raise DataError(next(iter(problems)))
        return layers, [f"No sparse layer for {', '.join(of)}: {problem}" for problem, of in problems.items()]

    def _fit_one(
        self,
        task: FitTask,
        features: Any,
        labels: IntArray,
        held_out: HeldOut,
        deadline: Deadline,
        *,
        first: int = 0,
        n_layers: int = 1,
    ) -> LayerFindings:
        """Fit one layer and examine it.

        Args:
            task: The task.
            features: (M, D) to fit to, as a matrix or an iterable of blocks.
            labels: (M,) int64, classes of the layer.
            held_out: The held-out examples, with the same classes.
            deadline: Time after which the path ends.
            first: Index of the first class of the layer among all classes.
            n_layers: Number of layers of the task; of several, those with a rare class are balanced.
        """
        if not len(held_out):
            raise DataError("no example is left to examine.")
        if n_layers > 1 and len(np.unique(labels)) < 2:
            raise DataError("all examples to fit to have the same label.")
        balanced = n_layers > 1 and float(np.bincount(labels, minlength=2).min()) < RARE * len(labels)
        layer: SparseLayer = fit_sparse_layer(
            features,
            labels,
            validation=(held_out.x, held_out.labels),
            max_drop=self.max_drop,
            balanced=balanced,
            n_lambdas=self.n_lambdas,
            seed=task.seed,
            device=task.device,
            deadline=deadline,
        )
        return examine(layer, held_out, task.seed, first=first, n_layers=n_layers)


@dataclass(frozen=True, eq=False)
class _Split:
    """What the layers are fitted to, and the examples of the task that are held out.

    Attributes:
        features: Features to fit to, as a matrix or an iterable of blocks.
        labels: (M,) int64, their labels; in a multilabel task (M, K) of 0, 1 and -1, which is unknown.
        source: "train" or "validation".
        total: Number of examples of which these are a sample.
        held_out: The held-out examples.
        notes: Sentences for the notes of the report.
    """

    features: Any
    labels: IntArray
    source: str
    total: int
    held_out: HeldOut
    notes: tuple[str, ...]


def _held_out(grades: Grades, rows: IntArray, ids: IntArray, features: NDArray[Any]) -> HeldOut:
    """Return rows of the grades with the features of their examples, whose ids are ascending."""
    row_ids = as_array(grades.ids)[rows]
    return HeldOut(
        features,
        np.searchsorted(ids, row_ids),
        as_array(grades.labels)[rows],
        as_array(grades.predictions)[rows],
        row_ids,
        None if grades.groups is None else as_array(grades.groups)[rows],
    )


def _split(rows: HeldOut, training: TrainingFeatures | None, seed: int, *, conditions: int = 0) -> _Split:
    """Fit to the training examples, and without them to half of the examples of the task, whole sources.

    Args:
        rows: All rows.
        training: The training examples, or why there are none.
        seed: Seed of the halves.
        conditions: Number of conditions of a multilabel task, else 0.
    """
    if training is not None and training.features is not None:
        return _Split(training.features, training.labels, "train", training.total, rows, training.notes)
    names = rows.ids if rows.sources is None else np.unique(rows.sources, return_inverse=True)[1]
    half = stable_hash(names.astype(np.int64), seed) % np.uint64(2) == 1
    fitting = rows.take(half)
    features, labels = fitting.x, fitting.labels
    if conditions:
        places, example = np.unique(fitting.place, return_inverse=True)
        features = rows.features[places]
        labels = np.full((len(places), conditions), -1)
        labels[example, fitting.labels // 2] = fitting.labels % 2
    total = len(np.unique(rows.ids))
    problem = "their features were not given." if training is None else training.problem
    note = (
        f"The sparse decision layer is fitted to {len(labels)} of the {total} evaluated examples and examined on"
        f" the others, not fitted to training images: {problem}"
    )
    return _Split(features, labels, "validation", total, rows.take(~half), (note,))


def _unsupported(grades: Grades) -> str | None:
    """Return why there can be no layer, the same on all processes; None if there can."""
    if grades.predictions is None or grades.verdicts is not None:
        return "examples have verdicts instead of predicted classes."
    if len(grades.class_names) < 2:
        return "there is a single class."
    if _is_multilabel(grades) and not _has_conditions(grades):
        return "an example has several rows that are not of different conditions."
    return None


def _is_multilabel(grades: Grades) -> bool:
    """Return whether examples have several rows, or one row each that is of one of several conditions."""
    if len(torch.unique(grades.ids)) < len(grades.ids):
        return True
    names = grades.class_names
    absent = [absent_condition(name, names) for name in names[::2]]
    return len(names) > 2 and absent == list(names[1::2]) and _has_conditions(grades)


def _has_conditions(grades: Grades) -> bool:
    """Return whether rows are conditions: two classes each, and at most one row for each example."""
    labels, predictions = as_array(grades.labels), as_array(grades.predictions)
    n_conditions, odd = divmod(len(grades.class_names), 2)
    if odd or not np.array_equal(labels // 2, predictions // 2):
        return False
    numbers = np.unique(as_array(grades.ids), return_inverse=True)[1]
    return len(np.unique(numbers * n_conditions + labels // 2)) == len(labels)


def _sampled(task: FitTask) -> BoolArray:
    """Return which rows are held out, (N,) bool: all, or a sample by hash whose logits fit into memory."""
    most = max(_CELLS // len(task.grades.class_names), 1)
    rows = np.flatnonzero(task.partition.sampled)
    if len(rows) > most:
        order = np.argsort(stable_hash(as_array(task.grades.ids)[rows], task.seed), kind="stable")
        rows = rows[order[:most]]
    chosen = np.zeros(len(task.grades), dtype=bool)
    chosen[rows] = True
    return chosen
