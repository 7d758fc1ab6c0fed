"""Records that parts of a report have in common, and that of the pattern which all classes share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_failures.core.serialization import to_jsonable

UNSURE = "unsure"
"""The kind of failure of a class for which no kind is probable enough."""


class Readable:
    """Access to a record by the keys of ``report.json``, as in ``report["classes"][0]["cv_score"]``."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain Python values; undefined numbers are None."""
        jsonable: dict[str, Any] = to_jsonable(self)
        return jsonable

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]


@dataclass(frozen=True)
class ValueReport(Readable):
    """Frequency of one value of an attribute in a class: counts, and shares in [0, 1]; a share of nothing is None.

    Attributes:
        attribute: Name of the attribute.
        value: The value, as text.
        examples: Number of examples with the value.
        failures: Number of failures with the value.
        flagged: Number of flagged examples with the value.
        least_confident: Number of examples with the value among the same number of least confident examples.
        share: Share of the examples that have the value.
        share_of_failures: Share of the failures that have the value.
        share_of_flagged: Share of the flagged examples that have the value.
        share_of_flagged_interval: 95 % interval of ``share_of_flagged``.
        share_of_least_confident: Share of the least confident examples that have the value.
    """

    attribute: str
    value: str
    examples: int
    failures: int
    flagged: int | None = None
    least_confident: int | None = None
    share: float | None = None
    share_of_failures: float | None = None
    share_of_flagged: float | None = None
    share_of_flagged_interval: tuple[float, float] | None = None
    share_of_least_confident: float | None = None

    @property
    def lift(self) -> float:
        """How many times the share of all examples the share of the flagged ones is at least; 0 where undefined."""
        ends = self.share_of_flagged_interval
        return ends[0] / self.share if ends and self.share else 0.0


@dataclass(frozen=True)
class DiagnosisReport(Readable):
    """The kind of failure of a class, and the remedy.

    Attributes:
        kind: "shortcut", "under-represented", "label noise", "intrinsically hard" or "unsure".
        probability: Probability of the likeliest of the four kinds, in [0, 1].
        probabilities: Probability of each kind, and of "none of these".
        reasons: The statistics that speak for the likeliest kind, a sentence each.
        remedy: The remedy as a line of code; None if the kind is "unsure".
    """

    kind: str
    probability: float
    probabilities: dict[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    remedy: str | None = None


@dataclass(frozen=True)
class CounterfactualReport(Readable):
    """Whether a change of an image, and of nothing else, changes the answer of the model; shares are in [0, 1].

    Attributes:
        kind: "rendered": images generated from the hardest caption and from the easiest caption, with equal seeds.
            "pasted": the region of a feature pasted onto other images, and the same region of an ordinary image.
        verdict: "confirmed" (the interval of ``difference`` lies above 0), "not confirmed" or "not measured".
        reason: Why it was not measured; None if it was.
        images: Number of pairs: of seeds, or of images that were pasted onto.
        changed: Share of the answers that are wrong for the hardest caption, or that flip with the region.
        control: Share of the answers that are wrong for the easiest caption (for the reference caption if there is no
            other), or that flip with the ordinary patch.
        reference: Share of the answers that are wrong for the reference caption; None if pasted.
        difference: ``changed - control``.
        interval: 95 % interval of ``difference``, by pairs.
        repairs: Whether failures were pasted onto, because less of the feature means failure: a flip is then a failure
            that becomes right. Otherwise correct images were, and a flip is one that becomes wrong.
        generator: Name of the generator; None if pasted.
    """

    kind: str
    verdict: str
    reason: str | None = None
    images: int = 0
    changed: float | None = None
    control: float | None = None
    reference: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    repairs: bool = False
    generator: str | None = None


@dataclass(frozen=True)
class ClassHold(Readable):
    """How well the shared direction tells the successes of one class from its failures.

    Attributes:
        name: Name of the class.
        auc: AUC of decision values that come from other classes, in [0, 1].
        p_value: One-sided p-value, not corrected for several classes.
        holds: Whether it passes Benjamini-Hochberg over the classes with enough images, at level 0.05.
    """

    name: str
    auc: float | None = None
    p_value: float | None = None
    holds: bool = False


@dataclass(frozen=True)
class SharedPattern(Readable):
    """The failure direction that all classes share: images are compared with others of their class.

    Error rates are those within classes: classes count by how evenly the flags divide them, so that flags which only
    tell hard classes from easy ones have no effect. Captions name an attribute without a class, such as "blurry".

    Attributes:
        skipped: Reason why there is no direction; None if there is one.
        examples: Number of examples that take part.
        failures: Number of failures among them.
        p_value: p-value of the test that correctness is independent of the embedding within classes.
        pattern: Whether it is at most 0.05 and ``effect`` is positive: other classes predict the failures of a class.
        cv_score: Balanced accuracy of the flags within classes; decision values come from directions of other classes.
        cv_score_stderr: Standard error of ``cv_score``.
        strength: "none", "weak", "clear" or "strong", by the lower end of ``effect_interval``; None if not tested.
        effect: Error rate of the flagged examples minus that of the unflagged.
        effect_interval: 95 % interval of ``effect``.
        flagged: Number of flagged examples.
        flagged_error_rate: Share of the flagged examples that failed, in [0, 1].
        unflagged_error_rate: Share of the unflagged examples that failed, in [0, 1].
        failures_flagged: Share of the failures that are flagged, in [0, 1].
        gain: Number of failures that would vanish if the flagged examples failed as the others of their classes do;
            None without a pattern.
        classes: Classes with enough images to tell whether the pattern holds in them, the highest AUC first.
        too_few: Number of classes with too few failures or successes to tell.
        hardest_captions: Attributes at the failure end of the direction, the most extreme first.
        hardest_caption_scores: Scores of ``hardest_captions``.
        hardest_caption_margins: Distances of these scores from the mean of all candidates, in their standard
            deviations.
        easiest_captions: Attributes at the opposite end, the most extreme first.
        easiest_caption_scores: Scores of ``easiest_captions``.
        caption_p_value: p-value of the captions.
        hardest_ids: Ids of the examples with the lowest decision values, the lowest first.
        values: Values of known attributes, those first whose share of the flagged exceeds their share of all most.
    """

    skipped: str | None = None
    examples: int = 0
    failures: int = 0
    p_value: float | None = None
    pattern: bool = False
    cv_score: float | None = None
    cv_score_stderr: float | None = None
    strength: str | None = None
    effect: float | None = None
    effect_interval: tuple[float, float] | None = None
    flagged: int | None = None
    flagged_error_rate: float | None = None
    unflagged_error_rate: float | None = None
    failures_flagged: float | None = None
    gain: float | None = None
    classes: tuple[ClassHold, ...] = ()
    too_few: int = 0
    hardest_captions: tuple[str, ...] = ()
    hardest_caption_scores: tuple[float, ...] = ()
    hardest_caption_margins: tuple[float, ...] = ()
    easiest_captions: tuple[str, ...] = ()
    easiest_caption_scores: tuple[float, ...] = ()
    caption_p_value: float | None = None
    hardest_ids: tuple[int, ...] = ()
    values: tuple[ValueReport, ...] = ()
