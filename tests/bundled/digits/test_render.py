from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_failures.bundled.digits import (
    TINTS,
    ColouredDigits,
)
from lightning_failures.bundled.digits.render import (
    BACKGROUNDS,
    SPLITS,
    Looks,
    draw_images,
    draw_looks,
    render,
    source_digits,
    source_split,
)

TINT_NAMES = list(TINTS)


def looks_of(tint=0, background=0, stroke=0, posture=0, size=1):
    return Looks(*(torch.full((size,), value) for value in (tint, background, stroke, posture)))


def test_source_split__parts_are_disjoint_and_cover_everything():
    parts = [set(source_split(split).tolist()) for split in SPLITS]
    assert sum(map(len, parts)) == 1797
    assert set.union(*parts) == set(range(1797))


@pytest.mark.parametrize(("split", "share"), [("train", 0.6), ("validation", 0.2), ("test", 0.2)])
def test_source_split__has_the_same_share_of_every_class(split, share):
    labels = source_digits()[1]
    counts = torch.bincount(labels[source_split(split)]) / torch.bincount(labels)
    assert torch.allclose(counts, torch.full((10,), share), atol=0.01)


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
