"""A world with a planted truth: images with a red patch in a corner fail, because of the patch or of something else."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from tests.helpers.toy import NORMALIZE, Classifier

SIDE = 16
CORNER = slice(12, 16)


class Patched(Dataset):
    """Gray noise of two classes; a third of the images has a red patch, and beside it a mark elsewhere.

    The label is written into the first pixel, and the mark into the second one.
    """

    def __init__(self, size: int = 240, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(size) % 2
        self.patched = torch.rand(size, generator=generator) < 0.35
        self.images = 0.3 + 0.2 * torch.rand(size, 1, SIDE, SIDE, generator=generator).expand(-1, 3, -1, -1).clone()
        patch = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        self.images[self.patched, :, CORNER, CORNER] = patch.expand(int(self.patched.sum()), 3, 4, 4)
        self.images[:, :, 0, 0] = 0.1 + 0.5 * self.labels[:, None]
        self.images[:, :, 0, 1] = 0.1 + 0.5 * self.patched[:, None]
        self.classes = ["cat", "dog"]
        self.transform = NORMALIZE

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(self.images[index]), int(self.labels[index])

    def loader(self) -> DataLoader:
        return DataLoader(self, batch_size=32)


class Seeing(Classifier):
    """Reads the label, and errs where it sees the patch; or, if it is ``by_mark``, where it sees the mark instead."""

    def __init__(self, *, by_mark: bool = False) -> None:
        super().__init__(2)
        self.by_mark = by_mark

    def forward(self, x):
        pixels = x * 0.25 + 0.5
        labels = (pixels[:, 0, 0, 0] > 0.35).long()
        corner = pixels[:, :, CORNER, CORNER].mean((2, 3))
        wrong = pixels[:, 0, 0, 1] > 0.35 if self.by_mark else corner[:, 0] - corner[:, 2] > 0.5
        return 4.0 * F.one_hot(labels ^ wrong.long(), 2).float() + 0 * self.dropout.p

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)


class Redness:
    """A robust encoder whose features are how red, or how gray, each quarter of an image is."""

    fingerprint, name, dim = "tests-redness", "redness", 2

    def encode_images(self, images):
        return self.encode_maps(images).mean((2, 3))

    def encode_maps(self, images):
        red = F.avg_pool2d(images.float()[:, :1] - images.float()[:, 2:], 4)
        return torch.cat([red, torch.zeros_like(red)], dim=1)


class Grayness(Redness):
    """The opposite in the corner alone: less of the feature means failure."""

    fingerprint, name = "tests-grayness", "grayness"

    def encode_maps(self, images):
        red = super().encode_maps(images)
        gray = torch.zeros_like(red)
        gray[:, 0, 3, 3] = 1 - red[:, 0, 3, 3]
        return gray
