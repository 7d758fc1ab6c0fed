"""Words and pairs of words that captions of failures use more often than those of correct images, or less often."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import combinations

MOST_WORDS = 20
"""Maximum number of words and pairs for the failures, and for the correct images."""

MIN_COUNT = 3
"""Number of captions that must use a word or pair."""

_LONGEST = 30  # content words of a caption that count
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")

_STOP_TEXT = """
a an the this that these those some any no not each every another other of on in at to from by with without for into
onto over under near and or but as is are was were be been being am has have had do does did it its he him his she her
they them their there here i you your we our who which what where when while very so too also just than then there's
it's photo photos photograph picture pictures image images shot view close-up closeup showing shows shown show depicts
depicting featuring seen visible appears can could may might will would one
"""
_STOP_WORDS = frozenset(_STOP_TEXT.split())


def content_words(caption: str, without: Collection[str] = ()) -> list[str]:
    """Return the distinct words of a caption in lower case and in order, without stop words.

    Args:
        caption: The caption.
        without: More words to leave out, in lower case.

    >>> content_words("A photo of the Orange cat, on a wooden table. A cat!", {"cat"})
    ['orange', 'wooden', 'table']
    """
    words = (match.lower() for match in _WORD.findall(caption))
    kept = dict.fromkeys(word for word in words if word not in _STOP_WORDS and word not in without)
    return list(kept)[:_LONGEST]


def words_of_name(name: str) -> set[str]:
    """Return the words of a class name with their regular plurals, in lower case.

    >>> sorted(words_of_name("Fire_truck"))
    ['fire', 'fires', 'truck', 'trucks']
    """
    words = {word.lower() for word in _WORD.findall(name.replace("_", " "))}
    return words | {f"{word}s" for word in words}


def over_represented(failed: Sequence[str], correct: Sequence[str], without: Collection[str] = ()) -> tuple[str, ...]:
    """Return the words and pairs that captions of failures use more often, then those of correct images.

    Each is counted once a caption. They are ranked by their log odds ratio divided by its standard error. A pair is two
    words in the order in which captions use them, adjacent or not; it must be more over-represented than both of its
    words.

    Args:
        failed: Captions of failures.
        correct: Captions of correct images.
        without: Words to leave out, such as those of the name of the class.

    >>> failed = ["a cyan digit on white", "a cyan digit", "a cyan digit on black", "a red digit"]
    >>> correct = ["a red digit on white", "a red digit", "a red digit on black", "a red digit"]
    >>> over_represented(failed, correct)
    ('cyan', 'red')
    """
    of_failed, of_correct = (
        Counter(feature for caption in captions for feature in _features(caption, without))
        for captions in (failed, correct)
    )
    z = {
        feature: _log_odds(of_failed[feature], len(failed), of_correct[feature], len(correct))
        for feature in of_failed | of_correct
    }
    found: list[str] = []
    for counts, n, others, m, sign in (
        (of_failed, len(failed), of_correct, len(correct), 1),
        (of_correct, len(correct), of_failed, len(failed), -1),
    ):
        kept = [
            feature
            for feature, count in counts.items()
            if count >= MIN_COUNT and count * m > others[feature] * n and _is_needed(feature, z, sign)
        ]
        kept.sort(key=lambda feature: (-sign * z[feature], len(feature), feature))
        found += [" ".join(feature) for feature in kept[:MOST_WORDS]]
    return tuple(found)


def _features(caption: str, without: Collection[str]) -> list[tuple[str, ...]]:
    """Return the words and pairs of words of a caption."""
    words = content_words(caption, without)
    return [*((word,) for word in words), *combinations(words, 2)]


def _is_needed(feature: tuple[str, ...], z: dict[tuple[str, ...], float], sign: int) -> bool:
    """Return whether a feature is a word, or a pair that says more than its words."""
    return len(feature) == 1 or all(sign * z[feature] > sign * z[word,] for word in feature)


def _log_odds(a: int, n: int, b: int, m: int) -> float:
    """Return the log odds ratio of a out of n against b out of m, divided by its standard error; counts gain 1/2."""
    cells = (a + 0.5, n - a + 0.5, b + 0.5, m - b + 0.5)
    ratio = math.log(cells[0] / cells[1]) - math.log(cells[2] / cells[3])
    return ratio / math.sqrt(sum(1 / cell for cell in cells))
