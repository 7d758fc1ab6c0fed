"""The examples of a batch that can be embedded."""

import re

import pytest
import torch

from lightning_failures.data.grades import BatchRecord
from lightning_failures.encoders.cache.store import content_keys
from lightning_failures.errors import DataError
from lightning_failures.pools.rows import class_labels, usable_rows
from lightning_failures.trainer.image_space import ImageSpace

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SPACE = ImageSpace()


def usable(images, labels=None, ids=None, *, task=None, channels=3):
    ids = list(range(10, 10 + len(images))) if ids is None else ids
    return usable_rows(BatchRecord(images=images, labels=labels), ids, SPACE, task=task, channels=channels)


def test_usable_rows__keep_what_belongs_to_each():
    images = IMAGES.clone()
    images[1, 0, 0, 0] = float("inf")
    found = usable(images, torch.tensor([5, 6, 7, -100]))
    assert (found.ids, found.labels.tolist()) == ([10, 12, 13], [5, 7, -1])
    assert torch.equal(found.images, images[[0, 2, 3]])
    assert torch.equal(found.keys, content_keys(IMAGES, salt=repr(SPACE))[[0, 2, 3]])
    assert found.left_out == {11: "NaN or infinite pixels"}
    assert usable(IMAGES).labels.tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("images", "channels", "reason"),
    [
        (IMAGES[:, :1], 3, "1 channel, unlike the others with 3"),
        (IMAGES, 1, "3 channels, unlike the others with 1"),
        (IMAGES[:, 0], 3, r"the encoders need"),
        (torch.rand(4, 2, 8, 8), None, r"Images have the shape \(4, 2, 8, 8\)"),
        (IMAGES * 900, 3, r"far outside"),
    ],
)
def test_usable_rows__images_of_another_form_are_left_out(images, channels, reason):
    found = usable(images, torch.arange(4), channels=channels)
    assert found.ids == []
    assert len(found.keys) == len(found.labels) == len(found.images) == 0
    assert list(found.left_out) == [10, 11, 12, 13]
    for text in found.left_out.values():
        assert re.search(reason, text)


@pytest.mark.parametrize("record", [BatchRecord(), BatchRecord(images=IMAGES), BatchRecord(images=IMAGES[:0])])
def test_usable_rows__a_batch_that_lacks_rows(record):
    with pytest.raises(DataError, match=r"no images|neither drop nor repeat"):
        usable_rows(record, [0, 1, 2], SPACE, task=None, channels=3)
    assert list(usable_rows(record, [7], SPACE, task=None, channels=3).left_out) == [7]


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        (torch.tensor([2, 0]), None),
        (torch.tensor([[2], [0]]), None),
        (torch.tensor([2.0, 0.0]), None),
        (torch.tensor([[0, 0, 1], [1, 0, 0]]), "multiclass"),
    ],
)
def test_class_labels__forms(labels, task):
    found = class_labels(labels, task)
    assert found.tolist() == [2, 0]
    assert found.dtype == torch.int64


@pytest.mark.parametrize("label", [0.5, -1, -100, float("nan")])
def test_class_labels__one_that_is_no_class(label):
    assert class_labels(torch.tensor([3, label, 1]), None).tolist() == [3, -1, 1]


def test_class_labels__of_a_multilabel_task():
    with pytest.raises(DataError, match="one class for each example"):
        class_labels(torch.tensor([[0, 1]]), None)
