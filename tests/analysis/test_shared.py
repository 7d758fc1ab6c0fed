"""The pattern that all classes share, in the report of an analysis."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lightning_failures.analysis import analyse
from lightning_failures.captions.candidates import attribute_source
from lightning_failures.core.budget import SKIPPED_FOR_TIME
from lightning_failures.data import FailureReport, Grades
from lightning_failures.directions.shared import fit_shared_direction
from tests.captions.test_shared import CLASSES, DIM, VOCABULARY, Text


def blurred(seed: int = 0, size: int = 5):
    """Thirty classes of a few images, of which blurred ones (a fifth) fail more often."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(30), size)
    blur = rng.random(len(labels)) < 0.2
    x = rng.normal(size=(len(labels), DIM))
    x[:, 0] += 3 * blur
    failed = rng.random(len(labels)) < np.where(blur, 0.9, 0.1)
    predictions = np.where(failed, (labels + 1) % 30, labels)
    grades = Grades(torch.arange(len(labels)), torch.from_numpy(labels), torch.from_numpy(predictions), None, CLASSES)
    return grades, torch.from_numpy(x).float(), blur


def test_pattern__of_classes_that_are_too_small_to_judge():
    grades, x, blur = blurred()
    captions = attribute_source(Text(), VOCABULARY, CLASSES)
    result = analyse(grades, x, attribute_captions=captions, metadata={"blur": blur, "odd": np.arange(150) % 2})
    assert all("at least 10 are needed" in entry.skipped for entry in result.report.classes)
    shared = result.report.shared
    assert (shared.pattern, shared.p_value, shared.skipped) == (True, 0.001, None)
    assert shared.hardest_captions[0] == "blurry"
    assert shared.caption_p_value == 0.001
    assert (shared.values[0].attribute, shared.values[0].value) == ("blur", "True")
    assert shared.flagged_error_rate > 0.4 > 0.2 > shared.unflagged_error_rate
    assert shared.effect == pytest.approx(shared.flagged_error_rate - shared.unflagged_error_rate)
    assert shared.effect_interval[0] < shared.effect < shared.effect_interval[1]
    assert (shared.classes, shared.too_few) == ((), 30)
    assert blur[list(shared.hardest_ids)].mean() > 0.5
    assert result.report.summary["shared/p_value"] == 0.001
    assert result.report.summary["shared/effect"] == shared.effect
    assert result.shared.out_of_fold.shape == (150,)


def test_pattern__is_none_where_the_direction_of_a_class_is_the_opposite_of_the_others():
    labels = np.repeat([0, 1], [120, 40])  # the larger class decides where the direction points
    x = np.random.default_rng(0).normal(size=(160, 4))
    failed = np.where(labels == 0, 1, -1) * x[:, 0] > 0.5
    predictions = np.where(failed, 1 - labels, labels)
    grades = Grades(torch.arange(160), torch.from_numpy(labels), torch.from_numpy(predictions), None, CLASSES[:2])
    shared = analyse(grades, torch.from_numpy(x).float(), permutations=199).report.shared
    assert shared.p_value <= 0.05
    assert shared.effect < 0
    assert (shared.pattern, shared.strength, shared.gain) == (False, "none", None)


def test_pattern__holds_in_classes_with_enough_images():
    grades, x, _ = blurred(size=40)
    shared = analyse(grades, x, permutations=199).report.shared
    tested = [one.name for one in shared.classes]
    assert len(tested) + shared.too_few == 30
    assert sum(one.holds for one in shared.classes) > 0.8 * len(tested) > 10
    assert [one.auc for one in shared.classes] == sorted((one.auc for one in shared.classes), reverse=True)


def test_report__reads_what_it_writes_and_former_reports_have_none():
    grades, x, _ = blurred()
    report = analyse(grades, x, attribute_captions=attribute_source(Text(), VOCABULARY, CLASSES)).report
    assert FailureReport.from_json(report.to_json()) == report
    former = json.loads(report.to_json())
    del former["shared"]
    assert FailureReport.from_dict(former).shared is None


def test_analyse__equals_the_fit_and_does_not_depend_on_the_order_of_rows():
    grades, x, _ = blurred(3)
    shared = analyse(grades, x).report.shared
    direct = fit_shared_direction(x, grades.labels, grades.correct)
    assert (shared.p_value, shared.effect) == (direct.p_value, direct.effect.difference)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    shuffled = Grades(grades.ids[order], grades.labels[order], grades.predictions[order], None, CLASSES)
    again = analyse(shuffled, x[order]).report.shared
    assert again.p_value == shared.p_value
    assert again.effect == pytest.approx(shared.effect)


def test_none__without_embeddings_or_with_one_class():
    grades, x, _ = blurred()
    assert analyse(grades).report.shared is None
    one = Grades(torch.arange(40), torch.zeros(40).long(), torch.arange(40) % 2, None, ("cat", "dog"))
    report = analyse(one, x[:40]).report
    assert report.shared is None
    assert "shared/p_value" not in report.summary


def test_reason__where_there_is_no_direction():
    grades, x, _ = blurred()
    right = Grades(grades.ids, grades.labels, grades.labels, None, CLASSES)
    assert "fewer than two classes" in analyse(right, x).report.shared.skipped
    assert analyse(grades, x, time_budget=1e-9).report.shared.skipped == SKIPPED_FOR_TIME


def test_images__without_an_embedding_take_no_part_but_those_with_a_doubtful_label_do():
    grades, x, _ = blurred(size=40)
    x += 6 * torch.randn(30, DIM)[grades.labels]  # classes that lie apart, so that the probe may doubt a label
    x[7], x[40:43] = torch.nan, x[120:123] + 0.01
    result = analyse(grades, x, permutations=99, doubted="failures")
    assert result.directions.in_doubt.any()
    assert np.flatnonzero(np.isnan(result.shared.out_of_fold)).tolist() == [7]
    assert result.report.shared.examples == 1199


def test_captions__that_fail_cost_only_themselves():
    grades, x, _ = blurred()

    def broken(k):
        raise RuntimeError("no text today")

    report = analyse(grades, x, attribute_captions=broken).report
    assert report.shared.pattern
    assert report.shared.hardest_captions == ()
    assert any("no text today" in note for note in report.notes)
    with pytest.raises(RuntimeError, match="no text today"):
        analyse(grades, x, attribute_captions=broken, raise_class_errors=True)


def test_classes_of_which_each_fails_alike__are_no_pattern():
    """Hard classes lie elsewhere than easy ones; within a class nothing tells failures."""
    p_values = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = np.repeat(np.arange(30), 10)
        x = rng.normal(size=(300, DIM)) + labels[:, None] / 10
        failed = rng.random(300) < labels / 40
        predictions = np.where(failed, (labels + 1) % 30, labels)
        grades = Grades(torch.arange(300), torch.from_numpy(labels), torch.from_numpy(predictions), None, CLASSES)
        p_values.append(analyse(grades, x, permutations=99).report.shared.p_value)
    assert np.mean(p_values) > 0.25
