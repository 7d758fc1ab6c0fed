"""The papers' experiments on the user's own copies of their data sets, one command each.

``lightning-failures reproduce NAME --data DIR`` trains the paper's network, with the callback, and writes a page with
the published figures beside what was found. Nothing is downloaded.

Files, each importing only from those above it::

    base      A setting: three data sets, how to train on them, what is planted, what the paper says
    network   ResNet-18 with the papers' schedule, as a LightningModule
    splits    Splits of a data set by seed, and subsamples
    transforms  A mild augmentation for training, none for evaluation
    images    A data set of image files, for layouts that torchvision does not read
    folder    Any folder of images by class
    cifar     CIFAR-10; CIFAR-100 in superclasses with an under-represented sub-class
    celeba    CelebA: age, with gender as a shortcut
    chestxray  ChestX-ray14: 14 conditions, with the view position as metadata
    imagenet  ImageNet; ImageNet with noise
    mnist     Binary Coloured MNIST
    barlow    Failure trees of trained networks on ImageNet
    measure   Train one seed, and measure what the paper measured
    page      The published figures beside what was found, as JSON and HTML
"""

from __future__ import annotations

from collections.abc import Mapping

from lightning_failures.recipes.barlow import IMAGENET_BARLOW
from lightning_failures.recipes.base import Recipe
from lightning_failures.recipes.celeba import CELEBA
from lightning_failures.recipes.chestxray import CHESTXRAY14
from lightning_failures.recipes.cifar import CIFAR10, CIFAR100
from lightning_failures.recipes.folder import FOLDER
from lightning_failures.recipes.imagenet import IMAGENET_C, IMAGENET_RECIPE
from lightning_failures.recipes.mnist import COLOURED_MNIST

__all__ = ["RECIPES", "Recipe"]

RECIPES: Mapping[str, Recipe] = {
    one.name: one
    for one in (
        FOLDER, CELEBA, CIFAR100, CIFAR10, CHESTXRAY14, IMAGENET_RECIPE, IMAGENET_BARLOW, COLOURED_MNIST, IMAGENET_C,
    )
}  # fmt: skip
"""All recipes by name."""
