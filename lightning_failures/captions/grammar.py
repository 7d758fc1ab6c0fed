"""The grammar that generates the candidate captions of a class, and vocabularies for many classes.

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, appendix.

A vocabulary is one YAML file::

    template: a photo of a {}              # optional; shared by all classes
    noun: animal                           # optional; what every image shows, for captions that name no class
    adjectives: [red, blurry]              # optional
    prepositions: [in the snow]            # optional
    classes:                               # optional; additional words of a class
      dog:
        nouns: [dog, puppy]                # default: the name of the class
        prepositions: [on a leash]
    groups:                                # optional; classes whose captions name their kind
      fish:
        prepositions: [in a tank]
        classes: {n01440764: [tench]}      # id: names; captions say "fish", the reference caption says "tench"

The package contains vocabularies for any natural photographs (``general``), for CIFAR-10 (``cifar10``, and with kinds
of its classes ``cifar10-extended``), the superclasses of CIFAR-100 (``cifar100``), faces of CelebA by age (``celeba``),
ImageNet (``imagenet``: the kind of a class, one of the paper's 37 ancestors in WordNet, with their prepositions), chest
X-rays (``chestxray``, which needs an encoder that knows them), and the coloured digits (``digits``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lightning_failures.data.class_names import absent_condition
from lightning_failures.errors import ConfigurationError, did_you_mean

_MEDIUM = re.compile(r"an? (.+?) (?:of|showing|with) (?:an? )?{}")
_ANY_NOUN = "scene"

_PACKAGED = Path(__file__).parent / "vocabularies"
_SHARED = ("adjectives", "prepositions")
_OF_A_CLASS = ("nouns", *_SHARED)
_OF_A_GROUP = (*_OF_A_CLASS, "classes")
_REFERENCE = "reference"

# words whose first sound differs from their spelling: a consonant, and a vowel
_SPOKEN_CONSONANT = re.compile(r"uni(?![dmn])|us(?:e|ua|ur)|eu|ewe|ufo|one\b|once|ubiq|ut(?:e|il|op)|uk", re.IGNORECASE)
_SPOKEN_VOWEL = re.compile(r"hour|honest|honou?r|heir|[fhlmnrsx]\b|8|1[18]\b", re.IGNORECASE)
_ACRONYM_VOWEL = re.compile(r"[AEFHILMNORSX][A-Z]+\b")
_ACRONYM = re.compile(r"[A-Z]{2,}\b")


class NamelessClassError(ConfigurationError):
    """A class has no captions, because its name holds no word."""


def indefinite_article(phrase: str) -> str:
    """Return the indefinite article of a phrase, "a" or "an", by its first sound.

    >>> [indefinite_article(word) for word in ("orange cat", "unicycle", "unusual dog", "hour", "one", "MRI")]
    ['an', 'a', 'an', 'an', 'a', 'an']
    """
    if _ACRONYM.match(phrase):
        return "an" if _ACRONYM_VOWEL.match(phrase) else "a"
    if _SPOKEN_VOWEL.match(phrase):
        return "an"
    return "an" if re.match(r"[aeiou]", phrase, re.IGNORECASE) and not _SPOKEN_CONSONANT.match(phrase) else "a"


@dataclass(frozen=True)
class CaptionGrammar:
    """All captions "<adjective> <noun> <preposition>" in a template; every part except the noun is optional.

    Attributes:
        nouns: Names of the class, the main name first.
        adjectives: Words before the noun.
        prepositions: Phrases after the noun, such as "in the snow".
        template: Text with one ``{}``. An "a" directly before it becomes "an" where the phrase requires it.
        reference: The caption against which all others are scored. Default: the template with the first noun.

    >>> grammar = CaptionGrammar(["cat"], ["orange"], ["on grass"])
    >>> grammar.captions()
    ['a photo of a cat on grass', 'a photo of an orange cat', 'a photo of an orange cat on grass']
    >>> grammar.reference
    'a photo of a cat'
    """

    nouns: Sequence[str]
    adjectives: Sequence[str] = ()
    prepositions: Sequence[str] = ()
    template: str = "a photo of a {}"
    reference: str | None = None

    def __post_init__(self) -> None:
        for name in ("nouns", "adjectives", "prepositions"):
            object.__setattr__(self, name, _words(name, getattr(self, name)))
        if not any(self.nouns):
            raise ConfigurationError("CaptionGrammar: nouns must hold at least one word")
        if not isinstance(self.template, str) or self.template.count("{}") != 1:
            raise ConfigurationError(f"CaptionGrammar: template must hold '{{}}' exactly once, got {self.template!r}")
        if self.reference is None:
            object.__setattr__(self, "reference", self._caption("", next(filter(None, self.nouns)), ""))

    def captions(self) -> list[str]:
        """Return the distinct candidates without the reference, in a fixed order."""
        return list(self.parts())

    def parts(self) -> dict[str, tuple[str, str, str]]:
        """Return the adjective, noun and preposition of each candidate, "" for a part that is left out.

        >>> CaptionGrammar(["cat"], ["orange"]).parts()
        {'a photo of an orange cat': ('orange', 'cat', '')}
        """
        unique: dict[str, tuple[str, str, str]] = {}
        for words in product(_optional(self.adjectives), filter(None, self.nouns), _optional(self.prepositions)):
            unique.setdefault(self._caption(*words), words)
        unique.pop(str(self.reference), None)
        return unique

    def attributes(self) -> dict[str, str]:
        """Return the single adjectives and prepositions, each with its caption.

        >>> CaptionGrammar(["cat"], ["orange"], ["on grass"]).attributes()
        {'orange': 'a photo of an orange cat', 'on grass': 'a photo of a cat on grass'}
        """
        noun = next(filter(None, self.nouns))
        words = {adjective: self._caption(adjective, noun, "") for adjective in filter(None, self.adjectives)}
        return words | {phrase: self._caption("", noun, phrase) for phrase in filter(None, self.prepositions)}

    def _caption(self, adjective: str, noun: str, preposition: str) -> str:
        phrase = " ".join(" ".join((adjective, noun, preposition)).split())
        before, after = self.template.split("{}")
        before = re.sub(r"\b([aA])n?(\s+)$", lambda m: m[1] + indefinite_article(phrase)[1:] + m[2], before)
        return before + phrase + after


@dataclass(frozen=True)
class CaptionVocabulary:
    """Words for many classes.

    Attributes:
        template: Template of every caption.
        noun: What the images of all classes show, such as "digit", for captions that name no class.
        adjectives: Adjectives of every class.
        prepositions: Prepositions of every class.
        classes: Class name -> its own words, by "nouns", "adjectives" and "prepositions"; a single word at "reference"
            is the noun of the reference caption, if it is none of "nouns".
    """

    template: str = "a photo of a {}"
    noun: str | None = None
    adjectives: tuple[str, ...] = ()
    prepositions: tuple[str, ...] = ()
    classes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

    @cached_property
    def _words(self) -> dict[str, Mapping[str, tuple[str, ...]]]:
        """The words of classes by their names in the form that is compared."""
        return {_normal(name): words for name, words in self.classes.items()}

    def knows(self, class_name: str) -> bool:
        """Return whether a class has words of its own.

        >>> CaptionVocabulary.load("cifar10").knows("Airplane"), CaptionVocabulary.load("general").knows("airplane")
        (True, False)
        """
        return _normal(class_name) in self._words

    def reference(self, class_name: str, class_names: Collection[str] = ()) -> str | None:
        """Return the reference caption of one of several classes; None if it has no nouns and a name without a word."""
        try:
            return self.grammar_of(class_name, class_names).reference
        except NamelessClassError:
            return None

    def grammar(self, class_name: str) -> CaptionGrammar:
        """Return the grammar of one class.

        A class that is not in the vocabulary gets its name and the shared words. Names are compared without regard to
        case, and "_" counts as a space.

        Raises:
            NamelessClassError: The class has no nouns of its own, and its name holds no word.

        >>> CaptionVocabulary.load("general").grammar("fire_truck").reference
        'a photo of a fire truck'
        """
        own = self._words.get(_normal(class_name), {})
        nouns = own.get("nouns") or (class_name.replace("_", " ").strip(),)
        if not any(noun.split() for noun in nouns):
            raise NamelessClassError(
                f"captions: the class name {class_name!r} holds no word. Name the class, or give it nouns in a"
                " vocabulary."
            )
        return CaptionGrammar(
            nouns=nouns,
            adjectives=(*own.get("adjectives", ()), *self.adjectives),
            prepositions=(*own.get("prepositions", ()), *self.prepositions),
            template=self.template,
            reference=CaptionGrammar(own[_REFERENCE], template=self.template).reference if _REFERENCE in own else None,
        )

    def grammar_of(self, class_name: str, class_names: Collection[str]) -> CaptionGrammar:
        """Return the grammar of one of several classes.

        The absence of a condition ("no edema" beside "edema") is no thing that an image shows, so its captions name
        attributes only; unless the vocabulary has words of its own for it.

        Raises:
            NamelessClassError: See :meth:`grammar`.

        >>> CaptionVocabulary.load("digits").grammar_of("no even digit", ["no even digit", "even digit"]).reference
        'a photo of a digit'
        """
        if self.knows(class_name) or absent_condition(class_name, class_names) is None:
            return self.grammar(class_name)
        return self.grammar_without_class()

    def grammar_without_class(self) -> CaptionGrammar:
        """Return the grammar of captions that name no class, but ``noun``, or else the medium of the template.

        >>> CaptionVocabulary(adjectives=("dark",), prepositions=("on grass",)).grammar_without_class().captions()
        ['a photo on grass', 'a dark photo', 'a dark photo on grass']
        """
        noun, template = self.noun, self.template
        if noun is None:
            medium = _MEDIUM.fullmatch(template)
            noun, template = (medium[1], "a {}") if medium else (_ANY_NOUN, template)
        return CaptionGrammar((noun,), self.adjectives, self.prepositions, template)

    @classmethod
    def load(cls, source: str | Path | CaptionVocabulary) -> CaptionVocabulary:
        """Read a packaged vocabulary by its name, or a YAML file by its path; return a vocabulary unchanged.

        Raises:
            ConfigurationError: There is no such vocabulary or file, or the file has another form; the message names the
                place.

        >>> len(CaptionVocabulary.load("cifar10").grammar("cat").captions()) > 100
        True
        """
        if isinstance(source, CaptionVocabulary):
            return source
        known = known_vocabularies()
        if str(source) in known:
            text = (_PACKAGED / f"{source}.yaml").read_text(encoding="utf-8")
        else:
            try:
                text = Path(source).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(
                    f"captions: {str(source)!r} is neither a packaged vocabulary ({', '.join(known)}) nor a readable "
                    f"file ({error}).{did_you_mean(str(source), known)}"
                ) from error
        try:
            return _vocabulary(yaml.safe_load(text), str(source))
        except ConfigurationError:
            raise
        except Exception as error:  # PyYAML also raises other errors, for an invalid date or lists nested too deep
            raise ConfigurationError(f"captions: {source} is not valid YAML: {error}") from error


def known_vocabularies() -> list[str]:
    """Return the names of the packaged vocabularies.

    >>> known_vocabularies()
    ['celeba', 'chestxray', 'cifar10', 'cifar10-extended', 'cifar100', 'digits', 'general', 'imagenet']
    """
    return sorted(file.stem for file in _PACKAGED.glob("*.yaml"))


def _vocabulary(data: Any, where: str) -> CaptionVocabulary:
    """Return the vocabulary of parsed YAML; ``where`` names the file in messages."""
    data = _mapping(data, where, ("template", "noun", *_SHARED, "classes", "groups"))
    classes = data.get("classes") or {}
    if not isinstance(classes, dict) or not all(isinstance(name, str) for name in classes):
        raise ConfigurationError(
            f"captions: {where}: 'classes' must map class names to words (quote names such as 'on')"
        )
    noun = data.get("noun")
    if noun is not None and not (isinstance(noun, str) and noun.split()):
        raise ConfigurationError(f"captions: {where}: 'noun' must be a word, got {noun!r}")
    words_of_classes: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, own in classes.items():
        words_of_classes[name] = {
            key: _strings(words, f"{where}: {key!r} of class {name!r}")
            for key, words in _mapping(own, f"{where}: class {name!r}", _OF_A_CLASS).items()
        }
    words_of_classes |= _classes_of_groups(data.get("groups"), where)
    vocabulary = CaptionVocabulary(
        template=data.get("template", CaptionVocabulary.template),
        noun=noun,
        **{key: _strings(data.get(key), f"{where}: {key!r}") for key in _SHARED},
        classes=words_of_classes,
    )
    for name in words_of_classes or ("class",):
        vocabulary.grammar(name)  # checks the template
    return vocabulary


def _classes_of_groups(groups: Any, where: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Return the words of the classes of groups, by the ids and the names of the classes."""
    classes = {}
    for group, content in _mapping(groups, f"{where}: 'groups'").items():
        place = f"{where}: group {group!r}"
        content = _mapping(content, place, _OF_A_GROUP)
        words = {key: _strings(some, f"{place}: {key!r}") for key, some in content.items() if key != "classes"}
        words.setdefault("nouns", (str(group).replace("_", " "),))
        for name, given in _mapping(content.get("classes"), f"{place}: 'classes'").items():
            names = _strings(given, f"{place}: names of {name!r}") or (str(name),)
            classes.update(dict.fromkeys((str(name), *names), words | {_REFERENCE: names[:1]}))
    return classes


def _mapping(data: Any, where: str, allowed: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return data as a mapping, with allowed keys only; None is empty."""
    if data is None:
        return {}
    if not isinstance(data, dict):
        kind = "names to words" if allowed is None else ", ".join(allowed)
        raise ConfigurationError(f"captions: {where} must be a mapping of {kind}, got {type(data).__name__}")
    for key in data:
        if allowed is not None and key not in allowed:
            raise ConfigurationError(
                f"captions: {where} has an unknown key {key!r}; allowed keys are {', '.join(allowed)}."
                + did_you_mean(str(key), allowed)
            )
    return data


def _strings(values: Any, where: str) -> tuple[str, ...]:
    """Return a list of strings as a tuple; None is empty."""
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ConfigurationError(f"captions: {where} must be a list of strings (quote words such as 'on' and 'no')")
    return tuple(values)


def _normal(name: str) -> str:
    """Return a class name in the form in which names are compared."""
    return " ".join(name.replace("_", " ").lower().split())


def _words(name: str, values: Any) -> tuple[str, ...]:
    """Return one string, or several, as a tuple with normalized spaces."""
    is_single = isinstance(values, str) or not isinstance(values, Iterable)
    values = (values,) if is_single else tuple(values)
    if not all(isinstance(value, str) for value in values):
        raise ConfigurationError(f"CaptionGrammar: {name} must be strings, got {values!r}")
    return tuple(" ".join(value.split()) for value in values)


def _optional(words: Sequence[str]) -> list[str]:
    """Return the words, and an empty one first for leaving the part out."""
    return ["", *filter(None, words)]
