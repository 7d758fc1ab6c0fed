"""The examples to look through: the rows behind the table that the page filters, sorts and turns."""

from __future__ import annotations

from typing import Any

import torch

from lightning_failures.core.text import clean
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import FailureReport
from lightning_failures.report.feature_names import names_in, with_names
from lightning_failures.report.gallery import Thumbnails
from lightning_failures.report.html.images import ImageBudget

ROWS = 2000
IMAGE_CHARACTERS = 1_400_000
COLUMNS = ("row", "id", "label", "prediction", "confidence", "value", "leaf", "image")
"""What a row of the data holds, in this order: its place in ``examples.safetensors``, then what stands there, then the
place of its image among the images. A decision value that is undefined is null."""


class Lookup:
    """Finds the row of an example in the table."""

    def __init__(self, table: ExampleTable | None) -> None:
        self._table = table
        self._classes = {} if table is None else {name: index for index, name in enumerate(table.class_names)}

    def row(self, example: int, class_name: str) -> int | None:
        """The row of an example that has a class as its label, else as its prediction; None where there is none."""
        table, wanted = self._table, self._classes.get(class_name)
        if table is None or wanted is None:
            return None
        first, last = (int(torch.searchsorted(table.ids, example, right=right)) for right in (False, True))
        for column in (table.labels, table.predictions):
            for row in range(first, last):
                if int(column[row]) == wanted:
                    return row
        return None

    def names(self, row: int) -> tuple[str, str]:
        """Label and prediction in words."""
        assert self._table is not None
        names = self._table.class_names
        return clean(names[int(self._table.labels[row])], 80), clean(names[int(self._table.predictions[row])], 80)


def browsed(table: ExampleTable | None, thumbnails: Thumbnails | None, report: FailureReport) -> dict[str, Any]:
    """The data of the table: rows (see :data:`COLUMNS`), images, names of classes, rules of leaves by class.

    Failures come first where there is no room for all; then the order is that of the ids.
    """
    total = report.examples if table is None else len(table)
    found: dict[str, Any] = {"columns": COLUMNS, "rows": [], "images": [], "names": [], "rules": {}, "total": total}
    if table is None or thumbnails is None or not len(thumbnails.ids):
        return found
    rows = torch.isin(table.ids, thumbnails.ids).nonzero().flatten()
    rows = rows[torch.argsort(table.failed[rows].int(), descending=True, stable=True)][:ROWS]
    places = torch.searchsorted(thumbnails.ids.contiguous(), table.ids[rows]).tolist()
    album, kept = ImageBudget(IMAGE_CHARACTERS), []
    images: dict[int, tuple[int, str]] = {}
    for row, place in zip(rows.tolist(), places, strict=True):
        if place not in images:
            uri = album.add(thumbnails.images[place])
            if uri is None:
                break
            images[place] = (len(images), uri)
        kept.append((row, images[place][0]))
    values = table.values.tolist()
    found["rows"] = [
        [
            row,
            int(table.ids[row]),
            int(table.labels[row]),
            int(table.predictions[row]),
            float(table.confidence[row]),
            None if values[row] != values[row] else values[row],
            int(table.label_leaf[row]),
            image,
        ]
        for row, image in sorted(kept)
    ]
    found["images"] = [uri for _, uri in images.values()]
    found["names"] = [clean(name, 80) for name in table.class_names]
    words = {number: clean(name, 60) for number, name in names_in(report.features).items()}
    used = {found["names"][label] for _, _, label, *_ in found["rows"]}
    place_of = {name: index for index, name in enumerate(table.class_names)}
    found["rules"] = {
        str(place_of[group.class_name]): [
            clean(with_names(leaf.rule, words), 160).replace("<=", "\N{LESS-THAN OR EQUAL TO}")
            for leaf in group.leaves[:100]
        ]
        for group in report.groups
        if group.grouping == "label" and clean(group.class_name, 80) in used and group.class_name in place_of
    }
    return found
