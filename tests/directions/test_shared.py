"""One direction over all classes: planted truth, null, what has no influence, and several processes."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.directions.shared import SharedDirection, fit_shared_direction
from lightning_failures.directions.standardize import mean_and_std, standardize


def task(seed: int, classes: int = 200, size: int = 5, *, planted: bool = True, dim: int = 64):
    """A fifth of all images, shifted by 3 standard deviations, fails more often; else only classes differ."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), size)
    inside = rng.random(len(labels)) < 0.2
    x = rng.normal(size=(classes, dim))[labels] + rng.normal(size=(len(labels), dim))
    x[:, 3] += 3 * inside
    rate = np.where(inside, 0.5, 0.2) if planted else rng.beta(1, 3, size=classes)[labels]
    return x.astype(np.float32), labels, rng.random(len(labels)) >= rate


def fitted(*args, **options) -> SharedDirection:
    found = fit_shared_direction(*args, **options)
    assert isinstance(found, SharedDirection), found
    return found


def same(one: SharedDirection, other: SharedDirection) -> None:
    assert one.p_value == other.p_value
    assert one.cv_score == pytest.approx(other.cv_score)
    assert one.effect.difference == pytest.approx(other.effect.difference)
    assert np.allclose(one.weight, other.weight, atol=1e-6)


def test_planted__found_in_classes_of_five_images():
    found = [fitted(*task(seed), seed=seed) for seed in range(4)]
    assert [shared.p_value <= 0.05 for shared in found] == [True] * 4
    assert np.mean([shared.effect.difference for shared in found]) > 0.08
    assert np.mean([shared.cv_score for shared in found]) > 0.55
    for shared in found:
        assert shared.weight[3] < -0.5  # towards the successes
        assert (shared.too_few, len(shared.tested)) == (200, 0)


def test_null__uniform_although_error_rates_of_classes_differ():
    found = [fitted(*task(seed, planted=False), seed=seed, permutations=99) for seed in range(40)]
    p_values = np.array([shared.p_value for shared in found])
    assert 0.3 < p_values.mean() < 0.7
    assert (p_values <= 0.05).sum() <= 6
    effects = np.array([shared.effect.difference for shared in found])
    assert abs(effects.mean()) < 3 * effects.std() / 6
    # errors are up to sqrt(2) times as large as stated, which leaves 83 % instead of 95 %
    assert np.mean([shared.effect.interval[0] <= 0 <= shared.effect.interval[1] for shared in found]) >= 0.7


def test_weight__is_the_difference_of_means_within_classes():
    x, labels, correct = task(0, classes=12, size=20, dim=6)
    shared = fitted(x, labels, correct)
    phi = standardize(x, *mean_and_std(x))
    expected = np.zeros(6)
    for k in range(12):
        right, wrong = phi[(labels == k) & correct], phi[(labels == k) & ~correct]
        if len(right) and len(wrong):
            expected += len(right) * len(wrong) / (len(right) + len(wrong)) * (right.mean(axis=0) - wrong.mean(axis=0))
    assert np.allclose(shared.unscaled, expected, atol=1e-4)
    assert np.allclose(shared.weight, expected / np.linalg.norm(expected), atol=1e-5)


def test_values__come_from_directions_of_other_classes():
    """Other outcomes of one class change the direction of the others, but none of its own positions."""
    x, labels, correct = task(1, classes=10, size=20, dim=6)
    other = correct.copy()
    other[labels == 4] = ~other[labels == 4]
    first, second = (fitted(x, labels, some).out_of_fold for some in (correct, other))
    spread = [np.diff(values[labels == 4]) for values in (first, second)]  # without the threshold
    assert np.allclose(*spread, atol=1e-6)
    assert not np.allclose(*(np.diff(values[labels < 4]) for values in (first, second)), atol=1e-6)


def test_order_of_rows__has_no_influence():
    x, labels, correct = task(2, classes=40)
    order = np.random.default_rng(0).permutation(len(x))
    ids = np.arange(len(x))
    first = fitted(x, labels, correct, ids=ids)
    second = fitted(x[order], labels[order], correct[order], ids=ids[order])
    same(first, second)
    assert np.allclose(first.out_of_fold[order], second.out_of_fold, atol=1e-6)


def test_classes_with_one_outcome__have_no_influence_and_get_values():
    x, labels, correct = task(3, classes=60)
    more = np.repeat(np.arange(60, 70), 5)
    extra = np.random.default_rng(0).normal(5, 1, size=(50, 64)).astype(np.float32)
    reference = mean_and_std(x)
    whole = fitted(
        np.concatenate([x, extra]),
        np.concatenate([labels, more]),
        np.concatenate([correct, more < 65]),
        reference=reference,
    )
    assert np.allclose(whole.weight, fitted(x, labels, correct, reference=reference).weight, atol=1e-6)
    assert np.isfinite(whole.out_of_fold).all()


def test_effect__is_not_that_of_hard_classes():
    """Failures lie at one end of the embedding because classes do, not because images do."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 10)
    x = rng.normal(size=(600, 8))
    x[:, 0] += labels / 10
    correct = rng.random(600) > labels / 70
    shared = fitted(x, labels, correct)
    assert shared.p_value > 0.05
    assert shared.effect.interval[0] < 0 < shared.effect.interval[1]


def test_holds_in__classes_with_enough_images():
    x, labels, correct = task(5, classes=8, size=150, dim=16)
    means = np.array([x[labels == k, 3].mean() for k in range(8)])
    correct = np.where(labels < 4, x[:, 3] < means[labels] + 1.5, correct)  # in half of the classes nothing else
    shared = fitted(x, labels, correct)
    assert shared.tested.tolist() == list(range(8))
    assert shared.too_few == 0
    assert (shared.class_p_value[:4] < 1e-6).all()
    assert (shared.class_auc[:4] > 0.8).all()


@pytest.mark.parametrize(
    ("classes", "wrong", "reason"),
    [
        (1, slice(0, 20), "fewer than two classes"),
        (2, slice(0, 30), "fewer than two classes"),
        (20, slice(28, 32), "4 failures in classes that have both outcomes"),
    ],
)
def test_reason__if_classes_cannot_be_compared(classes, wrong, reason):
    x = np.random.default_rng(0).normal(size=(60, 4))
    correct = np.ones(60, dtype=bool)
    correct[wrong] = False
    found = fit_shared_direction(x, np.repeat(np.arange(classes), 60 // classes), correct)
    assert isinstance(found, str)
    assert reason in found


def test_reason__if_all_embeddings_are_the_same():
    labels = np.repeat(np.arange(10), 6)
    found = fit_shared_direction(np.ones((60, 4)), labels, np.arange(60) % 3 > 0, groups=np.arange(60))
    assert isinstance(found, str)


def test_sources__of_several_classes_count_once():
    """The images of a multilabel task have a row for each condition; each takes part in one of them."""
    rng = np.random.default_rng(0)
    x, ids = np.repeat(rng.normal(size=(120, 6)), 4, axis=0), np.repeat(np.arange(120), 4)
    labels = np.tile(2 * np.arange(4), 120) + rng.integers(0, 2, 480)
    shared = fitted(x, labels, x[:, 2] + rng.normal(size=480) > 0, ids=ids, groups=ids)
    known = ~np.isnan(shared.out_of_fold)
    assert len(set(ids[known])) == known.sum() > 100
    assert len(set(labels[known])) == 8
    assert int(np.abs(shared.weight).argmax()) == 2


def test_copies__of_all_failures_are_no_evidence():
    """Thirty copies of each image, which fails or does not, are as much evidence as the images."""
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(20), 3)
    p_values = []
    for _ in range(12):
        x, correct = rng.normal(size=(60, 4)), rng.random(60) > 0.4
        shared = fitted(np.repeat(x, 30, 0), np.repeat(labels, 30), np.repeat(correct, 30), permutations=99)
        p_values.append(shared.p_value)
    assert np.mean(p_values) > 0.25


def test_processes__with_some_classes_each_find_the_same():
    x, labels, correct = task(6, classes=30, size=12, dim=8)
    whole = fitted(x, labels, correct, reference=mean_and_std(x))
    held = [labels % 2 == 0, labels % 2 == 1]
    # what the other process returns is computed by running it too, one step of the exchange after the other
    steps: list[list[object]] = []

    def run(rank: int):
        step = iter(range(10))

        def gather(work):
            number = next(step)
            mine = work()
            if len(steps) <= number:
                steps.append([None, None])
            steps[number][rank] = mine
            if None in steps[number]:
                raise InterruptedError
            return steps[number]

        return fit_shared_direction(
            x[held[rank]], labels, correct, reference=mean_and_std(x), held=held[rank], gather=gather
        )

    found = None
    for rank in (0, 1, 0, 1):
        try:
            found = run(rank)
        except InterruptedError:
            continue
    assert isinstance(found, SharedDirection)
    same(found, whole)
    assert np.allclose(found.out_of_fold, whole.out_of_fold, atol=1e-6)


def test_permutations_zero__no_p_value():
    shared = fitted(*task(8, classes=20), permutations=0)
    assert np.isnan(shared.p_value)
    assert shared.permuted.shape == (0, 64)
