"""The numbers of a class report against sorted lists and scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.class_reports import agreement
from lightning_failures.data import FailureReport, Grades
from lightning_failures.report.sentences import trust_sentence
from lightning_failures.report.tables import rank_classes
from lightning_failures.trainer.metric_keys import worst_class_values
from lightning_failures.trees import fit_failure_tree
from tests.analysis.test_analyse import planted, shuffled


@pytest.fixture(scope="module")
def analysed():
    """Two thirds are analysed; confidence is rounded to make ties."""
    grades, x = planted(600)
    confidence = torch.rand(600, generator=torch.Generator().manual_seed(1)).mul(20).round() / 20
    grades, sampled = replace(grades, confidence=confidence), np.arange(600) % 9 < 6
    return grades, x, sampled, analyse(grades, x[sampled], features=x[sampled], sampled=sampled, permutations=99)


def examples(analysed, k):
    """Return (id, confidence, decision value) of the analysed examples of a class."""
    grades, _, sampled, report = analysed
    rows = np.flatnonzero(sampled & (grades.labels.numpy() == k))
    columns = (grades.ids, grades.confidence, report.directions.out_of_fold)
    return list(zip(*(column[rows].tolist() for column in columns), strict=True))


def test_least_confident__among_analysed_examples_with_ties_by_id(analysed):
    for k, entry in enumerate(analysed[-1].classes):
        expected = sorted((confidence, i) for i, confidence, _ in examples(analysed, k))[:8]
        assert list(zip(entry.least_confident_values, entry.least_confident_ids, strict=True)) == expected
        assert len({confidence for confidence, _ in expected}) < 8


def test_hardest_and_easiest__values_in_the_order_of_the_ids(analysed):
    for k, entry in enumerate(analysed[-1].classes):
        value = {i: value for i, _, value in examples(analysed, k)}
        assert list(entry.hardest_values) == sorted(value.values())[:8]
        assert list(entry.easiest_values) == sorted(value.values())[: -8 - 1 : -1]
        assert [value[i] for i in entry.hardest_ids] == list(entry.hardest_values)
        assert [value[i] for i in entry.easiest_ids] == list(entry.easiest_values)


def test_least_confident__differ_from_the_hardest(analysed):
    """Confidence is noise here, so the two lists have little in common."""
    dog = analysed[-1].classes[1]
    assert dog.pattern
    assert len(set(dog.least_confident_ids) & set(dog.hardest_ids)) < 4


def test_looked_at__counts_the_sample_and_its_failures(analysed):
    grades, _, sampled, report = analysed
    for k, entry in enumerate(report.classes):
        mine = grades.labels.numpy() == k
        assert entry.looked_at == (mine & sampled).sum() < entry.examples == mine.sum()
        assert entry.failures_looked_at == (mine & sampled & grades.failed.numpy()).sum()
        assert entry.flagged <= entry.looked_at


def test_class_reports__grades_alone_give_only_the_least_confident():
    grades, _ = planted(90)
    entry = analyse(grades).classes[0]
    assert len(entry.least_confident_ids) == len(entry.least_confident_values) == 8
    assert entry.looked_at == entry.examples
    assert (entry.hardest_values, entry.nearest, entry.agreement, entry.cv_null_interval) == ((), (), None, None)


def test_agreement__scikit_learns_kappa_of_flagged_and_leaf(analysed):
    report = analysed[-1]
    for k, entry in enumerate(report.classes):
        tree = report.trees["label", entry.name]
        if not report.groups[k].pattern:
            assert entry.agreement is None
            continue
        worst = set(tree.leaves[0].ids.tolist())
        mine = examples(analysed, k)
        expected = cohen_kappa_score([value < 0 for *_, value in mine], [i in worst for i, *_ in mine])
        assert entry.agreement == pytest.approx(expected)
    assert report.classes[1].agreement > 0.3


def test_gain__failures_that_vanish_if_the_flagged_fail_as_the_others_do(analysed):
    grades, _, sampled, result = analysed
    failures = int((grades.failed.numpy() & sampled).sum())
    gains = []
    for k, entry in enumerate(result.classes):
        rows = np.flatnonzero(sampled & (grades.labels.numpy() == k))
        flagged, failed = result.directions.out_of_fold[rows].numpy() < 0, grades.failed[rows].numpy()
        excess = failed[flagged].mean() - failed[~flagged].mean() if entry.cv_score is not None else 0
        assert (entry.gain is None) == (not entry.pattern) == (entry.gain_share is None)
        if entry.pattern:
            assert entry.gain == pytest.approx(excess * flagged.sum())
            assert entry.gain_share == pytest.approx(entry.gain / failures)
            gains.append(entry.gain)
    assert gains
    assert [entry.gain for entry in rank_classes(result.report)[: len(gains)]] == sorted(gains, reverse=True)


def test_agreement__not_with_a_rejected_tree(analysed):
    report = analysed[-1]
    rejected = [group.class_name for group in report.groups[:3] if not group.pattern]
    assert len(rejected) == 2
    assert all(len(report.trees["label", name].leaves) > 1 for name in rejected)
    for entry in report.classes:
        assert entry.flagged
        assert (entry.agreement is None) == (entry.name in rejected)
        assert "failure tree" not in trust_sentence(entry) or entry.name not in rejected


def test_agreement__none_if_a_method_found_nothing():
    x = np.repeat([0.0, 1.0], 50)[:, None]
    ids = np.arange(100)
    tree = fit_failure_tree(x, x[:, 0] > 0, ids=ids)
    hard = np.where(x[:, 0] > 0, -1.0, 1.0)
    assert agreement(hard, ids, tree) == 1.0
    assert agreement(np.abs(hard), ids, tree) is None
    assert agreement(hard, ids, None) is None
    assert agreement(hard, ids, fit_failure_tree(0 * x, x[:, 0] > 0, ids=ids)) is None


def test_class_reports__order_of_the_rows_does_not_matter(analysed):
    grades, x, sampled, report = analysed
    other, order = shuffled(grades)
    moved = sampled[order.numpy()]
    again = analyse(other, x[order][moved], features=x[order][moved], sampled=moved, permutations=99)
    assert again.classes == report.classes


def many_small_classes(groups=None):
    """Return 1,000 classes of 5 examples that fail at 20 %, and one of 100 examples of which 60 fail."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(1000).repeat_interleave(5), torch.full((100,), 1000)])
    failed = torch.rand(len(labels), generator=generator) < 0.2
    failed[-100:] = torch.arange(100) < 60
    names = (*(f"class {k}" for k in range(1000)), "bad", "empty")
    predictions = torch.where(failed, 1001, labels)
    return Grades(torch.arange(len(labels)), labels, predictions, None, names, groups=groups)


def test_shrunken_rates__a_truly_bad_class_leads_a_thousand_small_ones():
    report = analyse(many_small_classes()).report
    assert max(entry.base_error_rate for entry in report.classes[:1000]) > 0.6
    worst, *_, last = rank_classes(report)
    assert (worst.name, last.name) == ("bad", "empty")
    assert worst.error_rate_interval[0] < worst.error_rate_shrunk < worst.error_rate_interval[1]
    assert worst.error_rate_interval[0] < worst.base_error_rate < worst.error_rate_interval[1]
    assert (last.error_rate_shrunk, last.error_rate_interval) == (None, None)
    assert set(worst_class_values(report, 1)) == {"class/bad/accuracy"}
    assert FailureReport.from_json(report.to_json()).classes[1000] == report.classes[1000]


def test_shrunken_rates__of_examples_of_one_source_are_less_certain():
    grades = many_small_classes()
    groups = torch.cat([grades.ids[:-100], 5000 + torch.arange(100) // 20])
    alone, together = (analyse(one).classes[1000] for one in (grades, replace(grades, groups=groups)))
    assert together.error_rate_shrunk < alone.error_rate_shrunk - 0.2


def test_doubted__all_are_listed_for_review():
    """Forty labels of each class are those of the other class, which the embeddings contradict."""
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2
    x = rng.normal(size=(600, 4)) + 6 * np.eye(4)[labels]
    given = labels.copy()
    given[:80] = 1 - labels[:80]
    grades = Grades(np.arange(600), given, labels, np.full(600, 0.9), ("cat", "dog"))
    for entry in analyse(grades, torch.from_numpy(x).float(), permutations=99).classes:
        assert entry.doubted == 40
        assert sorted(entry.doubted_ids) == [row for row in range(80) if given[row] == ("cat", "dog").index(entry.name)]
