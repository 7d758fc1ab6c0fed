"""How far to trust a finding, in plain sentences made of the report's own numbers.

A sentence says first whether there is anything, then how strong it is and against what, then what could be wrong with
it. The user's words in it are cleaned, not escaped: that is for the page on which it appears.
"""

from __future__ import annotations

import math

from lightning_failures.core.text import clean, interval, number, shorten_caption
from lightning_failures.data.report import ClassReport, GroupReport, LeafReport

STRONG, CLEAR = 0.8, 0.65
"""CV scores from which a pattern is called strong, and clear; below it is weak."""

FEW = 30
"""Findings that rest on fewer failures, or leaves of fewer examples, are said to."""

LEVEL = 0.05
MOSTLY, PARTLY = 0.6, 0.2
"""Kappa from which two lenses are said to pick out mostly, and partly, the same examples."""


def trust_sentence(entry: ClassReport) -> str:
    """Say how far to trust the failure direction of a class, and the words for it.

    >>> trust_sentence(ClassReport("cat", 100, base_error_rate=0.4, cv_score=0.6, p_value=0.3))
    'No pattern: chance could have put the 40 failures where they are (p = 0.3). What is flagged, and the captions, describe noise.'
    """  # noqa: E501 - one sentence
    if not entry.examples:
        return "No examples."
    if entry.skipped is not None:
        return f"Not judged: {clean(entry.skipped)}."
    if entry.cv_score is None:
        return "Only graded: no failure direction was sought."
    if entry.p_value is None:
        return f"Not tested: whether a CV score of {number(entry.cv_score)} is more than chance is not known."
    if not entry.pattern:
        why = (
            f"chance could have put the {_failures(entry)}{_of_sample(entry)} where they are"
            if entry.p_value > LEVEL
            else "among so many classes chance makes some look like this"
        )
        return f"No pattern: {why} ({_p(entry.p_value)}). What is flagged, and the captions, describe noise."
    return " ".join(part for part in (_strength(entry), _support(entry), _words(entry), _agreement(entry)) if part)


def group_sentence(group: GroupReport) -> str:
    """Say how far to trust a failure tree, and its worst leaf: the one with the largest lower end of its interval.

    >>> group_sentence(GroupReport("label", "cat", 9, skipped="9 examples; a split needs at least 40"))
    'No tree: 9 examples; a split needs at least 40.'
    """
    if not group.size:
        return "No examples."
    base = number(group.base_error_rate)
    if group.skipped is not None:
        return f"{'Not tested' if len(group.leaves) > 1 else 'No tree'}: {clean(group.skipped)}."
    gain = f"{number(group.heldout_aler_minus_ber)} +- {number(group.heldout_stderr)}"
    if not group.pattern:
        return (
            f"No pattern: on examples that did not grow it the tree finds failures no better than chance could "
            f"(held-out ALER - BER {gain}, base error rate {base}). Its rules are no finding."
        )
    found = (
        f"The rules hold on examples that did not grow the tree: failures there lie in leaves whose error rate is "
        f"above the base error rate of {base} by {gain}."
    )
    known = [leaf for leaf in group.leaves if leaf.interval is not None]
    return f"{found} {_worst(max(known, key=_lower_end), group.base_error_rate)}" if known else found


def _strength(entry: ClassReport) -> str:
    score, null = round(entry.cv_score or 0.0, 2), entry.cv_null_interval  # as it is shown
    stderr = "" if entry.cv_score_stderr is None else f" +- {_percent(entry.cv_score_stderr)}"
    beyond = null is None or score > null[1]
    grade = "Strong" if score >= STRONG and beyond else "Clear" if score >= CLEAR and beyond else "Weak"
    against = "50 % is a coin toss"
    if null is not None:
        against += f", nine of ten shuffles {_percent(null[0])} to {_percent(null[1])}"
    return (
        f"{grade} pattern: it tells the {_failures(entry)}{_of_sample(entry)} from the successes with "
        f"{_percent(score)}{stderr} success, on examples that it had not seen ({against}; {_p(entry.p_value)})."
    )


def _support(entry: ClassReport) -> str:
    return "" if _count(entry) >= FEW else f"With {_failures(entry)} only, expect it to change with more data."


def _words(entry: ClassReport) -> str:
    if not entry.hardest_captions:
        return ""
    words = f'The words "{shorten_caption(entry.hardest_captions[0])}" are'
    if entry.caption_p_value is None:
        return f"{words} an untested hypothesis."
    if entry.caption_p_value > LEVEL:
        return f"{words} a weak hypothesis: chance finds words that fit as well ({_p(entry.caption_p_value)})."
    margins = entry.hardest_caption_margins
    margin = f", margin {number(margins[0], '.1f')}" if margins else ""
    fit = f"{words} a hypothesis: chance seldom finds words that fit as well ({_p(entry.caption_p_value)}{margin})."
    return f"{fit}{_nearest(entry)}"


def _nearest(entry: ClassReport) -> str:
    """Whether examples that match the words fail more than others: the quarter that is nearest to them."""
    if not entry.nearest:
        return ""
    rate, few = entry.nearest[-1].hardest, [point for point in entry.nearest if 4 * point.k <= entry.nearest[-1].k]
    point = few[-1] if few else entry.nearest[0]
    if point.hardest is None or rate is None:
        return ""
    told = f" Of the {point.k} examples nearest to them {_percent(point.hardest)} are right, of all {_percent(rate)}"
    if point.hardest >= rate:
        return f"{told}: that speaks against them."
    certain = rate - point.hardest > 2 * math.sqrt(rate * (1 - rate) / point.k)
    return f"{told}." if certain else f"{told}: too small a difference to tell."


def _agreement(entry: ClassReport) -> str:
    if entry.agreement is None:
        return ""
    kappa = round(entry.agreement, 2)
    how = "mostly the same" if kappa >= MOSTLY else "partly the same" if kappa >= PARTLY else "other"
    return f"The most important leaf of the failure tree holds {how} examples (agreement {number(kappa)}, 1 is full)."


def _worst(leaf: LeafReport, base: float | None) -> str:
    told = (
        f"Worst leaf: {clean(leaf.rule)}; {leaf.size} examples, error rate {number(leaf.error_rate)} "
        f"({interval(leaf.interval)} on examples that did not grow it)."
    )
    if base is not None and _lower_end(leaf) <= base:
        told += " That this leaf fails more than the rest is not certain."
    return told if leaf.size >= FEW else f"{told} It is small: expect it to change with more data."


def _lower_end(leaf: LeafReport) -> float:
    return 0.0 if leaf.interval is None else leaf.interval[0]


def _count(entry: ClassReport) -> int:
    if entry.failures_looked_at is not None:
        return entry.failures_looked_at
    rate = min(max(entry.base_error_rate or 0.0, 0.0), 1.0)  # of a file, it may be anything
    return round(rate * entry.examples)


def _failures(entry: ClassReport) -> str:
    return f"{_count(entry)} {'failure' if _count(entry) == 1 else 'failures'}"


def _of_sample(entry: ClassReport) -> str:
    """Where only some of the class were looked at: of how many the failures are."""
    sample = entry.looked_at is not None and entry.looked_at < entry.examples
    return f" among the {entry.looked_at} looked at" if sample else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _p(value: float | None) -> str:
    return f"p = {number(value, '.2g')}"
