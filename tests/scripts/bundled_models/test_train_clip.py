from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scripts.bundled_models import train_clip

UNNAMED = train_clip.UNNAMED


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
