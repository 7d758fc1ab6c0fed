"""Confusions: the counts of an explicit loop, and a mode that explains what its failures are mistaken for."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.confusions import confusion_pairs, flagged_confusion, mistaken_for, split_by_confusion
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import FailureReport
from lightning_failures.stats.intervals import benjamini_hochberg, wilson_interval

NAMES = ("cat", "dog", "owl", "yak")


def graded(labels, predictions, names=NAMES, **options):
    labels, predictions = torch.as_tensor(labels), torch.as_tensor(predictions)
    return Grades(torch.arange(len(labels)), labels, predictions, torch.ones(len(labels)), names, **options)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_confusions__equal_an_explicit_loop(rows):
    labels, predictions = zip(*rows, strict=True)
    grades = graded(labels, predictions)
    counts = Counter((a, b) for a, b in rows if a != b)
    failures = Counter(a for a, b in rows if a != b)
    pairs = confusion_pairs(grades)
    assert {(p.label, p.prediction): p.count for p in pairs} == {
        (NAMES[a], NAMES[b]): c for (a, b), c in counts.items()
    }
    assert [p.count for p in pairs] == sorted(counts.values(), reverse=True)
    for pair in pairs:
        assert pair.share == pytest.approx(pair.count / failures[NAMES.index(pair.label)])
    for k in range(4):
        mine = [b for a, b in rows if a == k and b != k]
        of_class = mistaken_for(np.array(mine, dtype=np.int64), NAMES, limit=2)
        assert [(row.class_name, row.count) for row in of_class] == [
            (NAMES[b], c) for b, c in sorted(Counter(mine).items(), key=lambda item: (-item[1], item[0]))[:2]
        ]
        assert all(row.share == pytest.approx(row.count / len(mine)) for row in of_class)


def test_confusion_pairs__are_limited():
    names = tuple(f"class {k}" for k in range(12))
    labels, predictions = np.divmod(np.arange(144), 12)
    assert len(confusion_pairs(graded(labels, predictions, names))) == 20


def test_flagged_confusion__names_the_class_that_flagged_failures_are_mistaken_for():
    predictions = np.array([1] * 30 + [2] * 10 + [1] * 10 + [2] * 30)
    found = flagged_confusion(predictions, np.arange(80) < 40, NAMES, seed=0)
    assert (found.class_name, found.count, found.share, found.share_of_others) == ("dog", 30, 0.75, 0.25)
    assert found.p_value < 0.001


def test_flagged_confusion__is_not_tested_without_two_answers_on_both_sides():
    some = np.arange(40) < 20
    assert flagged_confusion(np.ones(40, dtype=np.int64), some, NAMES, seed=0) is None
    assert flagged_confusion(np.arange(40) % 2 + 1, np.arange(40) < 4, NAMES, seed=0) is None
    assert flagged_confusion(np.arange(40) % 2 + 1, np.arange(40) >= 4, NAMES, seed=0) is None


@pytest.mark.parametrize("size", [1, 4])
def test_flagged_confusion__of_null_data_is_rarely_significant_also_of_sources_that_are_mistaken_together(size):
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(300):
        n = rng.integers(12, 60)
        predictions = rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1], size=n).repeat(size)
        flagged = (rng.random(n) < 0.5).repeat(size)
        found = flagged_confusion(predictions, flagged, NAMES, seed=0, sources=np.arange(n).repeat(size))
        p_values.append(np.nan if found is None else found.p_value)
    p_values = np.array(p_values)
    judged = p_values[~np.isnan(p_values)]
    assert len(judged) > 200
    assert (judged <= 0.05).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(judged))
    assert benjamini_hochberg(p_values).sum() <= 2


def planted(n=1500, *, explained):
    """Return cats, dogs and owls; dogs fail where axis 5 is high, then as yaks, and some others at random, as owls."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 16, generator=generator)
    labels = torch.arange(n) % 3
    by_mode = (labels == 1) & (x[:, 5] > 0.8) & (torch.rand(n, generator=generator) < 0.9)
    at_random = torch.rand(n, generator=generator) < 0.15
    other = torch.where(torch.rand(n, generator=generator) < 0.5, 2, 3)
    answer = torch.where(by_mode, 3, 2) if explained else other
    wrong = torch.where(labels == 1, answer, (labels + 1) % 3)
    return graded(labels, torch.where(by_mode | at_random, wrong, labels)), x


def test_analyse__says_what_the_flagged_failures_are_mistaken_for_where_the_mode_explains_it():
    grades, x = planted(explained=True)
    report = analyse(grades, x, permutations=199)
    dog = report.classes[1]
    assert dog.pattern
    assert [row.class_name for row in dog.mistaken_for] == ["yak", "owl"]
    found = dog.flagged_mistaken_for
    flagged = as_flagged(report, grades)
    assert found.class_name == "yak"
    assert found.share == pytest.approx(float((grades.predictions[flagged] == 3).float().mean()))
    assert found.share > 0.6 > 0.4 > found.share_of_others
    assert report.classes[0].flagged_mistaken_for is None
    assert report.confusions[0].label in NAMES
    again = FailureReport.from_json(report.report.to_json())
    assert (again.confusions, again.classes[1].flagged_mistaken_for) == (report.confusions, found)


def test_split_by_confusion__by_hand():
    """60 dogs, then 30 owls, 9 yaks and 11 cats among the failures; 100 successes of which 20 are flagged."""
    answers = np.repeat([1, 2, 3, 0, 4], [60, 30, 9, 11, 100])
    parts = (np.arange(60) < 48, np.arange(30) < 6, np.arange(9) < 9, np.arange(11) < 11, np.arange(100) < 20)
    flagged, failed = np.concatenate(parts), np.arange(210) < 110
    found = split_by_confusion(answers, failed, flagged, (*NAMES, "fox"))
    assert [(row.class_name, row.count, row.flagged_share) for row in found] == [("dog", 60, 0.8), ("owl", 30, 0.2)]
    assert [row.share for row in found] == pytest.approx([60 / 110, 30 / 110])
    assert [row.flagged_share_of_correct for row in found] == [0.2, 0.2]
    assert found[0].flagged_interval == pytest.approx(wilson_interval(48, 60))
    assert [row.pattern for row in found] == [True, False]
    assert split_by_confusion(answers, answers == 1, flagged, (*NAMES, "fox")) == ()  # one kind is no split


def test_split_by_confusion__of_sources_is_less_certain():
    answers, failed = np.repeat([1, 2, 0], [40, 40, 100]), np.arange(180) < 80
    flagged = np.concatenate([np.arange(40) < 20, np.arange(40) < 20, np.arange(100) < 20])
    alone = split_by_confusion(answers, failed, flagged, NAMES)
    together = split_by_confusion(answers, failed, flagged, NAMES, sources=np.arange(180) // 20)
    assert [row.pattern for row in alone] == [True, True]
    assert [row.pattern for row in together] == [False, False]


def test_analyse__splits_the_failures_by_what_they_are_mistaken_for():
    grades, x = planted(explained=True)
    dog = analyse(grades, x, permutations=199).classes[1]
    yak, owl = sorted(dog.confusion_split, key=lambda row: -row.flagged_share)
    assert (yak.class_name, yak.pattern, owl.class_name, owl.pattern) == ("yak", True, "owl", False)
    assert yak.count + owl.count == round((1 - dog.accuracy) * dog.examples)
    grades, x = planted(explained=False)
    assert analyse(grades, x, permutations=199).classes[1].confusion_split == ()


def as_flagged(report, grades):
    return (report.directions.out_of_fold < 0) & grades.failed & (grades.labels == 1)


def test_analyse__is_silent_where_the_mode_does_not_explain_it():
    grades, x = planted(explained=False)
    dog = analyse(grades, x, permutations=199).classes[1]
    assert dog.pattern
    assert {row.class_name for row in dog.mistaken_for} == {"owl", "yak"}
    assert dog.flagged_mistaken_for is None


def test_analyse__one_wrong_answer_is_no_confusion():
    labels, predictions = torch.arange(40) % 2, torch.arange(40) // 3 % 2
    binary = analyse(graded(labels, predictions, ("cat", "dog")))
    ids = torch.arange(40).repeat_interleave(2)
    rows = torch.arange(80) % 2 * 2
    truth, answer = torch.arange(80) // 3 % 2, torch.arange(80) // 5 % 2
    pairs = Grades(ids, rows + truth, rows + answer, torch.ones(80), ("no a", "a", "no b", "b"))
    verdicts = Grades(torch.arange(40), labels, None, None, NAMES, verdicts=labels == predictions)
    for report in (binary, analyse(pairs), analyse(verdicts)):
        assert report.accuracy < 1
        assert report.confusions == ()
        assert all(entry.mistaken_for == () for entry in report.classes)
