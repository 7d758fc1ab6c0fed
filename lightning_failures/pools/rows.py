"""The examples of one batch that can be embedded, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_failures.core.arrays import finite_rows
from lightning_failures.core.text import clean
from lightning_failures.data.grades import BatchRecord
from lightning_failures.encoders.cache.store import content_keys
from lightning_failures.errors import DataError
from lightning_failures.pools.shards import POOL_UNLABELLED
from lightning_failures.trainer.image_space import ImageRangeError, ImageSpace, pixel_problems

NO_CLASSES = "For one-hot labels set task='multiclass' of the callback; pools of multilabel tasks are not supported."
"""What to do about labels that are no classes."""


@dataclass(frozen=True, eq=False)
class UsableRows:
    """The n examples of a batch that can be embedded.

    Attributes:
        ids: Their n ids.
        images: (n, C, H, W) float32 in [0, 1].
        labels: (n,) int64, ``POOL_UNLABELLED`` where there is no class.
        keys: (n, 2) int64, content keys.
        left_out: Reason for each other example, by id.
        range_error: The error about the normalisation, if most images of the batch do not fit it.
    """

    ids: list[int]
    images: Tensor
    labels: Tensor
    keys: Tensor
    left_out: dict[int, str] = field(default_factory=dict)
    range_error: ImageRangeError | None = None


def usable_rows(
    record: BatchRecord, ids: Sequence[int], space: ImageSpace, *, task: str | None, channels: int | None
) -> UsableRows:
    """Return the examples of a batch that can be embedded.

    Args:
        record: What the batch holds.
        ids: Ids of its examples.
        space: Undoes the normalisation.
        task: Task given by the user, or None.
        channels: Number of channels that an image must have; None: any.

    Raises:
        DataError: A batch of several examples has no images, another number of images or labels than examples, or
            labels of a form that gives no classes.
    """
    try:
        images, labels = _checked(record, ids, task)
        if images.ndim == 4 and channels not in (None, images.shape[1]):
            return _nothing(ids, f"{_channels(images.shape[1])}, unlike the others with {channels}")
    except DataError as error:
        if len(ids) > 1:
            raise
        return _nothing(ids, clean(str(error)))
    try:
        unit_images, range_error = space.to_unit_each(images)
    except DataError as error:
        return _nothing(ids, clean(str(error)))
    left_out = {ids[row]: reason for row, reason in pixel_problems(images, unit_images).items()}
    rows = finite_rows(unit_images)
    on_cpu = rows.cpu()
    return UsableRows(
        ids=[i for i in ids if i not in left_out],
        images=unit_images[rows],
        labels=labels[on_cpu],
        keys=content_keys(images, salt=repr(space))[on_cpu],
        left_out=left_out,
        range_error=range_error,
    )


def _checked(record: BatchRecord, ids: Sequence[int], task: str | None) -> tuple[Tensor, Tensor]:
    """Return the images and the classes (B,) of a batch."""
    images, labels = record.images, record.labels
    if images is None:
        raise DataError(
            "Found no images in a batch. Batches must be (x, y, ...) or mappings with keys such as image and label; for"
            " other forms, set read_batch of the callback."
        )
    for name, values in (("images", images), ("labels", labels)):
        if values is not None and (not values.ndim or len(values) != len(ids)):
            raise DataError(
                f"The batch of {len(ids)} examples from {ids[0]} on has {len(values) if values.ndim else 'no row of'}"
                f" {name}. The collate_fn must neither drop nor repeat examples."
            )
    return images, torch.full((len(ids),), POOL_UNLABELLED) if labels is None else class_labels(labels, task)


def _nothing(ids: Sequence[int], reason: str) -> UsableRows:
    none = torch.empty(0, dtype=torch.int64)
    return UsableRows([], torch.empty(0, 3, 1, 1), none, none.reshape(0, 2), dict.fromkeys(ids, reason))


def _channels(number: int) -> str:
    return f"{number} channel{'s' if number != 1 else ''}"


def class_labels(labels: Tensor, task: str | None) -> Tensor:
    """Return (B,) int64 from labels (B,), (B, 1), or one-hot (B, K); a label that is no class is ``POOL_UNLABELLED``.

    Raises:
        DataError: Labels of another shape.

    >>> class_labels(torch.tensor([2.0, -100.0, 0.5]), None)
    tensor([ 2, -1, -1])
    """
    labels = labels.detach().cpu()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and task == "multiclass":
        labels = labels.argmax(1)
    if labels.ndim != 1:
        raise DataError(
            f"A pool needs one class for each example; got labels of shape {tuple(labels.shape)}. {NO_CLASSES}"
        )
    whole = labels.nan_to_num(-1).long()
    is_class = (whole.to(labels.dtype) == labels) & (whole >= 0)
    return torch.where(is_class, whole, POOL_UNLABELLED)
