"""Which example of one run is which of another: by image, by file name, by id."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_failures.errors import DataError
from lightning_failures.report.comparison import compare
from lightning_failures.report.example_pairs import pair_examples
from tests.report.runs import run


def known(ids, labels, guesses, **columns):
    """A run with digests or names: lists in the order of the ids, which ascend."""
    made = run(ids, labels, guesses)
    tensors = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in columns.items()}
    return replace(made, table=replace(made.table, **tensors))


def test_compare__one_image_more_in_front_moves_every_id():
    one = known([0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 1, 0], digests=[10, 11, 12, 13])
    other = known([0, 1, 2, 3, 4], [0, 0, 0, 1, 1], [1, 0, 1, 1, 0], digests=[99, 10, 11, 12, 13])
    found = compare(one, other)
    assert (found.examples, found.only_a, found.only_b, found.relabelled, found.moved) == (4, 0, 1, 0, 4)
    assert (found.fixed, found.new) == ((), ())
    assert [example.id for example in found.persistent] == [1, 3]
    assert found.joined_by == "digest"
    assert "4 examples have another id in run b." in found.notes


def test_compare__copies_of_one_image_with_two_labels_keep_their_labels():
    """Ids 0 and 1 are one image, once a cat and once a dog; in the other run they are ids 1 and 2."""
    one = known([0, 1], [0, 1], [0, 0], digests=[7, 7])
    found = compare(one, known([0, 1, 2], [2, 0, 1], [2, 0, 0], digests=[8, 7, 7]))
    assert (found.examples, found.relabelled, found.only_b) == (2, 0, 1)
    assert [example.label for example in found.persistent] == ["dog"]
    found = compare(one, known([0, 1], [1, 2], [1, 2], digests=[7, 7]))  # a dog, and what was a cat is an eel
    assert (found.examples, found.relabelled, len(found.fixed)) == (1, 1, 1)


def test_compare__copies_are_counted():
    one = known([0, 1, 2], [0, 0, 0], [1, 1, 1], digests=[7, 7, 7])
    found = compare(one, known([4, 5], [0, 0], [0, 1], digests=[7, 7]))
    assert (found.examples, found.only_a, found.only_b) == (2, 1, 0)
    assert (len(found.fixed), len(found.persistent)) == (1, 1)


def test_compare__no_image_in_common_is_refused_with_the_ways_there_are():
    one, other = (known([0, 1], [0, 1], [0, 0], digests=[k, k + 1], indexed=True) for k in (10, 20))
    with pytest.raises(DataError, match=r"0 examples are in both.* --join index \(if both") as error:
        compare(one, other)
    assert "--join name" not in str(error.value)
    named = [replace(each, table=replace(each.table, names=torch.tensor([3, 4]))) for each in (one, other)]
    with pytest.raises(DataError, match=r"--join name \(by file name\) or --join index"):
        compare(*named)
    own = [replace(each, table=replace(each.table, indexed=False)) for each in (one, other)]
    with pytest.raises(DataError, match=r"--join id"):
        compare(*own)
    with pytest.raises(DataError, match=r"ids of your own, returned by read_batch"):
        compare(own[0], other)


def test_compare__few_images_in_common_are_said():
    one = known([*range(10)], [0] * 10, [0] * 10, digests=[*range(10)])
    notes = compare(one, known([*range(10)], [0] * 10, [0] * 10, digests=[0, 1, *range(20, 28)])).notes
    assert any("Only 2 of 10 examples have the same image in both runs" in note for note in notes)


def test_join__as_the_user_asks():
    """The images of the second run are larger, and its files are listed in another order."""
    one = known([0, 1, 2], [0, 0, 1], [0, 1, 1], digests=[1, 2, 3], names=[30, 31, 32], indexed=True)
    other = known([0, 1, 2], [1, 0, 0], [1, 1, 0], digests=[4, 5, 6], names=[32, 31, 30], indexed=True)
    found = compare(one, other, join="name")
    assert (found.examples, found.only_a, found.fixed, found.new, found.joined_by) == (3, 0, (), (), "name")
    assert "Examples are joined by their file names." in found.notes
    assert "The images of 3 of the 3 examples in both runs differ." in found.notes
    with pytest.raises(DataError, match="different data"):
        compare(one, other, join="index")
    same = replace(other, table=replace(one.table, digests=torch.tensor([7, 8, 9])))
    assert compare(one, same, join="index").examples == 3


@pytest.mark.parametrize(
    ("join", "columns", "message"),
    [
        ("name", {"indexed": True}, "run a has no file names.* --join index"),
        ("id", {"indexed": True}, "the ids of run a are indices"),
        ("index", {"indexed": False}, "run a were given by read_batch.*--join id"),
    ],
)
def test_join__what_a_run_lacks(join, columns, message):
    one = known([0, 1], [0, 1], [0, 0], **columns)
    with pytest.raises(DataError, match=message):
        compare(one, one, join=join)


@pytest.mark.parametrize("side", ["a", "b", "both"])
def test_compare__former_runs_are_joined_by_id_with_a_note(side):
    one = known([0, 1], [0, 1], [0, 0], digests=None if side in ("a", "both") else [1, 2])
    other = known([0, 1], [0, 1], [0, 1], digests=None if side in ("b", "both") else [3, 4])
    found = compare(one, other)
    assert (found.examples, len(found.fixed), found.joined_by) == (2, 1, "former")
    without = "the runs have" if side == "both" else f"run {side} has"
    assert any(f"joined by id, because {without} no digests" in note for note in found.notes)
    assert compare(one, other, join="id").examples == compare(one, other, join="index").examples == 2


def test_pairs__a_multilabel_example_is_one_example():
    """Two conditions of each of two images, which have changed places."""
    one = known([0, 0, 1, 1], [0, 1, 0, 2], [0, 0, 0, 0], digests=[5, 5, 6, 6])
    other = known([0, 0, 1, 1], [0, 2, 0, 1], [0, 0, 0, 0], digests=[6, 6, 5, 5])
    pairs = pair_examples(one.table, other.table)
    assert (pairs.joined, pairs.moved, pairs.changed) == (2, 2, None)
    found = compare(one, other)
    assert (found.examples, found.relabelled, found.fixed, found.new) == (4, 0, (), ())
