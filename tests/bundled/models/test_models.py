from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from lightning_failures.bundled import models as embedded
from lightning_failures.bundled.digits.captions import caption
from lightning_failures.bundled.digits.render import CLASSES, TINTS, draw_images
from lightning_failures.bundled.models import CLIP_FOLDER, ROBUST_FOLDER, load_robust_cnn
from lightning_failures.errors import ConfigurationError
from scripts.bundled_models import train_clip, train_robust
from scripts.bundled_models.attack import margin, pgd_l2, robust_correct
from scripts.bundled_models.storage import write_json

UNNAMED = train_clip.UNNAMED


def megabytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


# --- attack --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_l2__finds_the_closed_form_optimum_of_a_linear_loss(random_start):
    generator = torch.Generator().manual_seed(0)
    images = 0.4 + 0.2 * torch.rand(5, 3, 4, 4, generator=generator)
    weight = torch.randn(3, 4, 4, generator=generator)
    moved = pgd_l2(
        lambda x: (x * weight).sum(dim=(1, 2, 3)), images, radius=0.5, steps=40, step_size=0.1,
        generator=generator if random_start else None,
    )  # fmt: skip
    # no pixel meets a bound, so that the optimum is radius * w / |w|
    assert torch.allclose(moved, images + 0.5 * weight / weight.norm(), atol=1e-3)


def test_pgd_l2__stays_in_the_ball_and_in_the_range():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 8, 8, generator=generator).round()
    for start in (None, generator):
        moved = pgd_l2(lambda x: x.square().flatten(1).sum(dim=1).sin(), images, radius=1.5, steps=7, step_size=1.0,
                       generator=start)  # fmt: skip
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert ((moved - images).flatten(1).norm(dim=1) <= 1.5 + 1e-5).all()
        assert not moved.requires_grad


def test_pgd_l2__works_without_grad_and_survives_a_flat_loss():
    images = torch.rand(2, 1, 4, 4)
    with torch.no_grad():
        moved = pgd_l2(lambda x: (x * 0).flatten(1).sum(dim=1), images, radius=1.0, steps=3, step_size=0.5)
    assert torch.equal(moved, images)


@pytest.mark.parametrize("radius", [0.1, 0.3, 0.6])
def test_robust_correct__parity_with_the_distance_to_a_linear_boundary(radius):
    generator = torch.Generator().manual_seed(1)
    images = 0.5 + 0.05 * torch.randn(40, 1, 10, 10, generator=generator)
    weight = torch.randn(100, generator=generator)
    threshold = (images.flatten(1) @ weight).median()

    def classify(x):
        score = x.flatten(1) @ weight - threshold
        return torch.stack([-score, score], dim=1) / 2

    labels = torch.arange(40) % 2
    distance = (2 * labels - 1) * (images.flatten(1) @ weight - threshold) / weight.norm()
    sure = (distance - radius).abs() > 0.01
    correct = robust_correct(classify, images, labels, radius=radius, steps=50, restarts=2)
    assert torch.equal(correct[sure], (distance > radius)[sure])


def test_robust_correct__more_restarts_never_help_the_model():
    model = load_robust_cnn("untrained").requires_grad_(False)
    pixels, digits, _ = draw_images("test", 30, np.random.default_rng(0))
    images = pixels.float() / 255
    labels = model(images)[0].argmax(dim=1)  # right by definition
    kept = [
        robust_correct(lambda x: model(x)[0], images, labels, radius=0.05, steps=5, restarts=restarts)
        for restarts in (0, 1, 3)
    ]
    assert kept[0].all()
    assert (kept[1] <= kept[0]).all()
    assert (kept[2] <= kept[1]).all()
    assert digits.shape == labels.shape


def test_margin__is_positive_when_wrong():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert margin(logits, torch.tensor([1, 2])).tolist() == [-1.0, 1.0]


# --- training of the CLIP ------------------------------------------------------------------------------------------


def test_multi_positive_loss__is_clips_loss_for_the_diagonal():
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    target = torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert torch.allclose(train_clip.multi_positive_loss(logits, torch.eye(6, dtype=torch.bool)), expected)


def test_multi_positive_loss__is_least_where_the_positives_share_the_mass():
    positive = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    best = train_clip.multi_positive_loss(20.0 * positive, positive)
    assert best == pytest.approx(2 / 3 * np.log(2), abs=1e-4)
    assert train_clip.multi_positive_loss(20.0 * torch.eye(3), positive) > best + 1


def test_is_true_of__agrees_with_reading():
    _, truth = train_clip.draw_described("train", 60, np.random.default_rng(0))
    texts, claims = train_clip.draw_captions(truth, np.random.default_rng(1))
    true = train_clip.is_true_of(claims, truth)
    assert true.shape == (60, 60)
    assert true.diagonal().all(), "a caption is true of the image it was written for"
    names = [list(values) for values in train_clip.WORDS.values()]
    everything = {word for values in names for word in values}
    for row, image in enumerate(truth.tolist()):
        said_of_image = {values[i] for values, i in zip(names, image, strict=True)}
        # "black", "thin", ...: every word belongs to one attribute
        expected = [set(text.split()) & everything <= said_of_image for text in texts]
        assert true[row].tolist() == expected


def test_train_clip__a_few_steps_write_a_folder_that_open_clip_loads(tmp_path):
    state = torch.get_rng_state()
    model = train_clip.train(steps=2, batch_size=8, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    train_clip.save_folder(model, tmp_path)
    figures = train_clip.measure(tmp_path, size=20)
    assert set(figures) == {
        "digit_accuracy", "tint_accuracy", "background_accuracy", "stroke_accuracy", "posture_accuracy",
        "joint_accuracy",
    }  # fmt: skip


# --- stored files --------------------------------------------------------------------------------------------------


def test_stored_files__are_small_and_half_precision():
    assert megabytes(CLIP_FOLDER) <= 14
    assert megabytes(ROBUST_FOLDER) <= 2
    for path in [*CLIP_FOLDER.glob("*.safetensors"), *ROBUST_FOLDER.glob("*.safetensors")]:
        dtypes = {value.dtype for value in load_file(path).values()}
        assert dtypes <= {torch.float16, torch.int64}


@pytest.fixture(scope="module")
def clip():
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{CLIP_FOLDER}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{CLIP_FOLDER}")


def test_stored_clip__unused_token_rows_are_zero(clip):
    model, _, tokenizer = clip
    empty = (model.token_embedding.weight == 0).all(dim=1)
    assert empty.float().mean() > 0.99
    texts = [caption(name, tint=tint, stroke="thin", posture="upright") for name in CLASSES for tint in TINTS]
    assert not empty[tokenizer(texts).unique()].any()


def test_stored_clip__preprocessing_of_training_is_open_clips_own(clip):
    _, preprocess, _ = clip
    images, _, _ = draw_images("test", 4, np.random.default_rng(0))
    ours = train_clip.preprocess(images)
    theirs = torch.stack([preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    assert ours.shape == theirs.shape
    # PIL rounds and clips to 8 bits after each of its two passes
    assert (ours - theirs).abs().mean() < 0.005
    assert (ours - theirs).abs().max() < 0.15


def test_stored_clip__meets_its_bars_on_unseen_digits():
    figures = train_clip.measure(CLIP_FOLDER, split="test", size=600, seed=1)
    assert figures["digit_accuracy"] >= 0.90
    assert figures["tint_accuracy"] >= 0.97
    assert figures["background_accuracy"] >= 0.95
    assert figures["stroke_accuracy"] >= 0.85
    assert figures["posture_accuracy"] >= 0.85


def test_stored_clip__through_open_clips_own_doors(clip):
    model, preprocess, tokenizer = clip
    images, digits, _ = draw_images("validation", 100, np.random.default_rng(2))
    batch = torch.stack([preprocess(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    with torch.inference_mode():
        texts = model.encode_text(tokenizer([caption(name) for name in CLASSES]), normalize=True)
        nearest = (model.encode_image(batch, normalize=True) @ texts.T).argmax(dim=1)
    assert (nearest == digits).float().mean() >= 0.85


@pytest.mark.slow
def test_stored_robust__meets_its_bars_on_unseen_digits():
    robust = train_robust.measure(ROBUST_FOLDER, "robust", size=100, restarts=1, seed=1)
    plain = train_robust.measure(ROBUST_FOLDER, "plain", size=60, restarts=1, seed=1)
    assert robust["robust_digit_accuracy"] >= 0.50
    assert robust["clean_digit_accuracy"] >= 0.85
    assert plain["robust_digit_accuracy"] <= 0.25
    assert plain["clean_digit_accuracy"] >= 0.85


def test_stored_quality__was_measured_and_meets_the_bars():
    clip = json.loads((CLIP_FOLDER / "quality.json").read_text())
    robust = json.loads((ROBUST_FOLDER / "quality.json").read_text())
    for split in ("validation", "test"):
        assert clip[split]["digit_accuracy"] >= 0.90
        assert clip[split]["tint_accuracy"] >= 0.97
        assert clip[split]["joint_accuracy"] >= 0.80
        assert robust["robust"][split]["robust_digit_accuracy"] >= 0.50
        assert robust["robust"][split]["clean_digit_accuracy"] >= 0.85
        assert robust["plain"][split]["robust_digit_accuracy"] <= 0.25


# --- robust CNN ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["robust", "plain", "untrained"])
def test_load_robust_cnn__maps_average_to_the_features(variant):
    state = torch.get_rng_state()
    model = load_robust_cnn(variant)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    images = torch.rand(2, 3, 32, 32)
    maps = model.features(images)
    assert maps.shape == (2, model.dim, 8, 8)
    digit, tint = model(images)
    assert torch.allclose(digit, model.digit(maps.mean(dim=(2, 3))), atol=1e-5)
    assert tint.shape == (2, 10)


def test_load_robust_cnn__variants_differ_and_untrained_is_always_the_same():
    images = torch.rand(1, 3, 32, 32)
    robust, plain, untrained, again = (
        load_robust_cnn(variant).features(images) for variant in ("robust", "plain", "untrained", "untrained")
    )
    assert torch.equal(untrained, again)
    assert not torch.allclose(robust, plain)
    assert not torch.allclose(robust, untrained)


def test_load_robust_cnn__unknown_variant():
    with pytest.raises(ConfigurationError, match="'robus'"):
        load_robust_cnn("robus")


def test_train_robust__a_few_steps_leave_the_random_state():
    state = torch.get_rng_state()
    models = [train_robust.train(radius=1.0, steps=2, batch_size=8, attack_steps=2, seed=3) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(first, second), "the seed decides"


# --- storage -------------------------------------------------------------------------------------------------------


def test_write_json__refuses_what_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"nan": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_embedded__imports_nothing_heavy():
    code = f"import runpy, sys; runpy.run_path({embedded.__file__!r}); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
