"""Pictures: rows of tiles with their texts, and what they look like as one image."""

from __future__ import annotations

import pytest
import torch

from lightning_failures.errors import DataError
from lightning_failures.gallery import class_picture, row_of, rule_picture
from lightning_failures.records import ClassReport, GroupReport, LeafReport

BLACK = torch.zeros(3, 32, 32)


def test_row_of__thumbnails_with_texts_and_ids():
    row = row_of("red", [BLACK, BLACK[:1]], ["a", "b"], [7, 9])
    assert [(tile.text, tile.id, tile.image.dtype) for tile in row.tiles] == [
        ("a", 7, torch.uint8),
        ("b", 9, torch.uint8),
    ]
    assert [tuple(tile.image.shape) for tile in row.tiles] == [(3, 96, 96)] * 2


def test_row_of__as_many_texts_as_images():
    with pytest.raises(DataError, match="texts must be as many as images, 1, got 2"):
        row_of("", [BLACK], ["a", "b"])


def test_class_picture__captions_only_with_a_pattern():
    def picture(pattern):
        captions = {"hardest_captions": ("a photo of a red cat",), "easiest_captions": ("a photo of a blue cat",)}
        return class_picture(
            ClassReport("cat", 9, accuracy=0.75, p_value=0.001, pattern=pattern, **captions), [BLACK], []
        )

    found, nothing = picture(True), picture(False)
    assert found.tag == nothing.tag == "classes/cat"
    assert found.caption.startswith("cat: error rate 0.25; p 0.001")
    assert nothing.caption == "cat: error rate 0.25; no pattern"
    assert found.image.shape[2] > nothing.image.shape[2]  # the title with its caption is wider


def test_rule_picture__images_above_their_maps():
    leaf = LeafReport("f3 > 0.5", 20, 0.6, 0.4, 0.24, True)
    group = GroupReport("label", "cat", 100, leaves=(leaf,))
    picture = rule_picture(group, 0, [BLACK, BLACK], torch.rand(2, 4, 4), feature="f3")
    assert picture.tag == "rules/label/cat/0"
    assert "f3 > 0.5; error rate 0.60, error coverage 0.40" in picture.caption
    assert picture.image.shape[1] > 2 * 96
    with pytest.raises(ValueError, match="zip"):
        rule_picture(group, 0, [BLACK, BLACK], torch.rand(1, 4, 4))
