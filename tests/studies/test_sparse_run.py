"""Questions about the sparse layer of a report."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import DataError
from lightning_failures.report.gallery import Gallery, Picture, Row, Thumbnails, Tile
from lightning_failures.report.run_folder import Run
from lightning_failures.report.sparse import SparseReport, sparse_report
from lightning_failures.studies.folder import make_study
from lightning_failures.studies.sparse_run import reported_matchings, reported_simulations

N = 60
RATE = {"rate": 0.5, "interval": [0.4, 0.6]}


def section() -> dict[str, object]:
    """Three classes with two features each: feature f is shown by images 6 f to 6 f + 5; image 0 to 8 are errors."""
    return {
        "features": 6, "held_out": N, "accuracy": 0.8, "dense_accuracy": 0.9, "features_per_class": 2.0, "chosen": 0,
        "fitted_on": {"source": "train", "examples": N, "of": N}, "errors_examined": 9, "correct_examined": 51,
        "fixed": RATE, "random_used": RATE, "random_any": RATE, "broken": RATE,
        "errors": [
            {"id": i, "label": f"class {i % 3}", "prediction": f"class {(i + 1) % 3}",
             "feature": 2 * ((i + 1) % 3) if i else None, "gain": 1.0, "fixed": True}
            for i in range(9)
        ],
        "classes": [
            {"name": f"class {k}", "features": 3, "weights": [
                {"feature": feature, "weight": weight}
                for feature, weight in ((2 * k, 1.5), (2 * k + 1, 0.5), (5 - k, -1.0))
            ]}
            for k in range(3)
        ],
        "top_ids": {str(f): list(range(6 * f, 6 * f + 6)) for f in range(6)},
    }  # fmt: skip


def found() -> SparseReport:
    report = sparse_report(FailureReport(N, 0.8, (), methods={"sparse": section()}))
    assert report is not None
    return report


def table() -> ExampleTable:
    ids = torch.arange(N)
    labels = ids % 3
    predictions = torch.where(ids < 9, (labels + 1) % 3, labels)
    none = torch.full((N,), -1)
    return ExampleTable(
        ids, labels, predictions, torch.ones(N), torch.ones(N), none, none, tuple(f"class {k}" for k in range(3))
    )


def test_simulations__the_right_image_is_one_of_the_class():
    questions = reported_simulations(found(), table(), range(N), count=9, seed=2)
    assert len(questions) == 9
    for one in questions:
        assert set(one.features.tolist()) == {2 * one.class_index, 2 * one.class_index + 1}
        assert (one.weights > 0).all()
        right, *others = np.roll(one.options, -one.right).tolist()
        assert right % 3 == one.class_index
        assert right >= 9  # classified correctly
        predicted = table().predictions[others]
        assert (predicted != one.class_index).all()
        assert not np.isin(one.options, one.shown).any()
    assert {one.right for one in questions} == {0, 1, 2}


def test_simulations__other_images_are_not_of_the_class_in_another_row():
    one = table()
    names = (*one.class_names, "other")
    rows = [torch.cat([column, column]) for column in (one.ids, one.labels, one.predictions)]
    rows[1][N:] = rows[2][N:] = 3  # a row of another condition for each example
    none, ones = torch.full((2 * N,), -1), torch.ones(2 * N)
    several = ExampleTable(*rows, ones, ones, none, none, names)
    for question in reported_simulations(found(), several, range(N), count=9, seed=2):
        _, *others = np.roll(question.options, -question.right).tolist()
        assert (one.predictions[others] != question.class_index).all()


def test_matchings__problematic_true_class_random():
    questions = reported_matchings(found(), range(N), count=5, seed=1)
    assert len(questions) == 5
    for one in questions:
        worst, best, random = one.features.tolist()
        assert worst == 2 * ((one.row + 1) % 3)
        assert best == 2 * (one.row % 3)
        assert random not in (worst, best)
        assert one.row not in one.shown
    assert 0 not in {one.row for one in reported_matchings(found(), range(N), count=50)}  # no removal helps


def test_pictures__too_few_are_named():
    with pytest.raises(DataError, match="Only 0 features"):
        reported_matchings(found(), (), count=3)


@pytest.mark.parametrize("task", ["simulate", "match"])
def test_make_study__from_the_run_alone(tmp_path, task):
    report = FailureReport(N, 0.8, (), methods={"sparse": section()})
    images = torch.zeros(N, 3, 8, 8, dtype=torch.uint8)
    run = Run(tmp_path, report, (report,), table=table(), gallery=Gallery((), Thumbnails(torch.arange(N), images)))
    study = make_study(run, task, count=4, controls=1)
    assert len(study.questions) == 5
    assert {question.condition for question in study.questions} == {"sparse" if task == "simulate" else "match"}


def test_descriptions__show_cards_under_titles_that_say_nothing(tmp_path):
    card = {
        "feature": 2, "label": "class 0", "prediction": "class 1",
        "top": [{"class": "class 1", "ids": [1], "values": [2.0]}, {"class": "class 0", "ids": [3], "values": [1.0]}],
    }  # fmt: skip
    report = FailureReport(N, 0.8, (), methods={"sparse": section() | {"cards": [card]}})
    tile = Tile(torch.zeros(3, 8, 8, dtype=torch.uint8))
    titles = ["feature 2: most active in class 1", "where it is active", "feature 2: most active in class 0",
              "where it is active", "class 0, correct, nearest to class 1", "feature attack: looks pink"]  # fmt: skip
    picture = Picture("sparse/2/card", tuple(Row(title, (tile,)) for title in titles))
    run = Run(tmp_path, report, (report,), gallery=Gallery((picture,)))
    (question,) = make_study(run, "describe", controls=0).questions
    assert question.id == "class 1/feature 2 of the model"
    shown = ["images, class 1", "heat maps, class 1", "images, class 0", "heat maps, class 0", "feature attack"]
    assert [panel.title for panel in question.panels] == shown
    assert [field.options for field in question.fields if field.name == "helped"] == [(*shown, "none")]
