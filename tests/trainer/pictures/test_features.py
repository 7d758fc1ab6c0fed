"""Pictures of features, from a real analysis of planted failures."""

import dataclasses

import pytest
import torch

from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.core.budget import Deadline
from lightning_failures.report.feature_names import FeatureName, FeatureNames
from lightning_failures.trainer.pictures.features import FEATURE_IMAGES, NOT_ASKED_FOR
from lightning_failures.trainer.pictures.sources import (
    displayed_trees,
)
from tests.trainer.pictures.planted import draw, of_kind


def test_feature_pictures__the_most_activating_images_of_the_group(planted):
    encoder, features = planted[2], planted[4]
    gallery, reported = draw(planted)
    for one, picture in zip(reported, of_kind(gallery, "features/"), strict=True):
        assert list(one.top_ids) == features[:, one.feature].argsort(descending=True)[:FEATURE_IMAGES].tolist()
        images, heat, attacks = picture.rows
        assert [tile.id for tile in images.tiles] == [tile.id for tile in heat.tiles] == list(one.top_ids)
        strengths = [tuple(map(float, tile.text.split(" -> "))) for tile in attacks.tiles]
        assert all(after > before for before, after in strengths)
        assert [f"{before:.2f}" for before, _ in strengths] == [tile.text.split("\n")[0] for tile in images.tiles]
        # what the tiles show is as strong as they say
        found = encoder.encode_images(torch.stack([tile.image for tile in attacks.tiles]))[:, one.feature]
        assert torch.allclose(found, torch.tensor([after for _, after in strengths]), atol=0.02)


def test_feature_pictures__no_attacks_unless_asked_for(planted):
    gallery, reported = draw(planted, attacks=False)
    assert reported
    for picture in of_kind(gallery, "features/"):
        assert len(picture.rows) == 2  # images and heat maps
        assert NOT_ASKED_FOR in picture.caption


def test_feature_pictures__heat_maps_lie_on_what_the_model_saw(planted):
    """The encoder crops to the middle square: its maps belong on that square, not on the wide image."""
    gallery, _ = draw(planted)

    def shows_the_edge(picture):
        red, green, blue = picture.image.int()
        return bool(((green > 250) & (red < 5) & (blue < 5)).any())

    assert shows_the_edge(gallery.pictures[0])
    pictures = of_kind(gallery, "features/")
    assert all(tile.image.shape[1] == tile.image.shape[2] for one in pictures for row in one.rows for tile in row.tiles)
    assert not any(shows_the_edge(dataclasses.replace(one, rows=one.rows[:1])) for one in pictures)


def test_feature_pictures__captions_and_what_people_wrote(planted):
    features, report = planted[4], planted[-1]
    first = displayed_trees(report, 5)[0].path[0]
    top = features[:, first].argsort(descending=True)[:FEATURE_IMAGES]
    along = features[top].mean(0) - features.mean(0)
    # one candidate lies along what the most activating images have, the other against it
    candidates = ClassCaptions(("a photo of a bar", "a photo of none"), torch.stack([along, -along]), torch.zeros(4))
    names = FeatureNames({first: FeatureName("bright bar", "spurious", "add images without")})
    gallery, reported = draw(planted, captions=lambda _k: candidates, names=names)
    assert (reported[0].caption, reported[0].name, reported[0].tag) == ("a photo of a bar", "bright bar", "spurious")
    assert reported[0].caption_score > 0.9
    assert reported[0].caption_margin == pytest.approx(1.0, abs=1e-3)  # of two candidates
    text = of_kind(gallery, "features/")[0].caption
    assert text.startswith(f'feature {first} "bright bar" (spurious); looks like "bar" (hypothesis)')
    _, _, rule = text.partition("its leaf of the largest gain has ")
    assert f'feature {first} "bright bar"' in rule
    assert f'feature {first} "bright bar"' in of_kind(gallery, "leaves/")[0].caption


@pytest.mark.parametrize("worst", [None, lambda _k: None])
def test_feature_pictures__no_captions(planted, worst):
    assert {one.caption for one in draw(planted, captions=worst)[1]} == {None}


def test_deadline__attacks_are_left_out_and_the_caption_says_so(planted):
    gallery, reported = draw(planted, deadline=Deadline.after(-1), store=None)
    assert gallery.thumbnails is not None  # however short an epoch is
    assert len(reported) == len(of_kind(gallery, "features/")) > 0
    for picture in of_kind(gallery, "features/"):
        assert len(picture.rows) == 2
        assert picture.caption.endswith("feature attack left out: out of time")
