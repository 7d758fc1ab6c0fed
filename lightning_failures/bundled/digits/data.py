"""Coloured digits as a data set and as a data module."""

from __future__ import annotations

import dataclasses

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lightning_failures.bundled.digits.render import (
    BACKGROUNDS,
    CLASSES,
    POSTURES,
    SPLITS,
    STROKES,
    TINTS,
    DigitSplit,
    Looks,
    draw_looks,
    render,
    source_digits,
    source_split,
)
from lightning_failures.bundled.digits.shortcut import draw_tints, plant_shortcut
from lightning_failures.errors import ConfigurationError, DataError

_MEAN = (0.52, 0.48, 0.47)
_STD = (0.38, 0.39, 0.38)


class ColouredDigits(Dataset[tuple[Tensor, int]]):
    """Rendered digits of one split. An item is ``(image, label)``: (3, 32, 32) float32, normalised, and an int.

    Equal arguments give bit-identical images. The classes are equally frequent.

    Args:
        split: The source digits to use: ``"train"``, ``"validation"`` or ``"test"``. The shortcut holds in
            ``"train"``; in the other splits half of the images of a digit with a shortcut show its usual tint.
        size: Number of images. A source digit appears in several.
        seed: Seed of the shortcut (the same for all splits) and of the images (different in each split).
        shortcut: Probability of the usual tint in training, 0.5 (nothing to learn) to 0.99.
        draw: Number of the draw; each has other images of the same split, with the same shortcut.

    Attributes:
        classes: Ten names, "zero" to "nine".
        labels: (N,) int64.
        images: (N, 3, 32, 32) uint8, before ``transform``.
        groups: (N,) int64, the source digit of each image; images of one source are not independent.
        attributes: Tint, background, stroke and posture of each image, as indices; not used for training.
        tint, background, stroke, posture: The N attributes as words, for ``DataOptions(metadata=["tint", ...])``.
        truth: For each class ``{"usual_tint": ..., "unusual_tint": ...}``, or None if it has no shortcut.
        transform: Turns a uint8 image into the input of a model.

    Raises:
        ConfigurationError: ``shortcut`` or ``split`` is out of range.

    >>> digits = ColouredDigits("train", size=20, seed=0, shortcut=0.95)
    >>> image, label = digits[0]
    >>> image.shape, digits.classes[label] in digits.classes
    (torch.Size([3, 32, 32]), True)
    """

    def __init__(
        self, split: DigitSplit, *, size: int = 4000, seed: int = 0, shortcut: float = 0.95, draw: int = 0
    ) -> None:
        if split not in SPLITS:
            raise ConfigurationError(f"ColouredDigits: split must be one of {', '.join(SPLITS)}; got {split!r}.")
        if not 0.5 <= shortcut <= 0.99:
            raise ConfigurationError(f"ColouredDigits: shortcut must be in 0.5 ... 0.99; got {shortcut}.")
        planted = plant_shortcut(np.random.default_rng([seed, len(SPLITS)]))
        rng = np.random.default_rng([seed, SPLITS.index(split), *([draw] if draw else [])])

        self.classes = list(CLASSES)
        self.groups = _balanced_sources(split, size, rng)
        self.labels = source_digits()[1][self.groups]
        tint = draw_tints(self.labels, planted, shortcut if split == "train" else 0.5, rng)
        self.attributes: Looks = dataclasses.replace(draw_looks(size, rng), tint=tint)
        self.tint = [tuple(TINTS)[k] for k in self.attributes.tint.tolist()]
        self.background = [tuple(BACKGROUNDS)[k] for k in self.attributes.background.tolist()]
        self.stroke = [STROKES[k] for k in self.attributes.stroke.tolist()]
        self.posture = [POSTURES[k] for k in self.attributes.posture.tolist()]
        self.images = render(source_digits()[0][self.groups], self.attributes, rng)
        self.truth = planted.truth()
        self.transform = transforms.Compose(
            [transforms.ConvertImageDtype(torch.float32), transforms.Normalize(_MEAN, _STD)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def _balanced_sources(split: DigitSplit, size: int, rng: np.random.Generator) -> Tensor:
    """Draw indices (size,) of source digits, in random order, with class counts that differ by at most one."""
    sources = source_split(split)
    labels = source_digits()[1][sources]
    wanted = rng.permutation(np.arange(size) % len(CLASSES))
    chosen = np.empty(size, dtype=np.int64)
    for digit in range(len(CLASSES)):
        mine = wanted == digit
        chosen[mine] = rng.choice(sources[labels == digit].numpy(), size=mine.sum())
    return torch.from_numpy(chosen)


class ColouredDigitsDataModule(L.LightningDataModule):
    """Train, validation, test and predict loaders of :class:`ColouredDigits`.

    The predict loader yields a pool: other images of the training digits, half of them with the usual tint.

    Args:
        seed: See :class:`ColouredDigits`; also the seed of the order of training images.
        shortcut: Strength of the shortcut in training, 0.5 to 0.99.
        train_size: Number of training images.
        val_size: Number of validation images.
        test_size: Number of test images.
        pool_size: Number of images of the pool.
        batch_size: Examples in a batch.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        shortcut: float = 0.95,
        train_size: int = 4000,
        val_size: int = 4000,
        test_size: int = 4000,
        pool_size: int = 4000,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.seed, self.shortcut, self.batch_size = seed, shortcut, batch_size
        self.sizes: dict[DigitSplit, int] = {"train": train_size, "validation": val_size, "test": test_size}
        self.sets: dict[DigitSplit, ColouredDigits] = {}
        self.pool_size = pool_size
        self.pool: ColouredDigits | None = None

    def setup(self, stage: str | None = None) -> None:
        """Render the images of the stage, unless they were rendered before."""
        needed: dict[str | None, tuple[DigitSplit, ...]] = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": ("test",),
            "predict": (),
            None: SPLITS,
        }
        for split in needed[stage]:
            if split not in self.sets:
                self.sets[split] = ColouredDigits(split, size=self.sizes[split], seed=self.seed, shortcut=self.shortcut)
        if stage in ("predict", None) and self.pool is None:
            self.pool = ColouredDigits("train", size=self.pool_size, seed=self.seed, shortcut=0.5, draw=1)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the training loader, shuffled by its own generator."""
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.sets["train"], batch_size=self.batch_size, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the validation loader, in the order of the data set."""
        return DataLoader(self.sets["validation"], batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the test loader, in the order of the data set."""
        return DataLoader(self.sets["test"], batch_size=self.batch_size)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the loader of the pool, in the order of the data set."""
        if self.pool is None:
            raise DataError("There is no pool before setup(). Let a Trainer call it, or call setup('predict').")
        return DataLoader(self.pool, batch_size=self.batch_size)
