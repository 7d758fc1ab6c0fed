"""The candidate captions of each class, embedded on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.data.class_names import ALL


@dataclass(frozen=True)
class ClassCaptions:
    """The candidate captions of one class and their embeddings.

    Attributes:
        texts: M captions.
        embeddings: (M, D) float32 unit vectors.
        reference: (D,) unit vector of the reference caption.
        reference_text: The reference caption.
        parts: Adjective, noun and preposition of the captions that a grammar made, by their text; others have none.
    """

    texts: tuple[str, ...]
    embeddings: Tensor
    reference: Tensor
    reference_text: str | None = None
    parts: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)


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
    known = {} if known is None else known
    nouns = (_NOUN_OF_ALL,) if tuple(class_names) == (ALL,) else class_names

    def captions(k: int) -> ClassCaptions | None:
        name = nouns[k]
        if name not in known:
            grammar = vocabulary.grammar(name)
            parts = grammar.parts()
            texts = tuple(parts)
            if not texts:
                return None
            vectors = encoder.encode_texts([str(grammar.reference), *texts])
            known[name] = ClassCaptions(texts, vectors[1:], vectors[0], grammar.reference, parts)
        return known[name]

    return captions
