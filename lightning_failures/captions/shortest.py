"""The caption to show: the shortest one that describes a direction as well as the best one, within noise.

The best of hundreds of captions names attributes that happen to fit: "a thin slanted orange eight on a gray background"
where only orange holds. Its attributes are ordered by how much more often flagged images show them than all images of
the class; those that flagged images do not show more often are left out. Of the captions that name the first of these
attributes, none of them to all of them, the first one is shown that the best caption improves on no more than chance
would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_failures.captions.attributes import CaptionAttributes, extended, shortened
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.captions.readings import WordShares
from lightning_failures.captions.scoring import CaptionComparison, CaptionGain
from lightning_failures.data.evidence import AttributeEvidence

NOISE_LEVEL = 0.05
"""A shorter caption is within noise of the best one if the p-value of their difference is above this level."""


@dataclass(frozen=True)
class Shortening:
    """Captions that may stand for the best one, the shortest first, and the comparisons that decide between them.

    Attributes:
        captions: Indices of the captions; None for the reference.
        against_best: The comparison of the best caption with each of them; None for the best one itself.
        by_word: For each of them, each attribute that it names with the comparison that leaves the attribute out.
        shares: How often images show these attributes.
    """

    captions: tuple[int | None, ...]
    against_best: tuple[CaptionComparison | None, ...]
    by_word: tuple[tuple[tuple[str, CaptionComparison], ...], ...]
    shares: Mapping[str, WordShares]

    @property
    def comparisons(self) -> list[CaptionComparison]:
        """All comparisons."""
        of_words = [comparison for pairs in self.by_word for _, comparison in pairs]
        return [one for one in self.against_best if one is not None] + of_words

    def choose(
        self, gains: Mapping[CaptionComparison, CaptionGain]
    ) -> tuple[int | None, tuple[AttributeEvidence, ...]]:
        """Return the caption to show, None for the reference, and the evidence for each attribute that it names.

        It is the longest one if none is within noise, and without gains, which take permutations.
        """
        chosen = len(self.captions) - 1
        for k, comparison in enumerate(self.against_best):
            if comparison is None or (comparison in gains and gains[comparison].p_value > NOISE_LEVEL):
                chosen = k
                break
        evidence = []
        for word, comparison in self.by_word[chosen] if gains else ():
            shares = self.shares.get(word)
            evidence.append(
                AttributeEvidence(
                    value=word,
                    attribute=None if shares is None else shares.attribute,
                    margin=gains[comparison].margin,
                    p_value=gains[comparison].p_value,
                    flagged_share=None if shares is None else shares.flagged,
                    class_share=None if shares is None else shares.everything,
                )
            )
        return self.captions[chosen], tuple(evidence)


def shorten(
    best: int,
    scores: Tensor,
    candidates: ClassCaptions,
    attributes: CaptionAttributes,
    shares: Mapping[str, WordShares],
    *,
    sign: int = 1,
) -> Shortening:
    """Return the captions that may stand for the best one.

    A caption that no grammar made, such as one of a user's own list, may be shortened to the captions of the list that
    are left of it if some words are left out.

    Args:
        best: Index of the best caption.
        scores: (M,) scores of all captions; the hardest caption has the lowest one.
        candidates: The captions.
        attributes: Their attributes.
        shares: How often images show the attributes of the best caption, as far as this is known.
        sign: 1 for the hardest caption, -1 for the easiest.
    """
    if best not in attributes.words:
        shorter = sorted(shortened(candidates.texts, candidates.texts[best]), key=lambda k: _length(candidates, k))
        compared = [CaptionComparison(best, k, extended(candidates.texts, candidates.texts[k]), sign) for k in shorter]
        return Shortening((*shorter, best), (*compared, None), ((),) * (len(shorter) + 1), shares)

    # the attributes that images support most come first; among equals, those whose loss costs the score most
    noun, words = attributes.nouns[best], attributes.words[best]

    def support(word: str) -> tuple[float, float]:
        rest = attributes.find(noun, set(words) - {word})
        cost = 0.0 if rest is None else sign * float(scores[rest])
        return (sign * shares[word].excess if word in shares else 0.0), cost

    supported = [word for word in words if word not in shares or sign * shares[word].excess > 0]
    supported.sort(key=support, reverse=True)

    captions: list[int | None] = []
    against_best: list[CaptionComparison | None] = []
    by_word: list[tuple[tuple[str, CaptionComparison], ...]] = []
    for count in range(len(supported) + 1):
        named = supported[:count]
        caption = attributes.find(noun, named)
        if caption is None and named:
            continue  # the vocabulary does not combine these attributes
        captions.append(caption)
        rivals = attributes.lengthened(noun, named)
        against_best.append(None if caption == best else CaptionComparison(best, caption, rivals, sign))
        by_word.append(() if caption is None else _leaving_out(caption, noun, named, words, attributes, sign))
    return Shortening(tuple(captions), tuple(against_best), tuple(by_word), shares)


def _leaving_out(
    caption: int, noun: str, named: Sequence[str], words: Sequence[str], attributes: CaptionAttributes, sign: int
) -> tuple[tuple[str, CaptionComparison], ...]:
    """Return the comparisons of a caption with itself without one of its attributes, in the order of the words."""
    pairs = []
    for word in (word for word in words if word in named):
        rest = [other for other in named if other != word]
        shorter = attributes.find(noun, rest)
        if shorter is not None or not rest:
            rivals = attributes.lengthened(noun, rest, by_one=True)
            pairs.append((word, CaptionComparison(caption, shorter, rivals, sign)))
    return tuple(pairs)


def _length(candidates: ClassCaptions, index: int) -> int:
    """Return the number of words of a caption."""
    return len(candidates.texts[index].split())
