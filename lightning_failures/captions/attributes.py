"""The attributes that captions name, and which captions are shortenings of others.

A vocabulary does not say which of its phrases belong together, but it can be derived: "thin slanted red" names three
attributes if each word is an adjective of the vocabulary by itself, and "red" and "blue" are values of one attribute if
they occur beside the same other words.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from lightning_failures.captions.candidates import ClassCaptions

_ARTICLES = ("a", "an")


@dataclass(frozen=True)
class CaptionAttributes:
    """The captions of one class by noun and attributes.

    Attributes:
        nouns: Noun of each caption that a grammar made, by the index of the caption.
        words: Attributes of each of these captions, in the order of the caption.
    """

    nouns: dict[int, str]
    words: dict[int, tuple[str, ...]]

    @classmethod
    def of(cls, captions: ClassCaptions) -> CaptionAttributes:
        """Divide the captions of one class into noun and attributes.

        >>> from lightning_failures.captions.grammar import CaptionGrammar
        >>> parts = CaptionGrammar(["cat"], ["red", "big", "big red", "blue", "big blue"], ["on grass"]).parts()
        >>> attributes = CaptionAttributes.of(ClassCaptions(tuple(parts), None, None, parts=parts))
        >>> attributes.words[attributes.find("cat", {"red", "big"})]
        ('big', 'red')
        >>> attributes.values
        {'on grass': ('on grass',), 'red': ('red', 'blue'), 'big': ('big',), 'blue': ('red', 'blue')}
        """
        adjectives = {adjective for adjective, _, _ in captions.parts.values() if adjective}
        nouns: dict[int, str] = {}
        words: dict[int, tuple[str, ...]] = {}
        for index, text in enumerate(captions.texts):
            if text in captions.parts:
                adjective, noun, preposition = captions.parts[text]
                nouns[index] = noun
                words[index] = tuple(filter(None, (*divide(adjective, adjectives), preposition)))
        return cls(nouns, words)

    def find(self, noun: str, words: Collection[str]) -> int | None:
        """Return the index of the caption with a noun and these attributes; None if it is no candidate."""
        return self._index.get((noun, frozenset(words)))

    def lengthened(self, noun: str, words: Collection[str], *, by_one: bool = False) -> tuple[int, ...]:
        """Return the captions with a noun, these attributes and more of them.

        Args:
            noun: The noun.
            words: Attributes that the captions have in common.
            by_one: Only captions with one more attribute.
        """
        common = frozenset(words)
        return tuple(
            index
            for (of_noun, others), index in self._index.items()
            if of_noun == noun and common < others and (not by_one or len(others) == len(common) + 1)
        )

    @cached_property
    def values(self) -> dict[str, tuple[str, ...]]:
        """The values that can take the place of each attribute, itself included: those with the same neighbours."""
        neighbours: dict[str, set[frozenset[str]]] = {}
        for words in self.words.values():
            for word in words:
                neighbours.setdefault(word, set()).add(frozenset(words) - {word})
        alike: dict[frozenset[frozenset[str]], list[str]] = defaultdict(list)
        for word, others in neighbours.items():
            alike[frozenset(others)].append(word)
        return {word: tuple(alike[frozenset(others)]) for word, others in neighbours.items()}

    @cached_property
    def _index(self) -> dict[tuple[str, frozenset[str]], int]:
        return {(self.nouns[index], frozenset(words)): index for index, words in self.words.items()}


def divide(phrase: str, known: Collection[str]) -> tuple[str, ...]:
    """Divide a phrase into as many known phrases as possible; a phrase that cannot be divided stays whole.

    >>> divide("thin dark red", {"thin", "dark red", "thin dark red"}), divide("black and white", {"black", "white"})
    (('thin', 'dark red'), ('black and white',))
    """
    words = phrase.split()
    for stop in range(1, len(words)):
        head, rest = " ".join(words[:stop]), divide(" ".join(words[stop:]), known)
        if head in known and all(part in known for part in rest):
            return (head, *rest)
    return (phrase,) if phrase else ()


def shortened(texts: Iterable[str], text: str) -> tuple[int, ...]:
    """Return the indices of the texts that are left of another text if some of its words are left out.

    >>> shortened(["an old cat", "an old white cat", "a cat on grass"], "an old white cat")
    (0,)
    """
    words = _words(text)
    return tuple(index for index, other in enumerate(texts) if _is_left_of(_words(other), words))


def extended(texts: Iterable[str], text: str) -> tuple[int, ...]:
    """Return the indices of the texts that add words to another text.

    >>> extended(["an old cat", "an old white cat", "a cat on grass"], "a cat")
    (0, 1, 2)
    """
    words = _words(text)
    return tuple(index for index, other in enumerate(texts) if _is_left_of(words, _words(other)))


@functools.lru_cache(maxsize=1 << 14)  # classes share captions
def _words(text: str) -> tuple[str, ...]:
    """Return the words of a text without articles, which depend on the next word."""
    return tuple(word for word in text.split() if word not in _ARTICLES)


def _is_left_of(shorter: tuple[str, ...], longer: tuple[str, ...]) -> bool:
    """Return whether a text is left of a longer one if some words are left out."""
    remaining = iter(longer)
    return len(shorter) < len(longer) and all(word in remaining for word in shorter)
