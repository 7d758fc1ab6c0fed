"""The grades of examples."""

import torch

from lightning_failures.data.grades import Grades


def test_grades__correct_and_failed():
    grades = Grades(torch.tensor([4, 7]), torch.tensor([0, 1]), torch.tensor([0, 0]), torch.ones(2), ("a", "b"))
    assert grades.correct.tolist() == [True, False]
    assert grades.failed.tolist() == [False, True]
    assert len(grades) == 2
