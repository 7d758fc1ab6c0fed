"""From all results of an analysis to at most three findings, ranked by what fixing them would gain.

The candidates are the slices of known attributes that fail significantly more often, the failure directions with a
pattern, the direction that all classes share, the leaves of failure trees with a pattern, and labels in doubt. Of a
class, what is known in words is preferred to what is known by looks, if it gains at least half as much. Candidates of
several classes that name the same value, or the same attribute, are one finding. Of two findings about the same
failures, the one that gains more is kept.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from lightning_failures.analysis.diagnosis import LABEL_NOISE, REMEDIES
from lightning_failures.analysis.enrichment import Attribute
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.text import shorten_caption
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.class_names import absent_condition, both_classes
from lightning_failures.data.findings import (
    ATTRIBUTE,
    CAPTION,
    LABELS,
    LOOK,
    RULE,
    Confidence,
    Finding,
    FindingPart,
    Mistake,
)
from lightning_failures.data.grouping import LABEL
from lightning_failures.data.records import UNSURE, SharedPattern
from lightning_failures.data.report import ClassReport, FailureReport, SliceReport
from lightning_failures.data.tree_report import GroupReport
from lightning_failures.directions.effects import CLEAR, rates_within_classes
from lightning_failures.stats.intervals import difference_interval, wilson_interval

MOST_FINDINGS = 3
MOST_EXAMPLES = 8
"""Maximum number of failing, and of right, images that a finding names."""

MOST_MISTAKES = 3

MANY_FAILURES, FEW_FAILURES = 30, 10
"""Failures from which a finding can be sure, and below which it is not."""

SURE_P_VALUE, SIGNIFICANCE_LEVEL = 0.01, 0.05

OVERLAP = 0.5
"""Share of the failures of a finding in better findings from which it is left out."""

LEAST_SHARE = 0.02
"""Share of all failures from which a finding is reported beside another one."""

IN_WORDS = 2.0
"""How many times as much a finding without words must gain to be preferred."""

OF_SOME_CLASSES = 1.4
"""How many times as much a finding about all classes must gain to be preferred to one that says in which."""


@dataclass(frozen=True)
class FindingExamples:
    """The graded examples of an analysis.

    Attributes:
        ids: (N,) int64, ids of the examples.
        labels: (N,) int64, classes.
        failed: (N,) bool.
        predictions: (N,) int64, predicted classes; None if they are not known.
        sources: (N,) sources of the examples; None: every example is its own.
        values: (N,) decision values of the class directions; NaN without one.
        shared_values: (N,) decision values of the shared direction; NaN without one.
        in_doubt: (N,) bool, labels in doubt.
        attributes: Known attributes, N values each.
        leaves: Ids of the examples in each leaf of the label tree of a class, by class name.
    """

    ids: IntArray
    labels: IntArray
    failed: BoolArray
    predictions: IntArray | None = None
    sources: IntArray | None = None
    values: FloatArray | None = None
    shared_values: FloatArray | None = None
    in_doubt: BoolArray | None = None
    attributes: Mapping[str, Attribute] | None = None
    leaves: Mapping[str, Sequence[IntArray]] | None = None


class _Part(NamedTuple):
    """What one candidate says about one class, or about all of them.

    Attributes:
        kind: How the images are described.
        class_index: The class; None: all classes.
        inside: Ascending rows of the images that it describes.
        among: Ascending rows of the images of the class that it was found among.
        attribute: Name of the known attribute.
        words: Value or caption.
        p_value: Of the test that admits it.
        words_p_value: Of the caption.
        leaf: The leaf and its group, whose held-out rates stand for those of the images.
    """

    kind: str
    class_index: int | None
    inside: IntArray
    among: IntArray
    attribute: str | None = None
    words: str | None = None
    p_value: float | None = None
    words_p_value: float | None = None
    leaf: tuple[GroupReport, int] | None = None


class _Rates(NamedTuple):
    """Error rates inside and outside, with intervals."""

    inside: float
    of_inside: tuple[float, float]
    outside: float | None
    of_outside: tuple[float, float] | None
    difference: tuple[float, float] | None
    gain: float


def find_findings(report: FailureReport, examples: FindingExamples, limit: int = MOST_FINDINGS) -> tuple[Finding, ...]:
    """Return what is wrong with the model, what it pays most to fix first.

    Args:
        report: The report of the analysis; its findings are not read.
        examples: Its N examples.
        limit: Maximum number of findings.

    >>> failed = np.repeat([True, False, True, False], [20, 5, 3, 60])
    >>> night = Attribute(np.repeat([0, 1], [25, 63]), ("night", "day"))
    >>> labels = np.zeros(88, dtype=np.int64)
    >>> dark = SliceReport("light", "night", "cat", 25, 20, 0.8, p_value=1e-9, significant=True)
    >>> report = FailureReport(88, 0.74, (ClassReport("cat", 88, accuracy=0.74, slices=(dark,)),))
    >>> examples = FindingExamples(np.arange(88), labels, failed, attributes={"light": night})
    >>> (found,) = find_findings(report, examples)
    >>> found.attribute, found.words, found.failures, found.error_rate, round(found.error_rate_outside, 3)
    ('light', 'night', 20, 0.8, 0.048)
    """
    order = np.argsort(examples.labels, kind="stable")
    ends = np.searchsorted(examples.labels[order], np.arange(len(report.classes) + 1))
    members = [order[start:end] for start, end in pairwise(ends.tolist())]
    parts = [part for k, mine in enumerate(members) for part in _of_class(k, mine, report, examples)]
    merged = _merged([part for part in parts if part.kind != LABELS])
    merged += _of_all_classes(report, examples)
    doubted = [part for part in parts if part.kind == LABELS]
    if doubted:
        merged.append(doubted)

    # rank by gain, in words first, and tell each failure once
    candidates = [(_finding(group, report, examples), group) for group in merged]
    candidates = [(one, group) for one, group in candidates if one.gain > 0 and one.failures]
    candidates.sort(key=lambda item: -_preference(item[0]))
    covered = np.zeros(len(examples.failed), dtype=bool)
    chosen: list[Finding] = []
    for one, group in candidates:
        mine = _rows_of(group)
        mine = mine[examples.failed[mine]]
        if covered[mine].sum() < OVERLAP * len(mine):
            covered[mine] = True
            chosen.append(one)
    ranked = sorted(chosen[:limit], key=lambda one: -one.gain)
    return tuple(one for i, one in enumerate(ranked) if not i or (one.share_of_failures or 0.0) >= LEAST_SHARE)


def _preference(found: Finding) -> float:
    """Return the gain of a finding, weighted by how exactly it says which images fail."""
    return found.gain * (1.0 if found.kind == LOOK else IN_WORDS) * (1.0 if found.every_class else OF_SOME_CLASSES)


def confidence_of(
    difference: tuple[float, float] | None,
    failures: int,
    p_value: float | None,
    words_p_value: float | None = None,
    *,
    doubtful: bool = False,
) -> Confidence:
    """Return how sure a finding is.

    It is sure if the error rates surely differ by 10 points or more, with 30 failures or more, and neither the pattern
    nor its words come about by chance more than once in 100 times. With fewer than 10 failures, or a difference that
    may be next to nothing, or where most failures look like wrong labels, it is not.

    Args:
        difference: 95 % interval of the difference of the error rates.
        failures: Number of failures inside.
        p_value: Of the pattern; None: not tested.
        words_p_value: Of the caption; None: no caption.
        doubtful: Whether most failures look like doubtful labels.

    >>> confidence_of((0.5, 0.7), 145, 0.001), confidence_of((0.05, 0.3), 40, 0.001), confidence_of((0.2, 0.6), 7, 0.04)
    ('high', 'moderate', 'low')
    """
    low = -1.0 if difference is None else difference[0]
    if low <= 0 or failures < FEW_FAILURES or p_value is None or p_value > SIGNIFICANCE_LEVEL or doubtful:
        return "low"
    words_hold = words_p_value is None or words_p_value <= SURE_P_VALUE
    sure = low >= CLEAR and failures >= MANY_FAILURES and p_value <= SURE_P_VALUE and words_hold
    return "high" if sure else "moderate"


# -- candidates ------------------------------------------------------------------------------------------------------


def _of_class(k: int, mine: IntArray, report: FailureReport, examples: FindingExamples) -> list[_Part]:
    """Return the best description of the failures of a class with the rows ``mine``, and its labels in doubt."""
    entry = report.classes[k]
    found = [*_by_slices(k, entry.slices, mine, examples), *_by_direction(k, entry, mine, examples)]
    found = found or _by_leaves(k, entry, report.groups, mine, examples)

    def worth(part: _Part) -> float:
        return _rates([part], examples).gain * (1.0 if part.kind == LOOK else IN_WORDS)

    best = [max(found, key=worth)] if found else []
    is_noise = entry.diagnosis is not None and entry.diagnosis.kind == LABEL_NOISE
    if is_noise and examples.in_doubt is not None:
        doubted = mine[examples.in_doubt[mine] & examples.failed[mine]]
        best += [_Part(LABELS, k, doubted, mine, p_value=entry.p_value)] if len(doubted) else []
    return best


def _by_slices(k: int, slices: Iterable[SliceReport], mine: IntArray, examples: FindingExamples) -> list[_Part]:
    found = []
    for row in slices:
        attribute = (examples.attributes or {}).get(row.attribute)
        if row.significant and attribute is not None and row.value in attribute.values:
            inside = mine[attribute.codes[mine] == attribute.values.index(row.value)]
            found.append(_Part(ATTRIBUTE, k, inside, mine, row.attribute, row.value, row.p_value))
    return found


def _by_direction(k: int, entry: ClassReport, mine: IntArray, examples: FindingExamples) -> list[_Part]:
    values = examples.values
    if not entry.pattern or values is None:
        return []
    among = mine[~np.isnan(values[mine])]
    words = _caption_words(entry)
    p_value = None if words is None else entry.caption_p_value
    kind = LOOK if words is None else CAPTION
    return [_Part(kind, k, among[values[among] < 0], among, None, words, entry.p_value, p_value)]


def _caption_words(entry: ClassReport) -> str | None:
    """Return the words of the hardest caption that hold: those with evidence of their own, or else the caption."""
    p_value = entry.caption_p_value
    if not entry.hardest_captions or p_value is None or p_value > SIGNIFICANCE_LEVEL:
        return None
    if entry.hardest_captions[0] == entry.reference_caption:
        return None
    named = [
        word.value
        for word in entry.hardest_caption_attributes
        if word.p_value is not None and word.p_value <= SIGNIFICANCE_LEVEL
    ]
    return ", ".join(named) or shorten_caption(entry.hardest_captions[0])


def _by_leaves(
    k: int, entry: ClassReport, groups: Iterable[GroupReport], mine: IntArray, examples: FindingExamples
) -> list[_Part]:
    """Return the leaves that are valid on held-out examples of the tree of a class."""
    leaves = (examples.leaves or {}).get(entry.name, ())
    found = []
    for group in groups:
        if group.grouping != LABEL.name or group.class_name != entry.name or not group.pattern:
            continue
        for index, (leaf, ids) in enumerate(zip(group.leaves, leaves, strict=False)):
            if leaf.heldout_valid and leaf.heldout_error_rate and leaf.heldout_error_coverage is not None:
                inside = mine[np.isin(examples.ids[mine], ids)]
                found.append(_Part(RULE, k, inside, mine, None, leaf.rule, SIGNIFICANCE_LEVEL, leaf=(group, index)))
    return found


def _of_all_classes(report: FailureReport, examples: FindingExamples) -> list[list[_Part]]:
    """Return the slices over all classes that fail more often within classes, and the pattern that classes share."""
    everything = np.arange(len(examples.failed))
    found: list[list[_Part]] = []
    if len(report.classes) > 1:
        surely = [
            row for row in report.slices if row.adjusted_gap_interval is not None and row.adjusted_gap_interval[0] > 0
        ]
        parts = _by_slices(-1, surely, everything, examples)
        found = [[part._replace(class_index=None)] for part in parts]
    pattern, values = report.shared, examples.shared_values
    if pattern is not None and pattern.pattern and values is not None:
        known = everything[~np.isnan(values)]
        words, p_value = _shared_words(pattern)
        kind = LOOK if words is None else CAPTION
        found.append([_Part(kind, None, known[values[known] < 0], known, None, words, pattern.p_value, p_value)])
    return found


def _shared_words(pattern: SharedPattern) -> tuple[str | None, float | None]:
    p_value = pattern.caption_p_value
    holds = bool(pattern.hardest_captions) and p_value is not None and p_value <= SIGNIFICANCE_LEVEL
    return (pattern.hardest_captions[0], p_value) if holds else (None, None)


def _merged(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Return the parts in groups: of one attribute, or of the same caption; looks and rules stay alone."""
    groups: dict[tuple[str, ...], list[_Part]] = defaultdict(list)
    for number, part in enumerate(parts):
        if part.kind == ATTRIBUTE:
            groups[part.kind, str(part.attribute)].append(part)
        elif part.kind == CAPTION:
            groups[part.kind, str(part.words)].append(part)
        else:
            groups[part.kind, str(number)].append(part)
    return list(groups.values())


# -- one finding -----------------------------------------------------------------------------------------------------


def _finding(group: Sequence[_Part], report: FailureReport, examples: FindingExamples) -> Finding:
    """Return the finding of a group of parts."""
    first = group[0]
    inside, among = _rows_of(group), _rows_of(group, lambda part: part.among)
    rates = _rates(group, examples)
    wrong = inside[examples.failed[inside]]
    outside = np.setdiff1d(among, inside, assume_unique=True)
    failures, all_failures = len(wrong), int(examples.failed.sum())
    words = {part.words for part in group}
    p_values = [part.p_value for part in group if part.p_value is not None]
    caption_p_values = [part.words_p_value for part in group if part.words_p_value is not None]
    p_value = max(p_values) if p_values else None
    words_p_value = max(caption_p_values) if caption_p_values else None
    parts = _parts(group, report, examples)
    doubtful = report.doubtful and first.kind != LABELS
    names = [entry.name for entry in report.classes]
    found = Finding(
        kind=first.kind,
        attribute=first.attribute,
        words=words.pop() if len(words) == 1 else None,
        parts=parts,
        every_class=first.class_index is None,
        examples=len(inside),
        failures=failures,
        share_of_failures=failures / all_failures if all_failures else None,
        error_rate=rates.inside,
        interval=rates.of_inside,
        error_rate_outside=rates.outside,
        interval_outside=rates.of_outside,
        difference=rates.difference,
        gain=rates.gain,
        p_value=p_value,
        words_p_value=words_p_value,
        confidence=confidence_of(rates.difference, failures, p_value, words_p_value, doubtful=doubtful),
        mistakes=_mistakes(wrong, examples, names),
        failing_ids=_spread(wrong, examples, parts, names),
        right_ids=_spread(outside[~examples.failed[outside]], examples, parts, names),
    )
    return replace(found, **_cause(group, report, parts))


def _rates(group: Sequence[_Part], examples: FindingExamples) -> _Rates:
    """Return the error rates inside and outside of some parts, compared within classes."""
    first = group[0]
    if first.leaf is not None:
        return _rates_of_leaf(*first.leaf)
    inside, among = _rows_of(group), _rows_of(group, lambda part: part.among)
    if first.kind == LABELS:  # the same images: with and without the labels in doubt
        return _rates_without(len(inside), examples.failed[among])
    sources = None if examples.sources is None else examples.sources[among]
    labels = np.unique(examples.labels[among], return_inverse=True)[1]
    is_inside = np.isin(among, inside, assume_unique=True)
    of_inside, of_outside = rates_within_classes(is_inside, examples.failed[among], labels, sources)
    if not of_inside.effective or not of_outside.effective:
        rate = float(examples.failed[inside].mean()) if len(inside) else 0.0
        return _Rates(rate, _wilson(rate, len(inside)), None, None, None, 0.0)
    ends = [_wilson(*one) for one in (of_inside, of_outside)]
    return _Rates(
        of_inside.rate,
        ends[0],
        of_outside.rate,
        ends[1],
        difference_interval(of_inside.rate, ends[0], of_outside.rate, ends[1]),
        max(of_inside.rate - of_outside.rate, 0.0) * len(inside),
    )


def _wilson(rate: float, effective: float) -> tuple[float, float]:
    return wilson_interval(min(max(rate, 0.0), 1.0) * effective, effective)


def _rates_of_leaf(group: GroupReport, index: int) -> _Rates:
    """Return the held-out rates of a leaf and of the rest of its group, from rate and coverage of the leaf."""
    leaf = group.leaves[index]
    failures = (group.base_error_rate or 0.0) * group.size
    failures_inside = (leaf.heldout_error_coverage or 0.0) * failures
    rate = leaf.heldout_error_rate or 0.0
    size_inside = min(failures_inside / rate, float(group.size)) if rate else 0.0
    size = max(group.size - size_inside, 0.0)
    ends = leaf.interval or _wilson(rate, size_inside)
    if not size:
        return _Rates(rate, ends, None, None, None, 0.0)
    outside = min(max(failures - failures_inside, 0.0) / size, 1.0)
    of_outside = _wilson(outside, size)
    gain = max(rate - outside, 0.0) * size_inside
    return _Rates(rate, ends, outside, of_outside, difference_interval(rate, ends, outside, of_outside), gain)


def _rates_without(doubted: int, failed: BoolArray) -> _Rates:
    """Return the error rates of images (n,), and without a number of failures whose labels are in doubt."""
    failures, size = int(failed.sum()), len(failed)
    left, size_left = failures - doubted, size - doubted
    rates = failures / size, left / size_left if size_left else 0.0
    ends = wilson_interval(failures, size), wilson_interval(left, size_left)
    difference = difference_interval(rates[0], ends[0], rates[1], ends[1])
    return _Rates(rates[0], ends[0], rates[1], ends[1], difference, float(doubted))


def _parts(group: Sequence[_Part], report: FailureReport, examples: FindingExamples) -> tuple[FindingPart, ...]:
    """Return the classes of a group, those first in which fixing gains most."""
    if group[0].class_index is None:
        inside, among = group[0].inside, group[0].among
        of_inside, of_among = examples.labels[inside], examples.labels[among]
        present = np.unique(of_inside[examples.failed[inside]]).tolist()
        group = [
            group[0]._replace(class_index=k, inside=inside[of_inside == k], among=among[of_among == k]) for k in present
        ]
    ranked = sorted(group, key=lambda part: -_rates([part], examples).gain)
    names = [entry.name for entry in report.classes]
    return tuple(_finding_part(part, names, examples) for part in ranked)


def _finding_part(part: _Part, names: Sequence[str], examples: FindingExamples) -> FindingPart:
    rates = _rates([part], examples)
    wrong = part.inside[examples.failed[part.inside]]
    mistakes = _mistakes(wrong, examples, names)
    return FindingPart(
        names[part.class_index or 0],
        part.words,
        len(part.inside),
        len(wrong),
        rates.inside,
        rates.outside,
        mistakes[0].prediction if mistakes else None,
        mistakes[0].share if mistakes else None,
    )


def _mistakes(failures: IntArray, examples: FindingExamples, names: Sequence[str]) -> tuple[Mistake, ...]:
    """Return the most frequent pairs of a label and another prediction among some failures."""
    labels = examples.labels[failures].tolist()
    if examples.predictions is not None:
        pairs = Counter(zip(labels, examples.predictions[failures].tolist(), strict=True))
        answers = {(k, other): names[other] for k, other in pairs if other != k}
    else:
        pairs = Counter((k, -1) for k in labels)
        answers = {(k, -1): answer for k, _ in pairs if (answer := _only_wrong_answer(k, names)) is not None}
    of_label = Counter(labels)
    return tuple(
        Mistake(names[pair[0]], answers[pair], count, count / of_label[pair[0]])
        for pair, count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
        if pair in answers
    )[:MOST_MISTAKES]


def _only_wrong_answer(k: int, names: Sequence[str]) -> str | None:
    """Return the other class of a condition, or of a task with two classes; None if there are several."""
    absent = absent_condition(names[k], names)
    if absent is not None:
        return absent
    other = both_classes(names[k])[0]
    if other in names:
        return other
    return names[1 - k] if len(names) == 2 else None


def _cause(group: Sequence[_Part], report: FailureReport, parts: Sequence[FindingPart]) -> dict[str, Any]:
    """Return the kind of failure that most of the classes have, by failures inside, and its remedy."""
    index_of = {entry.name: k for k, entry in enumerate(report.classes)}
    weights: dict[str, float] = defaultdict(float)
    certainty: dict[str, float] = defaultdict(float)
    leading: dict[str, str | None] = {}
    for part in parts:
        diagnosis = report.classes[index_of[part.class_name]].diagnosis
        if diagnosis is not None:
            weights[diagnosis.kind] += part.failures
            certainty[diagnosis.kind] += part.failures * diagnosis.probability
            leading.setdefault(diagnosis.kind, diagnosis.remedy)
    if group[0].kind == LABELS:
        first = index_of[parts[0].class_name]
        share = certainty[LABEL_NOISE] / weights[LABEL_NOISE] if weights[LABEL_NOISE] else None
        remedy = REMEDIES[LABEL_NOISE].format(class_index=first)
        return {"cause": LABEL_NOISE, "cause_probability": share, "remedy": remedy}
    if not weights:
        return {}
    kind = max(weights, key=lambda name: (weights[name], name != UNSURE))
    share = certainty[kind] / weights[kind] if weights[kind] else None
    return {"cause": kind, "cause_probability": share, "remedy": leading[kind]}


def _rows_of(group: Sequence[_Part], rows: Callable[[_Part], IntArray] = lambda part: part.inside) -> IntArray:
    """Return the ascending union of some rows of the parts."""
    return rows(group[0]) if len(group) == 1 else np.unique(np.concatenate([rows(part) for part in group]))


def _spread(
    places: IntArray, examples: FindingExamples, parts: Sequence[FindingPart], names: Sequence[str]
) -> tuple[int, ...]:
    """Return ids of some rows, chosen by hash: classes take turns, and sources are repeated only when all are there.

    A random choice, not the most extreme one, so that the images are those one would meet.
    """
    if not len(places):
        return ()
    index_of = {name: k for k, name in enumerate(names)}
    order_of_class = {index_of[part.class_name]: place for place, part in enumerate(parts)}
    places = places[np.argsort(stable_hash(examples.ids[places].astype(np.int64), 0), kind="stable")]
    sources = places if examples.sources is None else examples.sources[places]
    turn_of_class: Counter[int] = Counter()
    seen_sources: Counter[int] = Counter()
    keyed = []
    for place, source in zip(places.tolist(), sources.tolist(), strict=True):
        k = int(examples.labels[place])
        repeated, seen_sources[source] = seen_sources[source], seen_sources[source] + 1
        turn = turn_of_class[k]
        turn_of_class[k] += repeated == 0
        keyed.append((repeated, turn, order_of_class.get(k, len(names)), place))
    chosen = dict.fromkeys(int(examples.ids[place]) for *_, place in sorted(keyed))
    return tuple(chosen)[:MOST_EXAMPLES]
