"""The evidence for a word of a caption, a record of the report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttributeEvidence:
    """What supports one attribute that a caption names; shares are in [0, 1].

    Attributes:
        value: The words in the caption, such as "orange" or "on grass".
        attribute: Name of the known attribute of the examples that ``flagged_share`` and ``class_share`` count. None:
            the encoder read the images, by the most similar of the values that could take the place of the words.
        margin: How much further failures and successes lie apart along the caption than along the caption without the
            words, in standard deviations of this difference under permuted correctness.
        p_value: How often chance gains as much by adding any attribute to the caption without the words.
        flagged_share: Share of the flagged examples that have the value; None if it is unknown.
        class_share: Share of the examples of the class that have the value; None if it is unknown.
    """

    value: str
    attribute: str | None = None
    margin: float | None = None
    p_value: float | None = None
    flagged_share: float | None = None
    class_share: float | None = None
