"""Outputs and batch to grades: which examples are right, and how much the model believed in the truth.

A multilabel task becomes one binary problem for each condition: condition k has the classes 2k (absent) and
2k + 1 (present), and an example has one row for each condition. From here on every task looks like a multiclass one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_failures.data.grades import BatchRecord, Grades
from lightning_failures.errors import DataError

Task = Literal["multiclass", "binary", "multilabel"]

IMAGE_KEYS = ("image", "images", "x", "pixel_values")
LABEL_KEYS = ("label", "labels", "target", "y")

IGNORE_INDEX = -100
"""What PyTorch's losses leave out (``ignore_index``)."""


@dataclass(frozen=True)
class BatchGrades:
    """Rows for the examples of one batch; ``position`` (R,) int64 says which example of the batch a row belongs to.

    ``condition`` (R,) int64 is 0 but for multilabel tasks. All tensors are on the CPU.
    """

    position: Tensor
    condition: Tensor
    labels: Tensor
    predictions: Tensor
    confidence: Tensor


def read_default_batch(outputs: Any, batch: Any) -> BatchRecord:
    """Read what the usual forms of a batch and of a step's return value tell; fields that they don't tell are None.

    Batches are tuples ``(x, y, ...)`` or mappings with one of the keys image, images, x, pixel_values and one of label,
    labels, target, y. Logits come from a mapping returned by the step, under ``logits`` or ``preds``; ``preds`` between
    0 and 1 are taken as probabilities, as torchmetrics does.

    >>> record = read_default_batch({"logits": torch.zeros(2, 3)}, (torch.zeros(2, 1, 4, 4), torch.tensor([0, 2])))
    >>> record.logits.shape, record.labels.tolist(), record.images.shape, record.ids
    (torch.Size([2, 3]), [0, 2], torch.Size([2, 1, 4, 4]), None)
    """
    images = labels = None
    if isinstance(batch, Mapping):
        images, labels = _first(batch, IMAGE_KEYS), _first(batch, LABEL_KEYS)
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        images, labels = batch[0], batch[1]
    logits = None
    if isinstance(outputs, Mapping):
        logits = outputs["logits"] if "logits" in outputs else _without_sigmoid(outputs.get("preds"))
    return BatchRecord(*(value if isinstance(value, Tensor) else None for value in (logits, labels, images)))


def infer_task(logits: Tensor, labels: Tensor) -> Task:
    """Tell the task from the shapes: one logit an example is binary, labels of the shape (B, K) are multilabel.

    >>> infer_task(torch.zeros(4), torch.zeros(4)), infer_task(torch.zeros(4, 1), torch.zeros(4))
    ('binary', 'binary')
    >>> infer_task(torch.zeros(4, 3), torch.zeros(4, 3)), infer_task(torch.zeros(4, 3), torch.zeros(4))
    ('multilabel', 'multiclass')
    """
    if not logits.is_floating_point():
        return "multiclass"
    if logits.ndim == 1 or (logits.ndim == 2 and logits.shape[1] == 1):
        return "binary"
    return "multilabel" if labels.ndim == 2 and labels.shape[1] > 1 else "multiclass"


def grade_batch(logits: Tensor, labels: Tensor, *, task: Task | None = None) -> BatchGrades:
    """Grade one batch.

    Args:
        logits: (B, K) float: raw scores, or probabilities that sum to 1. Binary: (B,) or (B, 1), one raw score an
            example. (B,) int are taken as predicted classes; the confidence is then 1 or 0.
        labels: (B,) int; examples with -100, PyTorch's ``ignore_index``, are left out. Multiclass also takes one-hot
            (B, K); multilabel takes (B, K) of 0 and 1.
        task: None infers it from the shapes.

    Raises:
        DataError: shapes that do not fit, NaN among the logits, labels out of range.

    >>> grades = grade_batch(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))
    >>> grades.predictions.tolist(), [round(c, 2) for c in grades.confidence.tolist()]
    ([0, 1], [0.88, 0.12])
    """
    # a model that squeezes its output leaves no dimension for a batch of one
    logits, labels = (values.detach().cpu().reshape(values.shape or (1,)) for values in (logits, labels))
    task = task or infer_task(logits, labels)
    if len(logits) != len(labels):
        raise DataError(
            f"The batch has {len(labels)} labels but {len(logits)} rows of logits. Return matching ones, or give"
            " read_batch."
        )
    if logits.is_floating_point():
        bad = len(torch.unique(torch.nonzero(torch.isnan(logits))[:, 0]))
        if bad:
            raise DataError(
                f"Logits are NaN for {bad} of {len(logits)} examples: the model diverged, or its input is not finite."
            )
        logits = logits.double().nan_to_num()  # infinite ones become finite; none may change the order
    if task == "multilabel":
        return _grade_multilabel(logits, labels)
    if labels.ndim == 2:
        labels = labels.argmax(1) if labels.shape[1] > 1 else labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"Labels have the shape {tuple(labels.shape)}; {task} labels are (B,).")
    if not torch.equal(labels.long().to(labels.dtype), labels):
        raise DataError(
            f"Labels of a {task} task are class indices, but values such as"
            f" {labels[labels != labels.long()][0].item()} came."
        )
    labels = labels.long()
    position = torch.nonzero(labels != IGNORE_INDEX)[:, 0]
    logits, labels = logits[position], labels[position]
    if task == "binary" and logits.is_floating_point():
        _check_shape(logits, len(labels), 1)
        positive = torch.sigmoid(logits.reshape(-1))
        _check_labels(labels, 2)
        predictions = (positive > 0.5).long()
        confidence = torch.where(labels == 1, positive, 1 - positive)
    elif not logits.is_floating_point():
        if logits.numel() != len(labels):
            raise DataError(f"Predicted classes have the shape {tuple(logits.shape)}; (B,) is needed, or float logits.")
        predictions = logits.reshape(-1).long()
        confidence = (predictions == labels).float()
    else:
        if logits.ndim != 2:
            raise DataError(
                f"Logits have the shape {tuple(logits.shape)}; a multiclass task needs (B, K)."
                " Name the right ones with logits_from or read_batch."
            )
        _check_labels(labels, logits.shape[1])
        predictions = logits.argmax(1)
        confidence = _probabilities(logits).gather(1, labels[:, None])[:, 0]
    return BatchGrades(position, torch.zeros_like(labels), labels, predictions, confidence.float())


def assemble_grades(
    keys: Tensor,
    labels: Tensor,
    predictions: Tensor,
    confidence: Tensor,
    *,
    class_names: Sequence[str],
    conditions: int = 1,
    groups: Tensor | None = None,
    coverage: float = 1.0,
) -> Grades:
    """Build :class:`Grades` from rows keyed by ``id * conditions + condition``.

    With more than one condition, each gets the threshold with the best F1 on these very rows, which makes the
    predictions a little optimistic; they replace ``predictions``.
    """
    if conditions > 1:
        predictions = _multilabel_predictions(keys % conditions, labels, confidence, conditions)
    return Grades(
        ids=keys // conditions,
        labels=labels,
        predictions=predictions,
        confidence=confidence,
        class_names=tuple(class_names),
        groups=groups,
        coverage=coverage,
    )


def best_f1_threshold(positive: Tensor, labels: Tensor) -> float:
    """Return the threshold t for which ``positive >= t`` has the best F1; 0.5 where all labels are equal.

    Args:
        positive: (N,) float, predicted probability of the positive class.
        labels: (N,) 0 or 1.

    >>> best_f1_threshold(torch.tensor([0.1, 0.3, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.3499999940395355
    """
    total = int(labels.sum())
    if total in (0, len(labels)):
        return 0.5
    order = positive.argsort(descending=True, stable=True)
    sorted_positive = positive[order]
    hits = labels[order].cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(labels) + 1) + total)
    last_of_tie = torch.cat([sorted_positive[1:] != sorted_positive[:-1], torch.tensor([True])])
    return float(sorted_positive[torch.where(last_of_tie, f1, -1.0).argmax()])


def expand_class_names(names: Sequence[str], task: Task) -> tuple[str, ...]:
    """Give a multilabel condition its two classes, and a binary task with one name its negative.

    >>> expand_class_names(["edema"], "multilabel"), expand_class_names(["cat", "dog"], "multiclass")
    (('no edema', 'edema'), ('cat', 'dog'))
    """
    if task == "multilabel" or (task == "binary" and len(names) == 1):
        return tuple(name for condition in names for name in (f"no {condition}", condition))
    return tuple(names)


def _grade_multilabel(logits: Tensor, labels: Tensor) -> BatchGrades:
    if labels.shape != logits.shape:
        raise DataError(
            f"Multilabel labels {tuple(labels.shape)} must have the shape of the logits {tuple(logits.shape)}."
        )
    _check_labels(labels, 2)
    size, conditions = logits.shape
    positive, truth = torch.sigmoid(logits).float().reshape(-1), labels.long().reshape(-1)
    condition = torch.arange(conditions).repeat(size)
    return BatchGrades(
        position=torch.arange(size).repeat_interleave(conditions),
        condition=condition,
        labels=2 * condition + truth,
        predictions=2 * condition + (positive > 0.5).long(),
        confidence=torch.where(truth == 1, positive, 1 - positive),
    )


def _multilabel_predictions(condition: Tensor, labels: Tensor, confidence: Tensor, conditions: int) -> Tensor:
    truth = labels % 2
    # rounded alike for either truth: else equal probabilities would differ by the truth, and a threshold would see it
    positive = 1 - torch.where(truth == 1, 1 - confidence, confidence)
    thresholds = torch.tensor(
        [best_f1_threshold(positive[condition == k], truth[condition == k]) for k in range(conditions)]
    )
    return 2 * condition + (positive >= thresholds[condition]).long()


def _probabilities(scores: Tensor) -> Tensor:
    return scores if bool((scores >= 0).all()) and _sums_to_one(scores) else scores.softmax(1)


def _sums_to_one(scores: Tensor) -> bool:
    """As the rows of a softmax do, with room for half precision."""
    return bool(((scores.sum(1) - 1).abs() < 0.02).all())


def _check_shape(logits: Tensor, size: int, columns: int) -> None:
    if logits.numel() != size * columns:
        raise DataError(
            f"Logits have the shape {tuple(logits.shape)}; a binary task has one for each of the {size} examples."
        )


def _check_labels(labels: Tensor, classes: int) -> None:
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise DataError(
            f"Labels run from {int(labels.min())} to {int(labels.max())}, but the {classes} classes allow 0 to"
            f" {classes - 1}."
        )


def _without_sigmoid(preds: Any) -> Any:
    """Probabilities of a binary or multilabel task as raw scores; all else as it is."""
    if not isinstance(preds, Tensor) or not preds.is_floating_point() or not ((preds >= 0) & (preds <= 1)).all():
        return preds
    if preds.ndim == 2 and preds.shape[1] > 1 and _sums_to_one(preds.float()):
        return preds  # of a softmax
    return torch.logit(preds.float(), eps=1e-7)


def _first(mapping: Mapping[Any, Any], keys: Sequence[str]) -> Any:
    return next((mapping[key] for key in keys if key in mapping), None)
