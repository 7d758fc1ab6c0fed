"""The vocabulary of coloured digits, for candidate captions and for training the digits-CLIP.

An empty phrase leaves an attribute unnamed. With 99 adjectives and 4 prepositions a class has 396 captions, one of
which, "a photo of a three", is the reference.
"""

from __future__ import annotations

from itertools import product

from lightning_failures.bundled.digits.render import BACKGROUNDS, CLASSES, POSTURES, STROKES, TINTS

NOUNS: dict[str, tuple[str, ...]] = {name: (name,) for name in CLASSES}
"""Class name -> its nouns."""
ADJECTIVES: tuple[str, ...] = tuple(
    " ".join(filter(None, words)) for words in product(("", *STROKES), ("", *POSTURES), ("", *TINTS))
)
"""Combinations of stroke, posture and tint, in this order; each may be missing."""
PREPOSITIONS: tuple[str, ...] = ("", *(f"on a {name} background" for name in BACKGROUNDS))

_VOWELS = ("a", "e", "i", "o", "u")
_WITH_A = ("one",)  # begins with a vowel letter, but not with a vowel sound


def caption(
    noun: str, *, stroke: str = "", posture: str = "", tint: str = "", background: str = "", prefix: str = "a photo of"
) -> str:
    """Return the caption that names the given attributes; empty ones are not mentioned.

    >>> caption("three", stroke="thin", posture="slanted", tint="red", background="white")
    'a photo of a thin slanted red three on a white background'
    >>> caption("eight"), caption("one", prefix="")
    ('a photo of an eight', 'a one')
    """
    words = [word for word in (stroke, posture, tint, noun) if word]
    article = "an" if words[0].startswith(_VOWELS) and words[0] not in _WITH_A else "a"
    place = ["on", "a", background, "background"] if background else []
    return " ".join([*prefix.split(), article, *words, *place])
