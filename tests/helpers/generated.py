"""A generator of marked images, and a model that counts them in its batches."""

from __future__ import annotations

import torch

from tests.helpers.toy import NORMALIZE, OracleClassifier

MARK = 1.0  # of one pixel: only generated images have it


def draw(prompts, seeds):
    """Return dark noise, which resembles the images that fail."""
    rows = [torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    images = 0.2 + 0.3 * torch.stack(rows)
    images[:, 2, 7, 7] = MARK
    return images


def from_pil(image):
    pixels = torch.tensor(list(image.tobytes()), dtype=torch.float32).reshape(8, 8, 3).permute(2, 0, 1) / 255
    return NORMALIZE(pixels)


class Counts(OracleClassifier):
    """A model that records the labels of the generated images of each epoch, and the epoch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.generated: dict[int, list[int]] = {}
        self.sizes: dict[int, int] = {}

    def training_step(self, batch, batch_idx):
        x, y = batch
        marked = (x[:, 2, 7, 7] * 0.25 + 0.5 - MARK).abs() < 0.005
        self.generated.setdefault(self.current_epoch, []).extend(y[marked].tolist())
        self.sizes[self.current_epoch] = self.sizes.get(self.current_epoch, 0) + len(x)
        return super().training_step(batch, batch_idx)
