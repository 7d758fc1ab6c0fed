"""Pictures of findings and of the failures of each class, from images alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from lightning_failures.analysis.analyse import analyse
from lightning_failures.data.grades import Grades
from lightning_failures.report.drawing import CARD_IMAGES, card_pictures, draw_report, finding_pictures

N = 300


def result(groups=None):
    """Three classes; images of "cat" at night fail."""
    rng = np.random.default_rng(0)
    labels, night = np.arange(N) % 3, rng.random(N) < 0.3
    failed = np.where(night & (labels == 0), rng.random(N) < 0.9, rng.random(N) < 0.05)
    confidence = np.where(failed, 0.3, 0.9) * rng.random(N)
    grades = Grades(np.arange(N) * 2, labels, (labels + failed) % 3, confidence, ("cat", "dog", "owl"), groups)
    return analyse(grades, metadata={"light": np.where(night, "night", "day")}), failed


def fetch(ids):
    return [torch.full((3, 20, 30), int(i) % 256, dtype=torch.uint8) for i in ids]


def test_finding_pictures__wrong_beside_right():
    found, failed = result()
    (picture,) = finding_pictures(found.report, found.table, fetch)
    wrong, right = picture.rows
    assert picture.tag == "findings/0"
    assert [tile.id for tile in wrong.tiles] == list(found.report.findings[0].failing_ids)
    assert all(failed[tile.id // 2] for tile in wrong.tiles)
    assert not any(failed[tile.id // 2] for tile in right.tiles)
    assert wrong.tiles[0].text == "cat\n-> dog"


def test_card_pictures__random_and_least_confident_failures_of_every_class():
    found, failed = result()
    pictures = card_pictures(found.report, found.table, fetch, drawn=["dog"])
    assert {picture.tag for picture in pictures} == {"cards/cat", "cards/dog", "cards/owl"}
    by_tag = {picture.tag: picture for picture in pictures}
    assert [row.title for row in by_tag["cards/dog"].rows] == ["random failures"]
    random, least = by_tag["cards/cat"].rows
    for row in (random, least):
        ids = [tile.id for tile in row.tiles]
        assert len(ids) == CARD_IMAGES
        assert all(failed[i // 2] and i // 2 % 3 == 0 for i in ids)
    confidence = found.table.confidence[[tile.id // 2 for tile in least.tiles]]
    assert confidence.tolist() == sorted(confidence.tolist())
    assert card_pictures(found.report, found.table, fetch, limit=1)[0].tag == "cards/cat"
    assert card_pictures(found.report, None, fetch) == []


def test_card_pictures__spread_over_sources():
    found, _ = result(groups=np.arange(N) // 60)
    (picture, *_) = card_pictures(found.report, found.table, fetch)
    sources = [tile.id // 2 // 60 for tile in picture.rows[0].tiles]
    assert len(set(sources[:5])) == 5


def test_draw_report__all_pictures_and_thumbnails():
    found, _ = result()
    gallery = draw_report(found.report, found.table, fetch)
    kinds = [picture.tag.split("/")[0] for picture in gallery.pictures]
    assert kinds == ["findings", "cards", "cards", "cards"]
    assert [picture.tag for picture in gallery.logged] == ["findings/0"]
    assert gallery.thumbnails.images.shape[1:] == (3, 30, 30)  # that of the images
    hard = dataclasses.replace(found.report.classes[0], hardest_ids=(0, 6), easiest_ids=(12,))
    report = dataclasses.replace(found.report, classes=(hard, *found.report.classes[1:]))
    tags = [picture.tag for picture in draw_report(report, found.table, fetch).pictures]
    assert "classes/cat" in tags
