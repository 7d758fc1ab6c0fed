"""What the scores and labels of a loader may mean, narrowed down batch by batch and decided once for the whole loader.

A batch alone can mislead: raw scores of a batch of one may all lie in [0, 1], and labels of independent conditions may
happen to hold one condition each. So every reading that no batch has ruled out is graded, and one is chosen at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from torch import Tensor

from lightning_failures.data.grading import BatchGrades, Task, are_distributions, grade_batch, infer_task

Scale = Literal["classes", "logits", "probabilities", "verdicts"]

_SCALES: tuple[Scale, ...] = ("logits", "probabilities")


class LogitsSource(Enum):
    """Where the scores of a batch come from, in the order of preference."""

    STEP_OUTPUT = "returned by the step"
    PREDS = "returned by the step as preds"
    OBSERVED = "observed during the step"
    EXTRA_FORWARD = "computed by an extra forward"
    VERDICT = "not needed: read_batch gives verdicts"


@dataclass(frozen=True)
class ScoredBatch:
    """The scores and labels of one batch, on the CPU.

    Attributes:
        scores: (B, K) or (B,), float scores or integer classes.
        labels: (B,) or (B, K).
        source: Where the scores come from.
        observed: (B, K) or (B,) float, the scores that the step computed beside the classes that it returned; or None.
    """

    scores: Tensor
    labels: Tensor
    source: LogitsSource
    observed: Tensor | None = None

    @property
    def are_classes(self) -> bool:
        """Whether the scores are predicted classes."""
        return not self.scores.is_floating_point()

    def take(self, rows: Tensor) -> ScoredBatch:
        """Return some of the examples, ``rows`` (B,) bool."""
        observed = None if self.observed is None else self.observed[rows]
        return ScoredBatch(self.scores[rows], self.labels[rows], self.source, observed)

    @property
    def soft_scores(self) -> Tensor | None:
        """The float scores, if there are any."""
        return self.observed if self.are_classes else self.scores


@dataclass(frozen=True)
class Reading:
    """One way to read scores and labels.

    Attributes:
        task: The task.
        scale: Whether scores are predicted classes, raw scores, probabilities, or verdicts on the examples.
    """

    task: Task
    scale: Scale

    def grade(self, batch: ScoredBatch) -> BatchGrades:
        """Grade a batch that this reading fits."""
        if self.scale == "classes":
            hard = batch.scores.float() if self.task == "multilabel" else batch.scores
            return grade_batch(hard, batch.labels, task=self.task, probabilities=True)
        scores = batch.soft_scores
        assert scores is not None
        return grade_batch(scores, batch.labels, task=self.task, probabilities=self.scale == "probabilities")

    def fits(self, batch: ScoredBatch, given: Task | None) -> bool:
        """Return whether a batch, of a task that the user gave or did not give, can be meant in this way."""
        labels = batch.labels
        is_one_hot = labels.ndim == 2 and labels.shape[1] > 1
        if given is None and self.task == "multiclass" and is_one_hot and not are_distributions(labels):
            return False
        if self.scale == "classes":
            return True
        scores = batch.soft_scores
        if scores is None:
            return False
        if self.scale == "probabilities" and not _may_be_probabilities(scores, self.task):
            return False
        return not batch.are_classes or self.disagreeing(scores, batch.scores) == 0

    def of_form(self, batch: ScoredBatch) -> Reading:
        """Return this reading, or the nearest one that fits the form of a batch that was read outside of the loop."""
        if batch.are_classes == (self.scale == "classes"):
            return self
        if batch.are_classes:
            return replace(self, scale="classes")
        return next(one for one in first_readings(batch, self.task) if one.fits(batch, self.task))

    def disagreeing(self, scores: Tensor, classes: Tensor) -> int:
        """Return how many of the predicted classes (B,), or (B, K) of 0 and 1, are not those of the scores."""
        if self.task == "multiclass" and scores.ndim != 2:
            return len(classes)
        predicted, classes = self._predictions(scores), classes.long().reshape(-1)
        return int((predicted != classes).sum()) if predicted.shape == classes.shape else len(classes)

    def _predictions(self, scores: Tensor) -> Tensor:
        if self.task == "multiclass":
            return scores.argmax(1)
        return (scores > (0.5 if self.scale == "probabilities" else 0.0)).long().reshape(-1)


VERDICTS = Reading("multiclass", "verdicts")
"""The reading of examples that ``read_batch`` judges."""


def first_readings(batch: ScoredBatch, given: Task | None) -> tuple[Reading, ...]:
    """Return the readings that the shapes of a batch allow, the preferred ones first.

    Labels with two columns are two conditions, such as bright and dark, which may exclude each other.

    >>> import torch
    >>> labels = torch.tensor([[1, 0, 0], [0, 1, 0]])
    >>> first_readings(ScoredBatch(torch.randn(2, 3), labels, LogitsSource.OBSERVED), None)[0]
    Reading(task='multiclass', scale='probabilities')
    """
    shaped, labels = batch.scores if batch.soft_scores is None else batch.soft_scores, batch.labels
    tasks: list[Task] = [given or infer_task(shaped, labels)]
    if batch.are_classes and batch.scores.ndim == 2 and batch.scores.shape == labels.shape and labels.shape[1] > 1:
        tasks = [given or "multilabel"]
    elif given is None and tasks == ["multilabel"] and shaped.shape == labels.shape and labels.shape[1] > 2:
        tasks = ["multiclass", "multilabel"]
    scales: list[Scale] = ["probabilities", "logits"] if batch.soft_scores is not None else []
    if batch.are_classes:
        scales.append("classes")
    return tuple(Reading(task, scale) for task in tasks for scale in scales)


def disagreement(batch: ScoredBatch, possible: tuple[Reading, ...]) -> int:
    """Return how many predicted classes of a batch differ from the scores beside them, by the readings until now."""
    if batch.observed is None or not batch.are_classes or not possible:
        return 0
    scores = batch.observed
    tasks = {reading.task for reading in possible}
    return min(Reading(task, scale).disagreeing(scores, batch.scores) for task in tasks for scale in _SCALES)


def _may_be_probabilities(scores: Tensor, task: Task) -> bool:
    if task == "multiclass":
        return scores.ndim == 2 and are_distributions(scores)
    return bool(((scores >= 0) & (scores <= 1)).all())
