"""Grade a batch: compare outputs with labels, and compute the predicted probability of the true class.

A multilabel task becomes one binary problem per condition: condition k has the classes 2k (absent) and 2k + 1
(present), and an example has one row per condition. All later stages can therefore treat every task as multiclass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_failures.data.class_names import both_classes
from lightning_failures.data.grades import BatchRecord, Grades
from lightning_failures.errors import DataError

Task = Literal["multiclass", "binary", "multilabel"]

IMAGE_KEYS = ("image", "images", "x", "pixel_values", "img", "png", "jpg", "jpeg", "webp")
LABEL_KEYS = ("label", "labels", "target", "y", "fine_label", "cls")

_UNKNOWN = (-1, 255, -100)
"""Labels that mark a condition of a multilabel task as unknown; NaN is another."""

IGNORE_INDEX = -100
"""Label of examples that PyTorch's losses ignore by default (``ignore_index``)."""

UNLABELLED_REMEDY = (
    "If another number, such as -1 or 255, marks examples without a label, replace it by -100: return"
    " BatchRecord(labels=labels.masked_fill(labels == -1, -100)) from read_batch."
)
"""What to do about labels that are no class."""

VERDICT_REMEDY = (
    "FailureModes grades classifiers by itself. For segmentation, detection or regression, return a verdict on each"
    " example from read_batch: BatchRecord(correct=...), booleans, or BatchRecord(score=...), numbers such as the IoU"
    " of each image, with FailureModes(failed_below=0.5)."
)
"""What to do about labels that name no class."""

_EPSILON = 1e-7
"""Distance that probabilities keep from 0 and 1."""


@dataclass(frozen=True)
class Columns:
    """The columns of a dataset whose types say what they hold.

    Attributes:
        images: Names of the columns of images.
        labels: Names of the columns of class labels.
    """

    images: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchGrades:
    """The R graded rows of one batch; all tensors are on the CPU.

    Attributes:
        position: (R,) int64, the index in the batch of the example that the row belongs to.
        condition: (R,) int64, the condition of a multilabel task; 0 in other tasks.
        labels: (R,) int64, the true class.
        predictions: (R,) int64, the predicted class.
        confidence: (R,) float32 in [0, 1], the predicted probability of the true class.
        margin: (R,) float32 in [-1, 1], that probability minus the largest of the others.
    """

    position: Tensor
    condition: Tensor
    labels: Tensor
    predictions: Tensor
    confidence: Tensor
    margin: Tensor


def read_default_batch(outputs: Any, batch: Any, columns: Columns | None = None) -> BatchRecord:
    """Extract logits, labels and images from the common forms of a batch and of a step's return value.

    A batch is a tuple ``(x, y, ...)``, or a mapping with one of ``IMAGE_KEYS`` and one of ``LABEL_KEYS``. Where ``x``
    is a list of tensors, such as two views of each image, the first of them counts. Logits are read from a mapping that
    the step returns, under ``logits`` or ``preds``. Fields that are not found are None.

    Args:
        outputs: What the step returned.
        batch: The batch.
        columns: Columns of the dataset by type, which decide between several keys, and may have other names.

    >>> record = read_default_batch({"logits": torch.zeros(2, 3)}, (torch.zeros(2, 1, 4, 4), torch.tensor([0, 2])))
    >>> record.logits.shape, record.labels.tolist(), record.images.shape, record.ids
    (torch.Size([2, 3]), [0, 2], torch.Size([2, 1, 4, 4]), None)
    """
    logits: Any = None
    labels: Any = None
    images: Any = None
    if isinstance(batch, Mapping):
        columns = columns or Columns()
        images = batch.get(column_named(batch, IMAGE_KEYS, columns.images))
        labels = batch.get(column_named(batch, LABEL_KEYS, columns.labels))
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        images, labels = batch[0], batch[1]
    if has_views(images):
        images = images[0]
    if isinstance(outputs, Mapping):
        logits = outputs["logits"] if "logits" in outputs else outputs.get("preds")
    return BatchRecord(logits=_if_tensor(logits), labels=_if_tensor(labels), images=_if_tensor(images))


def has_views(images: Any) -> bool:
    """Return whether images are a list of tensors, each with a view of all images of the batch."""
    if not isinstance(images, list | tuple) or not images:
        return False
    are_batches = all(isinstance(view, Tensor) and view.ndim == 4 for view in images)
    return are_batches and len({len(view) for view in images}) == 1


def column_named(batch: Mapping[Any, Any], keys: Sequence[str], typed: Sequence[str]) -> str | None:
    """Return the key of a batch that holds its images, or its labels; None if it has none.

    Args:
        batch: The batch, or the columns of its dataset.
        keys: The usual names, the preferred ones first.
        typed: Names of the columns of the right type, as far as types are known.

    >>> column_named({"photo": 0, "x": 0, "y": 0}, IMAGE_KEYS, ["photo"]), column_named({"img": 0}, IMAGE_KEYS, [])
    ('photo', 'img')
    """
    usual = [key for key in keys if key in batch]
    others = [key for key in typed if key in batch and key not in usual]
    of_type = [key for key in usual if key in typed]
    if of_type:
        return of_type[0]
    # a single letter may well be a coordinate
    if len(others) == 1 and (not usual or len(usual[0]) == 1):
        return others[0]
    return usual[0] if usual else None


def not_classes(labels: Tensor) -> str | None:
    """Return why labels are those of segmentation or regression; None if they may name classes.

    >>> not_classes(torch.zeros(4, 32, 32))
    'Labels have the shape (4, 32, 32), as in segmentation.'
    >>> not_classes(torch.tensor([0.3, 7.5]))
    'Labels are fractions, such as 7.5, as in regression.'
    >>> not_classes(torch.tensor([0.05, 0.95])), not_classes(torch.tensor([3, -100]))
    (None, None)
    """
    if labels.ndim > 2:
        return f"Labels have the shape {tuple(labels.shape)}, as in segmentation."
    if not labels.is_floating_point():
        return None
    values = labels.detach().double()
    fractions = values[values.isfinite() & (values != values.round())]
    outside = fractions[(fractions < 0) | (fractions > 1)]
    # in smoothed labels of two classes, all are equally far from 0 or 1
    smoothing = torch.minimum(fractions, 1 - fractions)
    is_column = labels.ndim == 1 or labels.shape[1] == 1
    if is_column and not len(outside) and len(fractions) and float(smoothing.max() - smoothing.min()) > 1e-3:
        outside = fractions
    return f"Labels are fractions, such as {float(outside[0]):.4g}, as in regression." if len(outside) else None


def infer_task(logits: Tensor, labels: Tensor) -> Task:
    """Infer the task from the shapes: one logit per example is binary, labels of shape (B, K) are multilabel.

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


def grade_batch(
    logits: Tensor, labels: Tensor, *, task: Task | None = None, probabilities: bool | None = None
) -> BatchGrades:
    """Grade the examples of one batch.

    Args:
        logits: (B, K) float: raw scores, or probabilities that sum to 1. Binary: (B,) or (B, 1), one raw score per
            example. (B,) int is interpreted as predicted classes; the confidence is then 1 or 0.
        labels: (B,) int; examples labelled -100, PyTorch's ``ignore_index``, are skipped. A multiclass task may also
            have one-hot labels (B, K), smoothed or not; a multilabel task has (B, K) of 0 and 1, where NaN, -1, 255 and
            -100 are unknown and skipped. Smoothed labels of a binary or multilabel task count as 1 above 0.5.
        task: The task; None infers it from the shapes.
        probabilities: Whether the scores are probabilities. None: scores of a multiclass task are, if each row is
            non-negative and sums to 1; those of other tasks are raw.

    Raises:
        DataError: Shapes do not match, logits are NaN, or labels are out of range.

    >>> grades = grade_batch(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))
    >>> grades.predictions.tolist(), [round(c, 2) for c in grades.confidence.tolist()]
    ([0, 1], [0.88, 0.12])
    """
    # a model that squeezes its output drops the batch dimension of a batch of one
    logits, labels = (values.detach().cpu().reshape(values.shape or (1,)) for values in (logits, labels))
    task = task or infer_task(logits, labels)
    if len(logits) != len(labels):
        raise DataError(
            f"The batch has {len(labels)} labels but {len(logits)} rows of logits. Return one row per label, or pass"
            " read_batch."
        )
    if logits.is_floating_point():
        check_not_nan(logits)
        logits = logits.double().nan_to_num()  # infinite logits become finite; double precision keeps their order
    if task == "multilabel":
        return _grade_multilabel(torch.logit(logits, eps=_EPSILON) if probabilities else logits, labels)

    # select the examples that have a label
    labels = _class_indices(labels, task)
    position = torch.nonzero(labels != IGNORE_INDEX)[:, 0]
    logits, labels = logits[position], labels[position]

    # compare predictions with labels
    margin: Tensor | None = None  # with two classes it follows from the confidence
    if task == "binary" and logits.is_floating_point():
        _check_shape(logits, len(labels), 1)
        positive = logits.reshape(-1) if probabilities else torch.sigmoid(logits.reshape(-1))
        _check_labels(labels, 2)
        predictions = (positive > 0.5).long()
        confidence = torch.where(labels == 1, positive, 1 - positive)
    elif not logits.is_floating_point():
        if logits.numel() != len(labels):
            raise DataError(
                f"Predicted classes must have the shape (B,), got {tuple(logits.shape)}. Return (B,) classes or float"
                " logits."
            )
        predictions = logits.reshape(-1).long()
        confidence = (predictions == labels).float()
    else:
        if logits.ndim != 2:
            raise DataError(
                f"Logits of a multiclass task must have the shape (B, K), got {tuple(logits.shape)}."
                " Select the logits with logits_from or read_batch."
            )
        _check_labels(labels, logits.shape[1])
        predictions = logits.argmax(1)
        if probabilities is None:
            probabilities = are_distributions(logits)
        shares = logits if probabilities else logits.softmax(1)
        confidence = shares.gather(1, labels[:, None])[:, 0]
        margin = confidence - shares.scatter(1, labels[:, None], -torch.inf).amax(1)
    margin = (2 * confidence - 1 if margin is None else margin).float().clamp(-1, 1)
    return BatchGrades(position, torch.zeros_like(labels), labels, predictions, confidence.float(), margin)


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
    digests: Tensor | None = None,
    margin: Tensor | None = None,
) -> Grades:
    """Build :class:`Grades` from rows keyed by ``id * conditions + condition``.

    With several conditions (a multilabel task), ``predictions`` are replaced: each condition gets the threshold with
    the best F1 on the same rows, so these predictions are slightly optimistic.

    Args:
        keys: (N,) int64, ascending.
        labels: (N,) int64, the true class.
        predictions: (N,) int64, the predicted class.
        confidence: (N,) float32 in [0, 1], the predicted probability of the true class.
        class_names: K names.
        conditions: Number of rows per example.
        groups: (N,) int64, the id of each example's source, or None.
        coverage: Share of the loader's examples that were graded, in [0, 1].
        digests: (N,) int64, digests of the images, or None.
        margin: (N,) float32, the probability of the true class minus the largest of the others, or None.
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
        digests=digests,
        margin=margin,
    )


def check_not_nan(logits: Tensor) -> None:
    """Check that no logit, (B, K) or (B,), is NaN.

    Raises:
        DataError: Some are, with the number of examples.
    """
    n_nan = len(torch.unique(torch.nonzero(torch.isnan(logits))[:, 0]))
    if n_nan:
        raise DataError(
            f"Logits are NaN for {n_nan} of {len(logits)} examples: the model diverged, or its input is not finite."
        )


def ungradable(logits: Tensor, labels: Tensor, task: Task, classes: int) -> dict[str, Tensor]:
    """Return which examples of a batch cannot be graded, (B,) bool by reason, while others can.

    Args:
        logits: (B, K) or (B,), as for :func:`grade_batch`.
        labels: (B,) or (B, K).
        task: The task.
        classes: Number of classes; in a binary task 2.

    >>> reasons = ungradable(torch.tensor([[float("nan"), 1.0], [0.0, 1.0]]), torch.tensor([0, 7]), "multiclass", 2)
    >>> {reason: rows.tolist() for reason, rows in reasons.items()}
    {'NaN logits': [True, False], 'label outside 0 ... 1': [False, True]}
    """
    logits, labels = (values.detach().cpu().reshape(values.shape or (1,)) for values in (logits, labels))
    reasons: dict[str, Tensor] = {}
    if len(logits) != len(labels):
        return reasons
    if logits.is_floating_point():
        reasons["NaN logits"] = logits.isnan().flatten(1).any(1) if logits.ndim > 1 else logits.isnan()
    if task != "multilabel" and (labels.ndim == 1 or labels.shape[1:] == (1,)):
        flat = labels.reshape(-1)
        outside = (flat.isnan() | (flat < 0) | (flat >= classes)) & (flat != IGNORE_INDEX)
        reasons[f"label outside 0 ... {classes - 1}"] = outside
    return {reason: rows for reason, rows in reasons.items() if rows.any()}


def impossible_conditions(labels: Tensor) -> Tensor:
    """Return which labels of a multilabel task are neither in 0 ... 1 nor unknown, (B, K) bool.

    >>> impossible_conditions(torch.tensor([[0, 1, 2], [-1, -100, -3]])).tolist()
    [[False, False, True], [False, False, True]]
    """
    return ~(_unknown_conditions(labels) | ((labels >= 0) & (labels <= 1)))


def best_f1_threshold(positive: Tensor, labels: Tensor) -> float:
    """Return the threshold t for which ``positive >= t`` has the best F1; 0.5 if all labels are equal.

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


def are_distributions(rows: Tensor) -> bool:
    """Return whether each row (N, K) is non-negative and sums to 1, with a tolerance for half precision.

    >>> are_distributions(torch.tensor([[0.2, 0.8], [1.0, 0.0]])), are_distributions(torch.tensor([[1, 1]]))
    (True, False)
    """
    return bool((rows >= 0).all()) and bool(((rows.double().sum(1) - 1).abs() < 0.02).all())


def expand_class_names(names: Sequence[str], task: Task) -> tuple[str, ...]:
    """Return two class names per multilabel condition, and per name of a binary task with a single name.

    >>> expand_class_names(["edema"], "multilabel"), expand_class_names(["cat", "dog"], "multiclass")
    (('no edema', 'edema'), ('cat', 'dog'))
    """
    if task == "multilabel" or (task == "binary" and len(names) == 1):
        return tuple(name for condition in names for name in both_classes(condition))
    return tuple(names)


def cut_smoothed(labels: Tensor) -> Tensor:
    """Return float labels of two classes, (B,), with those from 0 to 1 cut at 0.5, each for itself; others stay.

    >>> cut_smoothed(torch.tensor([0.95, 0.05, -100.0, 1.0]))
    tensor([   1.,    0., -100.,    1.])
    """
    return torch.where((labels >= 0) & (labels <= 1), (labels > 0.5).to(labels.dtype), labels)


def _class_indices(labels: Tensor, task: Task) -> Tensor:
    """Return (B,) int64 labels, converted from one-hot or from (B, 1) if necessary."""
    if labels.ndim == 2:
        columns = labels.long() if labels.dtype == torch.bool else labels
        labels = columns.argmax(1) if columns.shape[1] > 1 else columns[:, 0]
    if labels.ndim != 1:
        raise DataError(f"Labels of a {task} task must have the shape (B,), got {tuple(labels.shape)}.")
    if task == "binary" and labels.is_floating_point():
        labels = cut_smoothed(labels)
    indices = labels.long()
    fractional = indices.to(labels.dtype) != labels
    if fractional.any():
        raise DataError(f"Labels of a {task} task must be class indices, got {labels[fractional][0].item()}.")
    return indices


def _grade_multilabel(logits: Tensor, labels: Tensor) -> BatchGrades:
    """Grade (B, K) logits of K conditions: one row for each known label, example by example.

    A label is unknown if it is NaN, -1 (CheXpert), 255 or -100: that condition of that example has no row.
    """
    if labels.shape != logits.shape:
        raise DataError(
            f"Multilabel labels must have the shape of the logits {tuple(logits.shape)}, got {tuple(labels.shape)}."
        )
    known = ~_unknown_conditions(labels)
    labels = labels.double()  # of any type, booleans and uint8 among them
    _check_labels(labels[known], 2)
    positive, truth = torch.sigmoid(logits).float()[known], (labels[known] > 0.5).long()
    position, condition = torch.nonzero(known, as_tuple=True)
    confidence = torch.where(truth == 1, positive, 1 - positive)
    return BatchGrades(
        position=position,
        condition=condition,
        labels=2 * condition + truth,
        predictions=2 * condition + (positive > 0.5).long(),
        confidence=confidence,
        margin=2 * confidence - 1,
    )


def _unknown_conditions(labels: Tensor) -> Tensor:
    """Return which labels (B, K) of a multilabel task mark a condition as unknown."""
    values = labels.double()
    return values.isnan() | torch.isin(values, torch.tensor(_UNKNOWN).double())


def _multilabel_predictions(condition: Tensor, labels: Tensor, confidence: Tensor, conditions: int) -> Tensor:
    """Return the predicted class of each row at its condition's threshold."""
    truth = labels % 2
    # 1 - (1 - confidence) rounds equally for both truths: else equal probabilities would differ by their truth
    positive = 1 - torch.where(truth == 1, 1 - confidence, confidence)
    thresholds = torch.tensor(
        [best_f1_threshold(positive[condition == k], truth[condition == k]) for k in range(conditions)]
    )
    return 2 * condition + (positive >= thresholds[condition]).long()


def _check_shape(logits: Tensor, size: int, columns: int) -> None:
    if logits.numel() != size * columns:
        raise DataError(
            f"Logits of a binary task must hold one value for each of the {size} examples, got the shape"
            f" {tuple(logits.shape)}."
        )


def _check_labels(labels: Tensor, classes: int) -> None:
    if not len(labels):
        return
    low, high = float(labels.min()), float(labels.max())
    if not 0 <= low <= high <= classes - 1:
        raise DataError(
            f"Labels run from {low:g} to {high:g}, but the {classes} classes allow 0 to {classes - 1}."
            f" {UNLABELLED_REMEDY}"
        )


def _if_tensor(value: Any) -> Tensor | None:
    return value if isinstance(value, Tensor) else None
