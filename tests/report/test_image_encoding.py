"""Images as PNG, JPEG and data URIs. That hostile images are refused: see test_gallery_storage.py."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_failures.report.image_encoding import ImageEncoder, data_uri, read_png_uri


def decoded(uri):
    head, body = uri.split(",")
    return head, np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB"))


def test_data_uri__flat_images_are_exact():
    image = torch.zeros(3, 20, 12, dtype=torch.uint8)
    image[0, :, 5:] = 200
    head, pixels = decoded(data_uri(image, lossless=False))
    assert head == "data:image/png;base64"
    assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())


def test_data_uri__photos_are_smaller_and_near():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    image = (torch.stack([2 * x + y, 3 * y, x + y]) + 3 * noise).clamp(0, 255).to(torch.uint8)
    head, pixels = decoded(data_uri(image, lossless=False))
    assert head == "data:image/jpeg;base64"
    assert np.abs(pixels.astype(float) - image.permute(1, 2, 0).numpy()).mean() < 6


def test_data_uri__lossless_is_the_image():
    image = torch.randint(0, 256, (3, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    head, pixels = decoded(data_uri(image))
    assert head == "data:image/png;base64"
    assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())
    assert torch.equal(read_png_uri(data_uri(image), max_pixels=30), image)


def test_image_encoder__equal_images_are_compressed_once(monkeypatch):
    compressed = []
    save = Image.Image.save
    monkeypatch.setattr(
        Image.Image, "save", lambda *args, **how: compressed.append(how["format"]) or save(*args, **how)
    )
    photo = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    encoder = ImageEncoder()
    uris = [encoder.uri(image, lossless=lossless) for image in (photo, photo.clone()) for lossless in (True, False)]
    assert compressed == ["PNG", "JPEG"]
    assert uris == 2 * [data_uri(photo), data_uri(photo, lossless=False)]


def test_image_encoder__images_of_other_shapes_or_pixels_differ():
    encoder, flat = ImageEncoder(), torch.zeros(3, 2, 8, dtype=torch.uint8)
    brighter = flat.clone()
    brighter[0, 1, 7] = 1
    assert len({encoder.uri(image) for image in (flat, flat.reshape(3, 8, 2), flat.reshape(3, 4, 4), brighter)}) == 4


@pytest.mark.parametrize("side", [12, 64])
def test_data_uri__jpeg_only_where_there_is_something_to_gain(side):
    """A lossless image of up to a kilobyte stays one, as small JPEGs are mostly tables."""
    noise = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert data_uri(noise, lossless=False).startswith(f"data:image/{'png' if side == 12 else 'jpeg'}")
