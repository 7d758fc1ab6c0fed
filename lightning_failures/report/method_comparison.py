"""What each method ranks first in a run: how much of it fails, what methods share, which attribute values they find."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_failures.baselines.ranking import hardest_rows, mean_overlap, mean_share
from lightning_failures.core.text import clean, percent
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.report.text_tables import aligned_table

DIRECTIONS, CONFIDENCE = "directions", "confidence"
LEAST_SHARE, MOST_VALUES = 0.01, 20
"""Least share of the examples that have a value, and most values, that are compared."""

Hardest = Mapping[str, Mapping[int, IntArray]]
"""By method and class index: rows of the table, the hardest first."""


@dataclass(frozen=True)
class MethodRow:
    """What one method ranks first, the mean over classes that every method ranks.

    Attributes:
        method: Name of the method.
        error_rate: Share of failures among the hardest, in [0, 1]. The methods are cross-fitted. None for confidence,
            which knows the answers.
        overlap: Share of the hardest that are also among the hardest of the failure directions.
        shares: Share of each attribute value, "name=value", among the hardest.
    """

    method: str
    error_rate: float | None
    overlap: float
    shares: Mapping[str, float]


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
) -> MethodComparison:
    """Compare what the methods of an analysis rank first.

    Args:
        report: The report, with rankings of baselines.
        table: Its examples.
        attributes: By name, the values of examples by id; nothing was fitted to them.
        top: Number of examples of each class to look at.

    Raises:
        ConfigurationError: The run holds no rankings of baselines.
        DataError: No class is ranked by every method.
    """
    ranked = _hardest(report, table, top)
    classes = sorted(set.intersection(*(set(of_class) for of_class in ranked.values())))
    if not classes:
        raise DataError("No class is ranked by every method: each needs ten failures and ten successes.")
    members = {k: np.flatnonzero(table.labels.numpy() == k) for k in classes}
    hardest = {name: {k: found[k] for k in classes} for name, found in ranked.items()}
    failed = table.failed.numpy()
    masks = _masks(table, attributes or {})
    rows = tuple(
        MethodRow(
            method=name,
            error_rate=None if name == CONFIDENCE else mean_share(failed, found),
            overlap=mean_overlap(hardest[DIRECTIONS], found),
            shares={value: mean_share(mask, found) for value, mask in masks.items()},
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
        " the model gets wrong (confidence knows the answers). shared: share that the failure directions rank first,"
        f" too.\n\n{aligned_table(cells, widths, 'l' + 'r' * (len(head) - 1))}"
    )


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


def _hardest(report: FailureReport, table: ExampleTable, top: int) -> Hardest:
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
    for name, classes in rankings.items():
        found[str(name)] = {
            index[one]: np.array([place[index[one], i] for i in ids[:top] if (index[one], i) in place], dtype=np.int64)
            for one, ids in classes.items()
            if one in index and ids
        }
    return found


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
