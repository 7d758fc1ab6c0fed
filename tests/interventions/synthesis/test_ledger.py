"""The ledger through kills, full disks and hostile text."""

from __future__ import annotations

import errno
import json
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lightning_failures.errors import DataError, GeneratorError
from lightning_failures.interventions.synthesis.ledger import Ledger, LedgerRow, copy_ledger, left_out_sentence, purge
from tests.processes.launch import fork

IMAGE = torch.arange(3 * 8 * 8).reshape(3, 8, 8).to(torch.uint8)
ROW = LedgerRow("model", "mit", "a photo of a red three", 7, 3, "three", "hard caption", 1, 2, decision_value=-0.5)
HOSTILE = (
    "../../escape",
    "/etc/passwd",
    "a\nb\r\n{}",
    "nul\0byte",
    "<script>alert(1)</script>",
    "CON: *?|",
    "é 図 \u2028",
    "x" * 5000,
    "\ud800",
)


def test_append__image_line_and_metadata_say_the_same(tmp_path):
    ledger = Ledger(tmp_path / "deep" / "folder")
    assert ledger.append(ROW, IMAGE) == 0
    assert ledger.append(LedgerRow(**{**vars(ROW), "dropped": "black", "decision_value": float("nan")})) == 1
    assert ledger.append(ROW, IMAGE.flip(2)) == 2
    assert ledger.images == [0, 2]
    assert torch.equal(ledger.image(0), IMAGE)
    assert torch.equal(Ledger(ledger.folder).image(2), IMAGE.flip(2))

    first, second, third = (json.loads(line) for line in (ledger.folder / "ledger.jsonl").read_text().splitlines())
    assert first["synthetic"] is True
    assert (first["class"], first["class_name"], first["file"]) == (3, "three", "images/000000.png")
    assert (second["file"], second["decision_value"], second["dropped"]) == (None, None, "black")
    with Image.open(ledger.folder / third["file"]) as png:
        assert {key: json.loads(value) for key, value in png.text.items()} == third
    assert sorted(path.name for path in ledger.folder.glob("images/*")) == ["000000.png", "000002.png"]


def test_read__no_such_row_or_image(tmp_path):
    ledger = Ledger(tmp_path)
    assert len(ledger) == 0
    assert ledger.images == []
    with pytest.raises(IndexError, match="no row 0"):
        ledger[0]
    with pytest.raises(IndexError, match="no image 0"):
        ledger.row_of_image(0)
    ledger.append(LedgerRow(**{**vars(ROW), "dropped": "black"}))
    with pytest.raises(DataError, match="has no image: black"):
        ledger.image(0)
    ledger.append(ROW, IMAGE)
    (tmp_path / "images" / "000001.png").unlink()
    assert not ledger.has_image(1)
    with pytest.raises(DataError, match=r"row 1 of the ledger in .* cannot be read"):
        ledger.image(1)


def test_read__other_copies_find_rows_that_came_later(tmp_path):
    writer, reader = Ledger(tmp_path), Ledger(tmp_path)
    assert len(reader) == 0
    carried = pickle.loads(pickle.dumps(reader))
    writer.append(ROW, IMAGE)
    assert carried[0].prompt == ROW.prompt
    assert reader.row_of_image(0) == 0


@pytest.mark.parametrize("torn", ['{"model": "m"', '{"model"', "{", '{"model": "m", "licence": "x"}'])
def test_torn_last_line__ignored_by_readers_and_repaired_by_the_writer(tmp_path, torn):
    Ledger(tmp_path).append(ROW, IMAGE)
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write(torn)
    assert len(Ledger(tmp_path)) == 1
    again = Ledger(tmp_path)
    assert again.append(ROW, IMAGE) == 1
    assert [row.prompt for row in Ledger(tmp_path).rows] == [ROW.prompt] * 2


@pytest.mark.parametrize("line", ["nonsense", "[]", "{}", '{"model": "m"}'])
def test_damaged_line__is_an_error_with_a_remedy(tmp_path, line):
    Ledger(tmp_path).append(ROW, IMAGE)
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"Line 2 of .* is damaged .*purge"):
        len(Ledger(tmp_path))


def test_full_disk__while_the_png_is_written(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    ledger.append(ROW, IMAGE)

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.replace", full)
        with pytest.raises(GeneratorError, match=r"No space left on device.*purge"):
            ledger.append(ROW, IMAGE)
    assert sorted(path.name for path in tmp_path.glob("images/*")) == ["000000.png"]
    assert len(Ledger(tmp_path)) == 1
    assert ledger.append(ROW, IMAGE) == 1


def test_full_disk__while_the_line_is_written(tmp_path):
    """The line is longer than what a limit on the size of files leaves room for: a real short write."""
    resource = pytest.importorskip("resource")
    import signal

    ledger = Ledger(tmp_path)
    ledger.append(ROW, IMAGE)
    size = (tmp_path / "ledger.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
        with pytest.raises(GeneratorError, match="could not be saved"):
            ledger.append(LedgerRow(**{**vars(ROW), "prompt": "long " * 50, "dropped": "black"}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "ledger.jsonl").stat().st_size == size
    assert ledger.append(ROW, IMAGE) == 1
    assert [row.file for row in Ledger(tmp_path).rows] == ["images/000000.png", "images/000001.png"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text__stays_text(tmp_path, text):
    row = LedgerRow(text, text, text, 1, 0, text, "hard caption", 0, 1, dropped=None)
    folder = tmp_path / "ledger"
    Ledger(folder).append(row, IMAGE)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert found == ["ledger", "ledger/images", "ledger/images/000000.png", "ledger/ledger.jsonl"]
    again = Ledger(folder)[0]
    assert (again.prompt, again.class_name) == (text, text)
    assert len((folder / "ledger.jsonl").read_bytes().splitlines()) == 1


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=80), cut=st.integers(0, 400))
def test_any_text__survives_a_cut_anywhere(tmp_path_factory, text, cut):
    folder = tmp_path_factory.mktemp("ledger")
    row = LedgerRow(**{**vars(ROW), "prompt": text, "dropped": "black"})
    for _ in range(2):
        Ledger(folder).append(row)
    path = folder / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - cut, 0)])
    left = path.read_bytes().count(b"\n")
    assert len(Ledger(folder)) == left
    assert Ledger(folder).append(row) == left
    assert {one.prompt for one in Ledger(folder).rows} == {text}


def test_tampered_file_name__reads_nothing_else(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    ledger.append(ROW, IMAGE)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), "red").save(secret)
    path = ledger.folder / "ledger.jsonl"
    path.write_text(path.read_text().replace("images/000000.png", "../secret.png"))
    assert torch.equal(Ledger(ledger.folder).image(0), IMAGE)


def test_purge__removes_what_is_ours_and_nothing_else(tmp_path):
    folder = tmp_path / "ledger"
    ledger = Ledger(folder)
    ledger.append(ROW, IMAGE)
    ledger.append(ROW, IMAGE)
    (folder / "images" / ".writing-abc").write_bytes(b"torn")
    (folder / "images" / "mine.png").write_bytes(b"mine")
    (folder / "notes.txt").write_text("mine")
    assert purge(folder) == 2
    assert sorted(path.name for path in folder.rglob("*")) == ["images", "mine.png", "notes.txt"]
    assert purge(folder) == 0
    assert ledger.append(ROW, IMAGE) == 0  # the same object begins anew
    (folder / "images" / "mine.png").unlink()
    (folder / "notes.txt").unlink()
    assert purge(folder) == 1
    assert not folder.exists()


# -- several processes ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_append__two_processes_at_once_take_turns(tmp_path):
    for ended in fork("appending", tmp_path, 40, environments=[{"NUMBER": "3"}, {"NUMBER": "5"}], timeout=120):
        assert ended.status == 0, ended.said[-3000:]
    ledger = Ledger(tmp_path / "ledger")
    assert len(ledger) == len(ledger.images) == 80
    assert not ledger.without_own_image
    for number, row in enumerate(ledger.rows):
        assert (ledger.image(number) == row.class_index).all()
    assert sorted((row.class_index, row.seed) for row in ledger.rows) == [
        (k, seed) for k in (3, 5) for seed in range(40)
    ]
    assert sorted(path.name for path in ledger.folder.iterdir()) == ["images", "ledger.jsonl"]


def mixed(folder) -> Ledger:
    """Return a ledger of four images: that of row 1 is of another class, and that of row 2 is missing."""
    ledger = Ledger(folder)
    for number in range(4):
        ledger.append(LedgerRow(**{**vars(ROW), "seed": number}), IMAGE)
    other = Ledger(folder / "other")
    for _ in range(2):
        other.append(LedgerRow(**{**vars(ROW), "class_index": 9, "class_name": "nine"}), IMAGE)
    (other.folder / "images" / "000001.png").replace(folder / "images" / "000001.png")
    (folder / "images" / "000002.png").unlink()
    return Ledger(folder)


def test_image__of_another_row_is_left_out_counted_and_named(tmp_path):
    ledger = mixed(tmp_path)
    assert ledger.images == [0, 1, 2, 3]  # the numbers of images never change
    assert ledger.without_own_image == [1, 2]
    assert [ledger.has_image(row) for row in range(4)] == [True, False, False, True]
    with pytest.raises(DataError, match=r"row 1 .* is that of another row"):
        ledger.image(1)
    assert "2 of the 4 generated images" in (left_out_sentence(ledger) or "")
    assert "(rows 1, 2)" in (left_out_sentence(ledger) or "")
    assert left_out_sentence(Ledger(tmp_path / "no ledger")) is None


def test_image__without_text_is_taken_as_it_is(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append(ROW, IMAGE)
    path = tmp_path / "images" / "000000.png"
    with Image.open(path) as image:
        Image.fromarray(np.array(image)).save(path)
    assert Ledger(tmp_path).has_image(0)


def test_copy_ledger__ends_with_a_whole_row(tmp_path):
    ledger = Ledger(tmp_path / "one")
    ledger.append(ROW, IMAGE)
    ledger.append(ROW, IMAGE.flip(2))
    with (tmp_path / "one" / "ledger.jsonl").open("a") as file:
        file.write('{"model": "to')
    copy_ledger(tmp_path / "one", tmp_path / "two")
    copy_ledger(tmp_path / "nothing", tmp_path / "three")
    copied = Ledger(tmp_path / "two")
    assert copied.rows == ledger.rows
    assert torch.equal(copied.image(1), IMAGE.flip(2))
    assert copied.append(ROW, IMAGE) == 2
    assert not (tmp_path / "three").exists()
