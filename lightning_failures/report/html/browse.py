"""The examples to browse: the data behind the table that the page filters, sorts and pages through."""

from __future__ import annotations

from typing import Any

import torch

from lightning_failures.core.text import clean
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import FailureReport
from lightning_failures.report.example_rows import leaf_rules
from lightning_failures.report.gallery import Gallery, Thumbnails
from lightning_failures.report.html.images import ImageBudget

MAX_ROWS = 2000
IMAGE_CHARACTERS = 1_200_000
COLUMNS = ("row", "id", "label", "prediction", "confidence", "value", "leaf", "failed", "image", "x", "y")
"""The columns of a row: its index in ``examples.safetensors``, the values there (what is undefined is null), 1 if the
model is wrong on the example, else 0, the index of its image, and its place on the map in thousandths, or null."""


def browsing_data(table: ExampleTable | None, gallery: Gallery, report: FailureReport) -> dict[str, Any]:
    """Return the data of the table: rows (see :data:`COLUMNS`), images and their side, names, rules of leaves by class.

    Failures are preferred if not all examples fit; rows are in the order of ids.
    """
    thumbnails = gallery.thumbnails
    total = report.examples if table is None else len(table)
    data: dict[str, Any] = {"columns": COLUMNS, "rows": [], "images": [], "side": 0, "names": [], "rules": {}}
    data["total"] = total
    if table is None or thumbnails is None or not len(thumbnails.ids):
        return data

    data["side"] = thumbnails.images.shape[-1]

    # failures first, because images are encoded until the budget is used up
    candidates = torch.isin(table.ids, thumbnails.ids).nonzero().flatten()
    failures_first = torch.argsort(table.failed[candidates].int(), descending=True, stable=True)
    candidates = candidates[failures_first][:MAX_ROWS]
    thumbnail_of = torch.searchsorted(thumbnails.ids.contiguous(), table.ids[candidates]).tolist()
    budget = ImageBudget(IMAGE_CHARACTERS, gallery.encoder)
    image_of: dict[int, int] = {}  # index of the thumbnail -> index of the encoded image
    chosen: list[tuple[int, int, int]] = []
    for row, thumbnail in zip(candidates.tolist(), thumbnail_of, strict=True):
        if thumbnail not in image_of:
            uri = budget.add(thumbnails.images[thumbnail])
            if uri is None:
                break
            image_of[thumbnail] = len(data["images"])
            data["images"].append(uri)
        chosen.append((row, image_of[thumbnail], thumbnail))

    failed = table.failed
    data["rows"] = [
        [*_cells(table, row, image, bool(failed[row])), *_place(thumbnails, thumbnail)]
        for row, image, thumbnail in sorted(chosen)
    ]
    data["names"] = [clean(name, 80) for name in table.class_names]
    data["rules"] = _rules_by_class(table, report, shown_labels={cells[2] for cells in data["rows"]})
    return data


def _cells(table: ExampleTable, row: int, image: int, failed: bool) -> list[Any]:
    value = float(table.values[row])
    return [
        row,
        int(table.ids[row]),
        int(table.labels[row]),
        None if table.predictions is None else int(table.predictions[row]),
        None if table.confidence is None else float(table.confidence[row]),
        None if value != value else value,
        int(table.label_leaf[row]),
        int(failed),
        image,
    ]


def _place(thumbnails: Thumbnails, index: int) -> tuple[int | None, int | None]:
    """Return the place of a thumbnail on the map, in thousandths; None where there is none."""
    if thumbnails.places is None or bool(thumbnails.places[index].isnan().any()):
        return None, None
    x, y = thumbnails.places[index].tolist()
    return round(1000 * x), round(1000 * y)


def _rules_by_class(table: ExampleTable, report: FailureReport, shown_labels: set[int]) -> dict[str, list[str]]:
    """Return the rules of leaves by the index of their class, for the labels that are shown."""
    index_of = {name: index for index, name in enumerate(table.class_names)}
    rules_of = {}
    for name, rules in leaf_rules(report).items():
        if index_of.get(name) in shown_labels:
            shown = [clean(rule, 160).replace("<=", "\N{LESS-THAN OR EQUAL TO}") for rule in rules[:100]]
            rules_of[str(index_of[name])] = shown
    return rules_of
