from __future__ import annotations

import pytest

from lightning_failures.bundled.digits import (
    ADJECTIVES,
    CLASSES,
    NOUNS,
    PREPOSITIONS,
    TINTS,
)
from lightning_failures.bundled.digits.captions import caption
from lightning_failures.bundled.digits.render import (
    POSTURES,
    STROKES,
)

TINT_NAMES = list(TINTS)


def test_captions__name_every_attribute_and_are_many():
    assert set(NOUNS) == set(CLASSES)
    assert len(ADJECTIVES) * len(PREPOSITIONS) - 1 >= 200
    assert len(set(ADJECTIVES)) == len(ADJECTIVES)
    words = {word for phrase in ADJECTIVES for word in phrase.split()}
    assert words == {*TINTS, *STROKES, *POSTURES}
    assert PREPOSITIONS == ("", "on a black background", "on a white background", "on a gray background")


def test_caption__is_what_the_grammar_says():
    for adjective in ADJECTIVES:
        for place in PREPOSITIONS:
            words = adjective.split()
            named = {
                key: next((w for w in words if w in values), "")
                for key, values in (("stroke", STROKES), ("posture", POSTURES), ("tint", TINTS))
            }
            text = caption("seven", **named, background=place.split()[2] if place else "")
            phrase = " ".join(filter(None, [adjective, "seven", place]))
            assert text in (f"a photo of a {phrase}", f"a photo of an {phrase}")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"noun": "eight"}, "a photo of an eight"),
        ({"noun": "one"}, "a photo of a one"),
        ({"noun": "one", "tint": "orange"}, "a photo of an orange one"),
        ({"noun": "two", "posture": "upright", "prefix": ""}, "an upright two"),
    ],
)
def test_caption__article(words, text):
    assert caption(**words) == text
