"""The records of findings: what is wrong with a model, ranked by what fixing it would gain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightning_failures.data.records import Readable

Confidence = Literal["high", "moderate", "low"]
"""How sure a finding is."""

ATTRIBUTE, CAPTION, LOOK, RULE, LABELS = "attribute", "caption", "look", "rule", "labels"
"""How a finding describes its images: by a known attribute, by a caption, by their look alone, by a rule of a tree, or
by labels that are in doubt."""


@dataclass(frozen=True)
class FindingPart(Readable):
    """What a finding says about one class; rates are held-out error rates in [0, 1].

    Attributes:
        class_name: Name of the class; its key is "class".
        words: The value or the caption that describes its failing images; None where nothing does.
        examples: Number of its images inside of the finding.
        failures: Number of failures among them.
        error_rate: Error rate inside.
        error_rate_outside: Error rate of its other images; None if there are none.
        mistaken_for: Class that the failures inside are most often mistaken for; None if it is not known.
        mistaken_share: Share of the failures inside that are, in [0, 1].
    """

    class_name: str = field(metadata={"key": "class"})
    words: str | None = None
    examples: int = 0
    failures: int = 0
    error_rate: float | None = None
    error_rate_outside: float | None = None
    mistaken_for: str | None = None
    mistaken_share: float | None = None


@dataclass(frozen=True)
class Mistake(Readable):
    """A label and the prediction that failures inside of a finding are mistaken for.

    Attributes:
        label: Name of the true class.
        prediction: Name of the predicted class.
        count: Number of failures.
        share: Share of the failures of the label inside of the finding, in [0, 1].
    """

    label: str
    prediction: str
    count: int
    share: float


@dataclass(frozen=True)
class Finding(Readable):
    """One thing that is wrong with the model: images that fail much more often than the others of their classes.

    Rates are held-out error rates in [0, 1]. Over several classes they are averages within classes (see
    :func:`~lightning_failures.directions.effects.rates_within_classes`), so that hard classes have no influence.

    Attributes:
        kind: "attribute", "caption", "look", "rule" or "labels": how the images are described.
        attribute: Name of the known attribute; None for the other kinds.
        words: The value or caption that the images of all classes share; None if there is none, or one for each class.
        parts: The classes, those first in which fixing would gain most.
        every_class: Whether the finding is about all classes together.
        examples: Number of images inside.
        failures: Number of failures inside.
        share_of_failures: Share of all failures that are inside, in [0, 1].
        error_rate: Error rate inside.
        interval: Its 95 % interval.
        error_rate_outside: Error rate of the other images of these classes. For labels in doubt: the error rate of the
            classes without them.
        interval_outside: Its 95 % interval.
        difference: 95 % interval of ``error_rate - error_rate_outside``.
        gain: Number of failures that would vanish if the images inside failed as the others do.
        p_value: Largest of the p-values of the parts; each passed Benjamini-Hochberg. None if nothing was tested.
        words_p_value: Largest of the p-values of the captions in ``parts``; None without captions.
        confidence: "high", "moderate" or "low".
        mistakes: What the failures inside are mistaken for, the most frequent first.
        cause: Kind of failure by the diagnosis of the classes, such as "shortcut"; None without a diagnosis.
        cause_probability: Its probability, in [0, 1].
        remedy: The remedy as a line of code; None if the cause is not known.
        failing_ids: Ids of some failures inside, spread over classes and sources.
        right_ids: Ids of some images of the same classes outside that the model is right on.
    """

    kind: str
    attribute: str | None = None
    words: str | None = None
    parts: tuple[FindingPart, ...] = ()
    every_class: bool = False
    examples: int = 0
    failures: int = 0
    share_of_failures: float | None = None
    error_rate: float | None = None
    interval: tuple[float, float] | None = None
    error_rate_outside: float | None = None
    interval_outside: tuple[float, float] | None = None
    difference: tuple[float, float] | None = None
    gain: float = 0.0
    p_value: float | None = None
    words_p_value: float | None = None
    confidence: str = "low"
    mistakes: tuple[Mistake, ...] = ()
    cause: str | None = None
    cause_probability: float | None = None
    remedy: str | None = None
    failing_ids: tuple[int, ...] = ()
    right_ids: tuple[int, ...] = ()
