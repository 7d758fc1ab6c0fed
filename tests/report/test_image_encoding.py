"""Images as PNG, JPEG and data URIs. That hostile images are refused: see test_gallery_storage.py."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from lightning_failures.report.image_encoding import data_uri, read_png_uri


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
