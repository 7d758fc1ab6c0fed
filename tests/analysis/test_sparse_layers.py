"""The sparse decision layer in ``analyse``: planted artefacts are named, and what cannot be fitted is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lightning_failures import analyse
from lightning_failures.analysis.method import TrainingFeatures
from lightning_failures.data import FailureReport
from lightning_failures.data.grades import Grades
from lightning_failures.errors import DataError
from lightning_failures.report.sparse import sparse_report
from lightning_failures.sparse.debug import ALL_CLASSES

CLASSES, DIM, ARTEFACT = 4, 12, 7


def features(n: int, seed: int, artefact: float = 0.0):
    """Features of which k speaks for class k, and 7 for class 1; feature 7 is strong in some examples of class 0."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    x = np.abs(rng.normal(size=(n, DIM))).astype(np.float32)
    x[np.arange(n), np.where(labels == 1, ARTEFACT, labels)] += 3
    odd = (labels == 0) & (rng.random(n) < artefact)
    x[odd, ARTEFACT] += 12
    return x, labels, odd


def grades_of(labels, **fields) -> Grades:
    y = torch.as_tensor(labels)
    wrong = torch.where(torch.arange(len(y)) % 5 == 0, (y + 1) % CLASSES, y)
    return Grades(torch.arange(len(y)), y, wrong, torch.ones(len(y)), tuple("abcd"), **fields)


TRAINING = features(800, 0)[:2]


@pytest.fixture(scope="module")
def result():
    x, labels, odd = features(600, 1, artefact=0.5)
    return analyse(grades_of(labels), penultimate=x, penultimate_training=TRAINING), odd


def test_artefact__is_the_feature_behind_the_errors(result):
    found, odd = result
    problematic = found.fitted["sparse"].problematic
    of_odd = odd[problematic.ids]
    assert of_odd.sum() > 40
    assert (problematic.feature[of_odd] == ARTEFACT).mean() > 0.9
    section = sparse_report(found.report)
    first = section.problematic[0]
    assert (first.feature, first.pairs[0].label, first.pairs[0].prediction) == (ARTEFACT, "a", "b")
    assert first.fixed > 0.8 * first.errors
    assert set(first.error_ids) <= set(np.flatnonzero(odd).tolist())
    effects = found.fitted["sparse"].effects
    (row,) = np.flatnonzero((effects.feature == ARTEFACT) & (effects.class_index == ALL_CLASSES))
    assert effects.fixed[row] >= first.fixed
    assert section.worth_masking == ()  # class "b" has no other feature
    assert section.fixed.rate > 2 * section.random_any.rate  # the layer has one feature for each class
    assert section.classes[1].weights[0].feature == ARTEFACT
    assert set(section.top_ids[str(ARTEFACT)]) <= set(np.flatnonzero(odd).tolist())
    (pair,) = [one for one in section.pairs if {one.first, one.second} == {"a", "b"}]
    assert pair.confusions >= first.errors


def test_section__is_plain_and_can_be_read_again(result):
    found, _ = result
    report = found.report
    again = FailureReport.from_json(report.to_json())
    assert again.methods == json.loads(json.dumps(report.methods))
    section = sparse_report(again)
    assert (section.fitted_on.source, section.fitted_on.examples, section.held_out) == ("train", 800, 600)
    assert section.model_accuracy == pytest.approx(0.8)
    assert section.curve[section.chosen].accuracy == section.accuracy == report.summary["sparse/accuracy"]
    assert report.summary["sparse/fixed_by_one_feature"] == section.fixed.rate
    assert report.summary["sparse/broken_by_one_feature"] == section.broken.rate
    assert report.notes == ()


def test_without_training_features__half_of_the_sources_are_held_out():
    x, labels, _ = features(600, 1, artefact=0.5)
    groups = torch.arange(600) // 3
    found = analyse(grades_of(labels, groups=groups), penultimate=torch.from_numpy(x))
    section = sparse_report(found.report)
    assert section.fitted_on.source == "validation"
    assert section.fitted_on.examples + section.held_out == 600
    (note,) = found.notes
    assert f"fitted to {section.fitted_on.examples} of the 600 evaluated examples" in note
    problematic = found.fitted["sparse"].problematic
    held_out = set((np.concatenate([problematic.ids, problematic.correct_ids]) // 3).tolist())
    assert len(held_out) * 3 == section.held_out  # whole groups


def test_blocks_and_half_precision__are_read_as_they_are():
    x, labels, _ = features(300, 1)
    given = [part.astype(np.float16) for part in np.array_split(TRAINING[0], 3)]
    found = analyse(grades_of(labels), penultimate=x.astype(np.float16), penultimate_training=(given, TRAINING[1]))
    assert sparse_report(found.report).accuracy > 0.85


def test_missing_features__leave_the_example_out():
    x, labels, _ = features(300, 1)
    x[5] = np.nan
    found = analyse(grades_of(labels), penultimate=x, penultimate_training=TRAINING)
    assert sparse_report(found.report).held_out == 299
    assert "Sparse decision layers leave out 1 of 300 examples" in found.notes[0]


def test_classes_without_training_examples__are_not_examined():
    x, labels, _ = features(300, 1)
    known = TRAINING[1] < 3
    found = analyse(grades_of(labels), penultimate=x, penultimate_training=(TRAINING[0][known], TRAINING[1][known]))
    (note,) = found.notes
    assert note == (
        f"{(labels == 3).sum()} examples are not examined by the sparse layer: of a class without training examples."
    )
    assert sparse_report(found.report).held_out == (labels < 3).sum()


@pytest.mark.parametrize(
    ("grades", "reason"),
    [
        (lambda y: Grades(torch.arange(len(y)), y, None, None, tuple("abcd"), verdicts=y > 1), "have verdicts"),
        (lambda y: Grades(torch.arange(len(y)) // 2, y, y, None, tuple("abcd")), "not of different conditions"),
        (lambda y: Grades(torch.arange(len(y)), 0 * y, 0 * y, None, ("a",)), "a single class"),
        (lambda y: Grades(torch.arange(len(y)), 0 * y, 0 * y, None, ("a", "b")), "at least two classes"),
    ],
)
def test_what_cannot_be_fitted__is_a_note(grades, reason):
    x, labels, _ = features(100, 1)
    given = grades(torch.as_tensor(labels))
    found = analyse(given, penultimate=x)
    assert "sparse" not in found.report.methods
    assert any(note.startswith("No sparse decision layers: ") and reason in note for note in found.notes)


def test_problem_of_the_training_set__is_named():
    x, labels, _ = features(300, 1)

    def unreadable(deadline):
        return TrainingFeatures(None, np.empty(0, dtype=np.int64), 0, problem="the disk is full.")

    found = analyse(grades_of(labels), penultimate=x, penultimate_training=unreadable)
    assert found.notes[0].endswith("not fitted to training images: the disk is full.")


def test_time__cuts_the_path_short():
    x, labels, _ = features(300, 1)
    found = analyse(grades_of(labels), penultimate=x, penultimate_training=TRAINING, time_budget=1e-9)
    assert found.notes == ("No sparse decision layers: the time budget was spent on other methods.",)


def test_labels__must_be_integers():
    x, labels, _ = features(100, 1)
    with pytest.raises(DataError, match="labels of the training examples must be integers"):
        analyse(grades_of(labels), penultimate=x, penultimate_training=(TRAINING[0], TRAINING[1] / 2))
