"""How far to trust a finding, in sentences made of the numbers of the report.

A sentence first says whether there is a pattern, then how strong it is and compared with what, then what could be wrong
with it. Class names and captions in it are cleaned, but not escaped: escaping depends on the page that shows them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from lightning_failures.core.text import clean, number, p_text, percent, percent_interval, points, shorten_caption
from lightning_failures.data.class_names import absent_condition, both_classes
from lightning_failures.data.evidence import AttributeEvidence
from lightning_failures.data.records import UNSURE, CounterfactualReport, DiagnosisReport, SharedPattern
from lightning_failures.data.report import ClassReport
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.directions.criterion import CRITERION

FEW_EXAMPLES = 30
"""Sentences warn about findings with fewer failures, and about leaves with fewer examples."""

SIGNIFICANCE_LEVEL = 0.05
MOSTLY_SAME, PARTLY_SAME = 0.6, 0.2
"""Cohen's kappa from which direction and tree are said to find mostly, and partly, the same examples."""


def trust_sentence(entry: ClassReport, names: Collection[str] = ()) -> str:
    """Return how far to trust the failure direction of a class, and its caption.

    Args:
        entry: The class.
        names: The names of all classes; with them, the sentence says what the failures of a condition are.

    >>> trust_sentence(ClassReport("cat", 100, base_error_rate=0.4, cv_score=0.6, p_value=0.3))
    'No pattern: the 40 failures are consistent with chance (p = 0.3). Flagged examples and captions describe noise.'
    """
    if not entry.examples:
        return "No examples."
    if entry.skipped is not None:
        return f"Skipped: {clean(entry.skipped)}."
    if entry.cv_score is None:
        return "Graded only: no failure direction was fitted."
    if entry.p_value is None:
        return f"Not tested: it is unknown whether a CV score of {percent(entry.cv_score)} is above chance."
    if not entry.pattern:
        reason = (
            f"the {_failures(entry)}{_in_sample(entry)} are consistent with chance"
            if entry.p_value > SIGNIFICANCE_LEVEL
            else "with this many classes, some look like this by chance"
        )
        return f"No pattern: {reason} ({p_text(entry.p_value)}). Flagged examples and captions describe noise."
    parts = (
        _strength(entry),
        failures_sentence(entry.name, names),
        _separation(entry),
        _flag_agreement(entry),
        _sample_size(entry),
        _doubts(entry),
        _caption(entry),
        "" if entry.counterfactual is None else counterfactual_sentence(entry.counterfactual),
        _agreement(entry),
    )
    return " ".join(part for part in parts if part)


def diagnosis_sentence(diagnosis: DiagnosisReport) -> str:
    """Return the kind of failure of a class, its probability, and the statistics that speak for it.

    >>> diagnosis_sentence(DiagnosisReport("label noise", 0.823, reasons=("Its labels are odd.",)))
    'Kind of failure: label noise (82.3 %). Its labels are odd.'
    >>> diagnosis_sentence(DiagnosisReport("unsure", 0.4, {"shortcut": 0.4, "none of these": 0.6}, ("It is odd.",)))
    'Kind of failure: unsure; the likeliest is shortcut (40.0 %).'
    """
    if diagnosis.kind != UNSURE:
        reasons = " ".join(clean(reason, 200) for reason in diagnosis.reasons)
        return f"Kind of failure: {clean(diagnosis.kind, 40)} ({percent(diagnosis.probability)}). {reasons}".rstrip()
    likeliest = next((kind for kind, share in diagnosis.probabilities.items() if share == diagnosis.probability), None)
    guess = "" if likeliest is None else f"; the likeliest is {clean(likeliest, 40)} ({percent(diagnosis.probability)})"
    return f"Kind of failure: unsure{guess}."


def counterfactual_sentence(found: CounterfactualReport) -> str:
    """Return whether images that were changed only in the hypothesis change the answers of the model.

    >>> found = CounterfactualReport("pasted", "confirmed", None, 40, 0.6, 0.1, None, 0.5, (0.3, 0.7))
    >>> print(counterfactual_sentence(found).removeprefix("Counterfactual check: "))
    confirmed. Its region flips 60.0 % of 40 correct images, an ordinary patch 10.0 % (+30.0 to +70.0 points).
    >>> counterfactual_sentence(CounterfactualReport("rendered", "not measured", "out of time"))
    'Counterfactual check: not measured (out of time).'
    """
    head = f"Counterfactual check: {clean(found.verdict, 30)}"
    if found.changed is None or found.control is None or found.interval is None:
        return f"{head} ({clean(found.reason or 'no answers', 300)})."
    low, high = (f"{100 * end:+.1f}" for end in found.interval)
    changed, control = percent(found.changed), percent(found.control)
    if found.kind == "pasted":
        what = "failures" if found.repairs else "correct images"
        rates = f"Its region flips {changed} of {found.images} {what}, an ordinary patch {control}"
    else:
        reference = "" if found.reference is None else f", from the reference {percent(found.reference)}"
        rates = (
            f"Of {found.images} images that {clean(found.generator or 'a generator', 60)} renders from it, the model"
            f" gets {changed} wrong, of those from the easiest caption {control}{reference}"
        )
    return f"{head}. {rates} ({low} to {high} points)."


def failures_sentence(name: str, names: Collection[str]) -> str:
    """Return what the failures of one of the two classes of a condition are; empty for other classes.

    >>> failures_sentence("no edema", ["no edema", "edema"])
    'The failures are images without edema that the model takes for edema.'
    >>> failures_sentence("edema", ["no edema", "edema"])
    'The failures are images of edema that the model misses.'
    """
    absent = absent_condition(name, names)
    if absent is not None:
        return f"The failures are images without {clean(absent)} that the model takes for {clean(absent)}."
    if both_classes(name)[0] in names:
        return f"The failures are images of {clean(name)} that the model misses."
    return ""


def shared_sentence(pattern: SharedPattern) -> str:
    """Return how far to trust the pattern that all classes share, its caption, and in how many classes it holds.

    >>> shared_sentence(SharedPattern(examples=1000, failures=250, p_value=0.3))
    'No pattern: within classes, the 250 failures are consistent with chance (p = 0.3).'
    """
    if pattern.skipped is not None:
        return f"Skipped: {clean(pattern.skipped)}."
    if pattern.p_value is None:
        return "Not tested: it is unknown whether classes share a pattern."
    if not pattern.pattern and pattern.p_value <= SIGNIFICANCE_LEVEL:
        return (
            "No shared pattern: classes fail in different ways. Within classes, failures are not those of chance"
            f" ({p_text(pattern.p_value)}), but directions of other classes do not predict them."
        )
    if not pattern.pattern:
        return (
            f"No pattern: within classes, the {pattern.failures} failures are consistent with chance"
            f" ({p_text(pattern.p_value)})."
        )
    parts = (_shared_effect(pattern), _shared_separation(pattern), _shared_caption(pattern), _shared_classes(pattern))
    return " ".join(part for part in parts if part)


def group_sentence(group: GroupReport) -> str:
    """Return how far to trust a failure tree, and its worst leaf: the one with the highest lower bound.

    >>> group_sentence(GroupReport("label", "cat", 9, skipped="9 examples; a split needs at least 40"))
    'No tree: 9 examples; a split needs at least 40.'
    """
    if not group.size:
        return "No examples."
    base = percent(group.base_error_rate)
    if group.skipped is not None:
        return f"{'Not tested' if len(group.leaves) > 1 else 'No tree'}: {clean(group.skipped)}."
    gain = points(group.heldout_aler_minus_ber, group.heldout_stderr)
    if not group.pattern:
        return (
            "No pattern: on held-out examples the tree predicts failures no better than chance "
            f"(held-out ALER - BER {gain}, base error rate {base}). Do not rely on its rules."
        )
    finding = (
        "The rules hold on held-out examples: their failures are in leaves whose error rate exceeds the base error "
        f"rate of {base} by {gain} on average."
    )
    tested = [leaf for leaf in group.leaves if leaf.interval is not None]
    return (
        f"{finding} {_worst_leaf(max(tested, key=lambda leaf: leaf.lower_bound), group.base_error_rate)}"
        if tested
        else finding
    )


def leaf_rates(leaf: LeafReport) -> str:
    """Return error rate and error coverage of a leaf, those on held-out examples first.

    >>> leaf_rates(LeafReport("all", 9, 0.8, 0.5, 0.4, True, (0.5, 0.7), 0.6, 0.4, True))
    'error rate 60.0 % (50.0 to 70.0 %) and error coverage 40.0 % on held-out examples; in sample 80.0 % and 50.0 %'
    >>> leaf_rates(LeafReport("all", 9, 0.8, 0.5, 0.4, True))
    'error rate 80.0 % and error coverage 50.0 % in sample'
    """
    rate, coverage = percent(leaf.error_rate), percent(leaf.error_coverage)
    if leaf.heldout_error_rate is None:
        text = f"error rate {rate} and error coverage {coverage} in sample"
        return (
            text
            if leaf.interval is None
            else f"{text}, error rate {percent_interval(leaf.interval)} on held-out examples"
        )
    return (
        f"error rate {percent(leaf.heldout_error_rate)} ({percent_interval(leaf.interval)}) and error coverage "
        f"{percent(leaf.heldout_error_coverage)} on held-out examples; in sample {rate} and {coverage}"
    )


def _shared_effect(pattern: SharedPattern) -> str:
    """Return how often flagged examples fail, and others of the same classes."""
    if pattern.effect is None or pattern.effect_interval is None:
        return "Pattern."
    low, high = (f"{100 * end:.1f}" for end in pattern.effect_interval)
    return (
        f"{(pattern.strength or 'weak').capitalize()} pattern: {percent(pattern.flagged_error_rate or 0.0)} of the"
        f" {pattern.flagged} flagged examples fail, {percent(pattern.unflagged_error_rate or 0.0)} of the others in"
        f" their classes (a difference of {low} to {high} points); the flagged hold"
        f" {percent(pattern.failures_flagged or 0.0)} of the {pattern.failures} failures."
    )


def _shared_separation(pattern: SharedPattern) -> str:
    """Return how well directions of other classes tell the failures of a class."""
    score = "" if pattern.cv_score is None else f" with a {CRITERION.name} of {percent(pattern.cv_score)}"
    stderr = "" if pattern.cv_score_stderr is None else f" +- {percent(pattern.cv_score_stderr)}"
    return f"Directions of other classes separate them{score}{stderr} ({p_text(pattern.p_value)})."


def _shared_caption(pattern: SharedPattern) -> str:
    """Return the attribute that describes the failures of all classes best."""
    if not pattern.hardest_captions:
        return ""
    caption = f'The caption "{shorten_caption(pattern.hardest_captions[0])}" is'
    if pattern.caption_p_value is None:
        return f"{caption} an untested hypothesis."
    if pattern.caption_p_value > SIGNIFICANCE_LEVEL:
        return (
            f"{caption} a weak hypothesis: some caption fits this well by chance ({p_text(pattern.caption_p_value)})."
        )
    return f"{caption} a hypothesis: captions rarely fit this well by chance ({p_text(pattern.caption_p_value)})."


def _shared_classes(pattern: SharedPattern) -> str:
    """Return in how many classes the pattern holds."""
    few = f"{pattern.too_few} {'class has' if pattern.too_few == 1 else 'classes have'} too few images to tell"
    if not pattern.classes:
        return f"Single classes: {few}."
    holds = sum(one.holds for one in pattern.classes)
    tested = len(pattern.classes)
    text = f"It holds in {holds} of the {tested} {'class' if tested == 1 else 'classes'} with enough images to tell"
    return f"{text}; {few}." if pattern.too_few else f"{text}."


def word_sentences(words: Sequence[AttributeEvidence]) -> list[str]:
    """Return what supports each attribute that a caption names.

    >>> word_sentences([AttributeEvidence("orange", "tint", 9.5, 0.001, 0.81, 0.09)])
    ['orange: 81.0 % of the flagged, 9.0 % of the class, p <= 0.001']
    >>> word_sentences([AttributeEvidence("thin", None, 2.5, 0.02, 0.7, 0.5), AttributeEvidence("red", p_value=0.03)])
    ['thin: read in 70.0 % of the flagged, 50.0 % of the class, p = 0.02', 'red: p = 0.03']
    """
    sentences = []
    for word in words:
        parts = [p_text(word.p_value)]
        if word.flagged_share is not None and word.class_share is not None:
            read = "read in " if word.attribute is None else ""
            shares = f"{percent(word.flagged_share)} of the flagged, {percent(word.class_share)} of the class"
            parts.insert(0, read + shares)
        sentences.append(f"{clean(word.value, 60)}: {', '.join(parts)}")
    return sentences


def _strength(entry: ClassReport) -> str:
    """Return how often flagged examples fail, and how often the others."""
    if entry.effect is None or entry.effect_interval is None:  # all are flagged, or a report of a former version
        return "Pattern."
    low, high = (f"{100 * end:.1f}" for end in entry.effect_interval)
    null = entry.cv_null_interval
    within_chance = null is not None and round(entry.cv_score or 0.0, 3) <= null[1]  # rounded as it is shown
    grade = "weak" if within_chance or entry.strength is None else entry.strength
    return (
        f"{grade.capitalize()} pattern: {percent(entry.flagged_error_rate or 0.0)} of the"
        f" {entry.flagged} flagged examples fail, {percent(entry.unflagged_error_rate or 0.0)} of the others"
        f" (a difference of {low} to {high} points); the flagged hold {percent(entry.failures_flagged or 0.0)} of the"
        f" {_failures(entry)}{_in_sample(entry)}."
    )


def _separation(entry: ClassReport) -> str:
    """Return how well the direction separates failures from successes, and compared with what."""
    score, null = entry.cv_score or 0.0, entry.cv_null_interval
    stderr = "" if entry.cv_score_stderr is None else f" +- {percent(entry.cv_score_stderr)}"
    comparison = f"{percent(CRITERION.chance_level)} is a coin toss"
    if null is not None:
        comparison += f", nine of ten shuffles give {percent(null[0])} to {percent(null[1])}"
    return (
        f"Held-out examples are separated with a {CRITERION.name} of {percent(score)}{stderr}"
        f" ({comparison}; {p_text(entry.p_value)})."
    )


def _flag_agreement(entry: ClassReport) -> str:
    """Return how many flagged examples another division into folds flags again."""
    if entry.flag_agreement is None:
        return ""
    looked_at = entry.examples if entry.looked_at is None else entry.looked_at
    by_chance = min((entry.flagged or 0) / max(looked_at, 1), 1.0)
    return (
        f"Of the flagged examples, {percent(entry.flag_agreement)} are flagged again if the folds are drawn"
        f" differently (by chance {percent(by_chance)})."
    )


def _doubts(entry: ClassReport) -> str:
    """Return how many labels are in doubt."""
    if not entry.doubted:
        return ""
    labels = "label of 1 failure is" if entry.doubted == 1 else f"labels of {entry.doubted} failures are"
    return f"The {labels} in doubt and left out of the fit."


def _sample_size(entry: ClassReport) -> str:
    if _count(entry) >= FEW_EXAMPLES:
        return ""
    return f"With only {_failures(entry)}, the pattern may change with more data."


def _caption(entry: ClassReport) -> str:
    if not entry.hardest_captions:
        return ""
    caption = f'The caption "{shorten_caption(entry.hardest_captions[0])}" is'
    if entry.caption_p_value is None:
        return f"{caption} an untested hypothesis."
    if entry.hardest_captions[0] == entry.reference_caption:
        return (
            f'No caption holds: no word of the candidates improves on "{shorten_caption(entry.hardest_captions[0])}"'
            f" beyond noise ({p_text(entry.caption_p_value)})."
        )
    words = "; ".join(word_sentences(entry.hardest_caption_attributes))
    words = f" Its words: {words}." if words else ""
    if entry.caption_p_value > SIGNIFICANCE_LEVEL:
        chance = f"some caption fits this well by chance ({p_text(entry.caption_p_value)})"
        return f"{caption} a weak hypothesis: {chance}.{words}"
    margins = entry.hardest_caption_margins
    margin = f", margin {number(margins[0], '.1f')}" if margins else ""
    fit = f"{caption} a hypothesis: captions rarely fit this well by chance ({p_text(entry.caption_p_value)}{margin})."
    return f"{fit}{words}{_nearest(entry)}"


def _nearest(entry: ClassReport) -> str:
    """Return whether the quarter of the examples nearest to the caption fails more often than the class."""
    if not entry.nearest:
        return ""
    everything = entry.nearest[-1]
    quarter = [point for point in entry.nearest if 4 * point.k <= everything.k]
    point = quarter[-1] if quarter else entry.nearest[0]
    if point.hardest is None or everything.hardest is None:
        return ""
    text = (
        f" Of the {point.k} examples nearest to it, {percent(point.hardest)} are classified correctly;"
        f" of all examples, {percent(everything.hardest)}"
    )
    if point.hardest >= everything.hardest:
        return f"{text}, which contradicts it."
    standard_error = math.sqrt(everything.hardest * (1 - everything.hardest) / point.k)
    conclusive = everything.hardest - point.hardest > 2 * standard_error
    return f"{text}." if conclusive else f"{text}, a difference too small to be conclusive."


def _agreement(entry: ClassReport) -> str:
    if entry.agreement is None:
        return ""
    kappa = round(entry.agreement, 2)
    extent = "mostly the same" if kappa >= MOSTLY_SAME else "partly the same" if kappa >= PARTLY_SAME else "other"
    return f"The most important leaf of the failure tree holds {extent} examples (Cohen's kappa {number(kappa)})."


def _worst_leaf(leaf: LeafReport, base: float | None) -> str:
    text = f"Worst leaf: {clean(leaf.rule)}; {leaf.size} examples, {leaf_rates(leaf)}."
    if base is not None and leaf.lower_bound <= base:
        text += " It is not certain that this leaf fails more often than the rest."
    return text if leaf.size >= FEW_EXAMPLES else f"{text} The leaf is small and may change with more data."


def _count(entry: ClassReport) -> int:
    if entry.failures_looked_at is not None:
        return entry.failures_looked_at
    rate = min(max(entry.base_error_rate or 0.0, 0.0), 1.0)  # may be anything in a file
    return round(rate * entry.examples)


def _failures(entry: ClassReport) -> str:
    return f"{_count(entry)} {'failure' if _count(entry) == 1 else 'failures'}"


def _in_sample(entry: ClassReport) -> str:
    """Return the size of the sample if only some examples of the class were analysed."""
    sampled = entry.looked_at is not None and entry.looked_at < entry.examples
    return f" among the {entry.looked_at} analysed examples" if sampled else ""
