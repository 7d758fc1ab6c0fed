"""Lists of class names in any form; the forms of datasets are tried in tests/trainer/test_dataset_attributes.py."""

import pytest

from lightning_failures.data.class_names import class_list_difference, names_in_order, unique_class_names


@pytest.mark.parametrize("classes", [10, "cat", {"cat": 7, "dog": 8}, {"cat": "n01"}, {"a", "b"}, {"cat": True}, None])
def test_names_in_order__what_is_no_list_of_names(classes):
    assert names_in_order(classes) is None
    assert unique_class_names(classes) is None


def test_names_in_order__numbers_as_names():
    assert names_in_order({"7": 1, "3": 0}) == ["3", "7"]
    assert names_in_order({0: 1, 1: 0}) == [1, 0]
    assert names_in_order({}) is None or names_in_order({}) == []


def test_class_list_difference():
    assert class_list_difference(["a", "b"], ["a", "b"]) is None
    assert class_list_difference(["a", "b"], ["a"]) == "2 classes there and 1 here"
    assert class_list_difference(["a", "b"], ["a", "c", "d"]) == "label 1 is 'b' there and 'c' here"
