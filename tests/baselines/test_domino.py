"""The error-aware mixture: its likelihood climbs, planted slices are found, one component is a plain Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from lightning_failures.baselines import fit_error_aware_mixture
from lightning_failures.errors import DataError


def world(seed: int, n: int = 600, dim: int = 12):
    """Three classes; a sixth of each looks different and is taken for the next class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    hard = rng.random(n) < 1 / 6
    answers = np.where(hard, (labels + 1) % 3, labels)
    x = rng.normal(size=(n, dim))
    x[np.arange(n), labels] += 4
    x[hard, 5 + labels[hard]] += 4
    return x, labels, answers, hard


@pytest.mark.parametrize("seed", range(3))
def test_mixture__likelihood_never_falls_and_planted_slices_come_first(seed):
    x, labels, answers, hard = world(seed)
    model = fit_error_aware_mixture(x, labels, answers, slices=6, seed=seed)
    assert (np.diff(model.log_likelihood) >= -1e-9).all()
    assert (np.diff(model.discrepancy) <= 0).all()
    found = model.responsibilities(x, labels, answers)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    of_error = found[:, model.discrepancy > 0.9].sum(axis=1) > 0.5
    assert (of_error == hard).mean() > 0.98
    unseen, of_unseen, _, hard_unseen = world(seed + 100)
    by_looks = model.responsibilities(unseen, of_unseen)[:, model.discrepancy > 0.9].sum(axis=1) > 0.5
    assert (by_looks == hard_unseen).mean() > 0.95


def test_mixture__of_one_component_is_a_gaussian_of_the_projected_data():
    x, labels, answers, _ = world(0)
    model = fit_error_aware_mixture(x, labels, answers, slices=1, components=4)
    z = (x - model.mean) @ model.components.T
    np.testing.assert_allclose(model.means[0], z.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(model.variances[0], z.var(axis=0), rtol=1e-9)
    shares = np.bincount(labels) / len(labels), np.bincount(answers) / len(answers)
    expected = norm.logpdf(z, z.mean(axis=0), z.std(axis=0)).sum(axis=1)
    expected = expected + 10 * np.log(shares[0])[labels] + 10 * np.log(shares[1])[answers]
    assert model.log_likelihood[-1] == pytest.approx(expected.mean())
    np.testing.assert_allclose(model.label_probabilities[0], shares[0])
    np.testing.assert_allclose(model.prototypes()[0], x.mean(axis=0), atol=1e-9)


def test_mixture__probabilities_as_answers_and_constant_embeddings():
    x, labels, answers, _ = world(1)
    sharp = fit_error_aware_mixture(x, labels, np.eye(3)[answers], slices=4)
    np.testing.assert_allclose(sharp.means, fit_error_aware_mixture(x, labels, answers, slices=4).means)
    flat = fit_error_aware_mixture(np.zeros((30, 3)), labels[:30], answers[:30], slices=3)
    assert np.isfinite(flat.responsibilities(np.zeros((2, 3)))).all()


def test_mixture__clear_errors():
    x, labels, answers, _ = world(2)
    with pytest.raises(DataError, match="too few for 700 slices"):
        fit_error_aware_mixture(x, labels, answers, slices=700)
    with pytest.raises(DataError, match="answers must have the shape"):
        fit_error_aware_mixture(x, labels, np.zeros((5, 3)), slices=2)
    model = fit_error_aware_mixture(x, labels, answers, slices=2)
    with pytest.raises(DataError, match="must be 0"):
        model.responsibilities(x, labels + 7)


def test_captions__of_a_slice_are_those_that_the_class_lacks():
    x, labels, answers, _ = world(0)
    model = fit_error_aware_mixture(x, labels, answers, slices=6)
    captions = np.eye(x.shape[1])
    of_class = model.caption_scores(captions, x[labels == 1].mean(axis=0))
    slices = [k for k in range(6) if model.label_probabilities[k].argmax() == 1 and model.discrepancy[k] > 0.9]
    assert slices
    assert {int(of_class[k].argmax()) for k in slices} == {6}  # what the hard images of class 1 have beside its own
    assert of_class[slices[0], 1] < of_class[slices[0], 6]
    with pytest.raises(DataError, match="12 dimensions"):
        model.caption_scores(captions[:, :5], x.mean(axis=0))
