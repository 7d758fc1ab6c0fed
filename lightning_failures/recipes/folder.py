"""Any folder of images by class: the first thing that people try on their own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2 as T

from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes.base import Recipe, Schedule, Setting
from lightning_failures.recipes.splits import every_tenth, stratified_split
from lightning_failures.recipes.transforms import IMAGENET, for_evaluation, for_training

SIZE = 64
SHARES, SHARES_OF_FEW = (0.6, 0.2, 0.2), (0.4, 0.4, 0.2)
FEW = 200
"""Images of a usual class below which more of them validate: a class is analysed from ten failures on."""

MOST_EPOCHS, STEPS = 60, 3000
"""Number of epochs and of steps that a training takes at most."""

NAMES = {"train": ("train", "training"), "validation": ("val", "valid", "validation", "dev"), "test": ("test",)}


def folder_setting(data: Path, seed: int, quick: bool) -> Setting:
    """Read ``data/train``, ``data/val`` and ``data/test``, or split ``data`` itself 60 / 20 / 20 by class.

    Small folders are split 40 / 40 / 20. Without a test folder, validation serves as test.
    """
    found = {
        part: next((data / name for name in names if (data / name).is_dir()), None) for part, names in NAMES.items()
    }
    if found["train"] is not None and found["validation"] is not None:
        train = _read(found["train"], training=True)
        validation = _read(found["validation"], training=False)
        test = validation if found["test"] is None else _read(found["test"], training=False)
        classes = train.classes
        for other in (validation, test):
            if other.classes != classes:
                raise ConfigurationError(
                    f"{other.root} holds the classes {other.classes[:9]}, but {train.root} holds {classes[:9]}: the"
                    " folders of classes must have the same names."
                )
        rows = [every_tenth(np.arange(len(part)), quick) for part in (train, validation, test)]
        parts = [Subset(part, some.tolist()) for part, some in zip((train, validation, test), rows, strict=True)]
    else:
        train, plain = _read(data, training=True), _read(data, training=False)
        classes = train.classes
        shares = SHARES_OF_FEW if np.median(np.bincount(train.targets)) < FEW else SHARES
        split = stratified_split(train.targets, shares, seed)
        parts = [
            Subset(source, every_tenth(rows, quick).tolist())
            for source, rows in zip((train, plain, plain), split, strict=True)
        ]
    if len(classes) < 2:
        raise ConfigurationError(f"{data} holds one class, {classes[0]!r}: a classifier needs two folders of images.")
    batch_size = max(8, min(64, len(parts[0]) // 16))
    epochs = max(10, min(MOST_EPOCHS, STEPS // max(len(parts[0]) // batch_size, 1)))
    return Setting(
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        class_names=tuple(classes),
        schedule=Schedule(epochs, learning_rate=0.05 * batch_size / 64, peak_epoch=2, batch_size=batch_size),
        size=SIZE,
        statistics=IMAGENET,
        complete=not quick,
    )


def _read(folder: Path, *, training: bool) -> Any:
    transform: T.Compose = for_training(SIZE) if training else for_evaluation(SIZE)
    try:
        return ImageFolder(str(folder), transform)
    except (FileNotFoundError, OSError) as error:
        raise ConfigurationError(
            f"{folder} is no folder of images: it must hold one folder for each class, each with images, or train/ and"
            f" val/ of this form ({str(error)[:200]})"
        ) from error


FOLDER = Recipe(
    name="folder",
    summary="any folder of images by class: train a ResNet-18 with the callback, and write the report",
    data="one folder of images for each class, or train/ and val/ (and test/) that hold such folders",
    source="",
    claims=(),
    setting=folder_setting,
)
