"""Pictures: rows of tiles with their texts, and what they look like as one image."""

from __future__ import annotations

import pytest
import torch

from lightning_failures.data.report import ClassReport, FeatureReport
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.errors import DataError
from lightning_failures.report.gallery import class_picture, feature_picture, leaf_picture, make_row

BLACK = torch.zeros(3, 32, 32)


def test_row_of__thumbnails_with_texts_and_ids():
    row = make_row("red", [BLACK, BLACK[:1]], ["a", "b"], [7, 9])
    assert [(tile.text, tile.id, tile.image.dtype) for tile in row.tiles] == [
        ("a", 7, torch.uint8),
        ("b", 9, torch.uint8),
    ]
    assert [tuple(tile.image.shape) for tile in row.tiles] == [(3, 32, 32)] * 2
    large = make_row("large", [torch.zeros(3, 100, 500)]).tiles[0]
    assert tuple(large.image.shape) == (3, 38, 192)


def test_row_of__as_many_texts_as_images():
    with pytest.raises(DataError, match="texts must have as many items as images, 1, or none; got 2"):
        make_row("", [BLACK], ["a", "b"])


def test_class_picture__captions_only_with_a_pattern():
    def picture(pattern):
        captions = {"hardest_captions": ("a photo of a red cat",), "easiest_captions": ("a photo of a blue cat",)}
        return class_picture(
            ClassReport("cat", 9, accuracy=0.75, p_value=0.001, pattern=pattern, **captions), [BLACK], []
        )

    found, nothing = picture(True), picture(False)
    assert found.tag == nothing.tag == "classes/cat"
    assert found.caption.startswith("cat: error rate 25.0 %; p <= 0.001")
    assert nothing.caption == "cat: error rate 25.0 %; no pattern"
    assert found.image.shape[2] > nothing.image.shape[2]  # the title with its caption is wider


def test_class_picture__least_confident_images_where_there_are_some():
    entry = ClassReport("cat", 9, accuracy=0.75, least_confident_ids=(7,))
    picture = class_picture(entry, [BLACK], [], [BLACK], least_confident_texts=["0.03"])
    assert [row.title for row in picture.rows] == [
        "cat, hardest",
        "cat, easiest",
        "cat, least confidence in the true class",
    ]
    assert [(tile.text, tile.id) for tile in picture.rows[2].tiles] == [("0.03", 7)]
    assert len(class_picture(entry, [BLACK], []).rows) == 2


def test_feature_picture__images_maps_and_attacks():
    feature = FeatureReport(
        17,
        ("label/cat", "prediction/a/b"),
        (4, 2),
        caption="a photo of a red cat",
        caption_score=0.5,
        caption_margin=2.34,
        name="red fur",
        tag="spurious",
        action="more black cats",
    )
    picture = feature_picture(
        feature, [BLACK, BLACK], torch.rand(2, 4, 4), [BLACK, BLACK], texts=["2.0", "1.0"], attack_texts=["a", "b"]
    )
    assert picture.tag == "features/17"
    assert [row.title for row in picture.rows[:2]] == [
        'feature 17 "red fur": most active in the label group of cat',
        'where it is active: looks like "red cat" (hypothesis)',
    ]
    assert [[tile.id for tile in row.tiles] for row in picture.rows] == [[4, 2], [4, 2], [None, None]]
    assert picture.caption == (
        'feature 17 "red fur" (spurious); looks like "red cat" (hypothesis): score 0.50, 2.3 standard deviations above '
        "the mean of all candidates; splits the label group of cat and the prediction group of a/b; "
        "to do: more black cats"
    )
    assert picture.image.shape[1] > 3 * 96


def test_feature_picture__nothing_but_the_number_is_known():
    picture = feature_picture(FeatureReport(3), [BLACK], torch.rand(1, 4, 4), note="out of time")
    assert [row.title for row in picture.rows] == ["feature 3: most active", "where it is active"]
    assert picture.caption == "feature 3; out of time"
    with pytest.raises(ValueError, match="zip"):
        feature_picture(FeatureReport(3), [BLACK, BLACK], torch.rand(1, 4, 4))


def test_leaf_picture__failures_above_correct_ones_and_the_rule_in_words():
    leaf = LeafReport("feature 3 > 0.5", 20, 0.6, 0.4, 0.24, True, (0.4, 0.8), 0.55, 0.35, True)
    group = GroupReport("prediction", "cat", 100, base_error_rate=0.3, leaves=(leaf,))
    picture = leaf_picture(
        group, 0, [BLACK, BLACK], [BLACK], failure_texts=["label: dog"] * 2, failure_ids=[5, 6], names={3: "fur"}
    )
    assert picture.tag == "leaves/prediction/cat/0"
    assert [(row.title, len(row.tiles)) for row in picture.rows] == [
        ('prediction group of cat, failures: feature 3 "fur" > 0.5', 2),
        ("correct, same rule", 1),
    ]
    assert picture.caption == (
        'prediction group of cat: feature 3 "fur" > 0.5; 20 examples; error rate 55.0 % (40.0 to 80.0 %) and error '
        "coverage 35.0 % on held-out examples; in sample 60.0 % and 40.0 %; base error rate of the group 30.0 %"
    )
    assert picture.image.shape[1] > 2 * 96
    assert "rest of the group" in leaf_picture(group, 0, [BLACK], [BLACK], elsewhere=True).rows[1].title


@pytest.mark.parametrize("name", ["a/b", "../../x", "", "猫 🐈", "\x1b[31m\nred", "\ud800", "x" * 5000])
def test_pictures__any_name(name):
    leaf = LeafReport("feature 3 > 0.5", 20, 0.6, 0.4, 0.24, True)
    feature = FeatureReport(3, (f"label/{name}",), (1,), caption=name, name=name, tag=name, action=name)
    drawn = (
        feature_picture(feature, [BLACK], torch.rand(1, 4, 4), attack_title=name, role=name, note=name),
        leaf_picture(GroupReport("label", name, 9, leaves=(leaf,)), 0, [BLACK], [], names={3: name}),
    )
    for picture in drawn:
        assert picture.image.shape[2] < 1000
        assert picture.caption.isprintable()
        assert len(picture.caption) <= 1000
    assert drawn[1].tag.count("/") == 3
    assert ".." not in drawn[1].tag.split("/")
