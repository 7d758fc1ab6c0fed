"""A tiny task for tests of the callback: 4 classes, 8 x 8 images, a linear classifier, an encoder of colours."""

from __future__ import annotations

import os

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2 as T

from lightning_failures import FailureModes
from lightning_failures.trainer.options import group_options

NORMALIZE = T.Normalize([0.5], [0.25])


class Images(Dataset):
    """Images of which half of each class are dark; a model that relies on brightness confuses them."""

    def __init__(self, size: int = 160, classes: int = 4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(size) % classes
        dark = torch.rand(size, generator=generator) < 0.5
        noise = torch.rand(size, 3, 8, 8, generator=generator)
        self.images = (0.2 + 0.4 * ~dark[:, None, None, None] + 0.3 * noise).clamp(0, 1)
        self.images[:, :, 0, 0] = 0.1 * self.labels[:, None]  # where OracleClassifier reads the label
        self.dark = dark
        self.classes = [f"class {k}" for k in range(classes)]
        self.transform = NORMALIZE

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(self.images[index]), int(self.labels[index])


class ColourEncoder:
    """An encoder of coarse colours and their products that counts the images it embeds."""

    def __init__(self, name: str = "colours") -> None:
        self.name = name
        self.fingerprint = f"tests-{name}"
        self.dim = 12
        self.embedded = 0

    def encode_images(self, images):
        self.embedded += len(images)
        return self.encode_maps(images).mean((2, 3))

    def encode_maps(self, images):
        coarse = F.adaptive_avg_pool2d(images.float(), 4)
        return torch.cat([coarse, coarse**2, coarse.roll(1, 2) * coarse, 1 - coarse], dim=1)


class Classifier(L.LightningModule):
    """A linear classifier with dropout that logs its validation loss."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.dropout(self(x)), y)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def test_step(self, batch, batch_idx):
        x, _y = batch
        self(x)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class OracleClassifier(Classifier):
    """A classifier that is right on bright images and errs on most dark ones: a pattern to find."""

    def forward(self, x):
        pixels = x * 0.25 + 0.5
        return self.net(x) * 0 + self._guess(pixels)

    def _guess(self, pixels):
        labels = (pixels[:, 0, 0, 0] * 10).round().long()
        dark = pixels.mean((1, 2, 3)) < 0.45
        wrong = dark & (pixels[:, 1, 3, 3] * 1000 % 1 < 0.8)
        return 4.0 * F.one_hot((labels + wrong.long()) % 4, 4).float()


def loader(size: int = 160, *, shuffle: bool = False, seed: int = 0, **options) -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    return DataLoader(Images(size, seed=seed), batch_size=16, shuffle=shuffle, generator=generator, **options)


def callback(**options) -> FailureModes:
    defaults = {"encoder": ColourEncoder(), "on_error": "raise", "permutations": 99, "pictures": False}
    return FailureModes(**group_options(defaults | options))


def trainer(tmp_path, *callbacks, **options) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "default_root_dir": tmp_path,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(callbacks=list(callbacks), **(defaults | options))


class OverOneFile:
    """Mixed into a dataset, as if it were over one file: opened at the first look, shared with no other process."""

    opened_by = None

    def __getitem__(self, index):
        self.opened_by = self.opened_by or os.getpid()
        assert self.opened_by == os.getpid()
        return super().__getitem__(index)
