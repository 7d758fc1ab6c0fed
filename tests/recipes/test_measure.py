"""A part that fails is named, and costs nothing else."""

from __future__ import annotations

from lightning_failures.errors import DataError
from lightning_failures.recipes import measure
from lightning_failures.recipes.base import Found, Part


def test_parts__one_that_fails_is_a_note(capsys):
    def fail(trained):
        raise DataError("no images\nat all")

    found = measure._found(Part("broken", "fails", fail), None)
    assert found.notes == ("The part broken failed: DataError: no images",)
    assert "The part broken failed" in capsys.readouterr().out
    other = measure._found(Part("fine", "works", lambda trained: Found({"a": 1.0}, {"b": "c"})), None)
    both = found.and_then(other)
    assert (both.figures, both.texts, both.notes) == ({"a": 1.0}, {"b": "c"}, found.notes)
