"""What chance scores: below a planted signal, around a score that is chance itself, and the same for all processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_failures.analysis.analyse import analyse
from lightning_failures.core.budget import Deadline
from lightning_failures.data.members import ClassSubset, RowValues, members_of
from lightning_failures.data.partition import SINGLE_PROCESS, Partition
from lightning_failures.directions import null_scores as nulls
from lightning_failures.directions.null_scores import add_null_cv_scores, null_cv_scores
from tests.analysis.test_analyse import content, planted, shuffled
from tests.data.test_partition import graded, report_of, same, together

__all__ = ["graded"]  # a fixture


@pytest.fixture(scope="module")
def tested():
    grades, x = planted(600)
    return grades, x, analyse(grades, x, permutations=99, cv_permutations=20)


def test_nulls__a_planted_signal_scores_above(tested):
    *_, report = tested
    dog = report.classes[1]
    assert dog.cv_score > dog.cv_null_interval[1] + 0.1
    for entry in report.classes:
        low, high = entry.cv_null_interval
        assert 0.35 < low < entry.cv_null_mean < high < 0.65
        assert entry.cv_null_permutations == 20


def test_nulls__noise_scores_inside():
    """Nine of ten should; of twelve fewer than eight would be a chance of 1 in 2,000."""
    inside = 0
    for seed in range(4):
        grades, x = planted(300, strength=0.0, seed=seed)
        for entry in analyse(grades, x, permutations=0, cv_permutations=20).classes:
            inside += entry.cv_null_interval[0] <= entry.cv_score <= entry.cv_null_interval[1]
    assert inside >= 8


def test_nulls__off_by_default_and_change_nothing_else(tested):
    grades, x, report = tested
    fields = {"cv_null_mean": None, "cv_null_interval": None, "cv_null_permutations": 0}
    without = analyse(grades, x, permutations=99)
    assert "cv_nulls" in report.timings
    assert "cv_nulls" not in without.timings
    assert without.classes == tuple(replace(entry, **fields) for entry in report.classes)


def test_nulls__neither_the_run_nor_the_order_of_the_rows_matters(tested):
    grades, x, report = tested
    other, order = shuffled(grades)
    assert content(analyse(other, x[order], permutations=99, cv_permutations=20)) == content(report)


def test_nulls__another_seed_draws_others(tested):
    grades, x, report = tested
    other = analyse(grades, x, permutations=99, cv_permutations=20, seed=1)
    assert other.classes[0].cv_null_mean != report.classes[0].cv_null_mean


def test_nulls__the_procedure_is_that_of_the_fit(monkeypatch):
    """Where the labelling is the observed one, its score is the class's own."""
    grades, x = planted(600)
    grades = replace(grades, groups=torch.arange(600) // 2)
    monkeypatch.setattr(nulls, "permuted_outcomes", lambda failed, *rest: [failed[None]])
    for entry in analyse(grades, x, permutations=99, cv_permutations=1).classes:
        assert entry.cv_null_mean == pytest.approx(entry.cv_score, abs=1e-9)
        assert entry.cv_null_permutations == 1


def test_null_scores__sources_stay_whole():
    """30 copies of each of 20 examples are as little evidence as 20 examples: null scores scatter widely."""
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(20), 30)
    features = rng.normal(size=(20, 8))[sources] + 0.01 * rng.normal(size=(600, 8))
    failed = (rng.random(20) < 0.4)[sources]
    rows = np.arange(600)
    whole, torn = (
        null_cv_scores(features, ClassSubset("cat", rows, rows, failed, of), 20, rng=np.random.default_rng(1))
        for of in (sources, None)
    )
    assert whole.std() > 2.5 * torn.std()


def test_null_scores__a_permutation_that_empties_a_fold_is_not_scored():
    """Sources of very different sizes: one of them takes over the failures of another, shortened to nothing."""
    sources = np.repeat(np.arange(12), [40, *range(1, 12)])
    rows = np.arange(len(sources))
    failed = np.isin(sources, [10, 11])
    members = ClassSubset("cat", rows, rows, failed, sources)
    features = np.random.default_rng(0).normal(size=(len(rows), 4))
    scores = null_cv_scores(features, members, 30, rng=np.random.default_rng(0))
    assert np.isfinite(scores).all()
    members = replace(members, failed=np.arange(len(rows)) == 3)
    assert len(null_cv_scores(features, members, 30, rng=np.random.default_rng(0))) == 0


def test_add_nulls__what_is_left_out_is_counted(tested):
    grades, x, _ = tested
    report = analyse(grades, x, permutations=99)
    share = Partition.of(grades, None, SINGLE_PROCESS)
    where = (members_of(grades), RowValues.of(x, grades, share.rows, "embeddings"), [1, 2], share)
    classes, left_out, _ = add_null_cv_scores(report.classes, report.directions, *where, permutations=5, deadline=Deadline.after(-1))  # fmt: skip # noqa: E501
    assert (classes, left_out) == (report.classes, 2)
    classes, left_out, notes = add_null_cv_scores(report.classes, report.directions, *where, permutations=5)
    assert [entry.cv_null_permutations for entry in classes] == [0, 5, 5]
    assert (left_out, notes) == (0, ())


def test_add_nulls__a_class_that_fails_costs_itself(tested, monkeypatch):
    grades, x, _ = tested
    report = analyse(grades, x, permutations=99)
    share = Partition.of(grades, None, SINGLE_PROCESS)
    where = (members_of(grades), RowValues.of(x, grades, share.rows, "embeddings"), [0, 1, 2], share)

    def broken(features, members, *args, **options):
        if members.name == grades.class_names[1]:
            raise ArithmeticError("planted")
        return null_cv_scores(features, members, *args, **options)

    monkeypatch.setattr(nulls, "null_cv_scores", broken)
    classes, left_out, notes = add_null_cv_scores(report.classes, report.directions, *where, permutations=5)
    assert [entry.cv_null_permutations for entry in classes] == [5, 0, 5]
    assert left_out == 0
    assert notes == (f"No CV scores by chance for class {grades.class_names[1]!r}: ArithmeticError: planted",)
    with pytest.raises(ArithmeticError, match="planted"):
        add_null_cv_scores(report.classes, report.directions, *where, permutations=5, raise_errors=True)


def test_analyse__nulls_for_want_of_time_are_noted(tested, monkeypatch):
    grades, x, _ = tested
    monkeypatch.setattr(nulls, "null_cv_scores", lambda *args, **options: None)  # what a deadline gives
    notes = analyse(grades, x, permutations=99, cv_permutations=5).notes
    assert notes == ("Skipped to keep the time budget: 3 CV scores by chance, those with the fewest failures.",)


def test_nulls__several_processes_come_to_those_of_one(graded):
    grades, x = graded
    options = {"permutations": 99, "cv_permutations": 5}
    alone = report_of(grades, x, **options)
    assert sum(entry.cv_null_permutations for entry in alone.classes) == 20
    for found in together(3, lambda workers: report_of(grades, x, workers, **options)):
        same(found, alone)
