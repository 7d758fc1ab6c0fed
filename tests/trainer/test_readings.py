"""Which readings of scores and labels shapes allow, and which a batch rules out."""

import pytest
import torch

from lightning_failures.trainer.readings import LogitsSource, Reading, ScoredBatch, disagreement, first_readings

ONE_HOT = torch.eye(3).long()


def batch(scores, labels, observed=None):
    return ScoredBatch(scores, labels, LogitsSource.PREDS, observed)


@pytest.mark.parametrize(
    ("scores", "labels", "observed", "tasks", "scales"),
    [
        (torch.zeros(3, 3), torch.arange(3), None, ["multiclass"], ["probabilities", "logits"]),
        (torch.zeros(3, 3), ONE_HOT, None, ["multiclass", "multilabel"], ["probabilities", "logits"]),
        (torch.zeros(2, 2), torch.eye(2), None, ["multilabel"], ["probabilities", "logits"]),
        (torch.zeros(3), torch.ones(3), None, ["binary"], ["probabilities", "logits"]),
        (torch.arange(3), torch.arange(3), None, ["multiclass"], ["classes"]),
        (torch.arange(3), torch.arange(3), torch.eye(3), ["multiclass"], ["probabilities", "logits", "classes"]),
        (torch.ones(3).bool(), torch.ones(3), torch.zeros(3, 1), ["binary"], ["probabilities", "logits", "classes"]),
        (ONE_HOT, ONE_HOT, None, ["multilabel"], ["classes"]),
    ],
)
def test_first_readings__by_shape(scores, labels, observed, tasks, scales):
    expected = tuple(Reading(task, scale) for task in tasks for scale in scales)
    assert first_readings(batch(scores, labels, observed), None) == expected


def test_first_readings__of_a_given_task():
    assert {one.task for one in first_readings(batch(torch.zeros(3, 3), ONE_HOT), "multiclass")} == {"multiclass"}
    assert {one.task for one in first_readings(batch(torch.zeros(3, 3), ONE_HOT), "multilabel")} == {"multilabel"}


@pytest.mark.parametrize(
    ("reading", "scores", "labels", "fits"),
    [
        (Reading("multiclass", "probabilities"), torch.eye(3), torch.arange(3), True),
        (Reading("multiclass", "probabilities"), torch.eye(3) * 2, torch.arange(3), False),
        (Reading("multiclass", "probabilities"), torch.full((3, 3), 0.5), torch.arange(3), False),
        (Reading("multiclass", "logits"), torch.eye(3), ONE_HOT, True),
        (Reading("multiclass", "logits"), torch.eye(3), ONE_HOT * 0.9 + 0.1 / 3, True),
        (Reading("multiclass", "logits"), torch.eye(3), torch.ones(3, 3), False),
        (Reading("multiclass", "logits"), torch.eye(3), torch.tensor([[1.0, 0, torch.nan]] * 3), False),
        (Reading("multiclass", "logits"), torch.eye(3), torch.tensor([[1, -1, 1]] * 3), False),
        (Reading("binary", "probabilities"), torch.tensor([0.0, 1.0]), torch.ones(2), True),
        (Reading("binary", "probabilities"), torch.tensor([0.0, 1.1]), torch.ones(2), False),
        (Reading("multilabel", "probabilities"), torch.tensor([[0.3, -0.1]]), torch.ones(1, 2), False),
        (Reading("multilabel", "logits"), torch.tensor([[0.3, -0.1]]), torch.ones(1, 2), True),
    ],
)
def test_fits(reading, scores, labels, fits):
    assert reading.fits(batch(scores, labels), None) == fits


def test_fits__observed_scores_that_predict_the_same_classes():
    agreeing = batch(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    other = batch(torch.tensor([1, 1]), torch.tensor([0, 0]), torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    logits, classes = Reading("multiclass", "logits"), Reading("multiclass", "classes")
    assert logits.fits(agreeing, None)
    assert not logits.fits(other, None)
    assert classes.fits(other, None)
    assert disagreement(agreeing, (logits, classes)) == 0
    assert disagreement(other, (classes,)) == 1
    embedding = batch(torch.tensor([1, 1]), torch.tensor([0, 0]), torch.zeros(2))
    assert disagreement(embedding, (classes,)) == 2


def test_grade__classes_of_conditions():
    graded = Reading("multilabel", "classes").grade(batch(torch.tensor([[1, 0]]), torch.tensor([[1, 1]])))
    assert graded.predictions.tolist() == [1, 2]
    assert graded.confidence.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("reading", "scores", "expected"),
    [
        (Reading("binary", "probabilities"), torch.rand(3), Reading("binary", "probabilities")),
        (Reading("binary", "probabilities"), torch.tensor([0, 1, 1]), Reading("binary", "classes")),
        (Reading("multiclass", "classes"), torch.tensor([2, 1, 0]), Reading("multiclass", "classes")),
        (Reading("multiclass", "classes"), torch.randn(3, 4), Reading("multiclass", "logits")),
        (Reading("multiclass", "classes"), torch.full((3, 4), 0.25), Reading("multiclass", "probabilities")),
    ],
)
def test_of_form__scores_outside_of_the_loop_may_have_another_form(reading, scores, expected):
    batch = ScoredBatch(scores, torch.tensor([0, 1, 1]), LogitsSource.STEP_OUTPUT)
    assert reading.of_form(batch) == expected
    assert len(expected.grade(batch).labels) == 3
