"""Pools whose classes have the names of the training set, but other numbers."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from lightning_failures.errors import ConfigurationError
from lightning_failures.steering.class_order import in_class_order

NAMES = ["cat", "dog", "eel"]
Item = namedtuple("Item", ["image", "target"])


class Pool(list):
    """Examples with names of classes."""

    def __init__(self, items, classes):
        super().__init__(items)
        self.classes = classes


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (("image", 0, "more"), ("image", 2, "more")),
        (["image", 0], ["image", 2]),
        (Item("image", 0), Item("image", 2)),
        ({"x": "image", "target": 0, "id": 0}, {"x": "image", "target": 2, "id": 0}),
        (("image", np.int32(0)), ("image", np.int32(2))),
        (("image", torch.tensor(0)), ("image", torch.tensor(2))),
        (("image", torch.tensor([0])), ("image", torch.tensor([2]))),
        (("image", torch.tensor([1.0, 0.0, 0.0])), ("image", torch.tensor([0.0, 0.0, 1.0]))),
        (("image", np.array([0, 1, 0])), ("image", np.array([1, 0, 0]))),
    ],
)
def test_in_class_order__renumbers_labels_of_any_form(item, expected):
    (found,) = list(DataLoader(in_class_order(Pool([item], ["eel", "cat", "dog"]), NAMES), batch_size=None))
    (wanted,) = list(DataLoader([expected], batch_size=None))
    assert type(found) is type(wanted)
    assert str(found) == str(wanted)


def test_in_class_order__leaves_pools_unchanged_that_need_no_other_numbers():
    same, nameless = Pool([("image", 0)], tuple(NAMES)), [("image", 0)]
    assert in_class_order(same, NAMES) is same
    assert in_class_order(nameless, NAMES) is nameless
    assert in_class_order(Pool([], ["x"]), None) is not None


def test_in_class_order__some_of_the_classes_and_wrappers():
    some = Subset(Pool([("image", 0), ("image", 1)], ["eel", "cat"]), [1, 0])
    assert [label for _, label in map(in_class_order(some, NAMES).__getitem__, range(2))] == [0, 2]
    joined = ConcatDataset([Pool([("image", 0)], NAMES), Pool([("image", 0)], ["dog", "cat", "eel"])])
    assert [joined[k][1] for k in range(2)] == [0, 0]
    ordered = in_class_order(joined, NAMES)
    assert [ordered[k][1] for k in range(2)] == [0, 1]


@pytest.mark.parametrize("classes", [["cat", "dog", "emu"], [*NAMES, "emu"], ["cat", "cat", "dog"]])
def test_in_class_order__other_names_are_an_error(classes):
    with pytest.raises(ConfigurationError, match=r"The pool has the classes .* cannot be matched"):
        in_class_order(Pool([], classes), NAMES)


def test_in_class_order__labels_that_are_not_known_are_an_error():
    with pytest.raises(ConfigurationError, match="the label of its examples, of type str, is not known"):
        in_class_order(Pool(["image"], NAMES[::-1]), NAMES)[0]
    with pytest.raises(ConfigurationError, match="one-hot labels of length 2"):
        in_class_order(Pool([(0, torch.tensor([1, 0]))], ["eel", "cat"]), NAMES)[0]
