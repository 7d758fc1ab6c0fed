"""CIFAR-10; CIFAR-100 in superclasses with an under-represented sub-class (Jain et al., ICLR 2023, 3.2, 4.1, B.4, C.1).

Splits as in the published code: a fifth of the training images are validation, two fifths the pool, two fifths train
(CIFAR-10: a fifth train, a fifth validation, three fifths the pool); or four fifths train. The test set is CIFAR's own.
The sub-class that is cut in each superclass is the published one, and a quarter of its training images are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset
from torchvision import datasets

from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes.base import Claim, Pool, Recipe, Schedule, Setting, Sweep
from lightning_failures.recipes.parts import DECODE, FILTER, LEVELS, NEAREST, NOUNS, SYNTHETIC
from lightning_failures.recipes.splits import QUICK, every_tenth, stratified_split
from lightning_failures.recipes.transforms import CIFAR, for_evaluation, for_training

SIZE, PADDING, TRAINING_IMAGES = 32, 4, 50_000
SCHEDULE = Schedule(epochs=35, learning_rate=0.5, peak_epoch=5, batch_size=512)
DEGREE = 0.75  # every fourth training image of a cut sub-class is kept
DEGREES = tuple(round(0.1 * k, 1) for k in range(1, 10))
PICKS = 100
"""Images of each class that filtering adds to the training set."""

WITH_POOL_100, WITH_POOL_10, WITHOUT_POOL = "20-40-40", "20-60-20", "80-20"
_SHARES = {WITH_POOL_100: (0.2, 0.4, 0.4), WITH_POOL_10: (0.2, 0.6, 0.2), WITHOUT_POOL: (0.2, 0.0, 0.8)}
"""Shares of validation, pool and training."""

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


def cifar100_setting(
    data: Path, seed: int, quick: bool, *, variant: str = WITH_POOL_100, degree: float = DEGREE
) -> Setting:
    """Return superclasses of CIFAR-100, one sub-class each cut in training.

    Args:
        data: Folder of the data set.
        seed: Seed of the split.
        quick: Whether a tenth of the data is enough.
        variant: Shares of validation, pool and training, or of training and validation.
        degree: Share of the training images of the sub-class that are left out.
    """
    names = list(SUPERCLASSES)
    train, plain, test = (_read(datasets.CIFAR100, data, **how) for how in _WAYS)
    of_name = {sub: k for k, subs in enumerate(SUPERCLASSES.values()) for sub in subs.split()}
    coarse = np.array([of_name[name] for name in train.classes])
    fine = np.asarray(train.targets)
    is_cut = np.isin(np.arange(len(coarse)), CUT)
    for part in (train, plain, test):
        part.target_transform = coarse.tolist().__getitem__
        part.classes = names
    validation_rows, pool_rows, rows = stratified_split(fine, _SHARES[variant], seed)
    rows = np.sort(np.concatenate([_kept(rows[fine[rows] == k], degree if is_cut[k] else 0) for k in np.unique(fine)]))
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
        pool=_pool(plain, train, every_tenth(pool_rows, quick), quick, is_cut[fine]),
        sweep=Sweep(
            "degree",
            DEGREES[::4] if quick else DEGREES,
            lambda level: cifar100_setting(data, seed, quick, variant=variant, degree=level),
        ),
    )


def _kept(rows: IntArray, degree: float) -> IntArray:
    """Return the rows that are left when a share of them is cut, evenly.

    >>> _kept(np.arange(8), 0.75).tolist(), len(_kept(np.arange(100), 0.9))
    ([0, 4], 10)
    """
    reached = np.ceil(np.round(np.arange(len(rows) + 1) * (1 - degree), 9))
    return rows[np.diff(reached) > 0]


def _pool(plain: Any, augmented: Any, rows: IntArray, quick: bool, hard: BoolArray | None = None) -> Pool | None:
    """Return the pool of some rows of the training images; None without rows."""
    if not len(rows):
        return None
    places = rows.tolist()
    picks = PICKS // QUICK if quick else PICKS
    return Pool(Subset(plain, places), Subset(augmented, places), picks, None if hard is None else hard[rows])


def cifar10_setting(data: Path, seed: int, quick: bool, *, variant: str = WITH_POOL_10) -> Setting:
    """Return CIFAR-10 with a fifth of its training images for training and for validation, or with all of them."""
    train, plain, test = (_read(datasets.CIFAR10, data, **how) for how in _WAYS)
    validation_rows, pool_rows, rows = stratified_split(train.targets, _SHARES[variant], seed)
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
        pool=_pool(plain, train, every_tenth(pool_rows, quick), quick),
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
        Claim("Training on the flagged images of the pool helps the cut sub-classes more than random ones",
              "accuracy on the hard group with picks by direction", "accuracy on the hard group with picks by chance",
              "above random and confidence", "Jain et al., 3.2"),
        Claim("It helps them more than training on the least confident ones",
              "accuracy on the hard group with picks by direction",
              "accuracy on the hard group with picks by confidence", "above random and confidence", "Jain et al., 3.2"),
        Claim("The CV score rises with the share that is cut", "rank correlation of CV score and degree", 0.0, "rises",
              "Jain et al., B.4, Fig. 25"),
        Claim("The CV score of a class rises with the error rate on its cut sub-class",
              "rank correlation per class of CV score and minority error rate", 0.0, "falls with the accuracy",
              "Jain et al., B.4, Fig. 26"),
        Claim("The CV score of a class rises with the share of the cut sub-class among its errors",
              "rank correlation per class of CV score and minority share of errors", 0.0, "rises",
              "Jain et al., B.4, Fig. 27"),
    ),
    setting=cifar100_setting,
    variants=(WITH_POOL_100, WITHOUT_POOL),
    parts=(FILTER, LEVELS),
)  # fmt: skip

CIFAR10 = Recipe(
    name="cifar10",
    summary="CIFAR-10 with a fifth of its training images; nothing is planted",
    data="the unpacked folder cifar-10-batches-py (the authors' page, no registration)",
    source="Jain et al., ICLR 2023, sections 4.1 and C.1",
    claims=(
        Claim("The model is wrong more often on flagged test images than on the others", "error rate of flagged",
              "error rate of others", "lower accuracy in the direction of failure", "Jain et al., 4.1"),
        Claim("The model is right more often on the 10 % of a class nearest to its easiest caption than on those"
              " nearest to its hardest", "accuracy of the 10 % nearest to the easiest caption",
              "accuracy of the 10 % nearest to the hardest caption", "at every K", "Jain et al., 4.1, Fig. 7b; C.2.2"),
        Claim("Training on the flagged images of the pool helps flagged test images more than random ones",
              "accuracy on flagged images with picks by direction", "accuracy on flagged images with picks by chance",
              "above random and confidence", "Jain et al., 4.1"),
        Claim("It helps them more than training on the least confident ones",
              "accuracy on flagged images with picks by direction",
              "accuracy on flagged images with picks by confidence", "above random and confidence",
              "Jain et al., 4.1"),
        Claim("A head refitted with images of the hardest captions is better on flagged images than with those of"
              " references", "accuracy on flagged images, head with hardest captions",
              "accuracy on flagged images, head with reference captions", "above", "Jain et al., 4.1"),
        Claim("Images decoded towards success are easier than those decoded towards failure",
              "accuracy on decoded easy images", "accuracy on decoded hard images", "above", "Jain et al., 4.1, A.6"),
    ),
    setting=cifar10_setting,
    variants=(WITH_POOL_10, WITHOUT_POOL),
    parts=(NEAREST, NOUNS, FILTER, SYNTHETIC, DECODE),
)  # fmt: skip
