"""Kinds of the thing that a noun names, from a WordNet that is installed: nouns for captions.

Source of the use: Jain et al., ICLR 2023, section 4.1, where captions name breeds and models ("extended nouns").

A WordNet is a folder in its own format with ``index.noun`` and ``data.noun``, such as Debian's package
``wordnet-base`` installs in ``/usr/share/wordnet``; or the data of the package ``wn``, if it is installed. Nothing is
downloaded.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lightning_failures.captions.grammar import CaptionGrammar, CaptionVocabulary
from lightning_failures.errors import ConfigurationError

WORDNET = "wordnet"
"""Name of the vocabulary whose nouns come from WordNet."""

MOST = 40
"""Number of nouns beside the name of a class."""

PREPOSITIONS = (
    "outside", "inside", "in the grass", "in the water", "on a white background", "on a black background",
    "with a person",
)  # fmt: skip

_Synset = TypeVar("_Synset", bound=Hashable)


class Nouns(Protocol):
    """A WordNet of nouns."""

    def narrower(self, noun: str, most: int = MOST) -> tuple[str, ...]:
        """Return names of kinds of the thing that a noun names, the nearest first; empty for an unknown noun."""
        ...


@dataclass(frozen=True)
class WordNetFiles:
    """The nouns of a WordNet in its own format.

    Attributes:
        words: First word of each synset, by its offset in ``data.noun``.
        below: Offsets of the narrower synsets of each. Instances, such as single ships, are none.
        senses: The most frequent sense of each noun, with "_" for a space.
    """

    words: dict[int, str]
    below: dict[int, tuple[int, ...]]
    senses: dict[str, int]

    @classmethod
    def read(cls, folder: Path) -> WordNetFiles:
        """Read ``data.noun`` and ``index.noun``.

        Raises:
            ConfigurationError: A file is missing, or of another form.
        """
        words: dict[int, str] = {}
        below: dict[int, tuple[int, ...]] = {}
        try:
            for fields in _lines(folder / "data.noun"):
                pointers_at = 4 + 2 * int(fields[3], 16)
                n_pointers = int(fields[pointers_at])
                pointers = fields[pointers_at + 1 : pointers_at + 1 + 4 * n_pointers]
                offset = int(fields[0])
                words[offset] = fields[4].replace("_", " ")
                below[offset] = tuple(
                    int(target) for kind, target in zip(pointers[::4], pointers[1::4], strict=True) if kind == "~"
                )
            senses = {fields[0]: int(fields[6 + int(fields[3])]) for fields in _lines(folder / "index.noun")}
        except (OSError, ValueError, IndexError) as error:
            raise ConfigurationError(
                f"{folder} holds no WordNet in its own format, with data.noun and index.noun ({error})."
            ) from error
        return cls(words, below, senses)

    def narrower(self, noun: str, most: int = MOST, preferred: Collection[int] | None = None) -> tuple[str, ...]:
        """Return names of kinds of the thing that a noun names in its most frequent sense.

        Args:
            noun: The noun, in the singular; case does not count.
            most: Largest number of names.
            preferred: Offsets of synsets; only they count. None: all.

        Returns:
            The nearest kinds first, without repeats; empty for an unknown noun.
        """
        start = self.senses.get("_".join(noun.lower().split()))
        if start is None:
            return ()
        offsets = _breadth_first(start, lambda one: self.below.get(one, ()))
        found = (self.words[one] for one in offsets if one in self.words and (preferred is None or one in preferred))
        return _first_of_each(found, most, leave_out=noun)


class WnNouns:
    """The nouns of the English lexicons that the package ``wn`` holds."""

    def narrower(self, noun: str, most: int = MOST) -> tuple[str, ...]:
        """Return names of kinds of the thing that a noun names in its first sense; see :class:`WordNetFiles`."""
        wn: Any = import_module("wn")
        senses = wn.synsets(noun, pos="n")
        if not senses:
            return ()

        def below(synset: Any) -> Iterable[Any]:
            return synset.get_related("hyponym")

        found = (synset.lemmas()[0] for synset in _breadth_first(senses[0], below) if synset.lemmas())
        return _first_of_each(map(str, found), most, leave_out=noun)


@cache
def installed_wordnet() -> Nouns | None:
    """Return the WordNet of this machine, None without one.

    The folders that ``WNSEARCHDIR`` and ``WNHOME`` name come first, as for WordNet's own programs, then
    ``/usr/share/wordnet``, then the package ``wn``.
    """
    folders = [os.environ.get("WNSEARCHDIR"), os.environ.get("WNHOME") and f"{os.environ['WNHOME']}/dict"]
    for folder in (*folders, "/usr/share/wordnet"):
        if folder and (Path(folder) / "data.noun").is_file():
            return WordNetFiles.read(Path(folder))
    if find_spec("wn") is not None:
        wn: Any = import_module("wn")
        if wn.lexicons(lang="en"):
            return WnNouns()
    return None


@dataclass(frozen=True)
class WordNetVocabulary(CaptionVocabulary):
    """Captions that name a kind of the thing that a class names, and where it is.

    >>> class Few:
    ...     def narrower(self, noun, most=40):
    ...         return ("puppy",) if noun == "dog" else ()
    >>> WordNetVocabulary(wordnet=Few()).grammar_of("dog", ("cat", "dog")).nouns
    ('dog', 'puppy')
    """

    prepositions: tuple[str, ...] = PREPOSITIONS
    wordnet: Nouns | None = None

    def grammar(self, class_name: str) -> CaptionGrammar:
        """Return the grammar of one class.

        Raises:
            NamelessClassError: The name of the class holds no word.
        """
        plain = super().grammar(class_name)
        kinds = () if self.wordnet is None else self.wordnet.narrower(plain.nouns[0])
        return CaptionGrammar((*plain.nouns, *kinds), plain.adjectives, plain.prepositions, plain.template)


def load_wordnet_vocabulary() -> WordNetVocabulary:
    """Return the vocabulary of the installed WordNet.

    Raises:
        ConfigurationError: None is installed.
    """
    found = installed_wordnet()
    if found is None:
        raise ConfigurationError(
            f"captions={WORDNET!r} needs a WordNet on this machine: install Debian's wordnet-base, set WNSEARCHDIR to a"
            " folder with data.noun and index.noun, or install the package wn and add an English lexicon to it."
        )
    return WordNetVocabulary(wordnet=found)


def _lines(path: Path) -> Iterator[list[str]]:
    """Yield the fields of each line; lines of the licence begin with a space."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith(" ") and line.strip():
                yield line.partition(" | ")[0].split()


def _breadth_first(start: _Synset, below: Callable[[_Synset], Iterable[_Synset]]) -> Iterator[_Synset]:
    """Yield what lies below a synset, the nearest first, each once, without the synset itself."""
    known, waiting = {start}, deque([start])
    while waiting:
        for one in below(waiting.popleft()):
            if one not in known:
                known.add(one)
                waiting.append(one)
                yield one


def _first_of_each(names: Iterable[str], most: int, *, leave_out: str) -> tuple[str, ...]:
    """Return the first distinct names."""
    found: dict[str, None] = {}
    for name in names:
        if len(found) == most:
            break
        if name.lower() != leave_out.lower():
            found[name] = None
    return tuple(found)
