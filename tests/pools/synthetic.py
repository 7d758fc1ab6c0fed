"""Embeddings of toy images, computed all at once."""

from __future__ import annotations

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
)

from tests.helpers.toy import ColourEncoder


def unit(images: torch.Tensor) -> torch.Tensor:
    return images * 0.25 + 0.5


def everything(dataset: Dataset, encoder=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and labels of a dataset, all at once."""
    images, labels = next(iter(DataLoader(dataset, batch_size=len(dataset))))
    return (encoder or ColourEncoder()).encode_images(unit(images)), labels
