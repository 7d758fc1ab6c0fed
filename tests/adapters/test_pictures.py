"""Which pictures are drawn, from a real analysis of planted failures."""

import pytest
import torch
from torch import nn

from lightning_failures.adapters.pictures import class_pictures, most_important_rules, rule_pictures
from lightning_failures.analysis import analyse
from lightning_failures.encoders import ModuleEncoder
from lightning_failures.records import Grades

N = 300


@pytest.fixture(scope="module")
def planted():
    """Wide images, twice as wide as high; those with a bright bar in the middle fail."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.rand(N, 3, 16, 32, generator=generator)
    bar = torch.rand(N, generator=generator) < 0.4
    images[bar, :, :, 12:16] = 1.0
    images[:, :, :, :4] = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)  # a green edge that the encoder crops away
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net[0].reset_parameters()
    encoder = ModuleEncoder(net, "1", image_size=16, name="net")
    labels = torch.zeros(N, dtype=torch.int64)
    confidence = torch.full((N,), 0.5)
    grades = Grades(torch.arange(N), labels, bar.long(), confidence, ("wide", "other"))
    features = encoder.encode_images(images)
    return images, bar, encoder, grades, features


def draw(planted, worst_k=5):
    images, _bar, encoder, grades, features = planted
    report = analyse(grades, features, features=features, permutations=99)
    drawn = class_pictures(report, grades, lambda ids: images[list(ids)], worst_k=worst_k)
    rules = most_important_rules(report, worst_k)
    drawn += rule_pictures(rules, (grades.ids, features), lambda ids: images[list(ids)], encoder)
    return report, drawn


def test_draw_pictures__classes_and_rules_with_stable_tags(planted):
    report, drawn = draw(planted)
    assert report.classes[0].pattern
    assert [picture.tag for picture in drawn] == ["classes/wide", "rules/label/wide/0"]
    assert all(picture.image.dtype == torch.uint8 and picture.image.shape[0] == 3 for picture in drawn)
    for again, picture in zip(draw(planted)[1], drawn, strict=True):
        assert torch.equal(again.image, picture.image)


def test_draw_pictures__none_without_worst_classes(planted):
    assert draw(planted, worst_k=0)[1] == []


def test_draw_pictures__heat_maps_lie_on_what_the_model_saw(planted):
    """The encoder crops to the middle square: its maps belong on that square, not on the wide image."""
    _report, (classes, rule) = draw(planted)

    def shows_the_edge(picture):
        red, green, blue = picture.image.int()
        return bool(((green > 250) & (red < 5) & (blue < 5)).any())

    assert shows_the_edge(classes)
    assert not shows_the_edge(rule)


def test_draw_pictures__hardest_images_are_those_with_the_bar(planted):
    report, _drawn = draw(planted)
    bar = planted[1]
    assert bar[list(report.classes[0].hardest_ids)].all()
    assert not bar[list(report.classes[0].easiest_ids)].any()
