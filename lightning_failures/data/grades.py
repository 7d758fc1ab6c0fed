"""The input of an analysis: the contents of a validation batch, and the grade of every example."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class BatchRecord:
    """The contents of one validation batch; the callback looks for a field that is None by its next rule.

    Attributes:
        logits: (B, K) float for multiclass and multilabel, (B,) or (B, 1) for binary.
        labels: (B,) int; multilabel (B, K) of 0 and 1.
        images: (B, C, H, W) float or uint8, the input of the model (normalised or not).
        ids: (B,) int, unique for each example of the loader.
    """

    logits: Tensor | None = None
    labels: Tensor | None = None
    images: Tensor | None = None
    ids: Tensor | None = None


@dataclass(frozen=True)
class Grades:
    """The label and prediction of every example, sorted by id.

    There is one row per example; in a multilabel task, one row per example and condition.

    Attributes:
        ids: (N,) int64, ascending; the index of the example in the dataset.
        labels: (N,) int64, the true class, an index into ``class_names``.
        predictions: (N,) int64, the predicted class, an index into ``class_names``.
        confidence: (N,) float32 in [0, 1], the predicted probability of the true class.
        class_names: K names. A multilabel task has two per condition: absent and present, in this order.
        groups: (N,) int64, the id of each example's source (a patient, a video); None if all sources differ.
        coverage: Share of the loader's examples that were graded, in [0, 1].
        digests: (N,) int64, digest of each example's image, -1 if it is not known; None if no image was read.
    """

    ids: Tensor
    labels: Tensor
    predictions: Tensor
    confidence: Tensor
    class_names: tuple[str, ...]
    groups: Tensor | None = None
    coverage: float = 1.0
    digests: Tensor | None = None

    @property
    def correct(self) -> Tensor:
        """(N,) bool: the prediction equals the label."""
        return self.predictions == self.labels

    @property
    def failed(self) -> Tensor:
        """(N,) bool: the prediction differs from the label."""
        return self.predictions != self.labels

    def __len__(self) -> int:
        return len(self.ids)
