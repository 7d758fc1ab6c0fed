"""Transforms of the recipes: a mild augmentation for training, none for evaluation, both normalised alike."""

from __future__ import annotations

from typing import Any

import torch
from torchvision.transforms import v2 as T

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def for_training(size: int, statistics: Any = IMAGENET, *, padding: int | None = None) -> T.Compose:
    """Return a random crop and flip: of a padded image, or else of 70 to 100 % of it, resized."""
    crop = T.RandomResizedCrop(size, (0.7, 1.0), antialias=True) if padding is None else T.RandomCrop(size, padding)
    return _finished(statistics, crop, T.RandomHorizontalFlip())


def for_evaluation(size: int, statistics: Any = IMAGENET, *, resized: int | None = None) -> T.Compose:
    """Return the centre of an image whose short edge is resized, to ``size`` unless given."""
    return _finished(statistics, T.Resize(resized or size, antialias=True), T.CenterCrop(size))


def _finished(statistics: Any, *steps: Any) -> T.Compose:
    return T.Compose([T.ToImage(), *steps, T.RGB(), T.ToDtype(torch.float32, scale=True), T.Normalize(*statistics)])
