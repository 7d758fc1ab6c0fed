"""A task with a planted shortcut: the tint of an image agrees with its class in training, but not in validation."""

from __future__ import annotations

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset


class Tinted(Dataset):
    """Images of two classes: a noisy mark shows the class, and a bright tint agrees with it in a share of the images.

    Args:
        size: Number of images.
        agreeing: Share of images whose tint agrees with their class.
        seed: Seed of everything.
    """

    def __init__(self, size: int = 600, agreeing: float = 0.95, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(size) % 2
        self.odd = torch.rand(size, generator=generator) >= agreeing
        tint = self.labels ^ self.odd.long()
        self.images = 0.3 + 0.1 * torch.rand(size, 3, 8, 8, generator=generator)
        self.images[:, 1] += 0.3 * tint[:, None, None]
        mark = 0.15 * (2.0 * self.labels - 1) + 0.1 * torch.randn(size, generator=generator)
        self.images[:, 0, :4, :4] += mark[:, None, None]
        self.images.clamp_(0, 1)
        self.classes = ["low", "high"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.images[index], int(self.labels[index])


class TwoLayers(L.LightningModule):
    """A small network whose last layer is ``fc``.

    Args:
        outputs: Number of logits: 2, or 1.
    """

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU())
        self.fc = nn.Linear(16, outputs)

    def forward(self, x):
        return self.fc(self.body(x))

    def loss(self, batch):
        x, y = batch
        logits = self(x)
        if logits.shape[1] == 1:
            return F.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits.dtype))
        return F.cross_entropy(logits, y)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def tinted_loaders(size: int = 600) -> tuple[DataLoader, DataLoader]:
    """Return a training loader with the shortcut, and a validation loader without it."""
    return (
        DataLoader(Tinted(size), batch_size=32, shuffle=True),
        DataLoader(Tinted(size, agreeing=0.5, seed=1), batch_size=64),
    )


class Conditions(Tinted):
    """Images with two conditions: a mark, whose label is unknown for some, and a tint."""

    def __init__(self, size: int, **options) -> None:
        super().__init__(size, **options)
        tint = self.labels ^ self.odd.long()
        self.conditions = torch.stack([self.labels, tint], 1).float()
        self.conditions[::7, 0] = -1
        self.classes = ["mark", "tint"]

    def __getitem__(self, index: int):
        return self.images[index], self.conditions[index]


class Multilabel(TwoLayers):
    """A network with a logit for each of two conditions."""

    def loss(self, batch):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y.clamp(min=0), weight=(y >= 0).float())


def condition_loaders(size: int = 400) -> tuple[DataLoader, DataLoader]:
    """Return a training loader in which the tint agrees with the mark, and a validation loader without that."""
    return (
        DataLoader(Conditions(size), batch_size=32, shuffle=True),
        DataLoader(Conditions(size, agreeing=0.5, seed=1), batch_size=64),
    )
