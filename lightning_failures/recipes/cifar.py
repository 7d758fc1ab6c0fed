"""CIFAR-10; CIFAR-100 in superclasses with an under-represented sub-class (Jain et al., ICLR 2023, 3.2, 4.1, B.4, C.1).

Splits as in the published code: a fifth of the training images are validation, two fifths the pool, two fifths train
(CIFAR-10: a fifth train, a fifth validation, three fifths the pool). The test set is CIFAR's own. The sub-class that is
cut in each superclass is the published one, and a quarter of its training images are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset
from torchvision import datasets

from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes.base import Claim, Recipe, Schedule, Setting
from lightning_failures.recipes.splits import every_tenth, stratified_split
from lightning_failures.recipes.transforms import CIFAR, for_evaluation, for_training

SIZE, PADDING, TRAINING_IMAGES = 32, 4, 50_000
SCHEDULE = Schedule(epochs=35, learning_rate=0.5, peak_epoch=5, batch_size=512)
KEPT_OF_CUT = 4  # every fourth training image of a cut sub-class is kept

SUPERCLASSES = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
"""The sub-classes of each superclass, by the names of torchvision."""

CUT = (4, 73, 54, 10, 51, 40, 84, 18, 3, 12, 33, 38, 64, 45, 2, 44, 80, 96, 13, 81)
"""The sub-class that is cut in each superclass, as an index into torchvision's names (published code)."""


def cifar100_setting(data: Path, seed: int, quick: bool) -> Setting:
    """Return superclasses of CIFAR-100, one sub-class each cut by three quarters in training."""
    names = list(SUPERCLASSES)
    train, plain, test = (_read(datasets.CIFAR100, data, **how) for how in _WAYS)
    of_name = {sub: k for k, subs in enumerate(SUPERCLASSES.values()) for sub in subs.split()}
    coarse = np.array([of_name[name] for name in train.classes])
    fine = np.asarray(train.targets)
    is_cut = np.isin(np.arange(len(coarse)), CUT)
    for part in (train, plain, test):
        part.target_transform = coarse.tolist().__getitem__
        part.classes = names
    validation_rows, _pool, rows = stratified_split(fine, (0.2, 0.4, 0.4), seed)
    cut_rows = rows[is_cut[fine[rows]]]
    kept = np.isin(rows, np.concatenate([cut_rows[fine[cut_rows] == k][::KEPT_OF_CUT] for k in CUT]))
    rows = rows[~is_cut[fine[rows]] | kept]
    fine_of_test = np.asarray(test.targets)
    test_rows = every_tenth(np.arange(len(fine_of_test)), quick)
    words = {int(coarse[k]): (_fine_names()[k].replace("_", " "),) for k in CUT}
    return Setting(
        train=Subset(train, every_tenth(rows, quick).tolist()),
        validation=Subset(plain, every_tenth(validation_rows, quick).tolist()),
        test=Subset(test, test_rows.tolist()),
        class_names=tuple(names),
        schedule=SCHEDULE,
        size=SIZE,
        statistics=CIFAR,
        captions="cifar100",
        hard_in_test=is_cut[fine_of_test[test_rows]],
        hard_words=words,
        complete=not quick and len(fine) == TRAINING_IMAGES,
        notes=(_AUGMENTATION,),
    )


def cifar10_setting(data: Path, seed: int, quick: bool) -> Setting:
    """Return CIFAR-10 with a fifth of its training images for training, a fifth for validation."""
    train, plain, test = (_read(datasets.CIFAR10, data, **how) for how in _WAYS)
    rows, validation_rows, _pool = stratified_split(train.targets, (0.2, 0.2, 0.6), seed)
    return Setting(
        train=Subset(train, every_tenth(rows, quick).tolist()),
        validation=Subset(plain, every_tenth(validation_rows, quick).tolist()),
        test=Subset(test, every_tenth(np.arange(len(test)), quick).tolist()),
        class_names=tuple(train.classes),
        schedule=SCHEDULE,
        size=SIZE,
        statistics=CIFAR,
        captions="cifar10",
        complete=not quick and len(train) == TRAINING_IMAGES,
        notes=(_AUGMENTATION,),
    )


_AUGMENTATION = "Training images are cropped after padding by 4 pixels, and flipped, with torchvision instead of FFCV."
_WAYS = (
    {"train": True, "transform": for_training(SIZE, CIFAR, padding=PADDING)},
    {"train": True, "transform": for_evaluation(SIZE, CIFAR)},
    {"train": False, "transform": for_evaluation(SIZE, CIFAR)},
)


def _fine_names() -> list[str]:
    """Return the names of the 100 sub-classes in the order of their indices, which is alphabetical."""
    return sorted(name for names in SUPERCLASSES.values() for name in names.split())


def _read(dataset: Callable[..., Any], data: Path, **options: Any) -> Any:
    """Read the files that people download from the authors' page; torchvision checks that they are these."""
    try:
        return dataset(str(data), download=False, **options)
    except (RuntimeError, OSError) as error:
        raise ConfigurationError(
            f"{data} does not hold the files of CIFAR, or they are damaged ({str(error)[:200]}). Unpack"
            " cifar-10-python.tar.gz or cifar-100-python.tar.gz of the authors' page in this folder."
        ) from error


CIFAR100 = Recipe(
    name="cifar100",
    summary="CIFAR-100 in 20 superclasses; one sub-class of each is cut by 75 % in training",
    data="the unpacked folder cifar-100-python (the authors' page, no registration)",
    source="Jain et al., ICLR 2023, sections 3.2 and B.4",
    claims=(
        Claim("The flagged images hold more of the cut sub-class than the test set", "hard among flagged",
              "hard in all", "more than its share of 0.20", "Jain et al., 3.2"),
        Claim("The 10 most flagged images of a class hold more of it than the 10 least confident",
              "hard in top 10", "hard in top 10 by confidence", "above confidence at every K", "Jain et al., 3.2"),
        Claim("The caption of the cut sub-class is the hardest", "hard caption first", None, "0.80",
              "Jain et al., B.4"),
        Claim("The caption of the cut sub-class is among the two hardest", "hard caption in two", None, "0.95",
              "Jain et al., B.4"),
    ),
    setting=cifar100_setting,
)  # fmt: skip

CIFAR10 = Recipe(
    name="cifar10",
    summary="CIFAR-10 with a fifth of its training images; nothing is planted",
    data="the unpacked folder cifar-10-batches-py (the authors' page, no registration)",
    source="Jain et al., ICLR 2023, sections 4.1 and C.1",
    claims=(
        Claim("The model is wrong more often on flagged test images than on the others", "error rate of flagged",
              "error rate of others", "lower accuracy in the direction of failure", "Jain et al., 4.1"),
    ),
    setting=cifar10_setting,
)  # fmt: skip
