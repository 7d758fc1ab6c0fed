"""The packaged generator, and a judge of digits that knows neither the generator nor the CLIP behind it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from claims.common import Trained, fit
from lightning_failures.bundled.digits.render import draw_images
from lightning_failures.generators.digits import DigitsGenerator

__all__ = ["generator", "judge", "make", "seeds_of"]

JUDGE_SIZE, JUDGE_SEED = 12000, 1000
BATCH = 64


@cache
def generator() -> DigitsGenerator:
    """Digits from captions, and from embeddings."""
    return DigitsGenerator()


@cache
def judge() -> Trained:
    """A classifier that never saw a shortcut: trained on digits in all looks alike."""
    images, labels, _ = draw_images("train", JUDGE_SIZE, np.random.default_rng(JUDGE_SEED))
    return fit(images, labels, seed=JUDGE_SEED)


def seeds_of(seed: int, class_index: int, count: int) -> list[int]:
    """The seeds of the images of a class, the same for every arm."""
    return [100_000 * seed + 1000 * class_index + i for i in range(count)]


def make(wanted: Sequence[str] | Tensor, seeds: Sequence[int]) -> Tensor:
    """Images (B, 3, 32, 32) uint8 of B prompts, or of embeddings (B, D)."""
    parts = []
    for start in range(0, len(seeds), BATCH):
        some = wanted[start : start + BATCH]
        how = generator().decode if isinstance(some, Tensor) else generator().generate
        parts.append(how(some, seeds[start : start + BATCH]))
    return torch.cat(parts)
