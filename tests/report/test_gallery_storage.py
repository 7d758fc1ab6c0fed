"""Pictures on disk: what is written is read, and what is hostile is refused before it costs anything."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc
import zlib

import pytest
import torch
from PIL import Image

from lightning_failures.errors import DataError
from lightning_failures.report import gallery_storage
from lightning_failures.report.gallery import Gallery, Picture, Row, Thumbnails, Tile
from lightning_failures.report.gallery_storage import load_gallery, save_gallery
from lightning_failures.report.image_encoding import data_uri

GENERATOR = torch.Generator().manual_seed(0)


PLACES = torch.tensor([[0.25, 1.0], [float("nan"), float("nan")]])


def image(height: int = 6, width: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=GENERATOR, dtype=torch.uint8)


def gallery() -> Gallery:
    rows = Row("hardest \udcff", (Tile(image(), "-0.5\n-> <b>", 7), Tile(image(9, 9)))), Row("empty", ())
    thumbnails = Thumbnails(torch.tensor([3, 2**40]), torch.stack([image(), image()]), torch.zeros(2, 4), PLACES)
    return Gallery((Picture("classes/cat", rows, "cat"), Picture("features/17", rows[:1])), thumbnails, 3, 250)


def png(width: int, height: int, *, data: bytes = b"") -> str:
    """One that says of itself to be of a size, whatever it holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(whole).decode()


def test_gallery__is_read_as_it_was_written(tmp_path):
    saved = gallery()
    save_gallery(saved, tmp_path / "gallery.json")
    read = load_gallery(tmp_path / "gallery.json")
    assert (read.epoch, read.global_step) == (3, 250)
    assert torch.equal(read.thumbnails.ids, saved.thumbnails.ids)
    assert torch.equal(read.thumbnails.images, saved.thumbnails.images)
    assert read.thumbnails.embeddings is None
    assert torch.equal(read.thumbnails.places.nan_to_num(-1), PLACES.nan_to_num(-1))
    for one, other in zip(read.pictures, saved.pictures, strict=True):
        assert (one.tag, one.caption) == (other.tag, other.caption)
        for row, written in zip(one.rows, other.rows, strict=True):
            assert row.title == written.title
            assert [(t.text, t.id) for t in row.tiles] == [(t.text, t.id) for t in written.tiles]
            assert all(torch.equal(t.image, w.image) for t, w in zip(row.tiles, written.tiles, strict=True))


def test_save_gallery__the_form_in_the_file(tmp_path):
    """Galleries written by other versions are read, and the other way round."""
    tile, thumbnails = image(), image()
    rows = (Row("hardest", (Tile(tile, "-0.5", 7),)),)
    saved = Gallery((Picture("classes/cat", rows, "cat"),), Thumbnails(torch.tensor([3]), thumbnails[None]), 3, 250)
    stored = {
        "schema": 1,
        "epoch": 3,
        "global_step": 250,
        "thumbnails": {"ids": [3], "images": [data_uri(thumbnails)]},
        "pictures": [
            {
                "tag": "classes/cat",
                "caption": "cat",
                "rows": [{"title": "hardest", "tiles": [{"image": data_uri(tile), "text": "-0.5", "id": 7}]}],
            }
        ],
    }
    save_gallery(saved, tmp_path / "gallery.json")
    assert json.loads((tmp_path / "gallery.json").read_text()) == stored
    del stored["thumbnails"], stored["epoch"]  # written without
    (tmp_path / "gallery.json").write_text(json.dumps(stored))
    read = load_gallery(tmp_path / "gallery.json")
    assert (read.thumbnails, read.epoch, read.global_step) == (None, None, 250)
    assert torch.equal(read.pictures[0].rows[0].tiles[0].image, tile)


@pytest.mark.parametrize("empty", [Gallery(), Gallery(thumbnails=Thumbnails(torch.empty(0).long(), torch.empty(0)))])
def test_gallery__an_empty_one(tmp_path, empty):
    save_gallery(empty, tmp_path / "gallery.json")
    read = load_gallery(tmp_path / "gallery.json")
    assert read.pictures == ()
    assert read.thumbnails is None or len(read.thumbnails.ids) == 0


def test_save_gallery__keeps_the_first_pictures_within_bounds(tmp_path, monkeypatch):
    many = Gallery(tuple(Picture(f"classes/{k}", (Row("", (Tile(image(8, 8)),)),)) for k in range(9)))
    monkeypatch.setattr(gallery_storage, "MAX_PIXELS", 5 * 64)
    save_gallery(many, tmp_path / "gallery.json")
    assert [one.tag for one in load_gallery(tmp_path / "gallery.json").pictures] == [f"classes/{k}" for k in range(5)]
    monkeypatch.setattr(gallery_storage, "MAX_BYTES", 1500)
    save_gallery(many, tmp_path / "gallery.json")
    assert (tmp_path / "gallery.json").stat().st_size <= 1500
    assert 1 <= len(load_gallery(tmp_path / "gallery.json").pictures) < 5


def written_with(tmp_path, uri):
    rows = [{"title": "", "tiles": [{"image": uri}]}]
    (tmp_path / "gallery.json").write_text(json.dumps({"schema": 1, "pictures": [{"tag": "x", "rows": rows}]}))
    return tmp_path / "gallery.json"


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/x.png",
        "data:text/html;base64,PGI+",
        "data:image/png;base64,####",
        "data:image/png;base64,",
        png(3000, 1),
        png(0, 5),
        png(2**31, 2**31),
        png(5, 5),  # says more than it holds
        data_uri(image())[:-40],
    ],
)
def test_load_gallery__hostile_images(tmp_path, uri):
    with pytest.raises(DataError, match="not a valid gallery"):
        load_gallery(written_with(tmp_path, uri))


def test_load_gallery__of_another_format(tmp_path):
    other = io.BytesIO()
    Image.new("RGB", (5, 5)).save(other, format="GIF")
    with pytest.raises(DataError, match="not a PNG"):
        load_gallery(written_with(tmp_path, "data:image/png;base64," + base64.b64encode(other.getvalue()).decode()))


def test_load_gallery__many_small_bombs(tmp_path):
    """Each is small in the file and allowed by itself; all together would take gigabytes."""
    bomb = png(2048, 2048, data=bytes(2048 * (2048 * 3 + 1)))
    rows = [{"title": "", "tiles": [{"image": bomb}] * 500}]
    path = tmp_path / "gallery.json"
    path.write_text(json.dumps({"schema": 1, "pictures": [{"tag": "x", "rows": rows}]}))
    assert path.stat().st_size < 20 * 2**20
    gallery_storage.MAX_PIXELS, kept = 2 * 2048 * 2048, gallery_storage.MAX_PIXELS
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="too large, or all images together"):
            load_gallery(path)
        assert tracemalloc.get_traced_memory()[1] < 150 * 2**20
    finally:
        tracemalloc.stop()
        gallery_storage.MAX_PIXELS = kept


def test_load_gallery__too_large_a_file(tmp_path, monkeypatch):
    save_gallery(gallery(), tmp_path / "gallery.json")
    monkeypatch.setattr(gallery_storage, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="a gallery has at most 100"):
        load_gallery(tmp_path / "gallery.json")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"pictures": 3},
        {"epoch": "x"},
        {"thumbnails": {"ids": [1], "images": []}},
        {"thumbnails": {"ids": [2, 1], "images": [png(5, 5)] * 2}},
        {"thumbnails": {"ids": [2**70], "images": [png(5, 5)]}},
        {"thumbnails": {"ids": [True], "images": [png(5, 5)]}},
        {"thumbnails": {"ids": 1, "images": png(5, 5)}},
        {"thumbnails": {"ids": [1, 2], "images": [data_uri(image()), data_uri(image(3, 3))]}},
    ],
)
def test_load_gallery__wrong_values(tmp_path, change):
    (tmp_path / "gallery.json").write_text(json.dumps({"schema": 1, "pictures": []} | change))
    with pytest.raises(DataError, match="not a valid gallery"):
        load_gallery(tmp_path / "gallery.json")


def test_load_gallery__no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_gallery(tmp_path / "gallery.json")
