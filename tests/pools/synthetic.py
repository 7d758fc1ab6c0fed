"""Embeddings of toy images, computed all at once; directions and rows of a pool, drawn at random."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_failures.directions import fit_failure_directions
from lightning_failures.pools import PoolShard
from lightning_failures.pools.shards import round_to_half
from tests.helpers.toy import ColourEncoder

DIM, CLASSES = 6, 4


def unit(images: torch.Tensor) -> torch.Tensor:
    return images * 0.25 + 0.5


def everything(dataset: Dataset, encoder=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and labels of a dataset, all at once."""
    images, labels = next(iter(DataLoader(dataset, batch_size=len(dataset))))
    return (encoder or ColourEncoder()).encode_images(unit(images)), labels


def fitted(seed: int = 0):
    """Directions of three of four classes: the last one has too few failures."""
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(400, DIM)), np.arange(400) % CLASSES
    correct = x[:, 0] + 0.3 * rng.normal(size=400) > 0
    correct[labels == CLASSES - 1] = True
    return fit_failure_directions(x, labels, correct, permutations=99)


def rows(size: int, seed: int = 1) -> PoolShard:
    generator = torch.Generator().manual_seed(seed)
    return PoolShard(
        ids=torch.arange(size),
        labels=torch.randint(CLASSES, (size,), generator=generator),
        keys=torch.randint(-(2**62), 2**62, (size, 2), generator=generator),
        embeddings=round_to_half(torch.randn(size, DIM, generator=generator)),
    )
