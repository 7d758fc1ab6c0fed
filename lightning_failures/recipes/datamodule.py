"""The data of a recipe as a LightningDataModule, and its network as a module, for configs of ``fit``."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from lightning_failures.errors import ConfigurationError, did_you_mean
from lightning_failures.recipes.base import Recipe, Setting
from lightning_failures.recipes.celeba import CELEBA
from lightning_failures.recipes.chestxray import CHESTXRAY14
from lightning_failures.recipes.cifar import CIFAR10, CIFAR100
from lightning_failures.recipes.folder import FOLDER
from lightning_failures.recipes.imagenet import IMAGENET_C, IMAGENET_RECIPE
from lightning_failures.recipes.mnist import COLOURED_MNIST
from lightning_failures.recipes.training import batches

TRAINED: dict[str, Recipe] = {
    one.name: one
    for one in (FOLDER, CELEBA, CIFAR100, CIFAR10, CHESTXRAY14, IMAGENET_RECIPE, COLOURED_MNIST, IMAGENET_C)
}
"""The recipes that train a network, by name."""


class RecipeData(L.LightningDataModule):
    """Training, validation and test loaders of a recipe; the loader of predictions yields its pool.

    Args:
        name: Name of the recipe.
        data: Folder of the data set; nothing is downloaded.
        seed: Seed of the split.
        quick: Whether a tenth of the data is enough.
        variant: Another distribution of the data; None: the recipe's first one.
        workers: Processes that load images.

    Raises:
        ConfigurationError: There is no such recipe.
    """

    def __init__(
        self,
        name: str,
        data: str,
        *,
        seed: int = 0,
        quick: bool = False,
        variant: str | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__()
        if name not in TRAINED:
            raise ConfigurationError(
                f"There is no recipe {name!r} that trains a network.{did_you_mean(name, list(TRAINED))} Recipes:"
                f" {', '.join(TRAINED)}."
            )
        self.recipe, self.folder = TRAINED[name], Path(data).expanduser()
        self.seed, self.quick, self.variant, self.workers = seed, quick, variant, workers

    @cached_property
    def setting(self) -> Setting:
        """What is trained and analysed; the folder is read at first use.

        Raises:
            ConfigurationError: The folder is of another form.
        """
        return self.recipe.prepare(self.folder, self.seed, self.quick, self.variant)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled loader of the training set."""
        return batches(self.setting.train, self.setting, shuffle=True, workers=self.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the validation set."""
        return batches(self.setting.validation, self.setting, workers=self.workers)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the test set."""
        return batches(self.setting.test, self.setting, workers=self.workers)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the pool.

        Raises:
            ConfigurationError: The recipe, or its variant, has none.
        """
        if self.setting.pool is None:
            raise ConfigurationError(f"{self.recipe.name} has no pool in this variant.")
        return batches(self.setting.pool.plain, self.setting, workers=self.workers)
