"""Ids that batches give their examples, and ids that name other examples in the next epoch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_failures.data.digests import UNKNOWN_DIGEST
from lightning_failures.data.grades import Grades
from lightning_failures.trainer.example_ids import hashed_names, ids_in, unstable_ids

IMAGES, LABELS = torch.zeros(3, 3, 4, 4), torch.tensor([0, 1, 0])


@pytest.mark.parametrize("key", ["id", "ids", "idx", "index", "image_id"])
@pytest.mark.parametrize(
    "values", [torch.tensor([4, 5, 6]), torch.tensor([[4], [5], [6]]), np.array([4, 5, 6]), [4, 5, 6]]
)
def test_ids_in__integers(key, values):
    for batch in ({"image": IMAGES, key: values}, (IMAGES, LABELS, {key: values})):
        assert ids_in(batch, 3).tolist() == [4, 5, 6]


@pytest.mark.parametrize("key", ["__key__", "file_name", "filename", "path", "id"])
def test_ids_in__texts(key):
    names = ["a.png", "b.png", "c.png"]
    for values in (names, tuple(names), [name.encode() for name in names], [Path(name) for name in names]):
        assert torch.equal(ids_in({"image": IMAGES, key: values}, 3), hashed_names(names))
    assert torch.equal(ids_in((IMAGES, LABELS, names), 3), hashed_names(names))


@pytest.mark.parametrize(
    "batch",
    [
        {"id": torch.tensor([0.5, 1.5, 2.5])},
        {"id": torch.tensor([True, False, True])},
        {"id": torch.tensor([1, 2])},
        {"id": ["a", "b"]},
        {"id": [None, None, None]},
        {"id": [["a"], ["b"], ["c"]]},
        {"image": IMAGES},
        (IMAGES, LABELS),
        (IMAGES, LABELS, torch.tensor([1, 2, 3])),
        (["a", "b", "c"], LABELS),
        IMAGES,
        "abc",
        None,
    ],
)
def test_ids_in__other_values_are_no_ids(batch):
    assert ids_in(batch, 3) is None


def test_ids_in__keys_of_webdataset_are_unique_within_a_shard():
    keys = {"__key__": ["0", "1", "0"]}
    assert len(ids_in(keys, 3).unique()) == 2
    first = ids_in(keys | {"__url__": ["/a/x-0.tar", "/a/x-0.tar", "/a/x-1.tar"]}, 3)
    moved = ids_in(keys | {"__url__": ["s3://b/x-0.tar", "s3://b/x-0.tar", "s3://b/x-1.tar"]}, 3)
    assert len(first.unique()) == 3
    assert torch.equal(first, moved)


def test_hashed_names__the_same_in_every_process():
    assert hashed_names(["ä/1.png"]).item() == 1041851106423352694


def grades(ids, digests, labels):
    order = torch.as_tensor(ids).argsort()
    columns = [torch.as_tensor(one)[order] for one in (ids, labels, labels)]
    return Grades(*columns, torch.ones(len(order)), ("a", "b"), digests=torch.as_tensor(digests)[order])


IDS, DIGESTS, MARKS = torch.arange(100), torch.arange(100) + 7000, torch.arange(100) % 2
SHUFFLED = torch.randperm(100, generator=torch.Generator().manual_seed(0))
UNKNOWN = torch.full((100,), UNKNOWN_DIGEST)


@pytest.mark.parametrize(
    "now",
    [
        grades(IDS, DIGESTS, MARKS),
        grades(IDS, DIGESTS + 500, MARKS),  # random transforms
        grades(IDS, UNKNOWN, MARKS),
        grades(IDS + 1000, DIGESTS + 500, 1 - MARKS),  # new data
        grades(IDS[:50], DIGESTS[:50], MARKS[:50]),
        grades(IDS[:0], DIGESTS[:0], MARKS[:0]),
        grades(torch.cat([IDS, IDS + 200]), torch.cat([DIGESTS, DIGESTS]), torch.cat([MARKS, MARKS])),  # copies
    ],
)
def test_unstable_ids__no_doubt(now):
    assert unstable_ids(grades(IDS, DIGESTS, MARKS), now) is None


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (grades(IDS, DIGESTS[SHUFFLED], MARKS[SHUFFLED]), "images have another id"),
        (grades(IDS + 100, DIGESTS, MARKS), "100 of 100 images have another id"),
        (grades(IDS, UNKNOWN, MARKS[SHUFFLED]), "ids have another label"),
        (grades(IDS, DIGESTS + 500, MARKS[SHUFFLED]), "ids have another label"),
    ],
)
def test_unstable_ids__a_counter(now, said):
    message = unstable_ids(grades(IDS, DIGESTS, MARKS), now)
    assert said in message
    assert "Ids must be stable" in message
