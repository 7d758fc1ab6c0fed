"""ImageNet, and ImageNet with noise (Jain et al., ICLR 2023, sections 4.2, C.2 and B.3).

A fifth of the training images are validation, two fifths the pool, two fifths train; the test set is ImageNet's
validation set. With noise, a tenth of the training images and half of validation and test show Gaussian noise: the
model fails on them, and no further image of the same kind would help.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2 as T

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.core.types import BoolArray
from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes.base import Claim, Recipe, Schedule, Setting
from lightning_failures.recipes.images import ImageFiles
from lightning_failures.recipes.parts import NEAREST, NETWORKS
from lightning_failures.recipes.splits import every_tenth, stratified_split
from lightning_failures.recipes.transforms import IMAGENET, for_evaluation, for_training

SIZE, RESIZED = 224, 256
TRAINING_IMAGES = 1_281_167
SCHEDULE = Schedule(epochs=16, learning_rate=0.5, peak_epoch=2, batch_size=1024)
WITH_POOL, WITHOUT_POOL = "40-40-20", "80-20"
SHARES = {WITH_POOL: (0.2, 0.4, 0.4), WITHOUT_POOL: (0.2, 0.0, 0.8)}
"""Shares of validation, pool and training."""

NOISE, NOISY_IN_TRAINING, NOISY_IN_VALIDATION = 0.18, 0.1, 0.5
"""Standard deviation of the noise, that of severity 3 of ImageNet-C, and the shares of images with noise."""

_ROOTS = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
_SOLUTION = "LOC_val_solution.csv"


def imagenet_setting(data: Path, seed: int, quick: bool, *, variant: str = WITH_POOL) -> Setting:
    """Return ImageNet with two or four fifths of its training images for training, a fifth for validation."""
    training, test = read_imagenet(data)
    validation_rows, _pool, rows = stratified_split(training.labels, SHARES[variant], seed)
    return Setting(
        train=training.chosen(every_tenth(rows, quick), for_training(SIZE)),
        validation=training.chosen(every_tenth(validation_rows, quick)),
        test=test.chosen(every_tenth(np.arange(len(test)), quick)),
        class_names=tuple(training.classes),
        schedule=SCHEDULE,
        size=SIZE,
        statistics=IMAGENET,
        captions="auto",
        complete=not quick and len(training) == TRAINING_IMAGES,
        notes=("Training images are cropped to 70 to 100 %, and flipped, with torchvision instead of FFCV.",),
    )


def imagenet_c_setting(data: Path, seed: int, quick: bool) -> Setting:
    """Return ImageNet with noise on a tenth of the training images, and on half of validation and test."""
    plain = imagenet_setting(data, seed, quick)
    crop = T.Compose([T.Resize(RESIZED, antialias=True), T.CenterCrop(SIZE)])
    shares = {"train": NOISY_IN_TRAINING, "validation": NOISY_IN_VALIDATION, "test": NOISY_IN_VALIDATION}
    parts, noisy = {}, {}
    for k, (name, share) in enumerate(shares.items()):
        part: Any = getattr(plain, name)
        noisy[name] = _chosen(len(part), share, seed=[seed, k])
        part.change = _Noise(crop, noisy[name], [seed, k])
        part.transform = for_evaluation(SIZE)
        part.noisy = noisy[name].tolist()
        parts[name] = part
    return replace(
        plain,
        **parts,
        hard_in_test=noisy["test"],
        hard_words=dict.fromkeys(range(len(plain.class_names)), ("blurry", "noisy", "grainy")),
        metadata=("noisy",),
        reference="train",
        notes=(
            "Noise is that of severity 3 of ImageNet-C, on the cropped image, before compression.",
            "Validation is a fifth of the training images, as without noise; training images are neither moved nor"
            " flipped.",
        ),
    )


def read_imagenet(data: Path) -> tuple[ImageFiles, ImageFiles]:
    """Read the training and the validation images of ImageNet, with the transform of evaluation.

    ``train/`` holds a folder for each class, named by its WordNet id. ``val/`` is of the same form, or holds the images
    themselves beside ``LOC_val_solution.csv``. Both may lie below ``ILSVRC/Data/CLS-LOC``.

    Raises:
        ConfigurationError: The folder is of another form.
    """
    root = next((data / one for one in _ROOTS if (data / one / "train").is_dir()), data)
    transform = for_evaluation(SIZE, resized=RESIZED)
    try:
        training = ImageFolder(str(root / "train"))
        ids = training.classes
        samples = _flat_validation(root / "val", data, training.class_to_idx)
        if samples is None:
            validation = ImageFolder(str(root / "val"))
            if validation.classes != ids:
                raise ConfigurationError(f"{root / 'val'} must hold the same class folders as {root / 'train'}.")
            samples = validation.samples
    except (FileNotFoundError, OSError, KeyError) as error:
        raise ConfigurationError(
            f"{data} does not hold ImageNet: it needs train/ with a folder for each class (n01440764, ...), and val/ of"
            f" the same form, or with the images themselves beside {_SOLUTION} ({str(error)[:200]})."
        ) from error
    words = CaptionVocabulary.load("imagenet").classes
    names = [words[one]["reference"][0] if one in words else one for one in ids]

    def files(found: Sequence[tuple[str, int]]) -> ImageFiles:
        return ImageFiles([path for path, _ in found], [label for _, label in found], names, transform)

    return files(training.samples), files(samples)


def _flat_validation(folder: Path, data: Path, labels: Mapping[str, int]) -> list[tuple[str, int]] | None:
    """Return the files and labels of a folder of images without class folders; None if it has class folders."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpeg", ".jpg", ".png"))
    if not files:
        return None
    table = next((one for one in (data / _SOLUTION, folder / _SOLUTION) if one.is_file()), data / _SOLUTION)
    with table.open(newline="", encoding="utf-8") as file:
        of_image = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    return [(str(file), labels[of_image[file.stem]]) for file in files]


class _Noise:
    """Crop an image, and add Gaussian noise to some of the images, always the same to one."""

    def __init__(self, crop: T.Compose, noisy: BoolArray, seed: list[int]) -> None:
        self.crop, self.noisy, self.seed = crop, noisy, seed

    def __call__(self, image: Image.Image, index: int) -> Image.Image:
        cropped: Image.Image = self.crop(image)
        if not self.noisy[index]:
            return cropped
        pixels = np.asarray(cropped, dtype=np.float64) / 255
        noise = np.random.default_rng([*self.seed, index]).normal(scale=NOISE, size=pixels.shape)
        return Image.fromarray((np.clip(pixels + noise, 0, 1) * 255).astype(np.uint8))


def _chosen(size: int, share: float, *, seed: list[int]) -> BoolArray:
    chosen = np.zeros(size, dtype=np.bool_)
    chosen[np.random.default_rng(seed).permutation(size)[: round(share * size)]] = True
    return chosen


_FOLDERS = "train/ and val/ with a folder for each class (registration at image-net.org, non-commercial research)"

IMAGENET_RECIPE = Recipe(
    name="imagenet",
    summary="ImageNet with two fifths of its training images; nothing is planted",
    data=_FOLDERS,
    source="Jain et al., ICLR 2023, sections 4.2 and C.2",
    claims=(
        Claim("The model is wrong more often on flagged test images than on the others", "error rate of flagged",
              "error rate of others", "lower accuracy in the direction of failure", "Jain et al., 4.2"),
        Claim("It is wrong more often on the images nearest to the hardest caption than on those nearest to the"
              " easiest", "error rate nearest to the hardest caption", "error rate nearest to the easiest caption",
              "lower accuracy nearest to the hardest caption", "Jain et al., 4.2"),
        Claim("The same holds for a second run, by the first one's captions",
              "error rate nearest to the hardest caption, second run",
              "error rate nearest to the easiest caption, second run", "captions carry over", "Jain et al., C.2.3"),
        Claim("... for a ResNet-50", "error rate nearest to the hardest caption, ResNet-50",
              "error rate nearest to the easiest caption, ResNet-50", "captions carry over", "Jain et al., C.2.3"),
        Claim("... and for a ViT", "error rate nearest to the hardest caption, ViT",
              "error rate nearest to the easiest caption, ViT", "captions carry over", "Jain et al., C.2.3"),
    ),
    setting=imagenet_setting,
    variants=(WITH_POOL, WITHOUT_POOL),
    parts=(NEAREST, NETWORKS),
)  # fmt: skip

IMAGENET_C = Recipe(
    name="imagenet-c",
    summary="ImageNet with Gaussian noise on a tenth of training, and on half of validation",
    data=_FOLDERS + "; the noise is added here",
    source="Jain et al., ICLR 2023, section B.3",
    claims=(
        Claim("The flagged images hold more images with noise than the test set", "hard among flagged", "hard in all",
              "more than half", "Jain et al., B.3"),
        Claim("The 10 most flagged images of a class hold more of them than the 10 least confident", "hard in top 10",
              "hard in top 10 by confidence", "above confidence", "Jain et al., B.3"),
        Claim("Classes whose failures are diagnosed as intrinsically hard", "diagnosed intrinsically hard", None,
              "interventions are not expected to help", "Jain et al., B.3"),
    ),
    setting=imagenet_c_setting,
)  # fmt: skip
