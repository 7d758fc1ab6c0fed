"""The chart library is bundled once, and bundled again where its file is damaged or cannot be kept."""

from __future__ import annotations

import pytest

from lightning_failures.report.html import library


@pytest.fixture
def bundled(monkeypatch, tmp_path):
    """Bundle a short text, and count how often."""
    calls = []
    monkeypatch.setenv("LIGHTNING_FAILURES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "_bundle", lambda: calls.append(1) or "window.x = 1;\n// end\n")
    return calls


def test_library__is_bundled_once(bundled, tmp_path):
    assert library._library() == library._library() == "window.x = 1;\n// end\n"
    assert len(bundled) == 1
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".js"]


@pytest.mark.parametrize("damage", [lambda text: text[:-3], lambda text: "", lambda text: text + "alert(1)"])
def test_library__a_damaged_file_is_bundled_again(bundled, tmp_path, damage):
    library._library()
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_text()
    path.write_text(damage(whole))
    assert library._library() == "window.x = 1;\n// end\n"
    assert len(bundled) == 2
    assert path.read_text() == whole


def test_library__a_folder_that_cannot_be_written_costs_time_only(bundled, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert library._library() == library._library()
    assert len(bundled) == 2
