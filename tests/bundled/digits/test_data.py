from __future__ import annotations

import pytest
import torch
from torchvision import transforms

from lightning_failures.bundled.digits import (
    TINTS,
    ColouredDigits,
    ColouredDigitsDataModule,
)
from lightning_failures.bundled.digits.render import (
    source_digits,
    source_split,
)
from lightning_failures.errors import ConfigurationError

TINT_NAMES = list(TINTS)


def planted_and_usual(digits):
    """(N,) bool twice: whether the class is planted, and whether the image bears its usual tint."""
    truth = [digits.truth[label] for label in digits.labels.tolist()]
    tints = [TINT_NAMES[i] for i in digits.attributes.tint.tolist()]
    planted = torch.tensor([t is not None for t in truth])
    usual = torch.tensor([t is not None and t["usual_tint"] == tint for t, tint in zip(truth, tints, strict=True)])
    return planted, usual


@pytest.mark.parametrize(("split", "expected"), [("train", 0.9), ("validation", 0.5), ("test", 0.5)])
def test_coloured_digits__shortcut_holds_in_training_only(split, expected):
    planted, usual = planted_and_usual(ColouredDigits(split, size=2000, seed=5, shortcut=0.9))
    assert planted.float().mean() == pytest.approx(0.8, abs=0.001)
    assert usual[planted].float().mean() == pytest.approx(expected, abs=0.04)


def test_coloured_digits__groups_are_source_digits_of_the_split():
    digits = ColouredDigits("validation", size=500)
    assert set(digits.groups.tolist()) <= set(source_split("validation").tolist())
    assert torch.equal(source_digits()[1][digits.groups], digits.labels)


def test_coloured_digits__classes_are_equally_frequent_and_mixed():
    labels = ColouredDigits("train", size=205).labels
    counts = torch.bincount(labels)
    assert counts.max() - counts.min() <= 1
    assert not torch.equal(labels, labels.sort().values)


def test_coloured_digits__splits_share_what_is_planted_and_nothing_else():
    train, test = (ColouredDigits(split, size=50, seed=9) for split in ("train", "test"))
    assert train.truth == test.truth
    assert not torch.equal(train.labels, test.labels)
    assert ColouredDigits("test", size=50, seed=10).truth != test.truth


def test_coloured_digits__equal_arguments_give_equal_images():
    first, second = (ColouredDigits("test", size=30, seed=4, shortcut=0.7) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first[7][0], second[7][0])


def test_coloured_digits__another_draw_has_other_images_and_the_same_shortcut():
    first, second = (ColouredDigits("train", size=30, draw=draw) for draw in (0, 1))
    assert not torch.equal(first.images, second.images)
    assert first.truth == second.truth
    assert torch.equal(first.images, ColouredDigits("train", size=30).images)


def test_data_module__predicts_on_a_pool():
    module = ColouredDigitsDataModule(train_size=20, pool_size=30)
    module.setup("predict")
    assert sum(len(y) for _, y in module.predict_dataloader()) == 30
    assert module.sets == {}


def test_coloured_digits__items_are_normalised():
    digits = ColouredDigits("train", size=500)
    image, label = digits[3]
    assert image.dtype == torch.float32
    assert image.shape == (3, 32, 32)
    assert isinstance(label, int)
    assert label == digits.labels[3]
    batch = torch.stack([digits[i][0] for i in range(len(digits))])
    assert batch.mean(dim=(0, 2, 3)).abs().max() < 0.15
    assert (batch.std(dim=(0, 2, 3)) - 1).abs().max() < 0.1
    (normalize,) = (t for t in digits.transform.transforms if isinstance(t, transforms.Normalize))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalize.mean, normalize.std))
    assert torch.allclose(image * std + mean, digits.images[3] / 255, atol=1e-6)


@pytest.mark.parametrize("shortcut", [0.49, 1.0, float("nan")])
def test_coloured_digits__shortcut_out_of_range(shortcut):
    with pytest.raises(ConfigurationError, match="shortcut must be in"):
        ColouredDigits("train", size=10, shortcut=shortcut)


def test_coloured_digits__unknown_split():
    with pytest.raises(ConfigurationError, match="'val'"):
        ColouredDigits("val", size=10)


def test_data_module__shuffles_training_by_its_seed_alone():
    def order(seed):
        data = ColouredDigitsDataModule(seed=seed, train_size=40, val_size=10, batch_size=40)
        data.setup("fit")
        return next(iter(data.train_dataloader()))[1]

    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = order(0)
        torch.manual_seed(2)
        assert torch.equal(order(0), first)
    assert not torch.equal(first, ColouredDigits("train", size=40).labels)


def test_data_module__sets_up_what_the_stage_needs():
    data = ColouredDigitsDataModule(train_size=20, val_size=10, test_size=10)
    data.setup("test")
    assert set(data.sets) == {"test"}
    data.setup("fit")
    train = data.sets["train"]
    data.setup(None)
    assert data.sets["train"] is train, "rendered once"
