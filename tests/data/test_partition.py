"""Several processes that share an analysis return the report of a single process."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_failures.analysis.analyse import analyse
from lightning_failures.data.grades import Grades
from lightning_failures.data.partition import owned_rows, owner_of_classes
from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.result import EFFECTS, join_directions
from tests.analysis.test_analyse import DIM, words
from tests.directions.test_additional import _classes, _subpopulations


class Threads:
    """Workers that run as threads."""

    def __init__(self, rank, world_size, barrier, box):
        self.rank, self.world_size = rank, world_size
        self._barrier, self._box = barrier, box

    def gather_results(self, work):
        self._box[self.rank] = work()
        self._barrier.wait(timeout=60)
        values = list(self._box)
        self._barrier.wait(timeout=60)
        return values


def together(size, work):
    """Return the results of ``work(workers)`` in each of ``size`` processes."""
    barrier, box, results = threading.Barrier(size), [None] * size, [None] * size

    def run(number):
        results[number] = work(Threads(number, size, barrier, box))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results


@pytest.fixture(scope="module")
def graded():
    """Five classes of different sizes, one without examples; failures are planted in three."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 4], [150, 90, 60, 60])
    x = rng.normal(size=(len(labels), DIM)).astype(np.float32)
    planted = (x[:, 0] + 0.3 * rng.normal(size=len(x)) < -0.3) & (labels != 4)
    failed = planted | (rng.random(len(x)) < 0.2)
    predictions = np.where(failed, (labels + 1) % 5, labels)
    confidence = torch.full((len(x),), 0.5)
    names = ("a", "b", "c", "none", "e")
    ids = torch.from_numpy(rng.permutation(len(x)) * 3).sort().values
    return Grades(ids, torch.from_numpy(labels), torch.from_numpy(predictions), confidence, names), torch.from_numpy(x)


def report_of(grades, x, workers=None, reference=None, sampled=None, **options):
    if workers is None:
        kept = slice(None) if sampled is None else sampled
        return analyse(grades, x[kept], features=x[kept], reference=reference, sampled=sampled, **options)
    mine, predicted = (
        owned_rows(grades, workers.rank, workers.world_size, predicted=either, sampled=sampled)
        for either in (False, True)
    )
    share = None if reference is None else reference[workers.rank :: workers.world_size]
    return analyse(grades, x[mine], features=x[predicted], reference=share, sampled=sampled, workers=workers, **options)


def close(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, abs=1e-5)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == other


def same(found, alone):
    assert close(*(replace(result.report, timings={}).to_dict() for result in (found, alone)))
    for name in ("weight", "bias", "cv_score", "p_value", "mean", "std", "out_of_fold"):
        torch.testing.assert_close(
            getattr(found.directions, name), getattr(alone.directions, name), atol=2e-5, rtol=1e-4, equal_nan=True
        )
    assert found.directions.skipped == alone.directions.skipped
    assert list(found.trees) == list(alone.trees)


@pytest.mark.parametrize("size", [2, 7])
def test_analyse__several_processes_return_the_report_of_one(graded, size):
    """Seven processes are more than there are classes."""
    grades, x = graded
    options = {"captions": lambda k: words(), "metadata": {"odd": (grades.ids % 2).numpy()}, "permutations": 99}
    alone = report_of(grades, x, **options)
    assert [entry.pattern for entry in alone.classes] == [True, True, True, False, False]
    for found in together(size, lambda workers: report_of(grades, x, workers, **options)):
        same(found, alone)


def test_analyse__several_processes_with_parts_of_a_reference_and_a_sample(graded):
    grades, x = graded
    reference = 3 + 2 * torch.randn(101, DIM, generator=torch.Generator().manual_seed(1))
    sampled = np.arange(len(grades)) % 5 != 0
    alone = report_of(grades, x, reference=reference, sampled=sampled, permutations=99)
    assert alone.sampled == pytest.approx(0.8)
    for found in together(3, lambda workers: report_of(grades, x, workers, reference, sampled, permutations=99)):
        same(found, alone)


def test_analyse__several_processes_grow_the_trees_of_pairs_and_unions(graded):
    grades, x = graded
    options = {"groupings": ["pair", "union", "label"], "permutations": 99}
    alone = report_of(grades, x, **options)
    assert {group.grouping for group in alone.groups} == {"pair", "union", "label"}
    assert any(group.pattern for group in alone.groups)
    for found in together(3, lambda workers: report_of(grades, x, workers, **options)):
        same(found, alone)


@pytest.mark.parametrize("doubted", ["failures", "examples"])
def test_analyse__several_processes_doubt_the_same_labels(graded, doubted):
    """No process has the embeddings of all classes that the probe compares."""
    grades, x = graded
    apart = x + 3.0 * torch.nn.functional.one_hot(grades.labels, DIM)
    wrong = torch.arange(len(x)) % 9 == 0
    labels = torch.where(wrong, grades.labels.roll(151), grades.labels)
    grades = replace(grades, labels=labels, predictions=torch.where(wrong, grades.labels, grades.predictions))
    one = report_of(grades, apart, doubted=doubted)
    assert one.directions.doubted.any()
    assert one.report.explained is not None
    for other in together(3, lambda workers: report_of(grades, apart, workers, doubted=doubted)):
        for name in (*EFFECTS, "doubted", "label_margin", "weight"):
            mine, theirs = (getattr(result.directions, name) for result in (one, other))
            torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5, equal_nan=True)
        assert [entry.doubted_ids for entry in other.classes] == [entry.doubted_ids for entry in one.classes]
        assert other.report.explained == pytest.approx(one.report.explained, abs=1e-5)


def test_owner_of_classes__one_per_class_with_even_sizes(graded):
    grades, _x = graded
    assert owner_of_classes(grades, 1).tolist() == [0] * 5
    owner = owner_of_classes(grades, 2)
    assert np.bincount(owner, weights=np.bincount(grades.labels, minlength=5)).tolist() == [210, 150]
    shares = [owned_rows(grades, process, 3) for process in range(3)]
    assert (np.sum(shares, axis=0) == 1).all()
    assert not owned_rows(grades, 0, 1, sampled=np.zeros(len(grades), dtype=bool)).any()


def test_join_directions__joins_additional_directions():
    """Some classes have a second mode and others none, so the numbers of additional directions differ."""
    x, labels, correct, _ = _classes(_subpopulations, 6, shares=(0.2, 0.2))
    correct[labels == 5] = np.random.default_rng(0).random(250) < 0.7
    options = {"n_directions": 3, "permutations": 99, "reference": x}
    whole = fit_failure_directions(x, labels, correct, **options)
    assert whole.further
    assert whole.further[0].skipped
    rows = [np.flatnonzero(labels >= 5), np.flatnonzero(labels < 3), np.flatnonzero((labels > 2) & (labels < 5))]
    parts = [fit_failure_directions(x[r], labels[r], correct[r], ids=r, classes_in_all=6, **options) for r in rows]
    found = join_directions(parts, rows, len(x))
    assert len(found.further) == len(whole.further)
    for one, other in zip((found, *found.further), (whole, *whole.further), strict=True):
        assert one.classes.tolist() == other.classes.tolist()
        assert one.skipped == other.skipped
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.out_of_fold.nan_to_num(9), other.out_of_fold.nan_to_num(9))
