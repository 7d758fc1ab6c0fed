"""Small results whose pages the documentation shows and the tests read: each kind of task, with a planted pattern.

Nothing is trained: labels, predictions, and which images fail are drawn at random, most failures among the marked ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures import analyse
from lightning_failures.analysis import AnalysisResult
from lightning_failures.data.grades import Grades

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Screen:
    """A result with its images, and embeddings for the map of its page if there are any."""

    result: AnalysisResult
    images: Tensor
    embeddings: Tensor | None = None


@dataclass(frozen=True)
class Case:
    """A kind of task.

    Attributes:
        make: Makes the result.
        words: What its page says of the failing images.
        mistaken_for: A class, or the start of its name, that they are mistaken for.
    """

    make: Callable[[], Screen]
    words: str
    mistaken_for: str


def noise(marked: BoolArray) -> Tensor:
    """Return gray noise, (N, 3, 24, 24); marked images are red on the left."""
    generator = torch.Generator().manual_seed(0)
    pixels = 0.4 + 0.2 * torch.rand(len(marked), 3, 24, 24, generator=generator)
    pixels[torch.from_numpy(marked), 0, :, :8] = 1.0
    return pixels


def planted(
    classes: int, size: int, *, rate: float = 0.75, share: float = 0.3
) -> tuple[NDArray[np.int64], BoolArray, BoolArray]:
    """Return the labels of K classes, which images are marked, and which fail: mostly the marked ones."""
    rng = np.random.default_rng(0)
    n = classes * size
    marked = rng.random(n) < share
    return np.arange(n) % classes, marked, rng.random(n) < np.where(marked, rate, 0.04)


def classes(number: int, size: int, *, words: bool = True) -> Screen:
    """Return K classes with a known attribute, or with embeddings and neither captions nor attributes."""
    labels, marked, failed = planted(number, size)
    names = tuple(f"kind {k}" for k in range(number))
    confidence = np.where(failed, 0.3, 0.9)
    grades = Grades(np.arange(len(labels)), labels, (labels + failed) % number, confidence, names)
    if words:
        return Screen(analyse(grades, metadata={"light": np.where(marked, "night", "day")}), noise(marked))
    embeddings = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(1))
    embeddings[:, 0] += 4.0 * torch.from_numpy(marked)
    return Screen(analyse(grades, embeddings, permutations=99), noise(marked), embeddings)


def conditions() -> Screen:
    """Return a multilabel task: two conditions of 500 images; one is missed in marked images."""
    _, marked, failed = planted(1, 500)
    rng = np.random.default_rng(1)
    present = rng.random((500, 2)) < 0.5
    missed = failed & present[:, 0]
    labels = (2 * np.arange(2) + present).ravel()
    predictions = (2 * np.arange(2) + (present & ~np.stack([missed, np.zeros(500, bool)], 1))).ravel()
    names = ("no edema", "edema", "no mass", "mass")
    grades = Grades(np.repeat(np.arange(500), 2), labels, predictions, None, names)
    view = np.where(np.repeat(marked, 2), "lateral", "frontal")
    return Screen(analyse(grades, metadata={"view": view}), noise(marked))


def photographs(size: int = 250) -> Screen:
    """Return crops of two real photographs, those that come with scikit-learn; dark crops fail. There are no captions.

    The embedding of a crop is its colours on a grid of 4 x 4.
    """
    from sklearn.datasets import load_sample_image

    labels, marked, failed = planted(2, size)
    rng = np.random.default_rng(2)
    pictures = [torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1) / 255 for name in _PHOTOGRAPHS]
    crops = []
    for label, dark in zip(labels.tolist(), marked.tolist(), strict=True):
        top, left = rng.integers(0, 427 - 96), rng.integers(0, 640 - 96)
        crop = pictures[label][:, top : top + 96, left : left + 96]
        crops.append(crop * 0.35 if dark else crop)
    images = torch.stack(crops)
    embeddings = F.adaptive_avg_pool2d(images, 4).flatten(1)
    names = ("temple", "flower")
    grades = Grades(np.arange(len(labels)), labels, (labels + failed) % 2, np.where(failed, 0.3, 0.9), names)
    return Screen(analyse(grades, embeddings, permutations=99), images, embeddings)


_PHOTOGRAPHS = ("china.jpg", "flower.jpg")

CASES = {
    "2 classes": Case(lambda: classes(2, 250), "light night", "kind"),
    "10 classes without captions": Case(
        lambda: classes(10, 80, words=False), "share a look without a name yet", "kind"
    ),
    "100 classes": Case(lambda: classes(100, 20), "light night", "kind"),
    "1,000 classes of five images": Case(lambda: classes(1000, 5), "light night", "kind"),
    "multilabel": Case(conditions, "view lateral", "no edema"),
    "photographs without captions": Case(photographs, "share a look without a name yet", "temple|flower"),
}
"""The cases by name."""
