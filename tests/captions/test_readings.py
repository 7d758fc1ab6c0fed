"""Shares of what captions say, counted and read."""

from types import SimpleNamespace

import numpy as np
import pytest

from lightning_failures.analysis.enrichment import read_attribute
from lightning_failures.captions.attributes import CaptionAttributes
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.captions.readings import known_value, word_shares
from tests.captions.worlds import TINTS, make_world


def shares_of(world, words, metadata=None, *, flagged=None):
    rows = np.flatnonzero(world.grades.labels == 0)
    candidates = world.captions(0)
    coded = {name: read_attribute(values, name) for name, values in (metadata or {}).items()}
    if flagged is None:
        flagged = world.metadata["tint"][rows] == "orange"
    attributes = CaptionAttributes.of(candidates)
    return word_shares(words, "eight", candidates, attributes, world.embeddings[rows], flagged, coded, rows), rows


def test_reading__agrees_with_what_the_images_show():
    world = make_world(lambda looks: np.full(1200, 0.3))
    words = ["orange", "thin", "slanted", "on a gray background"]
    read, rows = shares_of(world, words)
    counted, _ = shares_of(world, words, world.metadata)
    assert read["orange"].flagged > 0.95
    assert read["orange"].excess > 1
    for word, name in zip(words, ("tint", "stroke", "posture", "background"), strict=True):
        assert read[word].attribute is None
        assert counted[word].attribute == name
        assert read[word].flagged == pytest.approx(counted[word].flagged, abs=0.05)
        assert read[word].everything == pytest.approx(counted[word].everything, abs=0.05)
    orange = world.metadata["tint"][rows] == "orange"
    assert counted["orange"].flagged == 1
    assert counted["orange"].everything == orange.mean()


def test_shares__are_unknown_if_all_or_none_are_flagged():
    world = make_world(lambda looks: np.full(1200, 0.3))
    for value in (True, False):
        assert shares_of(world, ["orange"], flagged=np.full(600, value))[0] == {}


def test_shares__of_a_value_that_no_image_shows():
    world = make_world(lambda looks: np.full(1200, 0.3), drawn={"tint": [0.4, 0.3, 0.3, 0]})
    assert shares_of(world, ["green"])[0] == {}  # the encoder may not know the word
    known, _ = shares_of(world, ["green"], {"tint": [*world.metadata["tint"][:-2], "green", "cyan"]})
    assert known["green"].excess < 0  # but a known attribute contradicts it


def test_reading__of_a_value_without_alternatives_is_compared_with_the_reference():
    world = make_world(lambda looks: np.full(1200, 0.3), vocabulary=CaptionVocabulary(adjectives=("orange",)))
    read, rows = shares_of(world, ["orange"])
    assert read["orange"].everything == pytest.approx((world.metadata["tint"][rows] == "orange").mean(), abs=0.05)


@pytest.mark.parametrize(
    ("word", "name", "values", "found"),
    [
        ("orange", "tint", TINTS, 0),
        ("Orange", "tint", TINTS, 0),
        ("at night", "time", ("day", "night"), 1),
        ("on a gray background", "background", ("gray", "white"), 0),
        ("on a light gray background", "background", ("gray", "light gray"), 1),
        ("gray", "background", ("gray", "white"), None),  # other words of the vocabulary name the background
        ("blurry", "blurry", ("False", "True"), 1),
        ("thin", "tint", TINTS, None),
        ("on a gray background", "tint", ("gray", "white"), None),
    ],
)
def test_known_value__by_the_words(word, name, values, found):
    words = {word, "on a gray background"}
    match = known_value(word, words, {name: SimpleNamespace(values=values)})
    assert match == (None if found is None else (name, found))
