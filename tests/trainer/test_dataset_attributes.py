"""Attributes of datasets: always by position, class names in the order of labels."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from lightning_failures.callback import FailureModes
from lightning_failures.data.grading import Columns
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.dataset_attributes import (
    dataset_attribute,
    dataset_class_names,
    dataset_columns,
    dataset_length,
)

LETTERS = list("abcdefghijk")


class Series:
    """The part of a pandas Series that matters: ``[]`` looks up by label, ``iloc`` by position; no Sequence."""

    def __init__(self, data, index=None):
        self.iloc = list(data)
        self.index = list(range(len(self.iloc)) if index is None else index)

    def __getitem__(self, label):
        return self.iloc[self.index.index(label)]

    def __len__(self):
        return len(self.iloc)

    def __iter__(self):
        return iter(self.iloc)

    __repr__ = object.__repr__


class Index:
    """The part of a pandas Index that matters: ordered, but no Sequence."""

    def __init__(self, data):
        self.data = list(data)

    def __getitem__(self, position):
        return self.data[position]

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        return iter(self.data)


class Numbers(Dataset):
    """Each example is its own index."""

    classes = ("even", "odd")

    def __init__(self, size=11, **attributes):
        self.groups = torch.arange(size) // 2
        vars(self).update(attributes)

    def __len__(self):
        return len(self.groups)

    def __getitem__(self, index):
        return index


def test_dataset_length():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    assert dataset_length([3, 4]) == 2
    assert dataset_length(Endless()) is None
    assert dataset_length(None) is None


def test_dataset_attribute__through_subsets():
    data = Numbers(11)
    nested = Subset(Subset(data, [10, 4, 5]), [2, 0])  # examples 5 and 10
    assert dataset_attribute(nested, "classes") == ("even", "odd")
    assert torch.as_tensor(dataset_attribute(nested, "groups")).tolist() == [2, 5]
    assert dataset_attribute(nested, "no such thing") is None
    assert dataset_attribute(None, "classes") is None


def test_dataset_attribute__of_the_wrapper_itself_comes_first():
    subset = Subset(Numbers(), [3, 1])
    subset.groups = [7, 8]
    assert dataset_attribute(subset, "groups") == [7, 8]


def test_dataset_attribute__classes_are_never_one_an_example():
    class Three(Dataset):
        classes = ("a", "b", "c")

        def __len__(self):
            return 3

    assert dataset_attribute(Subset(Three(), [2, 0]), "classes") == ("a", "b", "c")
    joined = ConcatDataset([Three(), Three()])
    assert dataset_attribute(joined, "classes") == ("a", "b", "c")


@pytest.mark.parametrize(
    "index", [np.random.default_rng(0).permutation(11), 100 + np.arange(11), LETTERS[::-1]], ids=str
)
@pytest.mark.parametrize("indices", [[3, 0, 9], np.array([3, 0, 9]), torch.tensor([3, 0, 9]), Series([3, 0, 9])])
def test_dataset_attribute__a_series_is_read_by_position(index, indices):
    data = Numbers(camera=Series(LETTERS, index=index))
    assert dataset_attribute(Subset(data, indices), "camera") == ["d", "a", "j"]
    nested = Subset(Subset(data, [5, 3, 0, 9]), [1, 3])
    assert dataset_attribute(nested, "camera") == ["d", "j"]
    joined = ConcatDataset([Subset(data, indices), data])
    assert dataset_attribute(joined, "camera") == ["d", "a", "j", *LETTERS]


@pytest.mark.parametrize(
    "values",
    [LETTERS, tuple(LETTERS), np.array(LETTERS), Index(LETTERS), dict(enumerate(LETTERS))],
    ids=lambda values: type(values).__name__,
)
def test_dataset_attribute__other_sequences_through_a_subset(values):
    assert dataset_attribute(Subset(Numbers(camera=values), [3, 0]), "camera") == ["d", "a"]


@pytest.mark.parametrize(
    "classes",
    [
        ["cat", "dog", "eel"],
        ("cat", "dog", "eel"),
        np.array(["cat", "dog", "eel"]),
        Index(["cat", "dog", "eel"]),
        Series(["cat", "dog", "eel"], index=[7, 3, 5]),
        {"dog": 1, "eel": 2, "cat": 0},
        {1: "dog", 2: "eel", 0: "cat"},
        {np.int64(1): "dog", np.int64(2): "eel", np.int64(0): "cat"},
        {1: ("dog", "hound"), 2: "eel", 0: "cat"},
        {"cat": 0, "dog": 1, "eel": 2}.keys(),
        [["cat", "kitty"], "dog", "eel"],
    ],
)
def test_dataset_class_names__in_the_order_of_labels(classes):
    for data in (Numbers(classes=classes), Subset(Numbers(classes=classes), [2, 1])):
        assert dataset_class_names(data) == ["cat", "dog", "eel"]
    both = ConcatDataset([Numbers(classes=classes), Numbers(classes=["cat", "dog", "eel"])])
    assert dataset_class_names(both) == ["cat", "dog", "eel"]


def test_joined_classes__of_another_order_are_no_classes():
    cat_first, dog_first = ({"cat": 0, "dog": 1}, {"dog": 0, "cat": 1})
    assert dataset_class_names(ConcatDataset([Numbers(classes=cat_first), Numbers(classes=dog_first)])) is None
    assert dataset_class_names(ConcatDataset([Numbers(classes=cat_first), Numbers(classes=None)])) is None


def test_class_names_of_the_callback():
    assert FailureModes(encoder=None, class_names={"dog": 1, "cat": 0}).class_names == ("cat", "dog")
    assert FailureModes(encoder=None, class_names=Index(["cat", "dog"])).class_names == ("cat", "dog")
    for wrong in ("cat", {"cat": 3}, []):
        with pytest.raises(ConfigurationError, match=r"class_names=.*a mapping between names and the labels"):
            FailureModes(encoder=None, class_names=wrong)


# -- typed columns -----------------------------------------------------------------------------------------------------


class Kind:
    def __init__(self, **attributes):
        vars(self).update(attributes)


class Image(Kind):
    pass


class Typed(Dataset):
    """A dataset whose columns have types, in the form of Hugging Face."""

    def __init__(self, **features):
        self.features = features

    def with_format(self, _kind):
        return self

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return [7, 8] if isinstance(index, str) else index


NAMED = Kind(names=["cat", "dog"])
COARSE = Kind(names=["animal"])


@pytest.mark.parametrize(
    ("features", "names"),
    [
        ({"img": Image(), "label": NAMED}, ["cat", "dog"]),
        ({"coarse_label": COARSE, "fine_label": NAMED}, ["cat", "dog"]),
        ({"label": Kind(), "species": NAMED}, None),  # the label that is read has no names
        ({"y": Kind(), "species": NAMED}, ["cat", "dog"]),
        ({"breed": NAMED, "colour": COARSE}, None),
        ({"labels": Kind(feature=NAMED)}, ["cat", "dog"]),
        ({"classes": Kind()}, None),
        ({}, None),
    ],
)
def test_class_names__of_typed_columns(features, names):
    data = Typed(**features)
    assert dataset_class_names(data) == names
    assert dataset_class_names(Subset(data, [1])) == names
    assert dataset_class_names(Subset(Subset(data, [0, 1]), [1])) == names
    assert dataset_class_names(ConcatDataset([data, data])) == names


def test_columns__of_typed_datasets():
    data = Typed(img=Image(), mask=Image(), label=NAMED, site=Kind())
    for wrapped in (data, Subset(data, [0]), ConcatDataset([data, Subset(data, [1])])):
        assert dataset_columns(wrapped) == Columns(("img", "mask"), ("label",))
    assert dataset_columns(ConcatDataset([data, Typed(photo=Image())])) == Columns()
    assert dataset_attribute(Subset(data, [1]), "site") == [8]
    assert dataset_attribute(data, "hospital") is None
    assert dataset_attribute(data, "img") is None  # it would be decoded as a whole


@pytest.mark.parametrize("features", [torch.zeros(4, 3), None, ["label"], "label"])
def test_columns__other_attributes_of_that_name(features):
    data = Numbers()
    data.features = features
    assert dataset_columns(data) == Columns()
    assert dataset_class_names(data) == ["even", "odd"]
    assert dataset_columns(None) == Columns()
