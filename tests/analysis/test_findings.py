"""Findings: what is planted is found, classes that share it are one finding, and nothing is made of nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.findings import FindingExamples, confidence_of, find_findings
from lightning_failures.data.findings import Finding
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import LABEL
from lightning_failures.data.records import DiagnosisReport
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.stats.intervals import wilson_interval


def graded(size, failing, *, values, rate=0.7, otherwise=0.05, seed=0, sources=None):
    """Grades of K classes of ``size`` images each that fail where ``failing[class]`` names their value.

    Returns the grades and the value of each image.
    """
    rng = np.random.default_rng(seed)
    k = len(failing)
    labels = np.repeat(np.arange(k), size)
    value = rng.choice(values, k * size)
    hit = np.array([value[i] == failing[labels[i]] for i in range(k * size)])
    failed = rng.random(k * size) < np.where(hit, rate, otherwise)
    predictions = np.where(failed, (labels + 1) % max(k, 2), labels)
    names = tuple(f"class {i}" for i in range(max(k, 2)))
    tensor = torch.from_numpy
    groups = None if sources is None else tensor(np.arange(k * size) // sources)
    confidence = tensor(np.where(failed, 0.2, 0.9).astype(np.float32))
    return Grades(torch.arange(k * size), tensor(labels), tensor(predictions), confidence, names, groups), value


def findings(grades, **options) -> tuple[Finding, ...]:
    return analyse(grades, permutations=99, **options).report.findings


def test_find_findings__an_attribute_of_one_class():
    grades, tint = graded(400, ["red", None], values=["red", "blue", "green", "gray"])
    (found,) = findings(grades, metadata={"tint": tint})
    failed = grades.failed.numpy()
    inside, others = (tint == "red") & (grades.labels.numpy() == 0), (tint != "red") & (grades.labels.numpy() == 0)
    assert (found.kind, found.attribute, found.words) == ("attribute", "tint", "red")
    assert found.error_rate == pytest.approx(failed[inside].mean())
    assert found.error_rate_outside == pytest.approx(failed[others].mean())
    assert found.interval == pytest.approx(wilson_interval(failed[inside].sum(), inside.sum()))
    assert (found.examples, found.failures) == (inside.sum(), failed[inside].sum())
    assert found.share_of_failures == pytest.approx(failed[inside].sum() / failed.sum())
    assert found.confidence == "high"
    assert [(one.label, one.prediction, one.share) for one in found.mistakes] == [("class 0", "class 1", 1.0)]
    assert failed[list(found.failing_ids)].all()
    assert inside[list(found.failing_ids)].all()
    assert not failed[list(found.right_ids)].any()
    assert others[list(found.right_ids)].all()


def test_find_findings__numbers_of_a_slice_are_those_of_its_report():
    grades, tint = graded(200, ["red", None], values=["red", "blue"], sources=4)
    report = analyse(grades, metadata={"tint": tint}).report
    row = next(one for one in report.classes[0].slices if one.value == "red")
    (found,) = report.findings
    assert (found.error_rate, found.error_rate_outside) == pytest.approx((row.error_rate, row.error_rate_outside))
    assert found.p_value == row.p_value


def test_find_findings__an_attribute_whose_value_differs_between_classes_is_one_finding():
    grades, tint = graded(160, ["red", "blue", "green", None], values=["red", "blue", "green", "gray"])
    (found,) = findings(grades, metadata={"tint": tint, "noise": np.arange(640) % 3})
    assert (found.attribute, found.words) == ("tint", None)
    assert {(part.class_name, part.words) for part in found.parts} == {
        ("class 0", "red"), ("class 1", "blue"), ("class 2", "green"),
    }  # fmt: skip
    assert not found.every_class
    # classes take turns in the images
    labels = grades.labels[list(found.failing_ids)].tolist()
    assert len(set(labels[:3])) == 3


def test_find_findings__a_value_that_fails_in_all_of_a_thousand_classes_of_five_images():
    rng = np.random.default_rng(0)
    n, labels = 5000, np.arange(5000) // 5
    light = np.where(rng.random(n) < 0.3, "night", "day")
    failed = rng.random(n) < np.where(light == "night", 0.6, 0.1)
    names = tuple(f"class {k}" for k in range(1000))
    grades = Grades(np.arange(n), labels, (labels + failed) % 1000, None, names)
    (found,) = findings(grades, metadata={"light": light})
    assert (found.attribute, found.words, found.every_class, found.confidence) == ("light", "night", True, "high")
    assert found.error_rate > 0.5
    assert found.error_rate_outside < 0.2


def test_find_findings__what_looks_alike_has_no_words():
    grades, kind = graded(150, ["odd", None], values=["odd", "usual"])
    embeddings = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    embeddings[:, 0] += 4.0 * torch.from_numpy(kind == "odd")
    result = analyse(grades, embeddings, permutations=199)
    found = result.report.findings[0]
    entry = result.report.classes[0]
    assert (found.kind, found.words, found.parts[0].class_name) == ("look", None, "class 0")
    assert (found.error_rate, found.error_rate_outside) == pytest.approx(
        (entry.flagged_error_rate, entry.unflagged_error_rate), abs=1e-6
    )
    assert found.p_value == entry.p_value
    assert found.gain == pytest.approx(entry.gain, rel=1e-5)


def test_find_findings__nothing_in_noise():
    grades, value = graded(100, [None, None, None], values=["red", "blue", "green"], otherwise=0.2)
    embeddings = torch.randn(300, 6, generator=torch.Generator().manual_seed(3))
    assert findings(grades, embeddings=embeddings, metadata={"tint": value}) == ()
    assert findings(grades) == ()


def test_find_findings__a_failure_is_told_once():
    grades, tint = graded(300, ["red", None], values=["red", "blue", "gray"])
    same = np.where(tint == "red", "wide", "narrow")
    (found,) = findings(grades, metadata={"tint": tint, "shape": same})
    assert found.failures > 50


def test_find_findings__labels_in_doubt():
    labels, failed = np.zeros(100, dtype=np.int64), np.arange(100) < 30
    noise = DiagnosisReport("label noise", 0.9, remedy="classes[0].doubted_ids")
    report = FailureReport(100, 0.7, (ClassReport("cat", 100, accuracy=0.7, diagnosis=noise),))
    examples = FindingExamples(np.arange(100), labels, failed, in_doubt=np.arange(100) < 20)
    (found,) = find_findings(report, examples)
    assert (found.kind, found.cause, found.failures, found.gain) == ("labels", "label noise", 20, 20.0)
    assert (found.error_rate, found.error_rate_outside) == (0.3, pytest.approx(10 / 80))
    assert "doubted_ids" in found.remedy


def test_find_findings__a_leaf_by_its_held_out_rates():
    labels, failed = np.zeros(100, dtype=np.int64), np.arange(100) < 30
    leaf = LeafReport("feature 3 > 1", 30, 0.9, 0.9, 0.8, True, (0.5, 0.8), 0.7, 0.7, True)
    group = GroupReport("label", "cat", 100, 0.3, pattern=True, leaves=(leaf,))
    report = FailureReport(100, 0.7, (ClassReport("cat", 100, accuracy=0.7),), (group,))
    assert group.grouping == LABEL.name
    examples = FindingExamples(np.arange(100), labels, failed, leaves={"cat": [np.arange(30)]})
    (found,) = find_findings(report, examples)
    assert (found.kind, found.parts[0].words) == ("rule", "feature 3 > 1")
    assert (found.error_rate, found.interval) == (0.7, (0.5, 0.8))
    assert found.error_rate_outside == pytest.approx(9 / 70)  # 21 of 30 failures lie in 30 held-out examples


def test_find_findings__does_not_depend_on_the_order_of_rows():
    grades, tint = graded(120, ["red", "blue"], values=["red", "blue", "green"])
    swapped = dataclasses.replace(grades, ids=grades.ids.flip(0))
    order = torch.argsort(swapped.ids)
    columns = {name: getattr(swapped, name)[order] for name in ("ids", "labels", "predictions", "confidence")}
    again = findings(dataclasses.replace(grades, **columns), metadata={"tint": tint[order.numpy()]})
    once = findings(grades, metadata={"tint": tint})
    assert [one.gain for one in again] == pytest.approx([one.gain for one in once])

    def parts(found):
        return [(part.class_name, part.words, part.failures) for one in found for part in one.parts]

    assert parts(again) == parts(once)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (((0.5, 0.7), 145, 0.001), "high"),
        (((0.5, 0.7), 145, None), "low"),
        (((0.5, 0.7), 29, 0.001), "moderate"),
        (((0.5, 0.7), 9, 0.001), "low"),
        (((0.05, 0.7), 145, 0.001), "moderate"),
        (((-0.01, 0.7), 145, 0.001), "low"),
        (((0.5, 0.7), 145, 0.03), "moderate"),
        (((0.5, 0.7), 145, 0.001, 0.03), "moderate"),
        ((None, 145, 0.001), "low"),
    ],
)
def test_confidence_of__falls_with_each_doubt(arguments, wanted):
    assert confidence_of(*arguments) == wanted
    assert confidence_of(*arguments, doubtful=True) == "low"


def test_report__findings_survive_json():
    grades, tint = graded(160, ["red", "blue", None], values=["red", "blue", "green"])
    report = analyse(grades, metadata={"tint": tint}).report
    assert report.findings
    assert FailureReport.from_json(report.to_json()).findings == report.findings
    assert report["findings"][0]["parts"][0]["class"] in grades.class_names
