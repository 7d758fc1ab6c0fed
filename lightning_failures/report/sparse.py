"""The sparse decision layer of a report for readers: its section as records, a sentence, and Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from lightning_failures.core.serialization import from_jsonable
from lightning_failures.core.text import clean, escape_markdown, number, percent, percent_interval
from lightning_failures.data.records import CounterfactualReport
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import DataError
from lightning_failures.report.text_tables import pipe_table

SECTION = "sparse"
"""Name of the section in ``methods`` of the report."""

_MARKDOWN_ROWS = 12


@dataclass(frozen=True)
class Rate:
    """A share of examples with its 95 % interval; both None without examples."""

    rate: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class FittedOn:
    """The images that the layer is fitted to: "train" or "validation", how many, and of how many."""

    source: str
    examples: int
    of: int


@dataclass(frozen=True)
class CurveEntry:
    """A layer of the path."""

    features_per_class: float
    accuracy: float
    strength: float = field(metadata={"key": "lambda"})


@dataclass(frozen=True)
class ConfusedPair:
    """Errors of one label with one prediction."""

    label: str
    prediction: str
    count: int


@dataclass(frozen=True)
class ProblematicEntry:
    """A feature that is behind errors: how many, how many it fixes alone, and which classes they confuse."""

    feature: int
    errors: int
    share: float
    fixed: int
    pairs: tuple[ConfusedPair, ...] = ()
    error_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ErrorEntry:
    """An error and its problematic feature; None where no removal helps."""

    id: int
    label: str
    prediction: str
    feature: int | None
    gain: float
    fixed: bool


@dataclass(frozen=True)
class WeightEntry:
    """A feature of a class, with the weight of the standardized feature."""

    feature: int
    weight: float


@dataclass(frozen=True)
class ClassEntry:
    """The features of a class: how many, and those with the largest weights."""

    name: str
    features: int
    weights: tuple[WeightEntry, ...] = ()


@dataclass(frozen=True)
class MaskEntry:
    """A feature whose removal raises the accuracy; ``class_name`` None: from all classes."""

    feature: int
    fixed: int
    broken: int
    effect: float
    interval: tuple[float, float]
    p_value: float
    class_name: str | None = field(default=None, metadata={"key": "class"})


@dataclass(frozen=True)
class PairEntry:
    """A pair of classes: shared features, correlation of weights, and confusions either way."""

    first: str
    second: str
    shared: int
    correlation: float
    confusions: int


@dataclass(frozen=True)
class ConditionEntry:
    """The binary layer of a condition of a multilabel task; its accuracy is balanced where the condition is rare."""

    name: str
    prevalence: float
    balanced: bool
    held_out: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    dense_accuracy: float
    features: int
    false_positives: int
    false_negatives: int
    fixed: Rate
    random_used: Rate
    broken: Rate
    model_accuracy: float | None = None


@dataclass(frozen=True)
class ActiveEntry:
    """The examples of a class that activate a feature most, with their activations."""

    class_name: str = field(metadata={"key": "class"})
    ids: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class FlipsEntry:
    """The share of correct predictions that flip, with its interval, beside that by a random feature of the class."""

    examples: int = 0
    rate: float | None = None
    interval: tuple[float, float] | None = None
    random: float | None = None


@dataclass(frozen=True)
class CardEntry:
    """A problematic feature with the two classes that it confuses most: examples, counterfactuals, a hypothesis.

    Attributes:
        feature: The feature.
        label: The true class of these errors.
        prediction: Their predicted class.
        top: The most active examples of the predicted class, then those of the true class.
        nearest_ids: Correct examples of the true class, those nearest to flipping to the predicted one first.
        nearest_margins: Their differences of logits.
        nearest_flip: Whether each flips when the feature is raised.
        raised_to: The 99th percentile of the feature.
        raised: Correct predictions of the true class that flip to the other when the feature is raised to it.
        zeroed: Correct predictions of the predicted class that flip to the true class when the feature is 0.
        caption: The caption that best describes the most active examples of a class, a hypothesis; None without one.
        caption_score: Its score.
        caption_margin: Its z-score among all candidates.
        counterfactual: Whether the region of the feature, pasted onto correct images of the true class, flips them.
        note: What is missing in its pictures, and why.
    """

    feature: int
    label: str
    prediction: str
    top: tuple[ActiveEntry, ...] = ()
    nearest_ids: tuple[int, ...] = ()
    nearest_margins: tuple[float, ...] = ()
    nearest_flip: tuple[bool, ...] = ()
    raised_to: float | None = None
    raised: FlipsEntry = FlipsEntry()
    zeroed: FlipsEntry = FlipsEntry()
    caption: str | None = None
    caption_score: float | None = None
    caption_margin: float | None = None
    counterfactual: CounterfactualReport | None = None
    note: str | None = None


@dataclass(frozen=True)
class NameEntry:
    """What people wrote about a feature in ``features.yaml``."""

    feature: int
    name: str | None = None
    tag: str | None = None
    action: str | None = None


@dataclass(frozen=True)
class MaskedAccuracy:
    """Accuracy with all features, and without those that people call spurious; the interval is of the difference."""

    features: tuple[int, ...]
    accuracy: float
    masked_accuracy: float
    gained: int
    lost: int
    examples: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class RightReasonsEntry:
    """Accuracy for the right reasons: of the sparse layer, and of the model itself if its last layer is linear."""

    sparse: MaskedAccuracy
    model: MaskedAccuracy | None = None


@dataclass(frozen=True)
class SparseReport:
    """The section of the sparse decision layer; see ``docs/concepts.md``.

    With ``conditions`` (a multilabel task), accuracies and numbers of features are means over them, and ``chosen`` is
    None: each has a layer of its own.
    """

    features: int
    held_out: int
    accuracy: float
    dense_accuracy: float
    features_per_class: float
    chosen: int | None
    fitted_on: FittedOn
    errors_examined: int
    correct_examined: int
    fixed: Rate
    random_used: Rate
    random_any: Rate
    broken: Rate
    used_features: int = 0
    model_accuracy: float | None = None
    curve: tuple[CurveEntry, ...] = ()
    problematic: tuple[ProblematicEntry, ...] = ()
    errors: tuple[ErrorEntry, ...] = ()
    classes: tuple[ClassEntry, ...] = ()
    worth_masking: tuple[MaskEntry, ...] | None = None
    pairs: tuple[PairEntry, ...] = ()
    conditions: tuple[ConditionEntry, ...] = ()
    names: tuple[NameEntry, ...] = ()
    top_ids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    cards: tuple[CardEntry, ...] = ()
    head: str | None = None
    fingerprint: str | None = None
    right_reasons: RightReasonsEntry | None = None

    def label(self, feature: int) -> str:
        """Return a feature by its number and, if people gave it one, its name."""
        name = next((one.name for one in self.names if one.feature == feature and one.name), None)
        return f"feature {feature}" + (f' "{clean(name, 60)}"' if name else "")

    def card(self, feature: int) -> CardEntry | None:
        """Return the card of a feature, None if it has none."""
        return next((one for one in self.cards if one.feature == feature), None)

    @property
    def shown(self) -> list[int]:
        """The features that people should look at: behind errors, worth masking, or leading a class; each once."""
        leading = [one.feature for entry in self.classes for one in entry.weights[:3]]
        masks = [one.feature for one in self.worth_masking or ()]
        return list(dict.fromkeys([*(one.feature for one in self.problematic), *masks, *leading]))


def sparse_report(report: FailureReport) -> SparseReport | None:
    """Return the section of the sparse decision layer; None if there is none, or one that cannot be read.

    >>> sparse_report(FailureReport(2, 0.5, ())) is None
    True
    """
    section = report.methods.get(SECTION)
    if section is None:
        return None
    try:
        return from_jsonable(SparseReport, section)
    except DataError:
        return None


def sparse_sentence(report: FailureReport) -> str:
    """Return what the sparse layer shows about the errors, with its controls; empty without one."""
    found = sparse_report(report)
    if found is None:
        return ""
    of = "training" if found.fitted_on.source == "train" else "evaluated"
    text = _conditions_sentence(found, of) if found.conditions else _layer_sentence(found, of)
    text = f"{text}{_right_reasons_sentence(found)}"
    if not found.errors_examined:
        return text
    fixed, broken = (f"{percent(one.rate)} ({percent_interval(one.interval)})" for one in (found.fixed, found.broken))
    whose, used = ("their", "condition") if found.conditions else ("its", "wrong class")
    return (
        f"{text} Zeroing a single feature fixes {fixed} of {whose} {found.errors_examined} errors; a random feature of"
        f" the {used} {percent(found.random_used.rate)}, any random one {percent(found.random_any.rate)}; and zeroing"
        f" their own top feature breaks {broken} of {whose} {found.correct_examined} correct predictions."
    )


def _layer_sentence(found: SparseReport, of: str) -> str:
    return (
        f"A last layer with {number(found.features_per_class, '.1f')} features a class, fitted to"
        f" {found.fitted_on.examples} {of} images, is right on {percent(found.accuracy)} of {found.held_out} held-out"
        f" examples (dense {percent(found.dense_accuracy)})."
    )


def _right_reasons_sentence(found: SparseReport) -> str:
    """Return the accuracy without the features that are tagged spurious, beside the plain one; empty without any."""
    if found.right_reasons is None:
        return ""
    subject, one = "the sparse layer", found.right_reasons.sparse
    if found.right_reasons.model is not None:
        subject, one = "the model", found.right_reasons.model
    masked = f"{len(one.features)} features" if len(one.features) > 1 else found.label(one.features[0])
    low, high = (f"{100 * end:+.1f}" for end in one.interval)
    return (
        f" For the right reasons, without {masked} tagged spurious, {subject} is right on"
        f" {percent(one.masked_accuracy)} of {one.examples} held-out examples (with all features"
        f" {percent(one.accuracy)}; difference {low} to {high} points): {one.lost} were right only because of"
        f" {'them' if len(one.features) > 1 else 'it'}, {one.gained} are right only without."
    )


def _conditions_sentence(found: SparseReport, of: str) -> str:
    rare = sum(one.balanced for one in found.conditions)
    balanced = f"; balanced accuracy for rare conditions, {rare} of them" if rare else ""
    return (
        f"Binary last layers of {len(found.conditions)} conditions, with {number(found.features_per_class, '.1f')}"
        f" features each, fitted to {found.fitted_on.examples} {of} images, are right on {percent(found.accuracy)} of"
        f" the held-out labels on average (dense {percent(found.dense_accuracy)}{balanced})."
    )


def _condition_line(entry: ConditionEntry) -> str:
    measure = "balanced accuracy" if entry.balanced else "accuracy"
    fixes = "" if entry.fixed.rate is None else f", one feature fixes {percent(entry.fixed.rate)}"
    unit = "feature" if entry.features == 1 else "features"
    return (
        f"{clean(entry.name, limit=60)}: {entry.features} {unit}, {measure} {percent(entry.accuracy)}, false"
        f" positives {entry.false_positives}, false negatives {entry.false_negatives}{fixes}"
    )


def sparse_lines(report: FailureReport, limit: int = 10) -> list[str]:
    """Return a sentence, a line for each condition, and one for each of the features most often problematic.

    Only a multilabel task has conditions; those with the lowest accuracy come first.

    Args:
        report: The report.
        limit: Number of conditions, and of features.
    """
    found = sparse_report(report)
    if found is None:
        return []
    features = (
        f"{found.label(entry.feature)}: behind {entry.errors} errors, fixes {entry.fixed}; {_pairs(entry)}"
        for entry in found.problematic[:limit]
    )
    worst = sorted(found.conditions, key=lambda one: one.accuracy)[:limit]
    return [sparse_sentence(report), *map(_condition_line, worst), *features]


def sparse_markdown(report: FailureReport) -> str:
    """Return the section as Markdown: the sentence, and the features most often problematic; empty without one."""
    found = sparse_report(report)
    if found is None:
        return ""
    text = f"### Sparse decision layer\n\n{escape_markdown(sparse_sentence(report), limit=2000)}"
    if found.conditions:
        text += "\n\n" + _conditions_table(found)
    if found.problematic:
        rows = [
            (
                escape_markdown(found.label(entry.feature)),
                str(entry.errors),
                str(entry.fixed),
                escape_markdown(_pairs(entry)),
            )
            for entry in found.problematic[:_MARKDOWN_ROWS]
        ]
        text += "\n\n" + pipe_table(("problematic feature", "errors", "fixed by it alone", "confuses"), rows, "lrrl")
    if found.worth_masking:
        where = "" if found.conditions else " everywhere"
        shown = ", ".join(
            f"{found.label(one.feature)} ({_place(one)}{one.fixed} fixed, {one.broken} broken)"
            for one in found.worth_masking[:_MARKDOWN_ROWS]
            if one.class_name is None or found.conditions
        )
        text += f"\n\nWorth masking{where}: {escape_markdown(shown, limit=2000)}." if shown else ""
    return text


def _conditions_table(found: SparseReport) -> str:
    """Return a row for each condition, those with the lowest accuracy first."""
    rows = [
        (
            escape_markdown(clean(one.name, limit=60)),
            percent(one.prevalence),
            str(one.features),
            percent(one.accuracy) + (" (balanced)" if one.balanced else ""),
            str(one.false_positives),
            str(one.false_negatives),
            "" if one.fixed.rate is None else percent(one.fixed.rate),
            "" if one.broken.rate is None else percent(one.broken.rate),
        )
        for one in sorted(found.conditions, key=lambda one: one.accuracy)[:_MARKDOWN_ROWS]
    ]
    titles = ("condition", "share", "features", "accuracy", "false positives", "false negatives", "fixed", "broken")
    return pipe_table(titles, rows, "lrrrrrrr")


def _place(entry: MaskEntry) -> str:
    return "" if entry.class_name is None else f"{clean(entry.class_name, limit=60)}: "


def _pairs(entry: ProblematicEntry, limit: int = 3) -> str:
    short = partial(clean, limit=60)
    return ", ".join(f"{short(one.label)} as {short(one.prediction)} ({one.count})" for one in entry.pairs[:limit])
