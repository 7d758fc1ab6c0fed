import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.svm import SVC

from lightning_failures.bundled.digits.data import ColouredDigits
from lightning_failures.captions import score_captions
from lightning_failures.captions.candidates import caption_source
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.captions.scoring import (
    compare_captions,
    mean_shift_scores,
    most_distinctive_caption,
    permuted_distances,
)
from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.standardize import standardize
from lightning_failures.encoders import load_encoder
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.stats.folds import permuted_outcomes

DIM = 32


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _planted(seed=0, n=300, strength=3.0):
    """Two classes; images of class 1 fail where they lie along a hidden axis. Caption 4 is that axis."""
    rng = np.random.default_rng(seed)
    axes = _unit(rng.normal(size=(40, DIM)))
    x = rng.normal(size=(2 * n, DIM)) + 0.5
    labels = np.repeat([0, 1], n)
    along = np.where(labels == 1, (x - 0.5) @ axes[4], 0.0)
    correct = rng.random(2 * n) > 1 / (1 + np.exp(1 - strength * along))
    reference = _unit(rng.normal(size=DIM))
    return x, labels, correct, _unit(reference + 0.3 * axes), reference


PLANTED = _planted()
DIRECTIONS = fit_failure_directions(*PLANTED[:3], permutations=0)


def test_score_captions__the_hardest_is_the_planted_one():
    x, labels, correct, captions, reference = _planted()
    directions = fit_failure_directions(x, labels, correct)
    scores = score_captions(directions, 1, captions, reference)
    assert scores.shape == (40,)
    assert scores.dtype == torch.float32
    assert scores.argmin().item() == 4
    assert mean_shift_scores(directions, x[labels == 1], correct[labels == 1], captions, reference).argmin().item() == 4


def test_score_captions__by_definition():
    x, labels, correct, captions, reference = _planted()
    directions = fit_failure_directions(x, labels, correct)
    weight, bias = directions.weight[1].numpy(), directions.bias[1].item()
    z = (captions - reference) / x.std(0, ddof=1)
    expected = z @ weight / np.linalg.norm(z, axis=1)
    np.testing.assert_allclose(score_captions(directions, 1, captions, reference), expected, rtol=1e-4, atol=1e-6)
    published = standardize(captions - reference, x.mean(0), x.std(0, ddof=1)) @ weight + bias
    scores = score_captions(directions, 1, captions, reference, method="published")
    np.testing.assert_allclose(scores, published, rtol=1e-4, atol=1e-6)


def test_score_captions__class_index_is_the_label():
    x, labels, correct, captions, reference = _planted()
    correct[labels == 0] = True
    directions = fit_failure_directions(x, labels, correct)
    assert directions.classes.tolist() == [1]
    assert score_captions(directions, 1, captions, reference[None]).argmin().item() == 4
    with pytest.raises(DataError, match="class 0 has no failure direction: 0 failures"):
        score_captions(directions, 0, captions, reference)
    with pytest.raises(DataError, match="no example"):
        score_captions(directions, 7, captions, reference)


def test_score_captions__the_reference_scores_nothing_and_constant_dimensions_do_not_matter():
    x, labels, correct, captions, reference = _planted()
    x[:, 0] = 1.0
    directions = fit_failure_directions(x, labels, correct)
    moved = captions.copy()
    moved[:, 0] += 5
    assert torch.equal(
        score_captions(directions, 1, moved, reference), score_captions(directions, 1, captions, reference)
    )
    assert score_captions(directions, 1, torch.from_numpy(reference)[None], torch.from_numpy(reference)).tolist() == [0]


def test_score_captions__shared_candidates_for_all_classes_at_once():
    x, labels, correct, captions, reference = _planted()
    directions = fit_failure_directions(x, labels, correct, permutations=0)
    for method in ("direction", "published"):
        one_by_one = torch.stack([score_captions(directions, k, captions, reference, method) for k in (0, 1)])
        torch.testing.assert_close(score_captions(directions, None, captions, reference, method), one_by_one)
        torch.testing.assert_close(score_captions(directions, [1, 0], captions, reference, method), one_by_one.flip(0))
        torch.testing.assert_close(score_captions(directions, np.array([1]), captions, reference, method), one_by_one[1:])  # fmt: skip # noqa: E501


def test_score_captions__each_class_its_own_candidates():
    x, labels, correct, captions, reference = _planted()
    directions = fit_failure_directions(x, labels, correct, permutations=0)
    own, references = np.stack([captions[:20], captions[20:]]), np.stack([reference, -reference])
    for method in ("direction", "published"):
        expected = [score_captions(directions, k, own[k], references[k], method) for k in (0, 1)]
        torch.testing.assert_close(score_captions(directions, None, own, references, method), torch.stack(expected))


@pytest.mark.parametrize("dim", [7, 600])
def test_score_captions__published_is_the_decision_function_of_the_difference(dim):
    rng = np.random.default_rng(dim)
    x = rng.normal(size=(120, dim)) + 1
    correct = x[:, 0] + rng.normal(size=120) > 1
    directions = fit_failure_directions(x, np.zeros(120, dtype=int), correct, selection="published", permutations=0)
    mean, std = x.mean(0), x.std(0, ddof=1)
    svc = SVC(kernel="linear", class_weight="balanced", C=directions.c[0].item()).fit(
        standardize(x, mean, std), correct
    )
    reference = _unit(rng.normal(size=dim))
    captions = _unit(reference + 0.3 * rng.normal(size=(300, dim)))  # more than one block at 600 dimensions
    expected = svc.decision_function(standardize(captions - reference, mean, std))
    np.testing.assert_allclose(
        score_captions(directions, 0, captions, reference, "published"), expected, rtol=1e-3, atol=1e-4
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 5), st.integers(1, 300), st.booleans(), st.integers(0, 99))
def test_score_captions__any_number_of_candidates_dtype_and_layout(skip, count, half, seed):
    rng = np.random.default_rng(seed)
    x, _, _, _, reference = PLANTED
    captions = rng.normal(size=(2 * count, DIM + skip))[::2, skip:]  # not contiguous
    captions = captions.astype(np.float16) if half else captions
    captions.setflags(write=False)
    before = captions.copy()
    z = (captions.astype(np.float64) - reference) / x.std(0, ddof=1)
    expected = z @ DIRECTIONS.weight.double().numpy().T / np.linalg.norm(z, axis=1, keepdims=True)
    scores = score_captions(DIRECTIONS, None, captions, reference)
    np.testing.assert_allclose(scores, expected.T, rtol=1e-3, atol=1e-5)
    assert np.array_equal(captions, before)


def test_score_captions__no_candidates():
    _, _, _, captions, reference = PLANTED
    assert score_captions(DIRECTIONS, 0, captions[:0], reference).shape == (0,)
    assert score_captions(DIRECTIONS, None, captions[:0], reference).shape == (2, 0)


@pytest.mark.parametrize("place", [(3, 5), (39, 0)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_score_captions__values_that_are_not_finite_are_found(place, value):
    _, _, _, captions, reference = PLANTED
    captions = captions.copy()
    captions[place] = value
    with pytest.raises(DataError, match=f"caption_embeddings must be finite; 1 .* the first is row {place[0]}"):
        score_captions(DIRECTIONS, None, captions, reference)
    with pytest.raises(DataError, match="reference_embedding is not finite"):
        score_captions(DIRECTIONS, 0, captions[:3], np.full(DIM, value))


def test_score_captions__own_candidates_need_one_set_a_class():
    _, _, _, captions, reference = PLANTED
    with pytest.raises(DataError, match="given for 3 classes, but 2"):
        score_captions(DIRECTIONS, None, np.stack([captions] * 3), np.stack([reference] * 3))
    with pytest.raises(DataError, match="one reference"):
        score_captions(DIRECTIONS, None, np.stack([captions] * 2), reference)


@pytest.mark.parametrize(
    ("captions", "reference", "method", "error"),
    [
        (np.ones((3, DIM + 1)), np.ones(DIM + 1), "direction", DataError),
        (np.ones((3, DIM)), np.ones((2, DIM)), "direction", DataError),
        (np.ones((3, DIM)), np.ones(DIM), "cosine", ConfigurationError),
    ],
)
def test_score_captions__says_what_is_wrong(captions, reference, method, error):
    x, labels, correct, _, _ = _planted()
    directions = fit_failure_directions(x, labels, correct, permutations=0)
    with pytest.raises(error):
        score_captions(directions, 1, captions, reference, method=method)


def p_value(*args, **options):
    return compare_captions(permuted_distances(*args, **options))[0]


def test_compare_captions__p_value_small_for_the_planted_class_only():
    x, labels, correct, captions, reference = _planted()
    directions = fit_failure_directions(x, labels, correct)
    p = [
        p_value(directions, k, x[labels == k], correct[labels == k], captions, reference, permutations=199)
        for k in (0, 1)
    ]
    assert p[0] > 0.02
    assert p[1] == 1 / 200


def test_compare_captions__p_value_is_uniform_without_a_pattern():
    p = []
    for seed in range(80):
        x, _, correct, captions, reference = _planted(seed, n=90, strength=0.0)
        directions = fit_failure_directions(x, np.arange(180) // 90, correct, permutations=0, cs=[1e-3])
        p.append(p_value(directions, 1, x[90:], correct[90:], captions, reference, permutations=99))
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_compare_captions__p_value_undefined_without_captions_or_permutations():
    x, labels, correct, captions, reference = _planted()
    directions = fit_failure_directions(x, labels, correct, permutations=0)
    one = (x[:300], correct[:300])
    assert np.isnan(p_value(directions, 0, *one, captions, reference, permutations=0))
    assert np.isnan(p_value(directions, 0, *one, captions[:0], reference))


def test_compare_captions__p_value_whole_groups_and_any_order():
    x, _, correct, captions, reference = _planted(n=100)
    x, correct = np.repeat(x[100:], 5, 0), np.repeat(correct[100:], 5)
    sources, ids = np.repeat(np.arange(100), 5), np.arange(500)
    directions = fit_failure_directions(x, np.zeros(500, dtype=int), correct, groups=sources)
    order = np.random.default_rng(0).permutation(500)
    p = p_value(directions, 0, x, correct, captions, reference, ids=ids, groups=sources)
    q = p_value(directions, 0, x[order], correct[order], captions, reference, ids=ids[order], groups=sources[order])
    assert p == q


@pytest.mark.parametrize(("n", "candidates"), [(100, 40), (100, 3), (400, 12), (60, 400)])  # either order of products
@pytest.mark.parametrize("grouped", [False, True])
def test_compare_captions__p_value_is_that_of_an_explicit_loop(n, candidates, grouped):
    rng = np.random.default_rng([n, candidates])
    x = rng.normal(size=(n, DIM))
    correct = 0.3 * x[:, 0] + rng.normal(size=n) > -0.5
    sources = rng.integers(0, n // 2, size=n) if grouped else np.arange(n)
    reference = _unit(rng.normal(size=DIM))
    captions = _unit(reference + 0.3 * rng.normal(size=(candidates, DIM)))
    directions = fit_failure_directions(x, np.full(n, 5), correct, permutations=0)

    z = _unit((captions - reference) / x.std(0, ddof=1))
    features = standardize(x, x.mean(0), x.std(0, ddof=1))

    def furthest(right):
        return np.abs(z @ (features[right].mean(0) - features[~right].mean(0))).max()

    failed = np.concatenate(list(permuted_outcomes(~correct, sources, 199, np.random.default_rng([7, 5, 1]))))
    extreme = np.array([furthest(~row) >= furthest(correct) * (1 - 1e-5) for row in failed])
    expected = (1 + extreme.sum()) / 200
    if extreme.sum() >= 50:  # then nothing is found, and the test stops
        expected = 50 / (1 + np.flatnonzero(extreme)[49])
    p = p_value(
        directions, 5, x, correct, captions, reference, groups=sources if grouped else None, permutations=199, seed=7
    )
    assert p == pytest.approx(expected)


def test_caption_that_tells__is_the_direction_from_the_group_to_the_chosen():
    x, _labels, _correct, captions, reference = PLANTED
    group = x[:200]
    along = (captions - reference)[7] @ (group / DIRECTIONS.std.numpy()).T
    chosen = along >= np.sort(along)[-6]
    best = most_distinctive_caption(DIRECTIONS, group, chosen, captions, reference)
    # by hand: mean of the chosen less mean of all, and the cosine with each caption, all in the space of phi
    embedded = standardize(group, DIRECTIONS.mean.numpy(), DIRECTIONS.std.numpy())
    direction = embedded[chosen].mean(axis=0) - embedded.mean(axis=0)
    scores = _unit((captions - reference) / DIRECTIONS.std.numpy()) @ _unit(direction)
    assert best.index == scores.argmax() == 7
    assert best.score == pytest.approx(scores.max(), abs=1e-5)
    assert best.margin == pytest.approx((scores.max() - scores.mean()) / scores.std(), rel=1e-4)


@pytest.mark.parametrize("chosen", [np.ones(10, bool), np.zeros(10, bool)])
def test_caption_that_tells__nothing_to_tell(chosen):
    x, _labels, _correct, captions, reference = PLANTED
    assert most_distinctive_caption(DIRECTIONS, x[:10], chosen, captions, reference) is None
    assert most_distinctive_caption(DIRECTIONS, x[:10], np.arange(10) < 3, captions[:0], reference) is None


def test_caption_that_tells__one_candidate_stands_out_from_nothing():
    x, _labels, _correct, captions, reference = PLANTED
    best = most_distinctive_caption(DIRECTIONS, x[:10], np.arange(10) < 3, captions[:1], reference)
    assert (best.index, best.margin) == (0, 0.0)


@pytest.mark.slow
def test_caption_that_tells__names_what_is_planted_in_the_packaged_digits():
    """The most activating images of a group all have one tint: the caption names it, of more than 200."""
    digits = ColouredDigits("validation", size=800, seed=0, shortcut=0.95)
    encoder = load_encoder("embedded:digits")
    embeddings = encoder.encode_images(digits.images.float() / 255)
    labels, tints = digits.labels.numpy(), np.array(digits.tint)
    correct = np.random.default_rng(0).random(len(labels)) < 0.5
    directions = fit_failure_directions(embeddings, labels, correct, permutations=0)
    captions = caption_source(encoder, CaptionVocabulary.load("digits"), digits.classes)
    named = []
    for k in range(len(digits.classes)):
        group = np.flatnonzero(labels == k)
        for tint in np.unique(tints[group]):
            with_it = np.flatnonzero(tints[group] == tint)
            if 6 <= len(with_it) <= 0.6 * len(group):
                chosen = np.isin(np.arange(len(group)), with_it[:6])
                found = captions(k)
                best = most_distinctive_caption(
                    directions, embeddings[group], chosen, found.embeddings, found.reference
                )
                assert best.margin > 1
                named.append(tint in found.texts[best.index].split())
    assert len(named) >= 20
    assert np.mean(named) >= 0.9
