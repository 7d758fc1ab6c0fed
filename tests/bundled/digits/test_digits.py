from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import transforms

from lightning_failures.bundled.digits import (
    ADJECTIVES,
    CLASSES,
    NOUNS,
    PREPOSITIONS,
    TINTS,
    ColouredDigits,
    ColouredDigitsDataModule,
    DigitClassifier,
)
from lightning_failures.bundled.digits.captions import caption
from lightning_failures.bundled.digits.render import (
    BACKGROUNDS,
    POSTURES,
    SPLITS,
    STROKES,
    Looks,
    draw_images,
    draw_looks,
    render,
    source_digits,
    source_split,
)
from lightning_failures.bundled.digits.shortcut import NOTHING, draw_tints, plant_shortcut
from lightning_failures.errors import ConfigurationError

TINT_NAMES = list(TINTS)


def looks_of(tint=0, background=0, stroke=0, posture=0, size=1):
    return Looks(*(torch.full((size,), value) for value in (tint, background, stroke, posture)))


def planted_and_usual(digits):
    """(N,) bool twice: whether the class is planted, and whether the image bears its usual tint."""
    truth = [digits.truth[label] for label in digits.labels.tolist()]
    tints = [TINT_NAMES[i] for i in digits.attributes.tint.tolist()]
    planted = torch.tensor([t is not None for t in truth])
    usual = torch.tensor([t is not None and t["usual_tint"] == tint for t, tint in zip(truth, tints, strict=True)])
    return planted, usual


# --- source digits -------------------------------------------------------------------------------------------------


def test_source_split__parts_are_disjoint_and_cover_everything():
    parts = [set(source_split(split).tolist()) for split in SPLITS]
    assert sum(map(len, parts)) == 1797
    assert set.union(*parts) == set(range(1797))


@pytest.mark.parametrize(("split", "share"), [("train", 0.6), ("validation", 0.2), ("test", 0.2)])
def test_source_split__has_the_same_share_of_every_class(split, share):
    labels = source_digits()[1]
    counts = torch.bincount(labels[source_split(split)]) / torch.bincount(labels)
    assert torch.allclose(counts, torch.full((10,), share), atol=0.01)


# --- renderer ------------------------------------------------------------------------------------------------------


def test_render__shows_tint_and_background():
    digit = source_digits()[0][:1]
    for tint, rgb in enumerate(TINTS.values()):
        for background, paper in enumerate(BACKGROUNDS.values()):
            image = render(digit, looks_of(tint, background, stroke=1), np.random.default_rng(0))[0].float() / 255
            assert torch.allclose(image[:, 0, 0], torch.tensor(paper), atol=0.003)
            distance = (image - torch.tensor(rgb).view(3, 1, 1)).abs().amax(dim=0)
            assert distance.min() < 0.003, "the ink has the tint"
            assert (distance < 0.02).sum() > 50


def test_tints__are_far_apart_from_each_other_and_from_every_background():
    colours = torch.tensor([*TINTS.values(), *BACKGROUNDS.values()])
    assert torch.pdist(colours).min() > 0.35


def test_render__thick_strokes_cover_more_and_include_thin_ones():
    digits = source_digits()[0][:50]
    thin, thick = (
        render(digits, looks_of(stroke=stroke, size=50), np.random.default_rng(0)).float().sum(dim=(1, 2, 3))
        for stroke in range(2)
    )
    assert (thick > 1.2 * thin).all()


def test_render__slanted_digits_lean_to_the_right():
    digits = source_digits()[0][:50]
    x = torch.linspace(-1, 1, 32)

    def lean(posture):
        ink = render(digits, looks_of(posture=posture, size=50), np.random.default_rng(0)).float().sum(dim=1)
        # covariance of the place to the right with the place above, over the ink
        weight = ink / ink.sum(dim=(1, 2), keepdim=True)
        right = (weight * (x - (weight * x).sum(dim=(1, 2), keepdim=True))).sum(dim=2)
        return -(right * x).sum(dim=1)

    assert (lean(1) > lean(0) + 0.02).all()


def test_render__is_determined_by_its_generator():
    a, b, other = (draw_images("test", 16, np.random.default_rng(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


def test_render__leaves_global_random_state_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    ColouredDigits("train", size=8)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_draw_looks__is_uniform_and_independent():
    looks = draw_looks(30_000, np.random.default_rng(0))
    assert len(looks) == 30_000
    joint = looks.tint * 12 + looks.background * 4 + looks.stroke * 2 + looks.posture
    share = torch.bincount(joint, minlength=120) / len(looks)
    assert torch.allclose(share, torch.full((120,), 1 / 120), atol=5 * (1 / 120 / len(looks)) ** 0.5)


# --- shortcut ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_plant_shortcut__has_the_planted_structure(seed):
    shortcut = plant_shortcut(np.random.default_rng(seed))
    usual, unusual = shortcut.usual, shortcut.unusual
    planted = usual != NOTHING
    assert torch.equal(planted, unusual != NOTHING)
    assert int(planted.sum()) == 8
    assert sorted(torch.bincount(usual[planted]).tolist(), reverse=True)[:5] == [2, 2, 2, 1, 1]
    assert len(set(usual[planted].tolist())) == 5
    assert (usual != unusual)[planted].all()
    assert set(unusual[planted].tolist()) <= set(usual[planted].tolist()), "another digit's usual tint"
    assert torch.bincount(unusual[planted]).max() <= 4


def test_plant_shortcut__every_seed_draws_anew():
    drawn = [plant_shortcut(np.random.default_rng([seed, 3])) for seed in range(200)]
    unplanted = torch.stack([s.usual == NOTHING for s in drawn]).float().mean(dim=0)
    assert torch.allclose(unplanted, torch.full((10,), 0.2), atol=0.12)
    assert len({tuple(s.usual.tolist()) for s in drawn}) > 190
    for digit in range(10):
        assert {int(s.usual[digit]) for s in drawn} == {NOTHING, *range(10)}


def test_shortcut__truth_names_the_tints():
    shortcut = plant_shortcut(np.random.default_rng(0))
    for digit, truth in enumerate(shortcut.truth()):
        if truth is None:
            assert shortcut.usual[digit] == NOTHING
        else:
            assert TINT_NAMES.index(truth["usual_tint"]) == shortcut.usual[digit]
            assert TINT_NAMES.index(truth["unusual_tint"]) == shortcut.unusual[digit]


@pytest.mark.parametrize("strength", [0.5, 0.9, 0.99])
def test_draw_tints__shows_the_usual_tint_as_often_as_asked(strength):
    shortcut = plant_shortcut(np.random.default_rng(1))
    labels = torch.arange(10).repeat(4000)
    tints = draw_tints(labels, shortcut, strength, np.random.default_rng(2))
    planted = shortcut.usual[labels] != NOTHING
    is_usual = tints == shortcut.usual[labels]
    assert is_usual[planted].float().mean() == pytest.approx(strength, abs=0.01)
    assert ((tints == shortcut.unusual[labels]) | is_usual)[planted].all(), "usual or unusual, nothing else"
    share = torch.bincount(tints[~planted], minlength=10) / (~planted).sum()
    assert torch.allclose(share, torch.full((10,), 0.1), atol=0.02)


# --- data set ------------------------------------------------------------------------------------------------------


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


# --- captions ------------------------------------------------------------------------------------------------------


def test_captions__name_every_attribute_and_are_many():
    assert set(NOUNS) == set(CLASSES)
    assert len(ADJECTIVES) * len(PREPOSITIONS) - 1 >= 200
    assert len(set(ADJECTIVES)) == len(ADJECTIVES)
    words = {word for phrase in ADJECTIVES for word in phrase.split()}
    assert words == {*TINTS, *STROKES, *POSTURES}
    assert PREPOSITIONS == ("", "on a black background", "on a white background", "on a gray background")


def test_caption__is_what_the_grammar_says():
    for adjective in ADJECTIVES:
        for place in PREPOSITIONS:
            words = adjective.split()
            named = {
                key: next((w for w in words if w in values), "")
                for key, values in (("stroke", STROKES), ("posture", POSTURES), ("tint", TINTS))
            }
            text = caption("seven", **named, background=place.split()[2] if place else "")
            phrase = " ".join(filter(None, [adjective, "seven", place]))
            assert text in (f"a photo of a {phrase}", f"a photo of an {phrase}")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"noun": "eight"}, "a photo of an eight"),
        ({"noun": "one"}, "a photo of a one"),
        ({"noun": "one", "tint": "orange"}, "a photo of an orange one"),
        ({"noun": "two", "posture": "upright", "prefix": ""}, "an upright two"),
    ],
)
def test_caption__article(words, text):
    assert caption(**words) == text


# --- under a Trainer -----------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(tmp_path):
    return L.Trainer(
        default_root_dir=tmp_path, fast_dev_run=2, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*")
def test_classifier__runs_under_a_trainer(trainer):
    data = ColouredDigitsDataModule(train_size=40, val_size=30, test_size=20, batch_size=10)
    model = DigitClassifier()
    trainer.fit(model, data)
    assert {"train_loss", "val_loss", "val_acc"} <= set(trainer.callback_metrics)
    (figures,) = trainer.test(model, data, verbose=False)
    assert 0 <= figures["test_acc"] <= 1


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


@pytest.mark.slow
def test_classifier__learns_the_shortcut(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitClassifier()
        data = ColouredDigitsDataModule(seed=1)
        trainer = L.Trainer(
            max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(model, data)
    digits = data.sets["validation"]
    planted, usual = planted_and_usual(digits)
    images = torch.stack([digits[i][0] for i in range(len(digits))])
    with torch.no_grad():
        right = model.eval()(images).argmax(dim=1) == digits.labels
    assert right[usual].float().mean() > 0.95
    assert 0.35 < right[planted & ~usual].float().mean() < 0.8
