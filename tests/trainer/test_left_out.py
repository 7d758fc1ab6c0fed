"""What cannot be graded is counted, named, and an error only where it is most of the data."""

import pytest
import torch

from lightning_failures.errors import DataError
from lightning_failures.trainer.left_out import MIN_LEFT_OUT, LeftOut
from lightning_failures.trainer.ranks import Communicator

ERROR = DataError("planted")


def left_out():
    return LeftOut(Communicator())


def test_add__returns_the_others_and_notes_them():
    found = left_out()
    reasons = {"NaN logits": torch.tensor([True, False, False]), "label outside 0 ... 3": torch.tensor([0, 1, 0]) == 1}
    gradable = found.add(reasons, torch.tensor([5, 7, 9]), ERROR, any_graded=False)
    assert gradable.tolist() == [False, False, True]
    assert found.problem == "planted"
    of_logits, of_label = found.notes()
    assert of_logits == "1 example could not be graded (NaN logits): id 5."
    assert of_label.startswith("1 example could not be graded (label outside 0 ... 3): id 7. If another number")
    found.check(examples=3, rows=3)
    with pytest.raises(DataError, match=r"2 of 4 examples cannot be graded\. planted"):
        found.check(examples=2, rows=2)


def test_add__labels_of_single_conditions():
    found = left_out()
    outside = torch.tensor([[True, False], [True, True], [False, False]])
    gradable = found.add({}, torch.tensor([5, 7, 9]), ERROR, outside=outside, any_graded=False)
    assert gradable.all()
    found.add({}, torch.tensor([5]), ERROR, outside=outside[:1], any_graded=True)  # the same example once more
    (note,) = found.notes()
    assert note.startswith("3 labels of conditions could not be graded (outside 0 ... 1): ids 5, 7. If another number")
    found.check(examples=3, rows=4)
    with pytest.raises(DataError, match=r"3 of 6 labels cannot be graded\. planted"):
        found.check(examples=3, rows=3)


def test_add__errors_that_are_not_of_single_examples_are_raised():
    with pytest.raises(DataError, match="planted"):
        left_out().add({}, torch.arange(2), ERROR, any_graded=True)
    with pytest.raises(DataError, match="planted"):
        left_out().add({}, torch.arange(2), ERROR, outside=torch.zeros(2, 3).bool(), any_graded=True)


def test_add__the_first_examples_all_fail():
    every = torch.ones(MIN_LEFT_OUT, dtype=torch.bool)
    with pytest.raises(DataError, match="planted"):
        left_out().add({"NaN logits": every}, torch.arange(MIN_LEFT_OUT), ERROR, any_graded=False)
    few = left_out()
    few.add({"NaN logits": every[1:]}, torch.arange(1, MIN_LEFT_OUT), ERROR, any_graded=False)
    few.add({"NaN logits": every}, torch.arange(MIN_LEFT_OUT), ERROR, any_graded=True)


def test_nothing_left_out():
    found = left_out()
    assert (found.notes(), found.problem) == ((), None)
    found.check(examples=0, rows=0)
