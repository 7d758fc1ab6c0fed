"""Accuracy of the images nearest to captions, and the sheet that shows them."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from lightning_failures.recipes.parts.nearest import NUMBERS, SHARES, nearest, nearest_rows


def test_nearest__hard_captions_are_near_to_images_that_fail(trained):
    found = nearest(trained)
    assert len(found.figures) == 2 * (len(NUMBERS) + len(SHARES))
    hard, easy = (found.figures[f"accuracy of the 10 nearest to the {end} caption"] for end in ("hardest", "easiest"))
    assert hard < easy
    (name,) = found.files.values()
    with Image.open(trained.output / name) as sheet:
        assert sheet.width > 8 * 96
        assert sheet.height > 4 * 96
    rows = next(nearest_rows(trained, trained.encoder)).rows
    assert len(set(rows.tolist())) == (trained.test.y == 0).sum()


def test_nearest__needs_captions(trained):
    classes = tuple(replace(one, hardest_captions=()) for one in trained.result.report.classes)
    plain = replace(trained.result, report=replace(trained.result.report, classes=classes))
    assert "No class has captions" in nearest(replace(trained, result=plain)).notes[0]
