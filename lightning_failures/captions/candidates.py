"""The candidate captions of each class, embedded on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from lightning_failures.captions.grammar import CaptionGrammar, CaptionVocabulary
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.class_names import ALL


@dataclass(frozen=True)
class ClassCaptions:
    """The candidate captions of one class and their embeddings.

    Attributes:
        texts: M captions.
        embeddings: (M, D) float32 unit vectors.
        reference: (D,) unit vector of the reference caption.
        reference_text: The reference caption.
        chosen_from: Ids of the examples by whose correctness the candidates were chosen: examples of the same sources
            take no part in tests. None: the candidates do not depend on the data.
    """

    texts: tuple[str, ...]
    embeddings: Tensor
    reference: Tensor
    reference_text: str | None = None
    chosen_from: IntArray | None = None

    def taking_part(self, ids: IntArray, sources: IntArray | None) -> BoolArray:
        """Return which examples share no source with those that the candidates were chosen from: (n,) bool.

        Args:
            ids: (n,) ids of the examples.
            sources: (n,) their sources; None if every example is its own source.
        """
        if self.chosen_from is None:
            return np.ones(len(ids), dtype=bool)
        chosen = np.isin(ids, self.chosen_from)
        return ~(chosen if sources is None else np.isin(sources, sources[chosen]))


_NOUN_OF_ALL = "scene"
"""What examples without labels show, in captions."""


class CaptionEncoder(Protocol):
    """Embeds captions: a :class:`~lightning_failures.encoders.TextEncoder`, or one with a cache in front of it."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed M texts as (M, D) float32 unit vectors on the CPU."""
        ...


def caption_source(
    encoder: CaptionEncoder,
    vocabulary: CaptionVocabulary,
    class_names: Sequence[str],
    known: dict[str, ClassCaptions] | None = None,
) -> Callable[[int], ClassCaptions | None]:
    """Return the function from which :func:`~lightning_failures.analysis.analyse.analyse` gets the captions of a class.

    Args:
        encoder: Embeds the captions.
        vocabulary: Provides the grammar of every class.
        class_names: K names.
        known: Captions by class name. Embedded captions are added, so that each class is embedded once.
    """

    def candidates(grammar: CaptionGrammar) -> dict[str, str]:
        return {text: text for text in grammar.captions()}

    return _source(encoder, vocabulary, class_names, candidates, known)


def attribute_source(
    encoder: CaptionEncoder,
    vocabulary: CaptionVocabulary,
    class_names: Sequence[str],
    known: dict[str, ClassCaptions] | None = None,
) -> Callable[[int], ClassCaptions | None]:
    """Return the source of the captions of a class that name one attribute each; their texts are the attributes alone.

    Args:
        encoder: Embeds the captions, such as "a photo of a blurry cat" for the attribute "blurry".
        vocabulary: Provides the grammar of every class.
        class_names: K names.
        known: Captions by class name; embedded ones are added.
    """
    return _source(encoder, vocabulary, class_names, CaptionGrammar.attributes, known)


def _source(
    encoder: CaptionEncoder,
    vocabulary: CaptionVocabulary,
    class_names: Sequence[str],
    candidates: Callable[[CaptionGrammar], dict[str, str]],
    known: dict[str, ClassCaptions] | None,
) -> Callable[[int], ClassCaptions | None]:
    """Return the source of the captions that a function selects from the grammar of a class, by their texts."""
    known = {} if known is None else known
    nouns = (_NOUN_OF_ALL,) if tuple(class_names) == (ALL,) else class_names

    def captions(k: int) -> ClassCaptions | None:
        name = nouns[k]
        if name not in known:
            grammar = vocabulary.grammar_of(name, nouns)
            texts = candidates(grammar)
            if not texts:
                return None
            vectors = encoder.encode_texts([str(grammar.reference), *texts.values()])
            known[name] = ClassCaptions(tuple(texts), vectors[1:], vectors[0], grammar.reference)
        return known[name]

    return captions
