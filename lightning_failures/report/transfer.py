"""What one run found, judged on the failures of another network on the same images (Jain et al., ICLR 2023, C.2.3).

The decision values of the first run are cross-fitted: no image was judged by a direction that was fitted to it, and no
direction knows the second network. The rules of its trees are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_failures.core.arrays import as_array, defined
from lightning_failures.core.serialization import to_jsonable
from lightning_failures.core.text import clean, number, percent, shorten_caption
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import ClassReport
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.report.example_pairs import Join, pair_examples, paired_rows
from lightning_failures.report.run_folder import Run
from lightning_failures.report.text_tables import aligned_table
from lightning_failures.stats.agreement import auc
from lightning_failures.stats.intervals import share_intervals

LABEL = "label"


@dataclass(frozen=True)
class Rate:
    """The error rate of some examples.

    Attributes:
        examples: Their number.
        rate: In [0, 1].
        interval: 95 % interval, which counts examples of one source as dependent.
    """

    examples: int
    rate: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class ClassTransfer:
    """What the first run says about one class, on the failures of the second network.

    Attributes:
        name: Name of the class.
        examples: Number of images of both runs with this label.
        failures: Number of them that the second network gets wrong.
        pattern: Whether the first run found a pattern in the class.
        auroc: Probability that the first run's direction ranks a failure of the second network above a success, None
            where it is undefined.
        own_auroc: The same for the second run's own direction.
        flagged: Error rate of the second network on images that the first run flags; None without any.
        unflagged: The same on the others.
        rule: The most important valid rule of the first run's tree of the class; None without one, or if the tree found
            no pattern.
        by_rule: Error rate of the second network on the images that the rule holds for.
        caption: The first run's hardest caption.
        near_caption: Error rate of the second network on the images nearest to that caption.
        own_caption: The second run's hardest caption.
        near_own_caption: Error rate of the second network on the images nearest to its own caption.
    """

    name: str
    examples: int
    failures: int
    pattern: bool
    auroc: float | None
    own_auroc: float | None
    flagged: Rate | None
    unflagged: Rate | None
    rule: str | None = None
    by_rule: Rate | None = None
    caption: str | None = None
    near_caption: Rate | None = None
    own_caption: str | None = None
    near_own_caption: Rate | None = None


@dataclass(frozen=True)
class Transfer:
    """What the first run found, judged on the second network.

    Attributes:
        examples: Number of images, or of images and conditions, that both runs hold with the same label.
        classes: The classes in which the first run has decision values.
        schema: Version of this form.
    """

    examples: int
    classes: tuple[ClassTransfer, ...]
    schema: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values."""
        values: dict[str, Any] = to_jsonable(self)
        return values

    @property
    def auroc(self) -> float | None:
        """Mean of ``auroc`` over classes with a pattern in the first run; None without one."""
        return _mean([one.auroc for one in self.classes if one.pattern])

    @property
    def own_auroc(self) -> float | None:
        """Mean of ``own_auroc`` over the same classes."""
        return _mean([one.own_auroc for one in self.classes if one.pattern])


def transfer(first: Run, second: Run, *, join: Join | None = None) -> Transfer:
    """Judge what the first run found on the failures of the second network.

    Args:
        first: The run whose findings are judged.
        second: A run of the other network on the same images.
        join: See :func:`~lightning_failures.report.comparison.compare`.

    Raises:
        ConfigurationError: A run has no table of examples.
        DataError: The runs have no example in common.
    """
    a, b = _table(first), _table(second)
    names = tuple(dict.fromkeys((*a.class_names, *b.class_names)))
    rows_a, rows_b = paired_rows(a, b, pair_examples(a, b, join), names)
    if not len(rows_a):
        raise DataError("the runs have no example in common, so nothing of one can be judged on the other")
    of_second = {entry.name: entry for entry in second.report.classes}
    values, own_values = as_array(a.values)[rows_a], as_array(b.values)[rows_b]
    labels, failed = as_array(a.labels)[rows_a], as_array(b.failed)[rows_b]
    ids_a, ids_b = as_array(a.ids)[rows_a], as_array(b.ids)[rows_b]
    leaves = as_array(a.label_leaf)[rows_a]
    sources = np.arange(len(rows_a)) if a.groups is None else as_array(a.groups)[rows_a]
    entries = {entry.name: entry for entry in first.report.classes}

    def rate(rows: BoolArray) -> Rate | None:
        return _rate(failed[rows], sources[rows]) if rows.any() else None

    classes = []
    for label in np.unique(labels[np.isfinite(values)]).tolist():
        name = a.class_names[label]
        entry, own = entries.get(name), of_second.get(name)
        of_class = labels == label
        known = of_class & np.isfinite(values)
        rule, leaf = _rule(first, name)
        classes.append(
            ClassTransfer(
                name=name,
                examples=int(of_class.sum()),
                failures=int(failed[of_class].sum()),
                pattern=bool(entry is not None and entry.pattern),
                auroc=defined(auc(-values[known], failed[known])),
                own_auroc=defined(auc(-own_values[of_class], failed[of_class])),
                flagged=rate(known & (values < 0)),
                unflagged=rate(known & (values >= 0)),
                rule=rule,
                by_rule=None if leaf is None else rate(of_class & (leaves == leaf)),
                caption=_caption(entry),
                near_caption=rate(of_class & np.isin(ids_a, _nearest(entry))),
                own_caption=_caption(own),
                near_own_caption=rate(of_class & np.isin(ids_b, _nearest(own))),
            )
        )
    return Transfer(len(rows_a), tuple(classes))


def transfer_text(found: Transfer, *, limit: int = 40) -> str:
    """Return the judgement as a table for the terminal: classes with a pattern first, the best transferred first."""
    ranked = sorted(found.classes, key=lambda one: (not one.pattern, -(one.auroc or 0.0)))
    head = ("class", "pattern", "failures", "AUROC", "own", "flagged", "others", "rule", "caption", "own caption")
    rows = [
        (
            clean(one.name, 24), "yes" if one.pattern else "", f"{one.failures} / {one.examples}", number(one.auroc),
            number(one.own_auroc), _rate_text(one.flagged, interval=True), _rate_text(one.unflagged),
            _rate_text(one.by_rule), _rate_text(one.near_caption), _rate_text(one.near_own_caption),
        )
        for one in ranked[:limit]
    ]  # fmt: skip
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    lines = [
        f"The first run on the failures of the second network, {found.examples} examples of both. AUROC: of the first"
        " run's directions, beside the second's own. Error rates of the second network: on images that the first run"
        " flags (95 % interval) and on the others, by its rule, nearest to its caption, and to the second's own.",
        "",
        aligned_table([head, *rows], widths, "ll" + "r" * (len(head) - 2)),
    ]
    if len(ranked) > limit:
        lines.append(f"{len(ranked) - limit} more classes are in the JSON form.")
    if found.auroc is not None:
        means = f"{number(found.auroc)}, own {number(found.own_auroc)}"
        lines.append(f"Mean AUROC where the first run found a pattern: {means}.")
    captions = [one for one in ranked[:limit] if one.pattern and one.caption]
    lines += [f'{clean(one.name)}: "{shorten_caption(str(one.caption))}"' for one in captions]
    return "\n".join(lines)


def _rate(failed: BoolArray, sources: IntArray) -> Rate:
    _, place = np.unique(sources, return_inverse=True)
    interval = share_intervals(failed.astype(np.int64), 2, place)[1]
    return Rate(len(failed), float(failed.mean()), interval)


def _rate_text(rate: Rate | None, *, interval: bool = False) -> str:
    if rate is None:
        return "-"
    ends = f" ({percent(rate.interval[0])} to {percent(rate.interval[1])})" if interval else ""
    return percent(rate.rate) + ends


def _rule(run: Run, name: str) -> tuple[str | None, int | None]:
    """Return the most important valid rule of the tree of a class, and the index of its leaf in the table."""
    group = next((one for one in run.report.groups if one.grouping == LABEL and one.class_name == name), None)
    if group is None or not group.pattern:
        return None, None
    valid = [(leaf.importance, place) for place, leaf in enumerate(group.leaves) if leaf.shown_as_valid]
    if not valid:
        return None, None
    _, place = max(valid)
    return group.leaves[place].rule, place


def _caption(entry: ClassReport | None) -> str | None:
    return entry.hardest_captions[0] if entry is not None and entry.hardest_captions else None


def _nearest(entry: ClassReport | None) -> Sequence[int]:
    return () if entry is None else entry.nearest_hardest_ids


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _table(run: Run) -> ExampleTable:
    if run.table is None:
        raise ConfigurationError(f"{run.folder} holds no table of examples, examples.safetensors.")
    return run.table
