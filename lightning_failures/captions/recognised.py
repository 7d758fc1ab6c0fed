"""The packaged vocabulary that fits a list of class names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from lightning_failures.captions.grammar import CaptionGrammar, CaptionVocabulary, known_vocabularies
from lightning_failures.data.class_names import absent_condition

AUTO = "auto"
"""Name of the vocabulary that is chosen by the class names."""

GENERAL = "general"
LEAST_NAMES = 10
"""Number of class names that a vocabulary must know, all of them; fewer if its words are for fewer classes."""


_packaged = cache(CaptionVocabulary.load)


@cache
def recognised(class_names: tuple[str, ...]) -> str:
    """Return the name of the packaged vocabulary that has words for each of some classes, or else "general".

    A vocabulary counts if the classes are all of its own, or at least ten: two classes of many, such as cats and dogs,
    say little about a data set. Conditions of a multilabel task may come with their absence ("no edema").

    >>> recognised(("n01440764", "goldfish", "hen")), recognised(("old", "young"))
    ('general', 'celeba')
    """
    names = [name for name in class_names if absent_condition(name, class_names) is None]
    for vocabulary in known_vocabularies():
        if vocabulary == GENERAL:
            continue
        words = _packaged(vocabulary)
        if all(map(words.knows, names)) and len(names) >= min(LEAST_NAMES, len(words.classes)):
            return vocabulary
    return GENERAL


@dataclass(frozen=True)
class RecognisedVocabulary(CaptionVocabulary):
    """The packaged vocabulary that fits the class names, see :func:`recognised`.

    >>> grammar = RecognisedVocabulary().grammar_of("old", ("old", "young"))
    >>> grammar.reference, "smiling" in grammar.adjectives
    ('a photo of an old person', True)
    """

    def for_classes(self, class_names: Collection[str]) -> CaptionVocabulary:
        """Return the vocabulary of these classes."""
        return _packaged(recognised(tuple(class_names)))

    def reference(self, class_name: str, class_names: Collection[str] = ()) -> str | None:
        """Return the reference caption of one of several classes; None if its name holds no word."""
        return self.for_classes(class_names).reference(class_name, class_names)

    def grammar_of(self, class_name: str, class_names: Collection[str]) -> CaptionGrammar:
        """Return the grammar of one of several classes.

        Raises:
            NamelessClassError: The name of the class holds no word.
        """
        return self.for_classes(class_names).grammar_of(class_name, class_names)
