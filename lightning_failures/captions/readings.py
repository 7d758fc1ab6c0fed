"""How often flagged images show what a caption says, compared with all images of the class.

Known attributes of the examples count where their values occur in the words of the caption. Otherwise the encoder reads
the images: each shows the value whose caption is the most similar, out of those that could take its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_failures.captions.attributes import CaptionAttributes
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.core.arrays import as_array
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.grouping import CodedValues
from lightning_failures.data.members import Values

_CONNECTING = frozenset(["a", "an", "at", "from", "in", "of", "on", "the", "to", "under", "with"])
_YES = ("True", "true", "yes")


@dataclass(frozen=True)
class WordShares:
    """How many images show what some words of a caption say; shares are in [0, 1].

    Attributes:
        flagged: Share of the flagged images.
        everything: Share of all images of the class.
        attribute: Name of the known attribute that was counted; None if the encoder read the images.
    """

    flagged: float
    everything: float
    attribute: str | None = None

    @property
    def excess(self) -> float:
        """How much more often flagged images show it, in standard deviations of one image."""
        spread = float(np.sqrt(self.everything * (1 - self.everything)))
        return (self.flagged - self.everything) / spread if spread > 0 else 0.0


def word_shares(
    words: Iterable[str],
    noun: str,
    candidates: ClassCaptions,
    attributes: CaptionAttributes,
    embedded: Values,
    flagged: BoolArray,
    metadata: Mapping[str, CodedValues],
    rows: IntArray,
) -> dict[str, WordShares]:
    """Return the shares of the words for which they are known.

    They are unknown if all or none of the images are flagged, and if the encoder reads the value in no image.

    Args:
        words: Attributes that captions name.
        noun: The noun of the captions by which the encoder reads images.
        candidates: The captions of the class.
        attributes: The attributes of these captions.
        embedded: (n, D) embeddings of the images of the class.
        flagged: (n,) bool, by decision values of fits that did not see the image.
        metadata: Known attributes of all rows, by name.
        rows: (n,) int64, the row of each image.
    """
    if flagged.all() or not flagged.any():
        return {}
    images = as_array(embedded).astype(np.float32, copy=False)
    found = {}
    for word in words:
        known = known_value(word, attributes.values, metadata)
        if known is not None:
            name, value = known
            shows = metadata[name].codes[rows] == value
            found[word] = WordShares(float(shows[flagged].mean()), float(shows.mean()), name)
            continue
        read = _read(word, noun, candidates, attributes, images)
        if read is not None and read.any():
            found[word] = WordShares(float(read[flagged].mean()), float(read.mean()))
    return found


def known_value(word: str, words: Collection[str], metadata: Mapping[str, CodedValues]) -> tuple[str, int] | None:
    """Return the known attribute, and the index of its value, that some words of a caption name.

    "on a gray background" names the value "gray" of an attribute "background". Where no words name an attribute, they
    may consist of its value: "orange" and "at night" name the values "orange" and "night" of any attribute.

    Args:
        word: The words.
        words: All words of the vocabulary.
        metadata: Known attributes, by name.

    >>> from types import SimpleNamespace as Coded
    >>> metadata = {"background": Coded(values=("gray", "white")), "time": Coded(values=("day", "night"))}
    >>> words = ["gray", "on a gray background", "at night", "blurry"]
    >>> [known_value(word, words, metadata) for word in words]
    [None, ('background', 0), ('time', 1), None]
    """
    for name, attribute in metadata.items():
        is_named = any(_named_value(other, name, attribute) is not None for other in words)
        value = _named_value(word, name, attribute) if is_named else _equal_value(word, attribute)
        if value is not None:
            return name, value
    return None


def _named_value(word: str, name: str, attribute: CodedValues) -> int | None:
    """Return the value that some words name together with the attribute; of several the longest."""
    tokens = _tokens(word)
    if not _tokens(name) <= tokens:
        return None
    values = [_tokens(value) for value in attribute.values]
    matching = [k for k, value in enumerate(values) if value and value <= tokens - _tokens(name)]
    if matching:
        return max(matching, key=lambda k: len(values[k]))
    yes = [k for k, value in enumerate(attribute.values) if value in _YES]
    return yes[0] if yes and tokens == _tokens(name) else None


def _equal_value(word: str, attribute: CodedValues) -> int | None:
    """Return the value that some words consist of."""
    tokens = _tokens(word)
    return next((k for k, value in enumerate(attribute.values) if _tokens(value) == tokens), None)


def _tokens(text: str) -> frozenset[str]:
    """Return the words of a text that carry its meaning."""
    return frozenset(text.replace("_", " ").lower().split()) - _CONNECTING


def _read(
    word: str, noun: str, candidates: ClassCaptions, attributes: CaptionAttributes, images: NDArray[np.float32]
) -> BoolArray | None:
    """Return in which images the encoder reads an attribute, (n,) bool; None if no caption names it alone.

    A value without alternatives is compared with the reference caption.
    """
    captions = {value: attributes.find(noun, {value}) for value in attributes.values[word]}
    indices = {value: index for value, index in captions.items() if index is not None}
    if word not in indices:
        return None
    prompts = as_array(candidates.embeddings)[list(indices.values())]
    if len(indices) == 1:
        prompts = np.concatenate([prompts, as_array(candidates.reference)[None]])
    similarity = images @ prompts.astype(np.float32, copy=False).T
    return np.asarray(similarity.argmax(axis=1) == list(indices).index(word))
