"""Notes of the report on what was taken for logits and labels, and doubts about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_failures.core.arrays import as_array
from lightning_failures.core.types import IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.readings import VERDICTS, LogitsSource

ACCURACY_KEYS = {"acc", "accuracy", "acc1", "top1", "acc_top1", "accuracy_top1"}
"""Names, without the stage, under which modules log the share of correct predictions."""

STAGES = ("val", "valid", "validation", "test", "eval")

TOLERANCE = 0.02
"""Difference of two accuracies that rounding and means over batches explain."""

SIGNIFICANT = 4.0
"""Standard errors by which accuracy must lie below chance, or above, to be no coincidence."""

_REMEDY = "name the submodule that computes the logits (logits_from='net'), or give read_batch"


@dataclass(frozen=True)
class GradingNotes:
    """Sentences on how the examples of a loader were graded.

    Attributes:
        notes: What was taken for what.
        doubts: Signs that this was wrong, each with a remedy; they are also warnings.
    """

    notes: tuple[str, ...]
    doubts: tuple[str, ...]


def grading_notes(grader: Grader, grades: Grades, logged: Mapping[str, float]) -> GradingNotes:
    """Return the notes and doubts on the grades of a loader.

    Args:
        grader: Has returned these grades.
        grades: N rows.
        logged: Metrics that the module itself logged in this evaluation, by key.
    """
    reading = grader.reading
    if reading is None or not len(grades):
        return GradingNotes((), ())
    if reading == VERDICTS:
        return GradingNotes((_of_verdicts(grader, grades),), ())
    notes = [_taken(grader), *_label_notes(grader), *_source_notes(grader)]
    doubts = _scale_doubts(grader)
    if reading.task != "multilabel":
        unusual, below_chance = _column_doubt(grader, grades)
        (doubts if below_chance else notes).extend(unusual)
    if difference := accuracy_difference(_accuracies(grades), logged):
        doubts.append(difference)
    return GradingNotes(tuple(notes), tuple(doubts))


def _of_verdicts(grader: Grader, grades: Grades) -> str:
    by = "labels are the classes" if grader.facts.labelled else "without labels, all examples are one group"
    return f"Graded by the verdict of read_batch on each example; {by}. There are no predicted classes."


def _taken(grader: Grader) -> str:
    """Return the sentence that says what was taken for what."""
    reading, columns = grader.reading, grader.columns
    assert reading is not None
    scores = {
        "classes": "predicted classes",
        "logits": f"{columns} raw score{'' if columns == 1 else 's'} per example",
        "verdicts": "verdicts",
        "probabilities": f"{columns} probabilit{'y' if columns == 1 else 'ies'} per example",
    }[reading.scale]
    sources = " and ".join(sorted(source.value for source in grader.facts.sources))
    return f"Graded as a {reading.task} task from {scores}, {sources}."


def _label_notes(grader: Grader) -> list[str]:
    notes, reading, fractions = [], grader.reading, grader.facts.fractions
    assert reading is not None
    if grader.facts.one_hot and reading.task == "multiclass":
        notes.append(
            f"Labels have {grader.columns} columns that sum to 1 for every example, so they are read as one-hot labels"
            " of one class each (multiclass). If they are independent conditions, give"
            " DataOptions(task='multilabel')."
        )
    elif grader.facts.one_hot and grader.facts.exclusive and grader.columns == 2:
        notes.append(
            "Labels have two columns of which exactly one is 1 in every example; they are read as two conditions. If"
            " they are one-hot labels of one class each, give DataOptions(task='multiclass')."
        )
    if fractions is not None:
        meaning = "the largest column is the class" if reading.task == "multiclass" else "those above 0.5 count as 1"
        notes.append(f"Labels are no integers but fractions from {fractions[0]:.4g} to {fractions[1]:.4g}: {meaning}.")
    return notes


def _source_notes(grader: Grader) -> list[str]:
    facts, notes = grader.facts, []
    if LogitsSource.EXTRA_FORWARD in facts.sources:
        stacked = ""
        if facts.stacked is not None:
            rows, examples = facts.stacked
            stacked = f"; the step called the model on {rows} rows for a batch of {examples} (test-time augmentation?)"
        notes.append(
            "The step computed no logits of the batch itself, so each batch took another forward, whose result may not"
            f" be that of the step{stacked}. Return {{'logits': ...}} from the step to grade what it computes."
        )
    if facts.disagreeing:
        notes.append(
            "The step returned predicted classes, and the scores that the model computed during the step predict"
            f" another class for {facts.disagreeing} examples, so the classes count and confidence is 1 or 0. Return"
            " {'logits': ...} from the step to have confidence."
        )
    elif grader.reading is not None and grader.reading.scale == "classes":
        notes.append("The step returned predicted classes without logits, so confidence is 1 or 0.")
    return notes


def _scale_doubts(grader: Grader) -> list[str]:
    reading = grader.reading
    assert reading is not None
    if not grader.look_like_probabilities:
        return []
    taken = (
        "they are taken for probabilities, as their labels suggest. If they are logits, return {'logits': ...} from the"
        " step; if they are probabilities, return {'preds': ...}."
        if reading.scale == "probabilities"
        else "each counts as positive, although they fit the labels better as probabilities. If that is what they are,"
        " return {'preds': ...} from the step, or give read_batch for the logits."
    )
    return [f"All scores of this {reading.task} task lie between 0 and 1: {taken}"]


def _column_doubt(grader: Grader, grades: Grades) -> tuple[list[str], bool]:
    """Return at most one sentence about scores that may be no logits, and whether accuracy makes it a doubt."""
    assert grades.predictions is not None
    labels, predictions = as_array(grades.labels), as_array(grades.predictions)
    accuracy, chance, error = _chance(labels, predictions, len(grades.class_names))
    columns, largest = grader.columns or 0, grader.facts.largest_label
    if not grader.has_names and largest + 1 < columns:
        sentence = (
            f"The output has {columns} columns, but labels run only up to {largest}: it may be an embedding, not"
            f" logits. If so, {_REMEDY}; else give class_names."
        )
        return [sentence], accuracy <= chance + SIGNIFICANT * error
    if accuracy < chance - SIGNIFICANT * error:
        sentence = (
            f"Accuracy is {accuracy:.3f}, below the {chance:.3f} that predictions unrelated to the labels would reach:"
            f" the output may be no logits, or its columns may be in another order than the labels. If so, {_REMEDY}."
        )
        return [sentence], True
    return [], False


def _chance(labels: IntArray, predictions: IntArray, classes: int) -> tuple[float, float, float]:
    """Return accuracy, the accuracy of the same predictions if they were unrelated to the labels, and its error."""
    share_of_labels = np.bincount(labels, minlength=classes) / len(labels)
    share_of_predictions = np.bincount(predictions, minlength=classes) / len(labels)
    chance = float(share_of_labels @ share_of_predictions)
    return float((labels == predictions).mean()), chance, float(np.sqrt(chance * (1 - chance) / len(labels)))


def comparable_accuracies(grader: Grader, grades: Grades) -> list[float]:
    """Return what may agree with an accuracy that the module logs; nothing for verdicts, or without examples."""
    is_comparable = grader.reading is not None and grader.reading != VERDICTS and len(grades) > 0
    return _accuracies(grades) if is_comparable else []


def accuracy_difference(ours: Sequence[float], logged: Mapping[str, float]) -> str | None:
    """Return how our accuracy differs from the one that the module logged; None if it agrees or there is none.

    Args:
        ours: Accuracies with which it may agree, that of examples first; see :func:`comparable_accuracies`.
        logged: Metrics that the module itself logged in this evaluation, by key.
    """
    for key, value in logged.items() if ours else ():
        if _is_accuracy(key) and 0 <= value <= 1 and all(abs(value - one) > TOLERANCE for one in ours):
            return (
                f"Accuracy is {ours[0]:.4f} here, but the module logged {key} = {value:.4f}. If both should be equal,"
                f" the output that was graded is not the one that the step evaluates: {_REMEDY}."
            )
    return None


def _is_accuracy(key: str) -> bool:
    """Return whether a key names the share of correct predictions.

    >>> [_is_accuracy(key) for key in ("val_acc", "val/accuracy", "Val-Acc/dataloader_idx_0", "val_acc_top5")]
    [True, True, True, False]
    """
    name = key.lower().split("/dataloader_idx_")[0].removesuffix("_epoch")
    for mark in "/-. ":
        name = name.replace(mark, "_")
    for stage in STAGES:
        name = name.removeprefix(f"{stage}_").removesuffix(f"_{stage}")
    return name in ACCURACY_KEYS


def _accuracies(grades: Grades) -> list[float]:
    """Return the accuracies that a module may log: of examples, of classes, of exact matches; also at threshold 0.5."""
    correct, labels = as_array(grades.correct).astype(np.float64), as_array(grades.labels)
    rows = [correct] if grades.confidence is None else [correct, as_array(grades.confidence) > 0.5]
    found = []
    for right in rows:
        found.append(float(right.mean()))
        sizes = np.bincount(labels)
        found.append(float((np.bincount(labels, weights=right)[sizes > 0] / sizes[sizes > 0]).mean()))
        _, example = np.unique(as_array(grades.ids), return_inverse=True)
        found.append(float((np.bincount(example, weights=1 - right) == 0).mean()))
    return found
