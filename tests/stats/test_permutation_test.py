import itertools

import numpy as np
import pytest
import torch

from lightning_failures.directions.svm import balanced_signs, centred_gram
from lightning_failures.stats.permutation_test import _forms, _statistic, permutation_p_value


def _data(n, dim, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    correct = rng.random(n) < 0.7
    x = rng.normal(size=(n, dim)) + shift
    x[~correct, 0] -= 0.8
    return x.astype(np.float32), correct


@pytest.mark.parametrize(("n", "dim"), [(60, 40), (61, 20), (200, 8)])  # on the Gram matrix, and on the features
@pytest.mark.parametrize("with_gram", [True, False])
def test_statistic__is_the_squared_distance_of_the_balanced_means(n, dim, with_gram):
    x, _ = _data(n, dim, shift=3.0)
    failed = np.random.default_rng(1).random((50, n)) < np.linspace(0.1, 0.9, 50)[:, None]
    statistic = _statistic(x, centred_gram(x) if with_gram else None, "cpu")
    expected = [np.square(balanced_signs(~row) @ x.astype(np.float64)).sum() for row in failed]
    np.testing.assert_allclose(statistic(failed) * n**4 / 4, expected, rtol=2e-4)


@pytest.mark.parametrize("by_gram", [True, False])
def test_forms__tensors_and_arrays_take_the_same_line(by_gram):
    """Another device than the CPU gets tensors; here a CPU tensor stands in for one."""
    x, _ = _data(40, 30)
    matrix = centred_gram(x) if by_gram else x
    failed = np.random.default_rng(1).random((20, 40)) < 0.3
    arrays = _forms(matrix, failed, by_gram, "cpu")
    products = torch.from_numpy(failed).float() @ torch.from_numpy(matrix)
    tensors = (products * (torch.from_numpy(failed) if by_gram else products)).sum(dim=1)
    np.testing.assert_allclose(arrays[0], tensors, rtol=1e-5)
    assert np.array_equal(arrays[1], failed.sum(axis=1))


@pytest.mark.parametrize("with_gram", [True, False])
def test_statistic__of_labellings_without_failures_or_successes_is_zero(with_gram):
    x, _ = _data(40, 30)
    statistic = _statistic(x, centred_gram(x) if with_gram else None, "cpu")
    np.testing.assert_allclose(statistic(np.stack([np.zeros(40, bool), np.ones(40, bool)])), 0, atol=1e-3)


def test_p_value__equals_all_labellings_of_a_small_class():
    """Nine examples, three failures: the 84 labellings can be gone through."""
    x, _ = _data(9, 4)
    correct = np.arange(9) >= 3
    signs = [balanced_signs(~np.isin(np.arange(9), chosen)) for chosen in itertools.combinations(range(9), 3)]
    distances = np.array([np.square(s @ x).sum() for s in signs])
    exact = (distances >= distances[0] * (1 - 1e-5)).mean()
    p = permutation_p_value(
        x, centred_gram(x), correct, np.arange(9), permutations=20_000, enough=20_000, rng=np.random.default_rng(0)
    )
    assert p == pytest.approx(exact, abs=0.01)


def test_p_value__promising_classes_are_permuted_more_often():
    x, correct = _data(200, 16)
    for permutations, at_least, least in ((199, 0, 1 / 200), (199, 1999, 1 / 2000)):
        p = permutation_p_value(
            x,
            centred_gram(x),
            correct,
            np.arange(200),
            permutations=permutations,
            at_least=at_least,
            rng=np.random.default_rng(0),
        )
        assert p == least


def test_p_value__more_permutations_are_not_cut_short():
    """A promising class goes through all its permutations, because its p-value may be significant among all."""

    def p_value(seed, enough):
        rng = np.random.default_rng(seed)
        x, correct = rng.normal(size=(40, 5)).astype(np.float32), rng.random(40) < 0.6
        x[:, 0] += 0.9 * correct
        options = {"permutations": 199, "at_least": 9999, "rng": np.random.default_rng(1)}
        return permutation_p_value(x, centred_gram(x), correct, np.arange(40), enough=enough, **options)

    stopped, whole = (np.array([p_value(seed, enough) for seed in range(12)]) for enough in (None, 20_000))
    small = whole <= 0.05
    assert (small & (whole > 50 / 9999)).any()  # where 50 permutations would have stopped it
    np.testing.assert_array_equal(stopped[small], whole[small])


def test_p_value__labels_that_are_their_only_arrangement_are_no_evidence():
    x, _ = _data(40, 16)
    correct = np.arange(40) >= 20
    p = permutation_p_value(
        x, centred_gram(x), correct, np.repeat([0, 1], 20), permutations=99, rng=np.random.default_rng(0)
    )
    assert p > 0.9  # two sources: either labelling is as far apart


def test_p_value__without_permutations_is_undefined():
    x, correct = _data(40, 16)
    assert np.isnan(permutation_p_value(x, None, correct, np.arange(40), permutations=0, rng=np.random.default_rng(0)))


def test_p_value__stopping_changes_none_up_to_5_percent():
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, correct = rng.normal(size=(40, 5)).astype(np.float32), rng.random(40) < 0.6
        x[:, 0] += 0.4 * (seed % 4) * correct
        found.append(
            [
                permutation_p_value(
                    x,
                    centred_gram(x),
                    correct,
                    np.arange(40),
                    permutations=999,
                    enough=enough,
                    rng=np.random.default_rng(1),
                )
                for enough in (50, 1000)
            ]
        )
    stopped, whole = np.array(found).T
    small = whole <= 0.05
    assert 5 < small.sum() < 35
    np.testing.assert_array_equal(stopped[small], whole[small])
    assert (stopped[~small] > 0.05).all()
