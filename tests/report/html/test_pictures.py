"""Pictures are taken once, with the rows of their examples, until the budget is used up."""

from __future__ import annotations

from lightning_failures.report.example_rows import ExampleLookup
from lightning_failures.report.html.pictures import PictureIndex
from tests.report.html.a_run import a_run

RUN = a_run()


def index(limit=10**6):
    return PictureIndex(RUN.gallery, ExampleLookup(RUN.table), limit)


def test_take__once_and_with_rows():
    pictures = index()
    (found,) = pictures.take("classes/dog", "dog")
    assert [row.title for row in found.rows] == ["hardest", "easiest", "least confident"]
    assert all(tile.row is not None and tile.uri.startswith("data:image/") for tile in found.rows[0].tiles)
    assert pictures.take("classes/dog") == ()


def test_take_leaves__by_leaf_and_the_rest_has_no_section():
    pictures = index()
    group = RUN.report.groups[0]
    assert sorted(pictures.take_leaves(group)) == [0, 1, 2]
    assert pictures.take_rest() == ()


def test_take__stops_at_the_budget():
    pictures = index(limit=4000)
    assert pictures.take("classes/cat", "cat")[0].rows
    pictures.take("classes/dog", "dog")
    assert pictures.budget.omitted > 0
