"""The records that enter the analysis: what a validation batch holds, and right or wrong for every example."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class BatchRecord:
    """What one validation batch tells. Any field that is None falls to the next rule of how grades are found.

    Attributes:
        logits: (B, K) float for multiclass and multilabel, (B,) or (B, 1) for binary.
        labels: (B,) int; multilabel (B, K) of 0 and 1.
        images: (B, C, H, W) float or uint8, as the model saw them (normalised or not).
        ids: (B,) int, unique for each example of the loader.
    """

    logits: Tensor | None = None
    labels: Tensor | None = None
    images: Tensor | None = None
    ids: Tensor | None = None


@dataclass(frozen=True)
class Grades:
    """Right or wrong for every example, sorted by id.

    One row an example; in a multilabel task one row an example and condition.

    Attributes:
        ids: (N,) int64, ascending; the index in the dataset.
        labels: (N,) int64, the class that is true, an index into ``class_names``.
        predictions: (N,) int64, the class predicted.
        confidence: (N,) float32 in [0, 1], the predicted probability of the true class.
        class_names: K names. A multilabel task has two for each condition, absent and present, in this order.
        groups: (N,) int64 source ids, or None where every example is its own source.
        coverage: Share of the loader's examples that were graded, in [0, 1].
    """

    ids: Tensor
    labels: Tensor
    predictions: Tensor
    confidence: Tensor
    class_names: tuple[str, ...]
    groups: Tensor | None = None
    coverage: float = 1.0

    @property
    def correct(self) -> Tensor:
        """(N,) bool."""
        return self.predictions == self.labels

    @property
    def failed(self) -> Tensor:
        """(N,) bool: the prediction is not the label."""
        return self.predictions != self.labels

    def __len__(self) -> int:
        return len(self.ids)
