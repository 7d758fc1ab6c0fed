"""The papers' experiments on the user's own copies of their data sets, one command each.

``lightning-failures reproduce NAME --data DIR`` trains the paper's network, with the callback, and writes a page with
the published figures beside what was found. Nothing is downloaded.

Files, each importing only from those above it::

    base      A setting: three data sets, how to train on them, what is planted, what the paper says
    network   The papers' networks and their schedule, as a LightningModule
    splits    Splits of a data set by seed, and subsamples
    transforms  A mild augmentation for training, none for evaluation
    images    A data set of image files, for layouts that torchvision does not read
    figures   What the papers measure, of one trained network and its analysis
    training  Train the network of a setting, and ask a network for its answers
    measure   Train one seed with the callback, and measure what the paper measured
    parts     Further experiments of a paper on the same trained network
    folder    Any folder of images by class
    cifar     CIFAR-10; CIFAR-100 in superclasses with an under-represented sub-class
    celeba    CelebA: age, with gender as a shortcut
    chestxray  ChestX-ray14: 14 conditions, with the view position as metadata
    imagenet  ImageNet; ImageNet with noise
    mnist     Binary Coloured MNIST
    datamodule  The data of a recipe as a LightningDataModule, for configs of ``fit``
    barlow    Failure trees of trained networks on ImageNet
    page      The published figures beside what was found, as JSON and HTML
"""

from __future__ import annotations

from collections.abc import Mapping

from lightning_failures.recipes.barlow import IMAGENET_BARLOW
from lightning_failures.recipes.base import Recipe
from lightning_failures.recipes.datamodule import TRAINED, RecipeData

__all__ = ["RECIPES", "Recipe", "RecipeData"]

RECIPES: Mapping[str, Recipe] = {**TRAINED, IMAGENET_BARLOW.name: IMAGENET_BARLOW}
"""All recipes by name."""
