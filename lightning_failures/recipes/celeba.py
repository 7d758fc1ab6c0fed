"""CelebA: age, with gender as a shortcut (Jain et al., ICLR 2023, sections 3.1 and B.1).

Old men and young women are frequent in training, old women and young men are not: 24,812 against 6,203 of each. In
validation all four are equally frequent, 1,795 each, or distributed as in training (B.1.7). Training images come from
the training split of CelebA, those of validation from its validation split, and the test set is its test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset
from torchvision.datasets import CelebA as TorchvisionCelebA

from lightning_failures.core.types import IntArray
from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes.base import Claim, Recipe, Schedule, Setting, Sweep
from lightning_failures.recipes.parts import LEVELS, METHODS, SPACES
from lightning_failures.recipes.splits import QUICK, at_most, every_tenth
from lightning_failures.recipes.transforms import IMAGENET, for_evaluation, for_training

SIZE = 75
OFTEN, SELDOM = 24_812, 6_203
BALANCED, AS_TRAINING, FULL = "balanced", "as-training", "full"
STRENGTHS = (1.0, 2.0, 4.0, 8.0)
"""How many times as frequent old men and young women are in training, for the CV score against the strength."""

SCHEDULE = Schedule(epochs=30, learning_rate=0.02, peak_epoch=2, batch_size=512)
TRAINING_IMAGES = 162_770
OLD, YOUNG = 0, 1
NAMES = ("old", "young")

_VALIDATION = {BALANCED: (1_795, 1_795), AS_TRAINING: (3_240, 810), FULL: (0, 0)}  # of a frequent and of a rare group


class _Age:
    """The label of an image, 0 old and 1 young, from its 40 attributes; picklable for workers."""

    def __init__(self, place: int) -> None:
        self.place = place

    def __call__(self, attributes: Any) -> int:
        return int(attributes[self.place])


def celeba_setting(
    data: Path, seed: int, quick: bool, *, variant: str = BALANCED, strength: float | None = None
) -> Setting:
    """Return CelebA by age; old women and young men are a quarter as frequent in training as the others.

    Args:
        data: Folder of the data set.
        seed: Seed of the draws.
        quick: Whether a tenth of the data is enough.
        variant: "balanced" and "as-training" say how validation is distributed; "full": all images of both splits.
        strength: How many times as frequent the others are, in training; None: four times.
    """
    parts: dict[str, Any] = {}
    groups: dict[str, tuple[IntArray, IntArray]] = {}  # age and gender of each image
    for split, training in (("train", True), ("valid", False), ("test", False)):
        transform = for_training(SIZE) if training else for_evaluation(SIZE)
        part = _read(data, split, transform)
        young, male = (part.attr[:, part.attr_names.index(name)].numpy().astype(np.int64) for name in ("Young", "Male"))
        part.target_transform = _Age(part.attr_names.index("Young"))
        part.classes = list(NAMES)
        parts[split], groups[split] = part, (young, male)
    often, seldom = (OFTEN, SELDOM) if strength is None else _numbers(strength)
    rows = {
        "train": _chosen(groups["train"], (often, seldom), seed, quick, whole=variant == FULL),
        "valid": _chosen(groups["valid"], _VALIDATION[variant], seed, quick, whole=variant == FULL),
        "test": every_tenth(np.arange(len(parts["test"])), quick),
    }
    young, male = (column[rows["test"]] for column in groups["test"])
    return Setting(
        train=Subset(parts["train"], rows["train"].tolist()),
        validation=Subset(parts["valid"], rows["valid"].tolist()),
        test=Subset(parts["test"], rows["test"].tolist()),
        class_names=NAMES,
        schedule=SCHEDULE,
        size=SIZE,
        statistics=IMAGENET,
        captions="celeba",
        hard_in_test=young == male,
        hard_words={OLD: ("woman", "actress"), YOUNG: ("man", "boy", "actor")},
        complete=not quick and len(parts["train"]) == TRAINING_IMAGES,
        notes=("Training images are cropped at random, and flipped, with torchvision instead of FFCV.",),
        sweep=None
        if variant == FULL
        else Sweep(
            "strength", STRENGTHS, lambda level: celeba_setting(data, seed, quick, variant=variant, strength=level)
        ),
    )


def _numbers(strength: float) -> tuple[int, int]:
    """Return the numbers of a frequent and of a rare group at a strength, the total being that of the paper."""
    half = OFTEN + SELDOM
    return round(half * strength / (1 + strength)), round(half / (1 + strength))


def _chosen(
    groups: tuple[IntArray, IntArray], numbers: tuple[int, int], seed: int, quick: bool, *, whole: bool
) -> IntArray:
    """Return the rows of a split: all of them, or the numbers of the frequent and of the rare groups."""
    if whole:
        return every_tenth(np.arange(len(groups[0])), quick)
    often, seldom = (number // (QUICK if quick else 1) for number in numbers)
    return _drawn(*groups, often=often, seldom=seldom, seed=seed)


def _drawn(young: IntArray, male: IntArray, *, often: int, seldom: int, seed: int) -> IntArray:
    """Draw the images of each group; old men and young women are more frequent, by a fixed ratio."""
    seldom_rows = [np.flatnonzero((young == age) & (male == age)) for age in (OLD, YOUNG)]
    often_rows = [np.flatnonzero((young == age) & (male != age)) for age in (OLD, YOUNG)]
    ratio = often / max(seldom, 1)
    few = min(seldom, *map(len, seldom_rows), int(min(map(len, often_rows)) / ratio))
    many = min(round(few * ratio), *map(len, often_rows))
    drawn = [at_most(some, few, seed) for some in seldom_rows] + [at_most(some, many, seed) for some in often_rows]
    return np.sort(np.concatenate(drawn))


def _read(data: Path, split: str, transform: Any) -> Any:
    try:
        return TorchvisionCelebA(str(data), split=split, transform=transform, download=False)
    except (RuntimeError, OSError) as error:
        raise ConfigurationError(
            f"{data} does not hold CelebA in the form of torchvision, or it is damaged ({str(error)[:200]}). It must"
            " hold celeba/img_align_celeba/ and the text files list_attr_celeba.txt, list_eval_partition.txt,"
            " identity_CelebA.txt, list_bbox_celeba.txt and list_landmarks_align_celeba.txt."
        ) from error


CELEBA = Recipe(
    name="celeba",
    summary="CelebA by age, with gender as a shortcut of training",
    data="celeba/ with img_align_celeba/ and the text files of annotations (free for research, from the authors' page)",
    source="Jain et al., ICLR 2023, sections 3.1 and B.1",
    claims=(
        Claim("The flagged images hold more old women and young men than the test set", "hard among flagged",
              "hard in all", "89 % where 33 % of the data are", "Jain et al., 3.1"),
        Claim("The most flagged images of a class hold more of them than the least confident", "hard in top 100",
              "hard in top 100 by confidence", "above confidence at every K", "Jain et al., 3.1"),
        Claim("The hardest caption names the gender that training lacks", "hard caption first", None,
              "both classes", "Jain et al., 3.1"),
        Claim("The model is wrong more often on flagged test images than on the others", "error rate of flagged",
              "error rate of others", "", "Jain et al., 3.1"),
        Claim("The most flagged images hold more of them than Domino's slice", "hard in top 100",
              "hard in top 100 by Domino", "above Domino at every K", "Jain et al., B.1.4"),
        Claim("The most flagged images hold more of them than the twin of Learning from Failure ranks first",
              "hard in top 100", "hard in top 100 by Learning from Failure", "above", "Jain et al., B.1.4"),
        Claim("The most flagged images hold more of them than an early network ranks first", "hard in top 100",
              "hard in top 100 by an early network", "above", "Jain et al., B.1.4"),
        Claim("The CV score rises with the strength of the shortcut", "rank correlation of CV score and strength", 0.0,
              "rises from 1x on", "Jain et al., 3.1"),
        Claim("CLIP's space finds more of them than the network's own", "hard among flagged",
              "hard among flagged, own space", "", "Jain et al., B.1.6"),
        Claim("CLIP's space finds more of them than an Inception's", "hard among flagged",
              "hard among flagged, Inception", "", "Jain et al., B.1.6"),
    ),
    setting=celeba_setting,
    variants=(BALANCED, AS_TRAINING, FULL),
    parts=(METHODS, SPACES, LEVELS),
)  # fmt: skip
