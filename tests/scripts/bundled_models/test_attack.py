from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_failures.bundled.digits.render import draw_images
from lightning_failures.bundled.models import load_robust_cnn
from scripts.bundled_models import train_clip
from scripts.bundled_models.attack import margin, pgd_l2, robust_correct

UNNAMED = train_clip.UNNAMED


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
