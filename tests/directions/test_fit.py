import tracemalloc

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC

from lightning_failures.core.budget import SKIPPED_FOR_TIME
from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.standardize import standardize
from lightning_failures.directions.svm import balanced_signs
from lightning_failures.errors import ConfigurationError, DataError


def _planted(classes=2, n=200, dim=12, *, strength=2.0, seed=0):
    """Failures become likely where coordinate k of the embedding is low, k the class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), n)
    x = rng.normal(size=(classes * n, dim))
    correct = rng.random(len(x)) < 1 / (1 + np.exp(-1 - strength * x[np.arange(len(x)), labels]))
    return x, labels, correct


def _null(classes, n, dim, *, rate=0.3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(classes * n, dim))
    return x, np.repeat(np.arange(classes), n), rng.random(classes * n) > rate


def test_fit__finds_the_planted_direction_of_each_class():
    x, labels, correct = _planted(classes=3, strength=4.0)
    directions = fit_failure_directions(x, labels, correct)
    assert directions.classes.tolist() == [0, 1, 2]
    assert directions.weight.shape == (3, 12)
    assert directions.weight.abs().argmax(1).tolist() == [0, 1, 2]
    assert (directions.weight.diagonal() > 0).all(), "negative values must predict failure"
    assert (directions.p_value <= 0.001).all()
    assert (directions.cv_score > 0.7).all()
    assert ((directions.cv_score_stderr > 0.01) & (directions.cv_score_stderr < 0.06)).all()
    fresh, fresh_labels, fresh_correct = _planted(classes=3, strength=4.0, seed=1)
    flagged = directions.flag(fresh, fresh_labels).numpy()
    assert balanced_accuracy_score(~fresh_correct, flagged) > 0.7


def test_fit__published_equals_the_papers_procedure():
    x, labels, correct = _planted(classes=2, n=120, dim=40, strength=1.0, seed=3)
    directions = fit_failure_directions(x, labels, correct, selection="published", permutations=0)
    unit = standardize(x, x.mean(0), x.std(0, ddof=1))
    for k in range(2):
        rows = labels == k
        scores = {
            c: cross_val_score(
                SVC(kernel="linear", class_weight="balanced", C=c),
                unit[rows],
                correct[rows],
                cv=2,
                scoring="balanced_accuracy",
            ).mean()
            for c in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        }
        best = max(scores, key=scores.__getitem__)
        svm = SVC(kernel="linear", class_weight="balanced", C=best).fit(unit[rows], correct[rows])
        assert directions.c[k].item() == best
        assert directions.cv_score[k].item() == scores[best]
        np.testing.assert_allclose(directions.weight[k], svm.coef_[0], rtol=1e-4, atol=1e-7)
        values = directions.decision_values(x[rows], labels[rows])
        np.testing.assert_allclose(values, svm.decision_function(unit[rows]), rtol=1e-3, atol=1e-5)
    assert torch.isnan(directions.p_value).all()


@pytest.mark.parametrize("dim", [5, 300], ids=["n > d", "n < d"])
def test_fit__scaled_equals_scikit_learn_at_the_same_c(dim):
    x, labels, correct = _planted(classes=1, n=150, dim=dim)
    unit = standardize(x, x.mean(0), x.std(0, ddof=1))
    for c in (3.0, 100.0):
        directions = fit_failure_directions(x, labels, correct, cs=[c], permutations=0)
        svm = SVC(kernel="linear", class_weight="balanced", C=c, tol=1e-8).fit(unit, correct)
        weight = directions.weight[0].double().numpy()
        assert weight @ svm.coef_[0] / np.linalg.norm(weight) / np.linalg.norm(svm.coef_[0]) > 0.999
        assert directions.c.tolist() == [c]


def test_fit__below_the_critical_c_it_is_the_difference_of_means_with_the_bias_in_the_middle():
    x, labels, correct = _planted(classes=1, n=80, dim=6)
    c = 1e-4
    directions = fit_failure_directions(x, labels, correct, cs=[c], permutations=0)
    unit = standardize(x, x.mean(0), x.std(0, ddof=1))
    weight = c * len(x) / 2 * (unit[correct].mean(0) - unit[~correct].mean(0))
    np.testing.assert_allclose(directions.weight[0], weight, rtol=1e-5)
    np.testing.assert_allclose(weight, c * balanced_signs(correct) @ unit)
    # every bias in [-1 - min f(wrong), 1 - max f(right)] is optimal
    f = unit @ weight
    middle = ((-1 - f[~correct].min()) + (1 - f[correct].max())) / 2
    assert directions.bias[0].item() == pytest.approx(middle, rel=1e-4)
    svm = SVC(kernel="linear", class_weight="balanced", C=c, tol=1e-8).fit(unit, correct)
    np.testing.assert_allclose(directions.weight[0], svm.coef_[0], rtol=1e-4)


def test_fit__ids_make_the_order_of_rows_irrelevant():
    x, labels, correct = _planted(classes=2, n=90)
    ids = np.random.default_rng(1).permutation(1000)[: len(x)]
    order = np.random.default_rng(2).permutation(len(x))
    for selection in ("scaled", "published"):
        a = fit_failure_directions(x, labels, correct, ids=ids, selection=selection)
        b = fit_failure_directions(x[order], labels[order], correct[order], ids=ids[order], selection=selection)
        for name in ("weight", "bias", "cv_score", "c", "p_value", "mean", "std"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert torch.equal(a.out_of_fold[order], b.out_of_fold)


def test_fit__seed_alone_decides():
    x, labels, correct = _null(2, 80, 10)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global generators stay as they are
    a = fit_failure_directions(x, labels, correct, seed=1)
    b = fit_failure_directions(x, labels, correct, seed=1)
    c = fit_failure_directions(x, labels, correct, seed=2)
    assert torch.equal(a.p_value, b.p_value)
    assert torch.equal(a.out_of_fold, b.out_of_fold)
    assert not torch.equal(a.out_of_fold, c.out_of_fold)
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002


def test_fit__out_of_fold_values_have_not_seen_the_example():
    x, labels, correct = _null(1, 150, 400)  # n < d: any labelling can be learned by heart
    directions = fit_failure_directions(x, labels, correct)
    seen = directions.decision_values(x, labels).numpy() > 0
    assert balanced_accuracy_score(correct, seen) > 0.8
    assert abs(balanced_accuracy_score(correct, directions.out_of_fold.numpy() > 0) - 0.5) < 0.15


def test_fit__groups_stay_whole():
    """One hundred sources of four copies: with the copies torn apart, pure noise would be predicted perfectly."""
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(100), 4)
    x = rng.normal(size=(100, 200))[sources] + 1e-3 * rng.normal(size=(400, 200))
    correct = (rng.random(100) > 0.3)[sources]
    labels = np.zeros(400, dtype=int)
    torn = fit_failure_directions(x, labels, correct)
    whole = fit_failure_directions(x, labels, correct, groups=sources)
    assert torn.cv_score.item() > 0.9
    assert torn.p_value.item() <= 0.001
    assert whole.cv_score.item() < 0.65
    assert whole.p_value.item() > 0.05


def test_fit__groups_that_cannot_fill_the_folds_are_skipped():
    x, labels, correct = _planted(classes=1, n=100)
    directions = fit_failure_directions(x, labels, correct, groups=np.where(correct, np.arange(100), 1000))
    assert directions.skipped == {0: "its failures come from too few sources for 2 folds"}


@pytest.mark.parametrize(
    ("failures", "said"), [(0, "0 failures"), (1, "1 failure;"), (2, "2 failures"), (9, "9 failures")]
)
def test_fit__too_few_failures_are_skipped(failures, said):
    x, labels, _ = _planted(classes=1, n=60)
    correct = np.arange(60) >= failures
    directions = fit_failure_directions(x, labels, correct)
    assert len(directions.classes) == 0
    assert directions.weight.shape == (0, 12)
    assert said in directions.skipped[0]
    assert directions.out_of_fold.isnan().all()
    assert directions.decision_values(x, labels).isnan().all()
    assert not directions.flag(x, labels).any()
    with pytest.raises(DataError, match=said):
        directions.row(0)


def test_fit__all_failures_and_one_row_are_skipped():
    x, labels, correct = _planted(classes=2, n=60)
    correct[labels == 1] = False
    directions = fit_failure_directions(x, labels, correct)
    assert directions.classes.tolist() == [0]
    assert "0 successes" in directions.skipped[1]
    one = fit_failure_directions(x[:1], labels[:1], correct[:1])
    assert one.skipped.keys() == {0}
    none = fit_failure_directions(x[:0], labels[:0], correct[:0])
    assert none.skipped == {}


def test_fit__identical_embeddings_are_skipped():
    directions = fit_failure_directions(np.ones((50, 4)), np.zeros(50, dtype=int), np.arange(50) % 2 == 0)
    assert directions.skipped == {0: "all its embeddings are the same"}


def test_fit__constant_dimensions_contribute_nothing():
    x, labels, correct = _planted(classes=1)
    padded = np.concatenate([x, np.full((len(x), 2), 0.1)], axis=1).astype(np.float32)
    directions = fit_failure_directions(padded, labels, correct)
    plain = fit_failure_directions(x.astype(np.float32), labels, correct)
    assert directions.std[-2:].tolist() == [0, 0]
    assert directions.weight[0, -2:].tolist() == [0, 0]
    assert torch.allclose(directions.weight[0, :-2], plain.weight[0])
    moved = padded.copy()
    moved[:, -1] += 100
    assert torch.equal(directions.decision_values(moved, labels), directions.decision_values(padded, labels))


def test_fit__duplicated_rows_are_fine():
    x, labels, correct = _planted(classes=1, n=60)
    directions = fit_failure_directions(np.repeat(x, 2, 0), np.repeat(labels, 2), np.repeat(correct, 2))
    assert directions.weight.isfinite().all()


@pytest.mark.parametrize("whiten", [True, False])
def test_fit__reference_gives_mean_and_std(whiten):
    x, labels, correct = _planted(classes=1)
    reference = 3 + 2 * np.random.default_rng(1).normal(size=(50, 12))
    directions = fit_failure_directions(x, labels, correct, reference=reference, whiten=whiten)
    mean, std = (reference.mean(0), reference.std(0, ddof=1)) if whiten else (np.zeros(12), np.ones(12))
    np.testing.assert_allclose(directions.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(directions.std, std, rtol=1e-6)
    expected = standardize(x, mean, std) @ directions.weight[0].numpy() + directions.bias[0].item()
    np.testing.assert_allclose(directions.decision_values(x, labels), expected, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x).bfloat16().float().T.contiguous().T,
        lambda x: np.asfortranarray(x),
        lambda x: np.concatenate([x, x], 1)[:, :12],
        lambda x: x.astype(np.float16),
        lambda x: torch.from_numpy(x).half(),
        lambda x: torch.from_numpy(x).bfloat16(),
        lambda x: torch.from_numpy(x).requires_grad_(),
    ],
    ids=["tensor", "strided tensor", "fortran", "view", "float16", "half", "bfloat16", "requires grad"],
)
def test_fit__takes_any_layout_and_dtype_and_changes_nothing(make):
    x, labels, correct = _planted(classes=1)
    x = x.astype(np.float32)
    given = make(x)
    before = given.detach().clone() if isinstance(given, torch.Tensor) else given.copy()
    directions = fit_failure_directions(given, torch.from_numpy(labels), torch.from_numpy(correct))
    directions.decision_values(given, labels)
    expected = fit_failure_directions(x, labels, correct)
    assert torch.nn.functional.cosine_similarity(directions.weight, expected.weight).item() > 0.97
    assert (given.detach() == before).all() if isinstance(given, torch.Tensor) else np.array_equal(given, before)


def test_fit__takes_read_only_arrays():
    x, labels, correct = _planted(classes=1)
    for array in (x, labels, correct):
        array.setflags(write=False)
    directions = fit_failure_directions(x, labels, correct, reference=x)
    assert directions.flag(x, labels).dtype == torch.bool


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"embeddings": np.zeros(5)}, DataError, r"\(N, D\)"),
        ({"embeddings": np.full((60, 3), np.nan)}, DataError, "must be finite"),
        ({"labels": np.zeros(3, dtype=int)}, DataError, "labels must have shape"),
        ({"labels": np.full(60, -1)}, DataError, ">= 0"),
        ({"labels": np.full(60, 0.5)}, DataError, "integers"),
        ({"correct": np.full(60, 2)}, DataError, "boolean"),
        ({"ids": np.zeros(60, dtype=int)}, DataError, "unique"),
        ({"reference": np.zeros((4, 5))}, DataError, "dimensions"),
        ({"selection": "best"}, ConfigurationError, "selection"),
        ({"folds": 1}, ConfigurationError, "folds"),
        ({"cs": []}, ConfigurationError, "cs"),
        ({"seed": -1}, ConfigurationError, "seed"),
    ],
)
def test_fit__says_what_is_wrong(change, error, said):
    arguments = {"embeddings": np.ones((60, 3)), "labels": np.zeros(60, dtype=int), "correct": np.arange(60) % 2 == 0}
    with pytest.raises(error, match=said):
        fit_failure_directions(**(arguments | change))


def test_p_value__is_uniform_without_a_pattern():
    x, labels, correct = _null(120, 60, 40, seed=7)
    p = fit_failure_directions(x, labels, correct, permutations=199, cs=[1e-3]).p_value.numpy()
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 1 <= (p <= 0.05).sum() <= 14


def test_p_value__one_true_mode_among_many_classes_can_survive():
    x, labels, correct = _null(60, 60, 10, seed=8)
    rows = labels == 17
    correct[rows] = x[rows, 0] > -0.5
    directions = fit_failure_directions(x, labels, correct, permutations=99, cs=[1e-3])
    k = directions.row(17)
    assert directions.p_value[k].item() == pytest.approx(1 / 1201), "20 permutations for each of 60 classes"
    assert directions.p_value.argmin().item() == k


def test_n_directions__a_single_mode_gives_one_direction():
    found = 0
    for seed in range(20):
        x, labels, correct = _planted(classes=1, n=200, dim=20, strength=3.0, seed=seed)
        directions = fit_failure_directions(x, labels, correct, n_directions=2, permutations=199)
        found += bool(directions.further)
    assert found <= 4


def test_n_directions__two_modes_give_two_directions():
    """Two traits, each borne by a fifth of the examples, make nearly all failures."""
    rng = np.random.default_rng(0)
    trait = rng.choice(3, size=600, p=[0.6, 0.2, 0.2])
    x = rng.normal(size=(600, 16))
    x[:, 0] += 4 * (trait == 1)
    x[:, 1] += 4 * (trait == 2)
    correct = rng.random(600) > np.where(trait > 0, 0.85, 0.05)
    directions = fit_failure_directions(x, np.zeros(600, dtype=int), correct, n_directions=2, permutations=199)
    second = directions.further[0]
    assert second.p_value.item() <= 0.05
    assert second.weight[0].abs().topk(1).indices.item() in (0, 1)
    assert 0 < second.cv_score_stderr.item() < 0.05
    assert directions.weight[0].abs().topk(2).indices.sort().values.tolist() == [0, 1]


# -- budgets -------------------------------------------------------------------------------------------------


class PassesAfter:
    """A deadline that passes after it has been checked some times."""

    def __init__(self, most):
        self.left = most

    @property
    def passed(self):
        self.left -= 1
        return self.left < 0


def test_deadline__the_classes_with_the_most_failures_are_fitted_first():
    rng = np.random.default_rng(0)
    labels = np.arange(800) % 4
    x, correct = rng.normal(size=(800, 6)), rng.random(800) > np.array([0.2, 0.6, 0.1, 0.4])[labels]
    options = {"permutations": 19}
    whole = fit_failure_directions(x, labels, correct, **options)
    found = fit_failure_directions(x, labels, correct, deadline=PassesAfter(2), **options)
    assert found.classes.tolist() == [1, 3]
    assert found.skipped == {0: SKIPPED_FOR_TIME, 2: SKIPPED_FOR_TIME}
    assert torch.equal(found.weight, whole.weight[[1, 3]])
    assert torch.equal(found.p_value, whole.p_value[[1, 3]])


def test_fit__a_large_class_takes_no_gram_matrix_of_all_its_examples():
    """10,000 examples have one of 400 MB; the fit is of 5,000 of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10_000, 4)).astype(np.float32)
    correct = x[:, 0] + rng.normal(size=10_000) > -1
    tracemalloc.start()
    try:
        fit_failure_directions(x, np.zeros(10_000, dtype=int), correct, permutations=9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300e6
