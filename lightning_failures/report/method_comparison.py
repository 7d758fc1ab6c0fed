"""What each method ranks first in a run: how much of it fails, what methods share, which attribute values they find."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lightning_failures.baselines.answers import disagreement
from lightning_failures.baselines.ranking import hardest_rows, mean_overlap, mean_share
from lightning_failures.core.text import clean, percent, shorten_caption
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.report.text_tables import aligned_table

DIRECTIONS, CONFIDENCE, EARLY, DISAGREEMENT = "directions", "confidence", "early stopping", "disagreement"
ANSWERS = (CONFIDENCE, "margin", EARLY, DISAGREEMENT)
"""Rankings that know the labels and the answers, in the order of the comparison."""

LEAST_SHARE, MOST_VALUES, MOST_CLASSES = 0.01, 20, 10
"""Least share of the examples that have a value, most values that are compared, and most classes with captions."""

Hardest = Mapping[str, Mapping[int, IntArray]]
"""By method and class index: rows of the table, the hardest first."""


@dataclass(frozen=True)
class MethodRow:
    """What one method ranks first, the mean over classes that every method ranks.

    Attributes:
        method: Name of the method.
        error_rate: Share of failures among the hardest, in [0, 1]. The methods are cross-fitted. None for rankings that
            know the answers (``ANSWERS``).
        overlap: Share of the hardest that are also among the hardest of the failure directions.
        shares: Share of each attribute value, "name=value", among the hardest.
        captions: Caption of the hardest examples of each class; of ``EARLY`` and ``DISAGREEMENT`` none is known.
        hardest: Ids of the hardest examples of each class, the hardest first.
    """

    method: str
    error_rate: float | None
    overlap: float
    shares: Mapping[str, float]
    captions: Mapping[str, str] = field(default_factory=dict)
    hardest: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodComparison:
    """The methods of one analysis, compared.

    Attributes:
        rows: One for each method, the failure directions first.
        top: Number of examples of each class that count.
        classes: Number of classes that every method ranks.
        base_error_rate: Error rate of these classes.
        base_shares: Share of each attribute value in these classes.
    """

    rows: tuple[MethodRow, ...]
    top: int
    classes: int
    base_error_rate: float
    base_shares: Mapping[str, float]


def compare_methods(
    report: FailureReport,
    table: ExampleTable,
    attributes: Mapping[str, Mapping[int, str]] | None = None,
    *,
    top: int = 10,
    earlier: Sequence[ExampleTable] = (),
) -> MethodComparison:
    """Compare what the methods of an analysis rank first.

    Args:
        report: The report, with rankings of baselines.
        table: Its examples.
        attributes: By name, the values of examples by id; nothing was fitted to them. The metadata that the run itself
            was given are compared too.
        top: Number of examples of each class to look at.
        earlier: Tables of earlier analyses of the same examples, by step. The confidence in the first one is early
            stopping, as in Just Train Twice; how much all of them and the last one differ is the disagreement of
            checkpoints about the label.

    Raises:
        ConfigurationError: The run holds no rankings of baselines.
        DataError: No class is ranked by every method.
    """
    ranked = _hardest(report, table, top, earlier)
    classes = sorted(set.intersection(*(set(of_class) for of_class in ranked.values())))
    if not classes:
        raise DataError("No class is ranked by every method: each needs ten failures and ten successes.")
    members = {k: np.flatnonzero(table.labels.numpy() == k) for k in classes}
    hardest = {name: {k: found[k] for k in classes} for name, found in ranked.items()}
    failed, ids = table.failed.numpy(), table.ids.numpy()
    captions = _captions(report)
    masks = _masks(table, _stored_attributes(report) | dict(attributes or {}))
    rows = tuple(
        MethodRow(
            method=name,
            error_rate=None if name in ANSWERS else mean_share(failed, found),
            overlap=mean_overlap(hardest[DIRECTIONS], found),
            shares={value: mean_share(mask, found) for value, mask in masks.items()},
            captions=captions.get(name, {}),
            hardest={table.class_names[k]: tuple(ids[rows].tolist()) for k, rows in found.items()},
        )
        for name, found in hardest.items()
    )
    base = {value: mean_share(mask, members) for value, mask in masks.items()}
    return MethodComparison(rows, top, len(classes), mean_share(failed, members), base)


def comparison_text(found: MethodComparison) -> str:
    """Return a comparison as a table for the terminal."""
    values = list(found.base_shares)
    head = ["method", "failures", "shared", *values]
    lines = [
        [row.method, percent(row.error_rate), percent(row.overlap), *(percent(row.shares[value]) for value in values)]
        for row in found.rows
    ]
    lines.append(["all", percent(found.base_error_rate), "", *(percent(found.base_shares[value]) for value in values)])
    cells = [[clean(cell, 30) for cell in line] for line in (head, *lines)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(head))]
    return (
        f"The {found.top} hardest examples of each of {found.classes} classes, by method. failures: share of them that"
        f" the model gets wrong ({', '.join(ANSWERS)} know the answers). shared: share that the failure directions rank"
        f" first, too.\n\n{aligned_table(cells, widths, 'l' + 'r' * (len(head) - 1))}{_captions_text(found)}"
    )


def _captions_text(found: MethodComparison) -> str:
    """Return the captions by class, a line for each of some classes; nothing without any."""
    names = list(dict.fromkeys(name for row in found.rows for name in row.captions))[:MOST_CLASSES]
    lines = [
        f"{clean(name, 30)}: "
        + "; ".join(
            f"{clean(row.method, 30)}: {clean(shorten_caption(row.captions[name]), 80)}"
            for row in found.rows
            if name in row.captions
        )
        for name in names
    ]
    return "\n\nCaptions of what each method ranks first:\n" + "\n".join(lines) if lines else ""


def read_attributes(path: str | Path) -> dict[str, dict[int, str]]:
    """Read a CSV file with a column ``id`` and columns of attributes: by name, the values by id.

    Raises:
        ConfigurationError: The file cannot be read, or has no column ``id`` of integers.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in rows[0] if name not in ("id", None)] if rows else []
        return {name: {int(row["id"]): row[name] for row in rows if row[name]} for name in names}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} must have a column 'id' of integers, the ids of the examples, and a column for each attribute."
        ) from error


def _hardest(report: FailureReport, table: ExampleTable, top: int, earlier: Sequence[ExampleTable]) -> Hardest:
    """Return the rows that each method ranks first, by class."""
    section = report.methods.get("baselines", {})
    rankings = section.get("rankings")
    if not isinstance(rankings, Mapping) or not rankings:
        raise ConfigurationError(
            "The run holds no rankings of other methods. Run it with FailureModes(...,"
            " advanced=AdvancedOptions(compare_methods=True)), or lightning-failures analyse with this option."
        )
    index = {name: k for k, name in enumerate(table.class_names)}
    labels, values = table.labels.numpy(), table.values.numpy()
    found: dict[str, dict[int, IntArray]] = {DIRECTIONS: _first(values, labels, top)}
    if table.confidence is not None:
        found[CONFIDENCE] = _first(table.confidence.numpy(), labels, top)
    place = {(int(k), int(i)): row for row, (k, i) in enumerate(zip(labels, table.ids.numpy(), strict=True))}
    stored: dict[str, dict[int, IntArray]] = {}
    for name, classes in rankings.items():
        rows = {
            index[one]: np.array([place[index[one], i] for i in ids[:top] if (index[one], i) in place], dtype=np.int64)
            for one, ids in classes.items()
            if one in index
        }
        stored[str(name)] = {k: of_class for k, of_class in rows.items() if len(of_class)}
    # a method that ran out of time ranks no class, which must not hide the others
    found |= {name: of_class for name, of_class in stored.items() if of_class or not any(stored.values())}
    for name, hardness in _over_time(table, earlier).items():
        found[name] = _first(-hardness, labels, top)
    order = {name: place for place, name in enumerate((DIRECTIONS, *ANSWERS))}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _over_time(table: ExampleTable, earlier: Sequence[ExampleTable]) -> dict[str, FloatArray]:
    """Return the hardness (N,) of the examples by earlier analyses; NaN for examples that one of them lacks."""
    if table.confidence is None or not earlier:
        return {}
    confidence = np.stack([*(_confidence_in(one, table) for one in earlier), table.confidence.numpy()])
    known = np.isfinite(confidence).all(axis=0)
    if not known.any():
        return {}
    found = {EARLY: 1 - confidence[0].astype(np.float64)}
    spread = np.full(len(table), np.nan)
    of_label = confidence[:, known].astype(np.float64)
    spread[known] = disagreement(np.stack([of_label, 1 - of_label], axis=2))
    return found | {DISAGREEMENT: spread}


def _confidence_in(other: ExampleTable, table: ExampleTable) -> FloatArray:
    """Return the confidence (N,) that another table of the same examples holds; NaN where it holds none."""
    if other.confidence is None:
        return np.full(len(table), np.nan)
    if torch.equal(other.ids, table.ids) and torch.equal(other.labels, table.labels):
        return np.asarray(other.confidence.numpy(), dtype=np.float64)
    known = dict(
        zip(zip(other.ids.tolist(), other.labels.tolist(), strict=True), other.confidence.tolist(), strict=True)
    )
    pairs = zip(table.ids.tolist(), table.labels.tolist(), strict=True)
    return np.array([known.get(pair, np.nan) for pair in pairs], dtype=np.float64)


def _stored_attributes(report: FailureReport) -> dict[str, dict[int, str]]:
    """Return the metadata of the run by name, the values by id; nothing if the section holds none, or damaged ones."""
    stored = report.methods.get("baselines", {}).get("attributes")
    if not isinstance(stored, Mapping):
        return {}
    try:
        return {
            str(name): {int(i): str(one["values"][code]) for i, code in zip(stored["ids"], one["codes"], strict=True)}
            for name, one in stored["by_name"].items()
        }
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return {}


def _captions(report: FailureReport) -> dict[str, dict[str, str]]:
    """Return the captions by method and class name, those of the directions among them."""
    section = report.methods.get("baselines", {}).get("captions")
    stored = section if isinstance(section, Mapping) else {}
    captions = {str(name): {str(k): str(text) for k, text in of.items()} for name, of in stored.items()}
    own = {entry.name: entry.hardest_captions[0] for entry in report.classes if entry.hardest_captions}
    return captions | {DIRECTIONS: own}


def _first(values: np.ndarray, labels: np.ndarray, top: int) -> dict[int, IntArray]:
    """Return the rows of each class with the smallest values, ascending; none of a class without values."""
    found = {}
    for label in np.unique(labels[np.isfinite(values)]).tolist():
        rows = np.flatnonzero((labels == label) & np.isfinite(values))
        found[label] = hardest_rows(-values, rows, top)
    return found


def _masks(table: ExampleTable, attributes: Mapping[str, Mapping[int, str]]) -> dict[str, BoolArray]:
    """Return which examples have each attribute value, (N,) bool; of frequent values."""
    ids: Sequence[int] = table.ids.tolist()
    masks = {}
    for name, values in attributes.items():
        column = np.array([values.get(i, "") for i in ids])
        for value in np.unique(column[column != ""]):
            mask = column == value
            if LEAST_SHARE * len(ids) <= mask.sum() < len(ids):
                masks[f"{name}={value}"] = mask
    return dict(sorted(masks.items(), key=lambda item: -int(item[1].sum()))[:MOST_VALUES])
