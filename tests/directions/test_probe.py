"""The label probe: parity with a ridge regression of scikit-learn, planted label errors, sources, several processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from lightning_failures.core.hashing import stable_hash
from lightning_failures.directions import probe
from lightning_failures.directions.probe import FOLDS, PENALTY, REPEATS, doubted_labels, label_margins
from lightning_failures.directions.standardize import mean_and_std, standardize


def clusters(n=600, dim=12, classes=4, distance=3.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    return rng.normal(size=(n, dim)) + distance * rng.normal(size=(classes, dim))[labels], labels


def margins(x, labels, sources=None, **options):
    classes = options.pop("classes", np.unique(labels))
    sources = np.arange(len(x)) if sources is None else sources
    return label_margins(x, labels, sources, *mean_and_std(x), classes=classes, **options)


def test_margins__parity_with_scikit_learn():
    """One ridge regression a fold, in which every class has weight 1; the intercept is not penalised."""
    x, labels = clusters(n=300, dim=6, distance=1.0)
    labels[:60] = 0  # classes of different sizes
    mean, std = mean_and_std(x)
    phi = standardize(x, mean, std)
    scores = np.zeros((300, 4))
    for repeat in range(REPEATS):
        fold = stable_hash(np.arange(300), repeat) % np.uint64(FOLDS)
        for held in range(FOLDS):
            kept = fold != held
            weight = 1 / np.bincount(labels[kept])[labels[kept]]
            second = (phi[kept] ** 2 * weight[:, None]).sum() / 6  # mean eigenvalue of the weighted second moments
            ridge = Ridge(alpha=PENALTY * second).fit(phi[kept], np.eye(4)[labels[kept]], sample_weight=weight)
            scores[~kept] += ridge.predict(phi[~kept]) / REPEATS
    own = scores[np.arange(300), labels]
    scores[np.arange(300), labels] = -np.inf
    assert margins(x, labels) == pytest.approx(own - scores.max(axis=1), abs=1e-4)


def test_margins__do_not_depend_on_the_size_of_blocks(monkeypatch):
    x, labels = clusters(n=300, dim=6)
    expected = margins(x, labels)
    monkeypatch.setattr(probe, "_ROWS_AT_ONCE", 20)
    assert margins(x, labels) == pytest.approx(expected, abs=1e-6)


def test_margins__find_planted_label_errors():
    x, true = clusters()
    labels = true.copy()
    wrong = np.random.default_rng(1).permutation(600)[:60]
    labels[wrong] = (true[wrong] + 1) % 4
    found = margins(x, labels) < 0
    assert found[wrong].mean() > 0.95
    assert np.delete(found, wrong).mean() < 0.05


def test_margins__a_rare_class_is_not_doubted_for_being_rare():
    x, labels = clusters(n=2000, distance=2.0)
    kept = (labels != 3) | (np.cumsum(labels == 3) <= 20)
    rare = margins(x[kept], labels[kept])[labels[kept] == 3]
    assert (rare < 0).mean() < 0.2


def test_margins__copies_of_a_wrong_label_are_no_evidence_for_it():
    """Twenty images of one source carry a wrong label: as one source they share a fold, so none supports another."""
    x, labels = clusters(distance=2.0)
    rng = np.random.default_rng(3)
    source = x[np.flatnonzero(labels == 1)[0]]
    x = np.concatenate([x, source + 0.01 * rng.normal(size=(20, 12))])
    labels = np.append(labels, np.zeros(20, dtype=int))
    together = np.append(np.arange(600), np.full(20, 600))
    assert (margins(x, labels, together)[600:] < 0).all()


def test_margins__of_rivals_are_those_of_their_classes_alone():
    """Multilabel: a condition's two classes compete with each other only."""
    x, labels = clusters()
    rivals = np.array([0, 0, 1, 1])
    together = margins(x, labels, rivals=rivals)
    for pair in ((0, 1), (2, 3)):
        rows = np.isin(labels, pair)
        alone = label_margins(
            x[rows], labels[rows], np.flatnonzero(rows), *mean_and_std(x), classes=np.array(pair), seed=0
        )
        assert together[rows] == pytest.approx(alone, abs=1e-6)


@given(st.integers(0, 1000), st.integers(2, 3))
def test_margins__processes_that_add_up_find_the_same(seed, processes):
    x, labels = clusters(n=120, dim=5, seed=seed % 7)
    mean_std = mean_and_std(x)
    owner = np.random.default_rng(seed).integers(processes, size=4)
    rows = [np.flatnonzero(owner[labels] == rank) for rank in range(processes)]
    sums = []
    for mine in rows:  # first only collect the sums, then hand out their totals
        collected = []
        label_margins(
            x[mine],
            labels[mine],
            mine,
            *mean_std,
            classes=np.arange(4),
            add_up=lambda own, c=collected: c.append(own()) or c[-1],
        )
        sums.append(collected)
    totals = [tuple(map(sum, zip(*parts, strict=True))) for parts in zip(*sums, strict=True)]
    expected = margins(x, labels, classes=np.arange(4))
    for mine in rows:
        left = iter(totals)
        found = label_margins(
            x[mine], labels[mine], mine, *mean_std, classes=np.arange(4), add_up=lambda _, left=left: next(left)
        )
        assert found == pytest.approx(expected[mine], abs=1e-5)


def test_margins__undefined():
    x, labels = clusters(n=60, classes=1)
    assert np.isnan(margins(x, labels)).all(), "one class has no rival"
    x, labels = clusters(n=60, classes=2)
    labels[:] = 0
    labels[5] = 1
    assert np.isnan(margins(x, labels)[5]), "the only example of a class cannot support itself"


def test_margins__of_identical_embeddings_and_no_examples():
    assert np.isfinite(margins(np.ones((30, 4)), np.arange(30) % 2)).all()
    nothing = label_margins(
        np.empty((0, 4)), np.empty(0, dtype=int), np.empty(0, dtype=int), np.zeros(4), np.ones(4), classes=np.arange(2)
    )
    assert len(nothing) == 0


def test_margins__the_order_of_rows_has_no_influence():
    x, labels = clusters(distance=1.0)
    order = np.random.default_rng(5).permutation(600)
    shuffled = label_margins(x[order], labels[order], order, *mean_and_std(x), classes=np.arange(4))
    assert shuffled == pytest.approx(margins(x, labels)[order], abs=1e-5)


def test_doubted_labels__embeddings_that_tell_no_class_doubt_none():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(2000, 16)), np.arange(2000) % 10
    margins = label_margins(x, labels, np.arange(2000), x.mean(0), x.std(0), classes=np.arange(10))
    assert (margins < 0).mean() > 0.5
    assert not doubted_labels(margins, labels).any()


def test_doubted_labels__each_class_is_judged_by_itself():
    """Class 0 lies apart; classes 1 and 2 cannot be distinguished."""
    rng = np.random.default_rng(1)
    labels = np.arange(1800) % 3
    x = rng.normal(size=(1800, 8)) + 6.0 * np.eye(8)[0] * (labels == 0)[:, None]
    labels[:30] = (labels[:30] + 1) % 3
    margins = label_margins(x, labels, np.arange(1800), x.mean(0), x.std(0), classes=np.arange(3))
    doubted = doubted_labels(margins, labels)
    assert doubted[:30][labels[:30] == 0].all()
    assert not doubted[labels > 0].any()
