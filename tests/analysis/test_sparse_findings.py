"""Binary sparse layers of a multilabel task: planted features are found, and conditions do not disturb each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lightning_failures import analyse
from lightning_failures.data import FailureReport
from lightning_failures.data.grades import Grades
from lightning_failures.data.partition import owned_rows
from lightning_failures.report.sparse import sparse_lines, sparse_markdown, sparse_report, sparse_sentence
from tests.data.test_partition import together

NAMES = ("no edema", "edema", "no mass", "mass")
DIM, EDEMA, TUBE, MASS = 10, 0, 5, 1


def world(n: int, seed: int, tube_without_edema: float = 0.0):
    """Features, labels (n, 2) and where a tube, which usually comes with edema, is seen without it; masses are rare."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 2)) < [0.5, 0.1]).astype(np.int64)
    x = np.abs(rng.normal(size=(n, DIM))).astype(np.float32)
    odd = (labels[:, 0] == 0) & (rng.random(n) < tube_without_edema)
    x[:, EDEMA] += 1.5 * labels[:, 0]
    x[:, TUBE] += 1.5 * labels[:, 0] + 6 * odd
    x[:, MASS] += 3 * labels[:, 1]
    return x, labels, odd


def grades_of(labels, known=None, **fields) -> Grades:
    """One row for each known label; the model never finds a mass."""
    known = np.ones(labels.shape, dtype=bool) if known is None else known
    ids, condition = np.nonzero(known)
    truth = labels[ids, condition]
    predictions = np.where(condition == 1, 0, truth)
    rows = (ids, 2 * condition + truth, 2 * condition + predictions)
    return Grades(*map(torch.from_numpy, rows), None, NAMES, **fields)


TRAINING = world(1000, 0)[:2]


@pytest.fixture(scope="module")
def result():
    x, labels, odd = world(800, 1, tube_without_edema=0.3)
    return analyse(grades_of(labels), penultimate=x, penultimate_training=TRAINING), labels, odd


def test_planted_tube__is_behind_the_false_positives_of_its_condition(result):
    found, labels, odd = result
    problematic = found.fitted["sparse"].problematic
    false_positives = (problematic.labels == 0) & odd[problematic.ids]
    assert false_positives.sum() > 50
    assert (problematic.feature[false_positives] == TUBE).mean() > 0.95
    assert problematic.fixed[false_positives].mean() > 0.8
    first = sparse_report(found.report).problematic[0]
    assert (first.feature, first.pairs[0].label, first.pairs[0].prediction) == (TUBE, "no edema", "edema")
    assert first.pairs[0].count >= false_positives.sum()
    of_mass = problematic.labels >= 2
    assert of_mass.any()
    assert (problematic.predictions // 2 == problematic.labels // 2).all()
    assert (problematic.feature[of_mass] != TUBE).all()
    assert (labels[problematic.ids, problematic.labels // 2] == problematic.labels % 2).all()


def test_conditions__have_layers_and_figures_of_their_own(result):
    found, labels, _ = result
    section = sparse_report(found.report)
    edema, mass = section.conditions
    assert [one.name for one in section.classes] == ["edema", "mass"]
    assert {one.feature for one in section.classes[0].weights[:2]} == {EDEMA, TUBE}
    assert section.classes[1].weights[0].feature == MASS
    assert all(one.weights[0].weight > 0 for one in section.classes)
    assert (edema.name, edema.balanced, edema.model_accuracy) == ("edema", False, 1.0)
    assert (mass.name, mass.balanced, mass.model_accuracy) == ("mass", True, 0.5)  # it never finds one
    assert mass.prevalence == labels[:, 1].mean()
    assert mass.accuracy > 0.85
    assert mass.accuracy_interval[0] < mass.accuracy < mass.accuracy_interval[1]
    problematic = found.fitted["sparse"].problematic
    layer = found.fitted["sparse"].layers[1].layer
    recalls = [
        np.mean(~np.isin(np.flatnonzero(labels[:, 1] == k), problematic.ids[problematic.labels == 2 + k]))
        for k in (0, 1)
    ]
    assert mass.accuracy == layer.accuracy == pytest.approx(np.mean(recalls))
    assert edema.false_positives + edema.false_negatives + mass.false_positives + mass.false_negatives == (
        section.errors_examined
    )
    assert section.held_out == 1600 == section.errors_examined + section.correct_examined
    assert section.accuracy == found.report.summary["sparse/accuracy"] == (edema.accuracy + mass.accuracy) / 2
    assert found.report.summary["sparse/features_per_class"] == section.features_per_class
    assert section.fixed.rate > section.random_used.rate + 0.1 > section.random_any.rate + 0.1
    low, high = section.fixed.interval
    assert low < section.fixed.rate < high
    assert section.pairs == ()
    assert found.report.notes == ()


def test_section__can_be_read_again_and_is_said(result):
    found, _, _ = result
    report = FailureReport.from_json(found.report.to_json())
    assert sparse_report(report) == sparse_report(found.report)
    assert "Binary last layers of 2 conditions" in sparse_sentence(report)
    assert "balanced accuracy for rare conditions, 1 of them" in sparse_sentence(report)
    mass = next(line for line in sparse_lines(report) if line.startswith("mass: "))
    assert "balanced accuracy" in mass
    assert "false negatives" in mass
    assert "| condition" in sparse_markdown(report)


def test_effects__of_a_rare_condition_are_counted_on_as_many_without_it():
    x, labels, _ = world(800, 1)
    x[:, MASS] = np.where((labels[:, 1] == 0) & (np.arange(800) % 2 == 0), 9, x[:, MASS])  # worse than nothing
    found = analyse(grades_of(labels), penultimate=x, penultimate_training=TRAINING)
    effects = found.fitted["sparse"].effects
    (row,) = np.flatnonzero((effects.feature == MASS) & (effects.class_index == 3))
    rare = int(labels[:, 1].sum())
    assert effects.fixed[row] + effects.broken[row] <= 2 * rare
    assert effects.effect[row] == (effects.fixed[row] - effects.broken[row]) / (2 * rare)
    plain = analyse(grades_of(labels), penultimate=world(800, 1)[0], penultimate_training=TRAINING)
    assert not any(one.feature == MASS for one in sparse_report(plain.report).worth_masking)


def test_unknown_labels__leave_out_the_condition_alone():
    x, labels, _ = world(600, 1)
    known = np.random.default_rng(2).random(labels.shape) < 0.8
    given = np.where(np.random.default_rng(3).random(TRAINING[1].shape) < 0.8, TRAINING[1], -1)
    found = analyse(grades_of(labels, known), penultimate=x[known.any(1)], penultimate_training=(TRAINING[0], given))
    section = sparse_report(found.report)
    assert [one.held_out for one in section.conditions] == known.sum(0).tolist()
    assert [one.prevalence for one in section.conditions] == [labels[known[:, k], k].mean() for k in (0, 1)]
    assert min(one.accuracy for one in section.conditions) > 0.8


def test_without_training_features__half_of_the_examples_are_held_out_for_all_conditions():
    x, labels, _ = world(700, 1)
    found = analyse(grades_of(labels), penultimate=x)
    section = sparse_report(found.report)
    (note,) = found.notes
    assert f"fitted to {section.fitted_on.examples} of the 700 evaluated examples" in note
    assert section.fitted_on.examples + section.held_out // 2 == 700
    problematic = found.fitted["sparse"].problematic
    seen = np.concatenate([problematic.ids, problematic.correct_ids])
    assert (np.unique(seen, return_counts=True)[1] == 2).all()


def test_condition_without_examples__is_a_note_and_the_other_has_its_layer():
    x, labels, _ = world(400, 1)
    given = TRAINING[1].copy()
    given[:, 1] = 0
    found = analyse(grades_of(labels), penultimate=x, penultimate_training=(TRAINING[0], given))
    assert [one.name for one in sparse_report(found.report).conditions] == ["edema"]
    assert found.notes == ("No sparse layer for mass: all examples to fit to have the same label.",)
    given[:, 0] = 0
    found = analyse(grades_of(labels), penultimate=x, penultimate_training=(TRAINING[0], given))
    assert found.notes == ("No sparse decision layers: all examples to fit to have the same label.",)


def test_labels_of_other_conditions__are_a_note():
    x, labels, _ = world(200, 1)
    found = analyse(grades_of(labels), penultimate=x, penultimate_training=(TRAINING[0], TRAINING[1][:, :1]))
    assert any("must be (M, 2), one for each condition; got (1000, 1)" in note for note in found.notes)


def test_conditions_of_other_classes__are_independent(result):
    found, labels, _ = result
    x, _, _ = world(800, 1, tube_without_edema=0.3)
    alone = dataclasses.replace(grades_of(labels, np.array([[True, False]]).repeat(800, 0)), class_names=NAMES)
    single = analyse(alone, penultimate=x, penultimate_training=TRAINING)  # every example has one known condition
    assert sparse_report(single.report).conditions == sparse_report(found.report).conditions[:1]


def test_several_processes__each_with_some_of_the_rows_of_an_example(result):
    found, labels, _ = result
    x, _, _ = world(800, 1, tube_without_edema=0.3)
    grades = grades_of(labels)

    def share(workers):
        mine = owned_rows(grades, workers.rank, workers.world_size)
        features = x[np.unique(grades.ids.numpy()[mine])]
        given = TRAINING if not workers.rank else (None, np.zeros((0, 2), dtype=np.int64))
        return analyse(grades, penultimate=features, penultimate_training=given, workers=workers)

    sections = [one.report.methods["sparse"] for one in together(2, share)]
    assert sections[0] == sections[1] == found.report.methods["sparse"]
