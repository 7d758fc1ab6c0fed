"""The pictures of an analysis in one JSON file, images as PNG: written within bounds, and read with suspicion.

The file may have come from anywhere (reports are attached to tickets), so nothing in it is believed: sizes are checked
before anything is decoded, and whatever is wrong with it is one error.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.serialization import from_jsonable, read_json
from lightning_failures.errors import DataError
from lightning_failures.report.gallery import Gallery, Picture, Row, Thumbnails, Tile

MAX_BYTES = 1 << 28
"""Of the file: 256 MiB."""

MAX_SIDE = 2048
"""Pixels of one side of an image."""

MAX_PIXELS = 1 << 26
"""Of all images together: some 7,000 tiles of 96 x 96, or 200 MB in memory."""

_SCHEMA = 1
_PREFIX = "data:image/png;base64,"


@dataclass(frozen=True)
class _Tile:
    """Tile in the file; so the next."""

    image: str
    text: str = ""
    id: int | None = None


@dataclass(frozen=True)
class _Row:
    title: str
    tiles: tuple[_Tile, ...]


@dataclass(frozen=True)
class _Picture:
    tag: str
    rows: tuple[_Row, ...]
    caption: str = ""


@dataclass(frozen=True)
class _Thumbnails:
    ids: tuple[int, ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class _Gallery:
    schema: int
    pictures: tuple[_Picture, ...] = ()
    thumbnails: _Thumbnails | None = None
    epoch: int | None = None
    global_step: int | None = None


def save_gallery(gallery: Gallery, path: str | Path) -> None:
    """Write a gallery, atomically. Embeddings are left out, and the last pictures if they are more than a file holds.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "gallery.json"
    >>> tile = Tile(torch.full((3, 4, 5), 7, dtype=torch.uint8), "seven", 3)
    >>> save_gallery(Gallery((Picture("classes/cat", (Row("hardest", (tile,)),)),), epoch=2), place)
    >>> load_gallery(place).pictures[0].rows[0].tiles[0].image.shape
    torch.Size([3, 4, 5])
    """
    thumbnails = gallery.thumbnails
    written: dict[str, Any] = {"schema": _SCHEMA, "epoch": gallery.epoch, "global_step": gallery.global_step}
    if thumbnails is not None:
        images = [data_uri(image) for image in thumbnails.images]
        written["thumbnails"] = {"ids": thumbnails.ids.tolist(), "images": images}
    left, pixels = MAX_BYTES - len(json.dumps(written)) - 100, 0 if thumbnails is None else _pixels(thumbnails.images)
    pictures = []
    for picture in gallery.pictures:
        plain = {
            "tag": picture.tag,
            "caption": picture.caption,
            "rows": [
                {
                    "title": row.title,
                    "tiles": [{"image": data_uri(tile.image), "text": tile.text, "id": tile.id} for tile in row.tiles],
                }
                for row in picture.rows
            ],
        }
        left -= len(json.dumps(plain)) + 2
        pixels += sum(_pixels(tile.image) for row in picture.rows for tile in row.tiles)
        if left < 0 or pixels > MAX_PIXELS:
            break
        pictures.append(plain)
    write_atomically(Path(path), (json.dumps(written | {"pictures": pictures}) + "\n").encode())


def load_gallery(path: str | Path) -> Gallery:
    """Read what :func:`save_gallery` wrote.

    Raises:
        DataError: The file is of another kind, damaged, or too large to have been written by it.
        OSError: It cannot be read.
    """
    path = Path(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path} holds {size} bytes, no gallery more than {MAX_BYTES}")
    text = path.read_bytes()
    try:
        stored = from_jsonable(_Gallery, read_json(text))
        if stored.schema != _SCHEMA:
            raise ValueError(f"schema {stored.schema}; this version reads {_SCHEMA}")
        return _decoded(stored)
    except Exception as error:  # whatever Pillow makes of a damaged image
        raise DataError(f"{path} holds no pictures ({str(error)[:200]})") from error


def data_uri(image: Tensor) -> str:
    """(3, h, w) uint8 -> a PNG that can stand in HTML or JSON.

    >>> data_uri(torch.zeros(3, 2, 2, dtype=torch.uint8))[:22]
    'data:image/png;base64,'
    """
    return _PREFIX + base64.b64encode(to_png(image)).decode()


def to_png(image: Tensor) -> bytes:
    """(3, h, w) uint8 -> a PNG, a seventh larger than it could be, in a third of the time."""
    png = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(png, format="PNG", compress_level=2)
    return png.getvalue()


def _decoded(stored: _Gallery) -> Gallery:
    encoded = [tile.image for picture in stored.pictures for row in picture.rows for tile in row.tiles]
    small = stored.thumbnails
    images = _images([*([] if small is None else small.images), *encoded])
    thumbnails = None
    if small is not None:
        ids = torch.tensor(small.ids, dtype=torch.int64)
        if len(ids) != len(small.images) or bool((ids.diff() <= 0).any()):
            raise ValueError("the ids of its thumbnails do not ascend, or are not as many")
        thumbnails = Thumbnails(ids, torch.stack([next(images) for _ in small.ids]) if len(ids) else _NONE)
    pictures = tuple(
        Picture(
            picture.tag,
            tuple(
                Row(row.title, tuple(Tile(next(images), tile.text, tile.id) for tile in row.tiles))
                for row in picture.rows
            ),
            picture.caption,
        )
        for picture in stored.pictures
    )
    return Gallery(pictures, thumbnails, stored.epoch, stored.global_step)


_NONE = torch.empty(0, 3, 1, 1, dtype=torch.uint8)


def _images(encoded: list[str]) -> Iterator[Tensor]:
    """Decode one after the other, (3, h, w) uint8 each, as long as all together are not too large."""
    left = MAX_PIXELS
    for uri in encoded:
        if not uri.startswith(_PREFIX):
            raise ValueError("an image is no PNG")
        data = base64.b64decode(uri[len(_PREFIX) :], validate=True)
        if data[12:16] != b"IHDR":  # the chunk that tells width and height has to be the first
            raise ValueError("an image is no PNG")
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        left -= width * height
        if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE or left < 0:
            raise ValueError(f"an image of {width} x {height} is too large, or all together are")
        with Image.open(BytesIO(data), formats=("PNG",)) as image:
            if image.size != (width, height):
                raise ValueError("an image tells its size twice")
            pixels = np.array(image.convert("RGB"))
        yield torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _pixels(images: Tensor) -> int:
    """(..., 3, h, w) -> n * h * w."""
    return images.numel() // 3
