from __future__ import annotations

import pytest

from lightning_failures.core.atomic import write_atomically


def test_write_atomically__replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_write_atomically__a_failure_leaves_nothing_half_written(tmp_path):
    (tmp_path / "target").mkdir()  # a file cannot take the place of a folder
    with pytest.raises(OSError, match="target"):
        write_atomically(tmp_path / "target", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
