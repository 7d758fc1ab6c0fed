"""Findings in words: what is wrong, how sure, what next; and where nothing was found, why, and what it would take.

The page, the terminal, ``report.md`` and the loggers all use these functions. Class names and captions are cleaned, but
not escaped: escaping depends on the place that shows them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lightning_failures.analysis.findings import SIGNIFICANCE_LEVEL, confidence_of
from lightning_failures.core.text import (
    clean,
    escape_markdown,
    p_text,
    percent,
    percent_interval,
    printable,
    shorten_caption,
)
from lightning_failures.data.class_names import absent_condition, both_classes
from lightning_failures.data.findings import ATTRIBUTE, CAPTION, LABELS, RULE, Finding, FindingPart
from lightning_failures.data.report import ClassReport, FailureReport

NAMED_CLASSES = 5
"""Most classes that a sentence names."""

MIN_PER_OUTCOME = 10
"""Failures, and successes, that a class needs for a direction."""

_STEPS = {
    "shortcut": "Refit the last layer, with the failing images and the others of equal weight",
    "under-represented": "Add such images to the training set",
    "label noise": "Review the labels of these images",
    "intrinsically hard": "Training holds enough such images: try a larger model, or better images",
}
_LOOK_FIRST = "Look at the images, then find and label more like them"
_SHOP = "lightning-failures embed --config config.yaml --directions {folder} --shop 100"


_ONLY_GRADED = "The examples are only graded: neither an encoder nor attributes say what failures have in common."
_NEEDED_FOR_TESTS = 'FailureModes(encoder="ViT-B-32/openai"), or attributes of the images: DataOptions(metadata=...).'
_NEEDED_FOR_PATTERN = (
    "More validation images show weaker patterns, other attributes other ones. The failures may also have nothing in"
    " common."
)


@dataclass(frozen=True)
class NextStep:
    """What to do about a finding.

    Attributes:
        words: What to do.
        code: One line of Python, or of the command line.
        review: Whether labels are to be reviewed.
    """

    words: str
    code: str
    review: bool = False


@dataclass(frozen=True)
class NothingFound:
    """Why there are no findings, and what it would take.

    Attributes:
        why: Why nothing was found.
        needed: What would be needed to find something.
    """

    why: str
    needed: str


def finding_sentence(found: Finding, names: Collection[str] = ()) -> str:
    """Return in plain words what is wrong: which images fail, how often, and what they are taken for.

    Args:
        found: The finding.
        names: The names of all classes of the report.

    >>> part = FindingPart("four", "cyan", 100, 70, 0.703, 0.051, "nine", 0.8)
    >>> finding_sentence(Finding("attribute", "tint", "cyan", (part,)))
    'Images of four with tint cyan are wrong 70.3 % of the time, its other images 5.1 %; they are mostly read as nine.'
    """
    if not found.parts:
        return ""
    if found.kind == LABELS:
        return _labels_sentence(found)
    if found.every_class or (len(found.parts) > 1 and found.words is not None):
        return f"{_of_many_classes(found)}.{_mistakes_sentence(found)}"
    first = found.parts[0]
    text = f"{_images_of(first.class_name, names)}{_which(found, first.words)} are wrong {percent(first.error_rate)}"
    text = f"{text[0].upper()}{text[1:]} of the time"
    if first.error_rate_outside is not None:
        others = "its other images" if absent_condition(first.class_name, names) is None else "the others"
        text += f", {others} {percent(first.error_rate_outside)}"
    return f"{text}{_read_as(first)}.{_other_classes(found, len(names))}"


def confidence_sentence(found: Finding) -> str:
    """Return the statistics behind how sure a finding is.

    >>> print(confidence_sentence(Finding("look", failures=40, difference=(0.3, 0.5), p_value=0.001)))
    The error rates differ by 30.0 to 50.0 points (95 % interval). Chance of such a pattern: p <= 0.001. 40 failures.
    """
    parts = []
    if found.difference is not None:
        parts.append(f"The error rates differ by {percent_interval(found.difference, 'points')} (95 % interval).")
    if found.p_value is not None:
        each = "" if len(found.parts) <= 1 or found.every_class else " in each class"
        parts.append(f"Chance of such a pattern{each}: {p_text(found.p_value)}.")
    if found.words_p_value is not None:
        parts.append(f"Chance that some caption fits as well: {p_text(found.words_p_value)}.")
    parts.append(f"{found.failures} {'failure' if found.failures == 1 else 'failures'}.")
    return " ".join(parts)


def cause_sentence(found: Finding) -> str:
    """Return the kind of failure by the diagnosis; empty without one.

    >>> cause_sentence(Finding("look", cause="shortcut", cause_probability=0.823)), cause_sentence(Finding("look"))
    ('Likely cause: shortcut (82.3 %).', '')
    """
    if found.cause is None or found.cause not in _STEPS:
        return "" if found.cause is None else "The cause is not clear."
    share = "" if found.cause_probability is None else f" ({percent(found.cause_probability)})"
    return f"Likely cause: {clean(found.cause, 40)}{share}."


def next_step(found: Finding, folder: str = "LOG_DIR") -> NextStep:
    """Return what to do about a finding.

    Args:
        found: The finding.
        folder: The log folder of the run, for commands.

    >>> next_step(Finding("look", cause="label noise", remedy="classes[0].doubted_ids")).words
    'Review the labels of these images'
    """
    if found.cause in _STEPS and found.remedy is not None:
        return NextStep(_STEPS[found.cause], clean(found.remedy, 200), review=found.cause == "label noise")
    return NextStep(_LOOK_FIRST, _SHOP.format(folder=clean(folder, 200)))


def nothing_found(report: FailureReport) -> NothingFound:
    """Return why a report has no findings, and what would be needed.

    >>> nothing_found(FailureReport(0, None, ())).why
    'No example was graded.'
    """
    graded = [entry for entry in report.classes if entry.examples]
    failures = sum(map(_failures_of, graded))
    tested = [entry for entry in graded if entry.p_value is not None]
    few = [entry for entry in graded if _outcomes_lacking(entry)]
    has_attributes = bool(report.slices) or any(entry.slices for entry in graded)
    if not graded:
        return NothingFound("No example was graded.", "A validation set with labels.")
    if not failures:
        return NothingFound(
            f"The model is right on all {report.examples} examples.", "Harder, or more, validation images."
        )
    if tested or has_attributes:
        return NothingFound(_no_pattern(tested, few, graded), _NEEDED_FOR_PATTERN)
    if all(entry.skipped is None for entry in graded):
        return NothingFound(_ONLY_GRADED, _NEEDED_FOR_TESTS)
    return _too_few(few, report.examples) or NothingFound(
        "No class could be tested: see the reasons below.", "What these reasons name."
    )


def _too_few(few: Sequence[ClassReport], examples: int) -> NothingFound | None:
    """Return which outcomes are missing in classes that have too few, and how many examples it would take.

    Args:
        few: Classes with too few failures, too few successes, or both.
        examples: Number of graded examples.

    Returns:
        None if there is no such class, or if the missing outcome never occurs in them.
    """
    classes = "1 class" if len(few) == 1 else f"{len(few)} classes"
    lacking = {outcome for entry in few for outcome in _outcomes_lacking(entry)}
    if len(lacking) == 2:
        return NothingFound(
            f"Too few failures or too few successes: {classes}; a class is tested from {MIN_PER_OUTCOME} of each on.",
            "More validation images, or attributes of the images.",
        )
    if not lacking:
        return None
    (outcome,) = lacking
    count = sum(_failures_of(entry) if outcome == "failures" else _successes_of(entry) for entry in few)
    if not count:
        return None
    wanted = -(-MIN_PER_OUTCOME * len(few) * examples // count)
    return NothingFound(
        f"Too few {outcome}: {count} in {classes}; a class is tested from {MIN_PER_OUTCOME} {outcome} on.",
        f"About {wanted} validation images at this error rate, or attributes of the images.",
    )


def _failures_of(entry: ClassReport) -> int:
    known = entry.accuracy is not None and math.isfinite(entry.accuracy)
    return round((1 - (entry.accuracy or 0.0)) * entry.examples) if known else 0


def _successes_of(entry: ClassReport) -> int:
    known = entry.accuracy is not None and math.isfinite(entry.accuracy)
    return entry.examples - _failures_of(entry) if known else 0


def _outcomes_lacking(entry: ClassReport) -> list[str]:
    """Return which outcomes a class has too few of for a test."""
    counts = {"failures": _failures_of(entry), "successes": _successes_of(entry)}
    return [outcome for outcome, count in counts.items() if count < MIN_PER_OUTCOME]


def _no_pattern(tested: Sequence[ClassReport], few: Sequence[ClassReport], graded: Sequence[ClassReport]) -> str:
    """Return what was tested without a result, and how many classes have too few failures or successes for a test."""
    classes = "1 class" if len(tested) == 1 else f"{len(tested)} classes"
    why = f"No pattern: the failures of {classes} are consistent with chance."
    if not tested:
        why = "No pattern: no value of a known attribute fails more often than by chance."
    if not few:
        return why
    lacking = dict.fromkeys(outcome for entry in few for outcome in _outcomes_lacking(entry))
    return f"{why} {len(few)} of {len(graded)} classes have fewer than {MIN_PER_OUTCOME} {' or '.join(lacking)}."


def findings_lines(report: FailureReport, folder: str = "LOG_DIR") -> list[str]:
    """Return the findings as lines for the terminal; where there are none, why.

    >>> findings_lines(FailureReport(0, None, ()))
    ['Nothing found. No example was graded. What would be needed: A validation set with labels.']
    """
    if not report.findings:
        nothing = nothing_found(report)
        return [f"Nothing found. {nothing.why} What would be needed: {nothing.needed}"]
    names = [entry.name for entry in report.classes]
    return [f"{number}. {line}" for number, line in enumerate(_lines(report, names, folder), 1)]


def findings_markdown(report: FailureReport) -> str:
    """Return the findings as Markdown: what is wrong, how sure, what next."""
    if not report.findings:
        nothing = nothing_found(report)
        return (
            f"### Findings\n\nNothing found. {escape_markdown(nothing.why)} Needed: {escape_markdown(nothing.needed)}"
        )
    names = [entry.name for entry in report.classes]
    lines = []
    for number, found in enumerate(report.findings, 1):
        step = next_step(found)
        sentence = escape_markdown(finding_sentence(found, names), limit=1000)
        rest = escape_markdown(f"{_numbers(found)} {confidence_sentence(found)} {cause_sentence(found)}", limit=1000)
        lines.append(f"{number}. **{sentence}** {rest} Next: {escape_markdown(step.words)}: `{step.code}`")
    return "\n".join(["### Findings", "", *lines])


def pattern_line(report: FailureReport, limit: int = 12) -> str:
    """Return the names of the classes with a pattern, those first in which fixing gains most.

    >>> pattern_line(FailureReport(0, None, ()))
    'Classes with a pattern: none of 0'
    """
    ranked = [entry for entry in sorted(report.classes, key=lambda entry: entry.rank) if entry.pattern]
    named = ", ".join(clean(entry.name, 40) for entry in ranked[:limit])
    more = f" and {len(ranked) - limit} more" if len(ranked) > limit else ""
    return (
        f"Classes with a pattern: {named or 'none'}{more} ({len(ranked)} of {len(report.classes)})"
        if ranked
        else (f"Classes with a pattern: none of {len(report.classes)}")
    )


def closing_lines(report: FailureReport, page: str | None) -> list[str]:
    r"""Return the three lines with which a training ends: the page, the findings in words, classes with a pattern.

    Args:
        report: The last report.
        page: Path of the page, or of the report; None without one.

    >>> print("\n".join(closing_lines(FailureReport(0, None, ()), "logs/report.html")))
    FailureModes: the report is logs/report.html
    Nothing found. No example was graded. What would be needed: A validation set with labels.
    Classes with a pattern: none of 0
    """
    names = [entry.name for entry in report.classes]
    found = " ".join(f"({k}) {finding_sentence(one, names)}" for k, one in enumerate(report.findings, 1))
    where = "no report was written" if page is None else f"the report is {printable(page)}"
    return [f"FailureModes: {where}", found or findings_lines(report)[0], pattern_line(report)]


def _lines(report: FailureReport, names: list[str], folder: str) -> list[str]:
    lines = []
    for found in report.findings:
        step = next_step(found, folder)
        cause = cause_sentence(found)
        parts = [finding_sentence(found, names), _numbers(found), cause, f"Next: {step.words}: {step.code}"]
        lines.append(" ".join(part for part in parts if part))
    return lines


def _numbers(found: Finding) -> str:
    """Return how many failures a finding covers, and how sure it is."""
    share = "" if found.share_of_failures is None else f", {percent(found.share_of_failures)} of all"
    return f"{found.failures} failures{share}; how sure: {clean(found.confidence, 20)}."


# -- classes ---------------------------------------------------------------------------------------------------------


def class_words(entry: ClassReport) -> str:
    """Return what the failing images of a class have in common, in words: the caption or the value that holds.

    >>> from lightning_failures.data.report import SliceReport
    >>> dark = SliceReport("light", "night", "cat", 20, 9, significant=True)
    >>> class_words(ClassReport("cat", 90, slices=(dark,))), class_words(ClassReport("cat", 90))
    ('light = night', '')
    """
    p_value = entry.caption_p_value
    holds = p_value is not None and p_value <= SIGNIFICANCE_LEVEL and entry.hardest_captions != ()
    if entry.pattern and holds and entry.hardest_captions[0] != entry.reference_caption:
        return shorten_caption(entry.hardest_captions[0])
    row = next((one for one in entry.slices if one.significant), None)
    return "" if row is None else f"{clean(row.attribute, 40)} = {clean(row.value, 60)}"


def mostly_mistaken_for(entry: ClassReport, names: Sequence[str]) -> str:
    """Return the class that the failures of a class are most often mistaken for; empty if it is not known.

    >>> mostly_mistaken_for(ClassReport("cat", 9), ["cat", "dog"])
    'dog'
    """
    if entry.flagged_mistaken_for is not None:
        return clean(entry.flagged_mistaken_for.class_name, 80)
    if entry.mistaken_for:
        return clean(entry.mistaken_for[0].class_name, 80)
    absent = absent_condition(entry.name, names)
    if absent is not None:
        return clean(absent, 80)
    if both_classes(entry.name)[0] in names:
        return clean(both_classes(entry.name)[0], 80)
    return clean(next(name for name in names if name != entry.name), 80) if len(set(names)) == 2 else ""


def class_confidence(entry: ClassReport) -> str:
    """Return how sure the pattern of a class is, as a word.

    >>> class_confidence(ClassReport("cat", 9, skipped="2 failures")), class_confidence(ClassReport("cat", 9))
    ('too few', '-')
    """
    if entry.pattern:
        failures = round((entry.failures_flagged or 0.0) * _failures_of(entry))
        return confidence_of(entry.effect_interval, failures, entry.p_value)
    if entry.skipped is not None:
        return "too few" if _failures_of(entry) < MIN_PER_OUTCOME else "skipped"
    return "-" if entry.p_value is None else "no pattern"


# -- parts of a sentence ---------------------------------------------------------------------------------------------


def _images_of(class_name: str, names: Collection[str]) -> str:
    """Return what the images of a class are, of an absent condition too."""
    absent = absent_condition(class_name, names)
    return f"images without {clean(absent, 80)}" if absent is not None else f"images of {clean(class_name, 80)}"


def _which(found: Finding, words: str | None) -> str:
    """Return which images of a class, as the end of a phrase that begins with the images."""
    if found.kind == ATTRIBUTE:
        return f" with {clean(found.attribute or '', 60)} {clean(words or '', 80)}"
    if found.kind == CAPTION:
        return f' like "{clean(words or "", 80)}"'
    if found.kind == RULE:
        return f" with {clean(words or '', 200)}"
    return " that share a look without a name yet"


def _read_as(part: FindingPart) -> str:
    if part.mistaken_for is None:
        return ""
    share = part.mistaken_share or 0.0
    mostly = "" if share == 1 else "mostly " if share > 0.5 else "most often "
    return f"; they are {mostly}read as {clean(part.mistaken_for, 80)}"


def _other_classes(found: Finding, n_classes: int) -> str:
    """Return the other classes of a finding whose classes differ in their words; empty for a single class."""
    if len(found.parts) < 2:
        return ""
    of_all = f" of {n_classes}" if n_classes else ""
    named = ", ".join(
        f"{clean(part.class_name, 40)} ({clean(part.words or '', 40)})" for part in found.parts[1:NAMED_CLASSES]
    )
    more = len(found.parts) - NAMED_CLASSES
    named += f" and {more} more" if more > 0 else ""
    what = clean(found.attribute or "kind of image", 60)
    return f" {len(found.parts)}{of_all} classes have such a {what}; the others: {named}."


def _of_many_classes(found: Finding) -> str:
    """Return the rates of images that are described alike in several classes."""
    where = "all classes" if found.every_class else f"{len(found.parts)} classes ({_names_of(found)})"
    outside = (
        ""
        if found.error_rate_outside is None
        else f", other images of the same classes {percent(found.error_rate_outside)}"
    )
    return f"In {where}, images{_which(found, found.words)} are wrong {percent(found.error_rate)} of the time{outside}"


def _names_of(found: Finding) -> str:
    named = ", ".join(clean(part.class_name, 40) for part in found.parts[:NAMED_CLASSES])
    more = len(found.parts) - NAMED_CLASSES
    return f"{named} and {more} more" if more > 0 else named


def _mistakes_sentence(found: Finding) -> str:
    """Return the most frequent mistakes; empty where they are not known."""
    if not found.mistakes:
        return ""
    pairs = [f"{clean(one.label, 40)} as {clean(one.prediction, 40)} ({one.count})" for one in found.mistakes]
    return f" Most often read: {', '.join(pairs)}."


def _labels_sentence(found: Finding) -> str:
    classes = (
        clean(found.parts[0].class_name, 80)
        if len(found.parts) == 1
        else f"{len(found.parts)} classes ({_names_of(found)})"
    )
    labels = "label of 1 failure looks" if found.failures == 1 else f"labels of {found.failures} failures look"
    return (
        f"The {labels} wrong: without them the error rate of {classes} is {percent(found.error_rate_outside)}"
        f" instead of {percent(found.error_rate)}."
    )
