import pytest
import torch
from torch.utils.data import Subset

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.readings import LogitsSource
from tests.helpers.toy import Images


def make_grader(dataset=None, **options):
    defaults = {"dataset": dataset, "class_names": None, "task": None, "ranks": Communicator()}
    return Grader(**(defaults | options))


class Cases(list):
    """An example of which several come from one patient."""

    classes = ("well", "ill")
    groups = (5, 5, 8, 8)
    patients = (1, 2, 3, 4)


def test_grades__sorted_by_id_each_once():
    """In the order of a shuffled loader, with an example repeated by a padding sampler."""
    grader = make_grader(Images(6))
    grader.grade(torch.eye(4)[[1, 0]] * 9, torch.tensor([1, 3]), [5, 2])
    grader.grade(torch.eye(4)[[2, 3]] * 9, torch.tensor([2, 3]), torch.tensor([0, 2]))
    grades = grader.grades()
    assert grades.ids.tolist() == [0, 2, 5]
    assert grades.labels.tolist() == [2, 3, 1]
    assert grades.predictions.tolist() == [2, 0, 1]  # the first row of example 2 counts
    assert grades.coverage == 0.5
    assert grades.class_names == ("class 0", "class 1", "class 2", "class 3")


def test_grades__groups_of_the_examples():
    grader = make_grader(Cases([0] * 4))
    grader.grade(torch.eye(2)[[0, 1, 0]], torch.tensor([0, 1, 1]), [3, 0, 2])
    assert grader.grades().groups.tolist() == [5, 8, 8]
    other = make_grader(Cases([0] * 4), groups_from="patients")
    other.grade(torch.eye(2), torch.tensor([0, 1]), [3, 0])
    assert other.grades().groups.tolist() == [1, 4]


def test_grades__groups_through_a_subset():
    grader = make_grader(Subset(Cases([0] * 4), [3, 0]))
    grader.grade(torch.eye(2), torch.tensor([0, 1]), [0, 1])
    assert grader.grades().groups.tolist() == [8, 5]
    assert grader.grades().class_names == ("well", "ill")


def test_grades__sources_with_names():
    cases = Cases([0] * 4)
    cases.groups = ["ann", "bob", "ann", "cy"]
    grader = make_grader(cases)
    grader.grade(torch.eye(2)[[0, 1, 0, 1]], torch.tensor([0, 1, 1, 0]), [0, 1, 2, 3])
    first, second, third, fourth = grader.grades().groups.tolist()
    assert first == third
    assert len({first, second, fourth}) == 3


def test_grades__unknown_length_has_full_coverage():
    grader = make_grader(object())
    grader.grade(torch.eye(2), torch.tensor([0, 1]), [10**12, 3])
    assert grader.grades().coverage == 1.0
    assert grader.grades().ids.tolist() == [3, 10**12]


@pytest.mark.parametrize("logits", [torch.tensor([1.0, -1.0]), torch.tensor([[1.0], [-1.0]])])
@pytest.mark.parametrize(
    ("names", "expected"), [(None, ("0", "1")), (["ill"], ("no ill", "ill")), (["well", "ill"], ("well", "ill"))]
)
def test_grades__binary(logits, names, expected):
    grader = make_grader(class_names=names)
    grader.grade(logits, torch.tensor([1, 1]), [0, 1])
    assert grader.task == "binary"
    assert grader.grades().predictions.tolist() == [1, 0]
    assert grader.grades().class_names == expected


def test_grades__multilabel_has_a_row_for_each_condition():
    grader = make_grader(Cases([0] * 4), class_names=["edema", "mass", "cyst"])
    labels = torch.tensor([[0, 1, 1], [1, 0, 0]])
    grader.grade((labels * 2 - 1).float(), labels, [3, 1])
    grades = grader.grades()
    assert grades.ids.tolist() == [1, 1, 1, 3, 3, 3]
    assert grades.labels.tolist() == [1, 2, 4, 0, 3, 5]
    assert grades.correct.all()
    assert grades.groups.tolist() == [5, 5, 5, 8, 8, 8]
    assert grades.coverage == 0.5
    assert grades.class_names[4:] == ("no cyst", "cyst")


def test_grades__multilabel_of_one_condition():
    grader = make_grader(task="multilabel")
    grader.grade(torch.tensor([[2.0], [-2.0]]), torch.tensor([[1], [1]]), [0, 1])
    assert grader.grades().labels.tolist() == [1, 1]
    assert grader.grades().class_names == ("no 0", "0")


def test_grades__predicted_classes_need_names():
    grader = make_grader(class_names=["a", "b", "c"])
    grader.grade(torch.tensor([2, 0]), torch.tensor([2, 1]), [0, 1])
    assert grader.grades().correct.tolist() == [True, False]
    with pytest.raises(ConfigurationError, match="give class_names"):
        make_grader().grade(torch.tensor([2, 0]), torch.tensor([2, 1]), [0, 1])


def test_logit_columns__names_tell_before_the_first_batch():
    assert make_grader().logit_columns is None
    grader = make_grader(Images(4))
    assert grader.logit_columns == 4
    assert grader.has_names
    assert not grader.named
    binary = make_grader(class_names=["well", "ill"])
    binary.grade(torch.zeros(2), torch.tensor([0, 1]), [0, 1])
    assert binary.logit_columns == 1


@pytest.mark.parametrize(
    ("options", "origin"),
    [
        ({"class_names": ["a", "b"]}, r"FailureModes\(class_names=\.\.\.\)"),
        ({"dataset": Cases([0] * 4)}, r"dataset\.classes"),
    ],
)
def test_class_names__wrong_number(options, origin):
    with pytest.raises(ConfigurationError, match=f"{origin} has 2 names, but the model has 3 logits"):
        make_grader(**options).grade(torch.eye(3), torch.tensor([0, 1, 2]), [0, 1, 2])


def test_grade__refused():
    with pytest.raises(ConfigurationError, match="2 labels but 3 ids"):
        make_grader().grade(torch.eye(2), torch.tensor([0, 1]), [0, 1, 2])
    with pytest.raises(DataError, match="classes allow 0 to 1"):
        make_grader().grade(torch.eye(2).repeat(4, 1), torch.full((8,), 2), range(8))


def test_facts__of_processes_are_joined():
    """A reading counts if it is possible in all processes that have seen a batch."""
    one, other, idle = make_grader(), make_grader(), make_grader()
    one.grade(torch.tensor([0.2, 0.9]), torch.tensor([0, 1]), [0, 1], source=LogitsSource.PREDS)
    other.grade(torch.tensor([0.2, 1.9]), torch.tensor([0, 1]), [2, 3], source=LogitsSource.PREDS)
    assert [reading.scale for reading in one.facts.possible] == ["probabilities", "logits"]
    assert [reading.scale for reading in other.facts.possible] == ["logits"]
    for facts in (one.facts.joined(other.facts), other.facts.joined(one.facts), idle.facts.joined(other.facts)):
        assert [reading.scale for reading in facts.possible] == ["logits"]
        assert facts.columns == 1
    assert idle.facts.joined(idle.facts).possible == ()


def test_judge__and_grade_do_not_mix():
    grader = make_grader()
    grader.judge(torch.tensor([True, False]), None, [0, 1])
    assert grader.grades().class_names == ("all",)
    assert grader.grades().failed.tolist() == [False, True]
    with pytest.raises(ConfigurationError, match="have labels and others do not"):
        grader.judge(torch.tensor([True]), torch.tensor([1]), [2])
    other = make_grader(class_names=["a", "b"])
    with pytest.raises(DataError, match="there are 2 class names"):
        other.judge(torch.ones(8).bool(), torch.full((8,), 2), range(8))
    other.grade(torch.eye(2), torch.tensor([0, 1]), [0, 1])
    with pytest.raises(ConfigurationError, match="have verdicts and others do not"):
        other.judge(torch.tensor([True]), torch.tensor([1]), [2])
