from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers")

from lightning_failures.bundled.digits.captions import caption  # noqa: E402
from lightning_failures.bundled.digits.render import CLASSES  # noqa: E402
from lightning_failures.bundled.models.digit_diffusion import (  # noqa: E402
    load,
    read_config,
)
from lightning_failures.encoders import load_encoder  # noqa: E402
from scripts.bundled_models import train_diffusion  # noqa: E402


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("embedded:digits")


@pytest.fixture(scope="module")
def pool(encoder):
    return train_diffusion.draw_pool(encoder, 120, np.random.default_rng(0))


def test_draw_pool__describes_training_digits(encoder, pool):
    assert pool.images.shape == (120, 3, 32, 32)
    assert (pool.digits.diff() >= 0).all()
    assert torch.allclose(pool.seen[7:9], encoder.encode_images(pool.images[7:9].float() / 255), atol=1e-4)
    assert pool.described.shape == (120, 2, 128)
    # a true caption lies nearer than those of other images
    own = (pool.seen * pool.described[:, 0]).sum(dim=1)
    assert (own > pool.seen @ pool.described[:, 0].mean(dim=0)).float().mean() > 0.9
    assert torch.allclose(pool.named, encoder.encode_texts([caption(name) for name in CLASSES]), atol=1e-5)


def test_draw_conditions__unit_vectors_or_nothing(pool):
    rows = torch.arange(120).repeat(20)
    conditions = train_diffusion.draw_conditions(pool, rows, np.random.default_rng(0))
    lengths = conditions.norm(dim=1)
    nothing = lengths == 0
    assert nothing.float().mean() == pytest.approx(train_diffusion.KINDS["nothing"], abs=0.03)
    assert torch.allclose(lengths[~nothing], torch.ones(()), atol=1e-5)
    again = train_diffusion.draw_conditions(pool, rows, np.random.default_rng(0))
    assert torch.equal(conditions, again)


@pytest.mark.parametrize(("kind", "source"), [("image", "seen"), ("caption", "described"), ("push", "named")])
def test_draw_conditions__each_kind_is_near_its_source(pool, monkeypatch, kind, source):
    monkeypatch.setattr(train_diffusion, "KINDS", {name: float(name == kind) for name in train_diffusion.KINDS})
    monkeypatch.setattr(train_diffusion, "NOISE", 0.0)
    monkeypatch.setattr(train_diffusion, "PUSH", 1e-4)
    rows = torch.arange(120)
    conditions = train_diffusion.draw_conditions(pool, rows, np.random.default_rng(0))
    expected = {"seen": pool.seen[:, None], "described": pool.described, "named": pool.named[pool.digits][:, None]}[
        source
    ]
    assert ((conditions[:, None] - expected).norm(dim=2).amin(dim=1) < 1e-3).all()


def test_draw_conditions__a_push_leads_towards_the_image_within_its_digit(pool, monkeypatch):
    monkeypatch.setattr(train_diffusion, "KINDS", {name: float(name == "push") for name in train_diffusion.KINDS})
    rows = torch.arange(120)
    moved = train_diffusion.draw_conditions(pool, rows, np.random.default_rng(0)) - pool.named[pool.digits]
    means = torch.stack([pool.seen[pool.digits == digit].mean(dim=0) for digit in range(10)])[pool.digits]
    assert ((moved * (pool.seen - means)).sum(dim=1) > 0).float().mean() > 0.8


@pytest.mark.slow
def test_train__a_few_steps_write_a_folder_that_loads(pool, tmp_path):
    state = torch.get_rng_state()
    (first, sketcher), (second, _) = (train_diffusion.train(pool, steps=2, batch_size=4, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), "the seed decides"
    train_diffusion.save_folder(first, sketcher, tmp_path, encoder_fingerprint="0" * 32)
    model = load(tmp_path)
    assert torch.allclose(next(model.unet.parameters()), next(first.parameters()), atol=1e-3)
    assert torch.allclose(model.sketcher, sketcher, atol=1e-3)
    assert read_config(tmp_path)["encoder_fingerprint"] == "0" * 32


def test_fit_sketcher__draws_the_digit_that_is_named(encoder):
    pool = train_diffusion.draw_pool(encoder, 600, np.random.default_rng(1), captions=1)
    sketches = pool.named @ train_diffusion.fit_sketcher(pool, np.random.default_rng(0)).T
    means = torch.stack([pool.ink[pool.digits == digit].mean(dim=0) for digit in range(10)])
    centred, wanted = (nn.functional.normalize(m - m.mean(dim=0), dim=1) for m in (sketches, means))
    assert ((centred @ wanted.T).argmax(dim=1) == torch.arange(10)).sum() >= 9
