"""Pictures of classes, leaves and thumbnails, from a real analysis of planted failures."""

import dataclasses

import torch

from lightning_failures.trainer.pictures.classes_and_leaves import LEAF_IMAGES, browsed_ids, draw_gallery
from lightning_failures.trainer.pictures.sources import (
    EmbeddingTable,
    displayed_trees,
)
from tests.trainer.pictures.planted import draw, inputs, of_kind


def test_draw_gallery__classes_features_and_leaves_with_stable_tags(planted):
    report = planted[-1]
    assert report.classes[0].pattern
    (shown,) = displayed_trees(report, 5)
    gallery, features = draw(planted)
    assert [picture.tag for picture in gallery.pictures] == [
        *(f"findings/{i}" for i in range(len(report.report.findings))),
        "classes/wide",
        *(f"features/{n}" for n in dict.fromkeys([*shown.path, *shown.tree.split_features])),
        *(f"leaves/label/wide/{i}" for i in shown.leaves),
        "cards/wide",
    ]
    assert len(report.report.findings) > 0
    assert shown.best in shown.leaves
    assert {i for i, leaf in enumerate(shown.group.leaves) if leaf.valid} <= set(shown.leaves)
    assert [(one.feature, one.groups) for one in features] == [
        (n, ("label/wide",)) for n in dict.fromkeys([*shown.path, *shown.tree.split_features])
    ]
    again, _ = draw(planted)
    for one, other in zip(gallery.pictures, again.pictures, strict=True):
        assert torch.equal(one.image, other.image)


def test_draw_gallery__none_without_worst_classes_and_no_features_without_trees(planted):
    assert draw(planted, worst_k=0)[0].pictures == ()
    gallery, features = draw(planted, robust=None, features=None)
    findings = [f"findings/{i}" for i in range(len(planted[-1].report.findings))]
    assert [picture.tag for picture in gallery.pictures] == [*findings, "classes/wide", "cards/wide"]
    assert [picture.tag for picture in gallery.logged] == [*findings, "classes/wide"]
    assert features == ()


def test_class_pictures__hardest_images_are_those_with_the_bar(planted):
    bar, report = planted[1], planted[-1]
    assert bar[list(report.classes[0].hardest_ids)].all()
    assert not bar[list(report.classes[0].easiest_ids)].any()


def test_class_pictures__least_confident_images_where_the_report_names_them(planted):
    grades, report = planted[3], planted[-1]
    least = tuple(grades.confidence.argsort()[:3].tolist())
    entries = (dataclasses.replace(report.classes[0], least_confident_ids=least), *report.classes[1:])
    gallery, _ = draw_gallery(report.with_report(classes=entries), grades, inputs(planted), worst_k=1)
    row = of_kind(gallery, "classes/")[0].rows[2]
    assert [tile.id for tile in row.tiles] == list(least)
    assert row.tiles[0].text.startswith(f"{float(grades.confidence[least[0]]):.2f}\n-> ")


def test_leaf_pictures__failures_of_the_leaf_and_correct_ones_of_it(planted):
    grades, report = planted[3], planted[-1]
    gallery, _ = draw(planted)
    (shown,) = displayed_trees(report, 5)
    for index, picture in zip(shown.leaves, of_kind(gallery, "leaves/"), strict=True):
        leaf = shown.tree.leaves[index]
        failures, successes = ([tile.id for tile in row.tiles] for row in picture.rows)
        assert len(failures) == min(LEAF_IMAGES, leaf.failures)
        assert set(failures) <= set(leaf.ids.tolist())
        assert grades.failed[failures].all()
        assert not grades.failed[successes].any()
        elsewhere = leaf.size == leaf.failures
        assert (set(successes) <= set(leaf.ids.tolist())) is not elsewhere
        assert ("rest of the group" in picture.rows[1].title) is elsewhere
        assert picture.rows[0].tiles[0].text == "-> other"
        assert leaf.rule in picture.caption
        assert failures != sorted(failures)  # a choice, not the first ones


def test_thumbnails__in_order_with_embeddings_or_nan(planted):
    features, report = planted[4], planted[-1]
    browsed = browsed_ids(report.table, seed=0, limit=20)
    failed = report.table.failed[torch.isin(report.table.ids, browsed)]
    assert len(browsed) == 20
    assert int(failed.sum()) == 12  # of many more
    known = browsed[:12]
    thumbnails = draw(planted, embeddings=EmbeddingTable(known, features[known]))[0].thumbnails
    assert torch.equal(thumbnails.ids, browsed)
    assert thumbnails.images.shape == (20, 3, 32, 32)  # that of the images
    assert torch.equal(thumbnails.embeddings[:12], features[known])
    assert thumbnails.embeddings[12:].isnan().all()
    assert draw(planted, embeddings=None)[0].thumbnails.embeddings is None
    assert draw(planted, browsed=browsed[:0])[0].thumbnails is None
