"""The verdict of the page: what is selected for it, and what its HTML says."""

from __future__ import annotations

import dataclasses
import re

from lightning_failures.report.example_rows import ExampleLookup
from lightning_failures.report.findings import finding_sentence
from lightning_failures.report.html.pictures import PictureIndex
from lightning_failures.report.html.render import render
from lightning_failures.report.html.verdict import finding_views, why_nothing
from tests.report.html.a_run import NAMES, a_run

RUN = a_run()


def views(run=RUN, limit=10**6):
    return finding_views(run, PictureIndex(run.gallery, ExampleLookup(run.table), limit))


def test_finding_views__images_in_the_order_of_the_finding():
    first, second = views()
    assert [tile.id for tile in first.wrong] == list(first.found.failing_ids)
    assert [tile.id for tile in first.right] == list(first.found.right_ids)
    assert all(RUN.table.failed[tile.row] for tile in first.wrong)
    assert first.wrong[0].lines == ("cat",)
    assert first.anchors == (0, 1)
    assert (second.wrong, second.right) == ((), ())
    assert first.sentence == finding_sentence(RUN.report.findings[0], NAMES)


def test_finding_views__without_pictures_or_room_for_them():
    assert views(dataclasses.replace(RUN, gallery=dataclasses.replace(RUN.gallery, pictures=())))[0].wrong == ()
    assert views(limit=10)[0].wrong == ()


def test_why_nothing__only_where_there_is_nothing():
    assert why_nothing(RUN.report) is None
    assert why_nothing(dataclasses.replace(RUN.report, findings=())) is not None


def test_render__the_verdict_comes_first_and_says_all():
    page = render(RUN, charts=False)
    main = page.split('<main id="main"')[1]
    text = " ".join(re.sub("<[^>]*>", " ", main).split())
    assert main.index('id="finding-0"') < main.index('id="classes"')
    for part in (
        "In 2 classes (cat, dog), images with light night are wrong 47.3", "Mistaken for:", "wolf", "How sure",
        "moderate",
        "Likely cause: shortcut", "interventions=[RetrainHead()]",
    ):  # fmt: skip
        assert part in text
    for path in ("error_rate", "error_rate_outside", "interval/0", "failures", "share_of_failures"):
        assert f'data-of="report/findings/0/{path}"' in main


def test_render__nothing_found_says_why():
    run = dataclasses.replace(RUN, report=dataclasses.replace(RUN.report, findings=()))
    text = " ".join(re.sub("<[^>]*>", " ", render(run, charts=False)).split())
    assert "Nothing found. No pattern" in text
    assert "What it would take: More validation images" in text
