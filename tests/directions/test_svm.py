import numpy as np
import pytest
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.svm import SVC

from lightning_failures.directions.criterion import CRITERION
from lightning_failures.directions.svm import (
    PUBLISHED_CS,
    balanced_signs,
    centred_gram,
    fit_published,
    fit_scaled,
    score_scaled,
    solve,
)

MULTIPLES = (1.0, 3.0, 10.0, 30.0, 100.0)  # of the critical C


def _data(n=120, dim=30, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim))
    correct = rng.random(n) < 1 / (1 + np.exp(-1 - 2 * x[:, 0]))
    return x / np.linalg.norm(x, axis=1, keepdims=True), correct


def critical_c(gram, correct):
    """Return the largest C at which every multiplier is at its bound.

    With all multipliers at C w_i the decision values are C f + b, f = K (y w). They violate no margin if some b has
    C f + b <= 1 for successes and >= -1 for failures: up to C = 2 / (max f of successes - min f of failures).
    """
    f = gram @ balanced_signs(correct)
    return 2.0 / (f[correct].max() - f[~correct].min())


@pytest.mark.parametrize("seed", range(3))
def test_critical_c__is_where_multipliers_leave_their_bounds(seed):
    x, correct = _data(seed=seed)
    critical = critical_c(x @ x.T, correct)
    bound = np.abs(balanced_signs(correct))
    for factor, all_at_bound in ((0.99, True), (1.02, False)):
        svm = SVC(kernel="linear", class_weight="balanced", C=factor * critical, tol=1e-10).fit(x, correct)
        alpha = np.zeros(len(x))
        alpha[svm.support_] = np.abs(svm.dual_coef_[0])
        assert np.allclose(alpha, factor * critical * bound, rtol=1e-6) == all_at_bound


@pytest.mark.parametrize("factor", [0.1, 0.999, 1.001, 5, 200])
def test_solve__equals_scikit_learn_on_both_sides_of_the_critical_c(factor):
    x, correct = _data()
    gram = x @ x.T
    c = factor * critical_c(gram, correct)
    coefficients, bias = solve(gram, correct, c)
    svm = SVC(kernel="linear", class_weight="balanced", C=c, tol=1e-6).fit(x, correct)
    np.testing.assert_allclose(coefficients @ x, svm.coef_[0], rtol=1e-3, atol=1e-3 * np.abs(svm.coef_).max())
    if factor > 1.1:  # below, the bias is any value of an interval
        assert bias == pytest.approx(svm.intercept_[0], abs=2e-3)
    objective = [
        w @ w / 2
        + c * (np.abs(balanced_signs(correct)) * np.maximum(0, 1 - np.where(correct, 1, -1) * (x @ w + b))).sum()
        for w, b in ((coefficients @ x, bias), (svm.coef_[0], svm.intercept_[0]))
    ]
    assert objective[0] == pytest.approx(objective[1], rel=1e-3)


def test_fit__both_selections_agree_where_the_pattern_is_plain():
    x, correct = _data(400)
    fold = np.arange(400) % 2
    scaled, published = fit_scaled(x, correct, fold), fit_published(x, correct, fold)
    assert scaled.weight @ published.weight / np.linalg.norm(scaled.weight) / np.linalg.norm(published.weight) > 0.9
    assert abs(scaled.score - published.score) < 0.06


def test_fit_scaled__the_lower_limit_of_the_grid_decides_like_the_critical_c():
    x, correct = _data()
    gram = x @ x.T
    critical = critical_c(gram, correct)
    at, below = (solve(gram, correct, factor * critical) for factor in (1.0, 1e-4))
    values = [gram @ a + b for a, b in (at, below)]
    np.testing.assert_allclose(values[0], values[1] * 1e4, rtol=1e-6, atol=1e-9)


def test_fit_scaled__a_large_class_is_fitted_on_a_sample_and_judged_in_full():
    x, correct = _data(2000)
    fold = np.arange(2000) % 2
    whole, part = fit_scaled(x, correct, fold), fit_scaled(x, correct, fold, most=500)
    assert part.weight @ whole.weight / np.linalg.norm(part.weight) / np.linalg.norm(whole.weight) > 0.8
    assert np.isfinite(part.out_of_fold).all()
    assert abs(part.score - whole.score) < 0.06


def test_fit_scaled__c_is_a_multiple_of_the_critical_one_of_all_examples():
    x, correct = _data(300)
    fold = np.arange(300) % 2
    for multiple in MULTIPLES:
        assert fit_scaled(x, correct, fold, multiple=multiple).c == pytest.approx(
            multiple * critical_c(x @ x.T, correct)
        )


def test_fit_scaled__scores_within_sampling_error_do_not_raise_c():
    """A mode of a few features: larger values of C score alike, so the smallest that is offered is taken."""
    x, correct = _data(300)
    fold = np.arange(300) % 2
    cs = tuple(np.array(MULTIPLES) * critical_c(x @ x.T, correct))
    fit = fit_scaled(x, correct, fold, cs=cs)
    assert fit.c == pytest.approx(cs[0])
    best = max(fit_scaled(x, correct, fold, cs=[c]).score for c in cs)
    assert best - 2.5 * CRITERION.stderr(fit.out_of_fold, correct) <= fit.score <= best + 0.02


def test_fit_scaled__a_real_gain_raises_c():
    """The means differ along a noisy axis, but a quiet one separates the classes."""
    rng = np.random.default_rng(0)
    correct = np.arange(1000) % 2 == 0
    signs = np.where(correct, 1.0, -1.0)
    x = rng.normal(size=(1000, 2)) * [3.0, 0.1] + signs[:, None] * [1.0, 0.15]
    fold, critical = np.arange(1000) // 2 % 2, critical_c(x @ x.T, correct)
    fit = fit_scaled(x, correct, fold, cs=tuple(np.array(MULTIPLES) * critical))
    assert fit.c > 2 * critical
    assert fit.score > fit_scaled(x, correct, fold, cs=[critical]).score + 0.01


@pytest.mark.parametrize(("n", "dim"), [(90, 200), (120, 30), (300, 6)])
@pytest.mark.parametrize("folds", [2, 3])
def test_fit_scaled__predicts_as_an_exact_solver_does(n, dim, folds):
    """At equal C, above the critical one: no held-out prediction differs from ``SVC(tol=1e-8)``."""
    x, correct = _data(n, dim)
    fold = np.arange(n) % folds
    for c in critical_c(x @ x.T, correct) * np.array(MULTIPLES[1:]) * 3:
        fit = fit_scaled(x.astype(np.float32), correct, fold, (float(c),))
        exact = SVC(kernel="linear", class_weight="balanced", C=c, tol=1e-8)
        weight = exact.fit(x, correct).coef_[0]
        assert weight @ fit.weight > 0.99999 * np.linalg.norm(weight) * np.linalg.norm(fit.weight)
        assert fit.bias == pytest.approx(exact.intercept_[0], abs=1e-3 * max(1, np.linalg.norm(weight)))
        for kept, held in PredefinedSplit(fold).split():
            values = exact.fit(x[kept], correct[kept]).decision_function(x[held])
            np.testing.assert_allclose(fit.out_of_fold[held], values, atol=1e-3)
            assert np.array_equal(fit.out_of_fold[held] > 0, values > 0)


@pytest.mark.parametrize("seed", range(3))
def test_fit_published__equals_scikit_learn_in_every_cell(seed):
    x, correct = _data(100, 40, seed=seed)
    fold = np.arange(100) % 2
    cv = PredefinedSplit(fold)
    scores = []
    for c in PUBLISHED_CS:
        svm = SVC(kernel="linear", class_weight="balanced", C=c)
        scores.append(cross_val_score(svm, x, correct, cv=cv, scoring="balanced_accuracy").mean())
        assert fit_published(x, correct, fold, (c,)).score == scores[-1]
    best = int(np.argmax(scores))
    fit = fit_published(x, correct, fold)
    svm = SVC(kernel="linear", class_weight="balanced", C=PUBLISHED_CS[best]).fit(x, correct)
    assert (fit.c, fit.score, fit.bias) == (PUBLISHED_CS[best], scores[best], svm.intercept_[0])
    np.testing.assert_allclose(fit.weight, svm.coef_[0], rtol=1e-12)


def _near_duplicates(rng):
    return rng.normal(size=(50, 20))[np.repeat(np.arange(50), 4)] + 1e-3 * rng.normal(size=(200, 20))


HARD = {
    "near duplicates": _near_duplicates,
    "duplicates": lambda rng: rng.normal(size=(20, 5))[rng.integers(0, 20, 200)],
    "far from the origin": lambda rng: 30 + rng.normal(size=(200, 10)),
    "all alike": lambda rng: rng.normal(size=20) + 1e-3 * rng.normal(size=(200, 20)),
    "one dimension": lambda rng: rng.normal(size=(200, 1)) + 2,
    "one axis rules": lambda rng: rng.normal(size=(200, 12)) * ([5.0] + [0.1] * 11),
    "some rows are zero": lambda rng: rng.normal(size=(200, 4)) * (np.arange(200) % 5 > 0)[:, None],
}


@pytest.mark.parametrize("kind", HARD)
def test_solve__reaches_the_optimum_of_hard_data(kind):
    """The primal objective is no worse than that of scikit-learn's solver in double precision."""
    rng = np.random.default_rng(0)
    x = HARD[kind](rng)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    correct = rng.random(200) < 0.7
    x32 = x.astype(np.float32)
    gram = centred_gram(x32)
    critical = critical_c(gram, correct)
    signs, weights = np.where(correct, 1, -1), np.abs(balanced_signs(correct))
    for c in critical * np.array(MULTIPLES):

        def objective(w, b, c=c):
            return w @ w / 2 + c * (weights * np.maximum(0, 1 - signs * ((x - x.mean(0)) @ w + b))).sum()

        coefficients, bias = solve(gram, correct, c)
        svm = SVC(kernel="linear", class_weight="balanced", C=c, max_iter=1_000_000).fit(x - x.mean(0), correct)
        ours = objective(coefficients @ (x - x.mean(0)), bias)
        assert ours <= objective(svm.coef_[0], svm.intercept_[0]) * (1 + 1e-3)
        assert abs(coefficients.sum()) < 1e-6 * np.abs(coefficients).sum()


@pytest.mark.parametrize("seed", range(3))
def test_solve__tight_clusters_at_a_large_c_equal_scikit_learn(seed):
    """Failures are independent of the cluster, so that C is large and only small differences matter."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 12))[np.arange(40) % 2] + 0.03 * rng.normal(size=(40, 12))
    gram = centred_gram((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))
    correct = rng.random(40) < 0.6
    coefficients, bias = solve(gram, correct, 1e4)
    svm = SVC(kernel="precomputed", class_weight="balanced", C=1e4, tol=1e-6).fit(gram.astype(np.float64), correct)
    expected = svm.decision_function(gram.astype(np.float64))
    np.testing.assert_allclose(gram.astype(np.float64) @ coefficients + bias, expected, atol=1e-3)


def test_fit_scaled__does_not_depend_on_the_origin():
    x, correct = _data(200, 10)
    fold = np.arange(200) % 2
    here, there = (fit_scaled((x + shift).astype(np.float32), correct, fold) for shift in (0, 5))
    np.testing.assert_allclose(here.out_of_fold, there.out_of_fold, atol=1e-3)
    np.testing.assert_allclose(here.weight, there.weight, atol=1e-3)
    assert here.bias == pytest.approx(there.bias + 5 * there.weight.sum(), abs=1e-2)


def test_fit_scaled__the_order_of_the_grid_is_irrelevant():
    x, correct = _data(200, 40)
    fold, critical = np.arange(200) % 2, critical_c(x @ x.T, correct)
    up, down = (fit_scaled(x, correct, fold, [c * critical for c in cs]) for cs in ((1, 5, 50), (50, 1, 5)))
    assert (up.c, up.score, up.bias) == (down.c, down.score, down.bias)
    assert np.array_equal(up.out_of_fold, down.out_of_fold)


def test_score_scaled__is_the_score_of_the_fit():
    x, correct = _data()
    fold = np.arange(120) % 2
    for multiple in (1.0, 10.0):
        fit = fit_scaled(x, correct, fold, multiple=multiple)
        assert score_scaled(x, correct, fold, multiple=multiple) == fit.score
