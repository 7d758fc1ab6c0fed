"""The gallery of an analysis as one JSON file with images as PNG, bounded when written and validated when read.

The file may have come from anywhere (reports are attached to tickets), so all of it is untrusted: sizes are checked
before anything is decoded, and every defect is one :class:`~lightning_failures.errors.DataError`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.serialization import Codec, from_jsonable, read_json, to_jsonable
from lightning_failures.errors import DataError
from lightning_failures.report.gallery import Gallery, Thumbnails
from lightning_failures.report.image_encoding import ImageEncoder, read_png_uri

MAX_BYTES = 1 << 28
"""Most bytes of the file: 256 MiB."""

MAX_PIXELS = 1 << 26
"""Most pixels of all images together: some 7,000 tiles of 96 x 96, or 200 MB in memory."""

_SCHEMA = 1


@dataclass(frozen=True)
class _Header:
    """The part of the file that :class:`Gallery` does not hold."""

    schema: int


def save_gallery(gallery: Gallery, path: str | Path) -> None:
    """Write a gallery, atomically. Embeddings are left out, as are the last pictures if the file would get too large.

    >>> import tempfile
    >>> from lightning_failures.report.gallery import Picture, Row, Tile
    >>> place = Path(tempfile.mkdtemp()) / "gallery.json"
    >>> tile = Tile(torch.full((3, 4, 5), 7, dtype=torch.uint8), "seven", 3)
    >>> save_gallery(Gallery((Picture("classes/cat", (Row("hardest", (tile,)),)),), epoch=2), place)
    >>> load_gallery(place).pictures[0].rows[0].tiles[0].image.shape
    torch.Size([3, 4, 5])
    """
    codecs = _codecs(gallery.encoder)
    stored: dict[str, Any] = {"schema": _SCHEMA, "epoch": gallery.epoch, "global_step": gallery.global_step}
    pixels = 0
    if gallery.thumbnails is not None:
        encoded = to_jsonable(replace(gallery.thumbnails, embeddings=None), codecs)
        stored["thumbnails"] = {key: encoded[key] for key in ("ids", "images", "places") if encoded[key] is not None}
        pixels = _pixels(gallery.thumbnails.images)

    bytes_left = MAX_BYTES - len(json.dumps(stored)) - 100
    pictures = []
    for picture in gallery.pictures:
        encoded = to_jsonable(picture, codecs)
        bytes_left -= len(json.dumps(encoded)) + 2
        pixels += sum(_pixels(tile.image) for row in picture.rows for tile in row.tiles)
        if bytes_left < 0 or pixels > MAX_PIXELS:
            break
        pictures.append(encoded)
    write_atomically(Path(path), (json.dumps(stored | {"pictures": pictures}) + "\n").encode())


def load_gallery(path: str | Path) -> Gallery:
    """Read what :func:`save_gallery` wrote.

    Raises:
        DataError: The file is not a gallery, damaged, or larger than a gallery can be.
        OSError: The file cannot be read.
    """
    path = Path(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path} has {size} bytes; a gallery has at most {MAX_BYTES}")
    text = path.read_bytes()
    try:
        data = read_json(text)
        schema = from_jsonable(_Header, data).schema
        if schema != _SCHEMA:
            raise ValueError(f"schema {schema}; this version reads {_SCHEMA}")
        gallery = from_jsonable(Gallery, data, _codecs(ImageEncoder(), max_pixels=MAX_PIXELS))
        _check_thumbnails(gallery.thumbnails)
        return gallery
    except Exception as error:  # Pillow raises errors of many types for damaged images
        raise DataError(f"{path} is not a valid gallery ({str(error)[:200]})") from error


def _check_thumbnails(thumbnails: Thumbnails | None) -> None:
    if thumbnails is None:
        return
    ids, places = thumbnails.ids, thumbnails.places
    if len(ids) != len(thumbnails.images) or bool((ids.diff() <= 0).any()):
        raise ValueError("the ids of its thumbnails do not ascend, or are more or fewer than the images")
    if places is not None and len(places) != len(ids):
        raise ValueError("the places of its thumbnails are more or fewer than the images")


class _Decoder:
    """Decodes the images of one file until they have ``pixels_left`` pixels in total."""

    def __init__(self, pixels_left: int) -> None:
        self._pixels_left = pixels_left

    def image(self, uri: Any) -> Tensor:
        if not isinstance(uri, str):
            raise ValueError("an image is not a text")
        image = read_png_uri(uri, max_pixels=self._pixels_left)
        self._pixels_left -= _pixels(image)
        return image

    def images(self, uris: Any) -> Tensor:
        if not isinstance(uris, list):
            raise ValueError("images are not a list")
        return torch.stack([self.image(uri) for uri in uris]) if uris else torch.empty(0, 3, 1, 1, dtype=torch.uint8)


def _decode_ids(ids: Any) -> Tensor:
    if not isinstance(ids, list) or any(type(one) is not int for one in ids):
        raise ValueError("ids are not a list of integers")
    return torch.tensor(ids, dtype=torch.int64)


def _encode_places(places: Tensor) -> list[list[int] | None]:
    """Return places in thousandths; None where there is none."""
    return [None if one[0] != one[0] else [round(1000 * value) for value in one] for one in places.tolist()]


def _decode_places(places: Any) -> Tensor:
    if not isinstance(places, list):
        raise ValueError("places are not a list")
    for one in places:
        pair = isinstance(one, list) and len(one) == 2 and all(type(v) is int and 0 <= v <= 1000 for v in one)
        if one is not None and not pair:
            raise ValueError("a place is not a pair of thousandths")
    nowhere = [float("nan")] * 2
    return torch.tensor([nowhere if one is None else [v / 1000 for v in one] for one in places]).reshape(-1, 2)


def _codecs(encoder: ImageEncoder, *, max_pixels: int = 0) -> dict[str, Codec]:
    """Return the codecs for one file; when it is read, its images together have at most ``max_pixels`` pixels."""
    decoder = _Decoder(max_pixels)
    return {
        "image": Codec(encoder.uri, decoder.image),
        "images": Codec(lambda images: [encoder.uri(image) for image in images], decoder.images),
        "ids": Codec(Tensor.tolist, _decode_ids),
        "places": Codec(_encode_places, _decode_places),
    }


def _pixels(images: Tensor) -> int:
    """(..., 3, h, w) -> n * h * w."""
    return images.numel() // 3
