"""The data of the table of examples."""

from __future__ import annotations

import torch

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import FailureReport
from lightning_failures.report.gallery import Gallery, Thumbnails
from lightning_failures.report.html.browse import COLUMNS, browsing_data


def table(ids, labels, predictions, values):
    n = len(ids)
    leaf = torch.full((n,), -1)
    columns = [torch.tensor(column) for column in (ids, labels, predictions)]
    return ExampleTable(*columns, torch.full((n,), 0.5), torch.tensor(values), leaf, leaf, ("a", "b"))


def test_browsing_data__rows_images_and_undefined_values():
    found = table([2, 4, 6], [0, 1, 0], [0, 0, 0], [0.5, float("nan"), -0.25])
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    places = torch.tensor([[0.25, 1.0], [float("nan"), float("nan")]])
    shown = Gallery(thumbnails=Thumbnails(torch.tensor([4, 6]), images, places=places))
    data = browsing_data(found, shown, FailureReport(3, 0.5, ()))
    assert [dict(zip(COLUMNS, row, strict=True)) for row in data["rows"]] == [
        {"row": 1, "id": 4, "label": 1, "prediction": 0, "confidence": 0.5, "value": None, "leaf": -1}
        | {"image": 0, "failed": 1, "x": 250, "y": 1000},
        {"row": 2, "id": 6, "label": 0, "prediction": 0, "confidence": 0.5, "value": -0.25, "leaf": -1}
        | {"image": 1, "failed": 0, "x": None, "y": None},
    ]
    assert (data["total"], data["side"]) == (3, 8)


def test_browsing_data__failures_stay_where_there_is_no_room(monkeypatch):
    monkeypatch.setattr("lightning_failures.report.html.browse.MAX_ROWS", 1)
    found = table([2, 4, 6], [0, 1, 0], [0, 0, 0], [0.5, 0.5, 0.5])
    shown = Gallery(thumbnails=Thumbnails(found.ids, torch.zeros(3, 3, 8, 8, dtype=torch.uint8)))
    data = browsing_data(found, shown, FailureReport(3, 0.5, ()))
    assert [row[1] for row in data["rows"]] == [4]


def test_browsing_data__an_example_with_two_conditions_has_two_rows_and_one_image():
    found = table([2, 2, 4], [0, 1, 0], [0, 0, 0], [0.5, 0.5, 0.5])
    shown = Gallery(thumbnails=Thumbnails(torch.tensor([2]), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)))
    data = browsing_data(found, shown, FailureReport(2, 1, ()))
    assert [(row[0], row[COLUMNS.index("image")]) for row in data["rows"]] == [(0, 0), (1, 0)]
    assert len(data["images"]) == 1
