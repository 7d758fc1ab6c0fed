"""Three rows of pictures for each feature, of any network that gives maps and gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from lightning_failures.encoders import ModuleEncoder
from lightning_failures.recipes.parts.feature_sheet import IMAGES, ShownFeature, feature_sheet


def test_sheet__rows_of_images_maps_and_attacks():
    torch.manual_seed(0)
    encoder = ModuleEncoder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "1")
    images = torch.rand(9, 3, 16, 16)
    values = encoder.encode_images(images)[:, 2]
    asked = []

    def read(rows):
        asked.extend(rows.tolist())
        return images[torch.from_numpy(rows)]

    shown = [ShownFeature("bag, robust network", encoder, 2, values, np.arange(9)) for _ in range(2)]
    sheet = feature_sheet(shown, read, steps=3)
    assert (sheet.dtype, sheet.shape[0]) == (torch.uint8, 3)
    assert sheet.shape[1] > 6 * 96
    assert asked[:IMAGES] == values.argsort(descending=True)[:IMAGES].tolist()
