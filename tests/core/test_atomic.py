from __future__ import annotations

import pytest

from lightning_failures.core.atomic import copy_atomically, write_atomically


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


def test_copy_atomically__whole_or_not_at_all(tmp_path):
    (tmp_path / "one").write_bytes(bytes(range(256)) * 8192)
    copy_atomically(tmp_path / "one", tmp_path / "deep" / "two")
    assert (tmp_path / "deep" / "two").read_bytes() == (tmp_path / "one").read_bytes()
    with pytest.raises(FileNotFoundError):
        copy_atomically(tmp_path / "missing", tmp_path / "three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "one"]
