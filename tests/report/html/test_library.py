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
    (folder,) = (tmp_path / "cache").iterdir()
    assert [path.suffix for path in folder.iterdir()] == [".js"]
    assert not folder.stat().st_mode & 0o077  # others cannot put a script there


@pytest.mark.parametrize("damage", [lambda text: text[:-3], lambda text: "", lambda text: text + "alert(1)"])
def test_library__a_damaged_file_is_bundled_again(bundled, tmp_path, damage):
    library._library()
    (path,) = tmp_path.glob("cache/*/*.js")
    whole = path.read_text()
    path.write_text(damage(whole))
    assert library._library() == "window.x = 1;\n// end\n"
    assert len(bundled) == 2
    assert path.read_text() == whole


def test_library__a_folder_that_cannot_be_written_costs_time_only(bundled, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert library._library() == library._library()
    assert len(bundled) == 2


def test_library__a_folder_that_others_can_write_is_not_read(bundled, tmp_path):
    library._library()
    (path,) = tmp_path.glob("cache/*/*.js")
    path.parent.chmod(0o777)
    library.private_folder.cache_clear()
    assert library._library() == "window.x = 1;\n// end\n"
    assert len(bundled) == 2
