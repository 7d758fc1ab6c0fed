"""Shared by the claims: one seed of coloured digits with its models, embeddings and directions, computed on demand.

Every arm of a seed starts with the same weights and draws its epochs from the same random numbers. A validation or test
set of a seed holds the same images whatever the shortcut, so they are embedded once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from digits import Split, digits_captions, digits_encoder
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_failures.analysis import AnalysisResult
from lightning_failures.analysis.analyse import analyse
from lightning_failures.bundled.digits import ColouredDigits, DigitClassifier
from lightning_failures.bundled.digits.render import DigitSplit as Part
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.data.grades import Grades
from lightning_failures.data.grading import grade_batch
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.encoders import OpenCLIPEncoder
from lightning_failures.interventions.sampler import weighted_epoch

__all__ = ["EPOCHS", "MORE_EPOCHS", "SHORTCUT", "Trained", "World", "all_captions", "encoder", "fit", "unusual"]

SHORTCUT = 0.95
EPOCHS = 6
MORE_EPOCHS = 3
"""How long the continued arms go on, plain ones included."""
BATCH = 64

T = TypeVar("T")


@cache
def encoder() -> OpenCLIPEncoder:
    """Return the packaged CLIP encoder."""
    return digits_encoder()


@cache
def all_captions() -> list[ClassCaptions]:
    """Return the candidate captions of every class."""
    return digits_captions(encoder())


@dataclass(frozen=True, eq=False)
class Trained:
    """A checkpoint: a model in eval mode, the state of its optimizer, and how many epochs it has seen."""

    model: DigitClassifier
    optimizer: dict[str, Any]
    epochs: int

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) uint8 -> (N, 10)."""
        return torch.cat([self.model(_inputs(some)) for some in images.split(256)])


def fit(
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    epochs: int = EPOCHS,
    weights: NDArray[np.float64] | None = None,
    start: Trained | None = None,
    loss: Callable[..., Tensor] = F.cross_entropy,
) -> Trained:
    """Train the demo's classifier on images (N, 3, 32, 32) uint8, from scratch or on from a checkpoint.

    ``weights`` (N,) float64 resample every epoch as the callback's sampler does. Without a Trainer, because a claim
    takes dozens of these runs: the same model, optimizer and batches, in a third of the time.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _faster(DigitClassifier())
    optimizer = model.configure_optimizers()
    if start is not None:
        model.load_state_dict(start.model.state_dict())
        optimizer.load_state_dict(copy.deepcopy(start.optimizer))
    done = 0 if start is None else start.epochs
    inputs = _inputs(images)
    model.train()
    for epoch in range(done, done + epochs):
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(labels))
        if weights is not None:
            order = weighted_epoch(order, weights[order], len(order), rng)
        for rows in torch.from_numpy(order).split(BATCH):
            optimizer.zero_grad()
            loss(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return Trained(model.eval(), optimizer.state_dict(), done + epochs)


def _faster(model: DigitClassifier) -> DigitClassifier:
    """Return the same function in half the time: pixels hold their channels, and blocks pool before they clip."""
    for block in model.net[:3]:
        assert isinstance(block, nn.Sequential)
        block[2], block[3] = block[3], block[2]
    return model.to(memory_format=torch.channels_last)


@cache
def _transform() -> Callable[[Tensor], Tensor]:
    return ColouredDigits("train", size=10).transform


def _inputs(images: Tensor) -> Tensor:
    """What the model takes, (N, 3, 32, 32) float32."""
    return _transform()(images).contiguous(memory_format=torch.channels_last)


def unusual(data: ColouredDigits) -> tuple[Tensor, Tensor]:
    """(N,) bool each: bears the unusual tint of its (true) class; is of a class where something is planted."""
    truth = [data.truth[k] for k in data.labels.tolist()]
    bears = [planted is not None and planted["unusual_tint"] == t for planted, t in zip(truth, data.tint, strict=True)]
    return torch.tensor(bears), torch.tensor([planted is not None for planted in truth])


class World:
    """One seed.

    Args:
        seed: Of tints, images, weights, orders and noise.
        train_size: Training images.
        size: Validation images, and test images.
    """

    def __init__(self, seed: int, *, train_size: int = 3000, size: int = 4000) -> None:
        self.seed, self._train_size, self._size = seed, train_size, size
        self._known: dict[Hashable, Any] = {}

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._known:
            self._known[key] = make()
        found: T = self._known[key]
        return found

    def rng(self, *salt: int) -> np.random.Generator:
        """A source of randomness for one purpose."""
        return np.random.default_rng([self.seed, 7, *salt])

    def data(self, part: Part, shortcut: float = SHORTCUT) -> ColouredDigits:
        """Return the images of one part."""
        strength = shortcut if part == "train" else SHORTCUT  # it plays no part in the others
        size = self._train_size if part == "train" else self._size
        return self._once(
            ("data", part, strength), lambda: ColouredDigits(part, size=size, seed=self.seed, shortcut=strength)
        )

    def labels(self, part: Part, shortcut: float = SHORTCUT, noise: float = 0.0) -> Tensor:
        """(N,) int64: of the share ``noise`` of the images the label is another one, drawn uniformly."""
        return flip(self.data(part, shortcut).labels, noise, self.rng(1, len(part)))

    def embeddings(self, part: Part, shortcut: float = SHORTCUT) -> Tensor:
        """(N, D) float32."""
        data = self.data(part, shortcut)
        return self._once(("embeddings", id(data)), lambda: embed(data.images))

    def base(self, shortcut: float = SHORTCUT, noise: float = 0.0) -> Trained:
        """Return the plain model, without any intervention."""
        images = self.data("train", shortcut).images
        return self._once(
            ("base", shortcut, noise), lambda: fit(images, self.labels("train", shortcut, noise), seed=self.seed)
        )

    def continued(self) -> Trained:
        """Return the plain model after more epochs of the same training."""
        train = self.data("train")
        return self._once(
            "continued",
            lambda: fit(train.images, train.labels, seed=self.seed, epochs=MORE_EPOCHS, start=self.base()),
        )

    def split(self, part: Part, shortcut: float = SHORTCUT) -> Split:
        """Return a part with its embeddings, graded by the plain model."""
        data = self.data(part, shortcut)
        graded = self._once(
            ("grades", part, shortcut),
            lambda: grade_images(data, data.labels, self.base(shortcut).logits(data.images)),
        )
        return Split(data, graded, self.embeddings(part, shortcut))

    def report(self) -> AnalysisResult:
        """Return the analysis of the validation set of the plain model, at the usual shortcut."""
        split = self.split("validation")
        return self._once("report", lambda: analyse(split.grades, split.embeddings, seed=self.seed))

    def directions(self) -> FailureDirections:
        """Return the directions of the analysis."""
        directions = self.report().directions
        assert directions is not None
        return directions

    def published(self) -> FailureDirections:
        """Return the directions of the validation set by the paper's procedure."""
        grades = self.split("validation").grades
        return self._once(
            "published",
            lambda: fit_failure_directions(
                self.embeddings("validation"),
                grades.labels,
                grades.correct,
                groups=grades.groups,
                selection="published",
                doubted=None,
                permutations=0,
                seed=self.seed,
            ),
        )

    def patterns(self) -> list[int]:
        """Return the classes in which the analysis found a pattern."""
        return [k for k, entry in enumerate(self.report().classes) if entry.pattern]

    def judge(self, trained: Trained, shortcut: float = SHORTCUT) -> dict[str, float]:
        """Accuracy on the test set: minority (unusual tints), majority, all, and all in the mix of training.

        In the mix of training a class of which something is planted shows its usual tint in the share ``shortcut``.
        """
        test = self.data("test")
        right = trained.logits(test.images).argmax(dim=1) == test.labels
        minority, planted = unusual(test)
        share = torch.where(minority, 1 - shortcut, shortcut).where(planted, torch.tensor(1.0))
        in_half = torch.where(planted, 2.0, 1.0)  # each tint has half of its class in the test set
        weight = share * in_half
        return {
            "minority": float(right[minority].float().mean()),
            "majority": float(right[planted & ~minority].float().mean()),
            "all": float(right.float().mean()),
            "all, in the mix of training": float((right * weight).sum() / weight.sum()),
        }


def flip(labels: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Give a share of the examples another label, drawn uniformly from the other nine."""
    flipped = labels.clone()
    rows = torch.from_numpy(rng.permutation(len(labels))[: round(share * len(labels))])
    flipped[rows] = (labels[rows] + torch.from_numpy(rng.integers(1, 10, len(rows)))) % 10
    return flipped


def embed(images: Tensor) -> Tensor:
    """Images (N, 3, 32, 32) uint8 in the space of the packaged CLIP: (N, D) float32."""
    return torch.cat([encoder().encode_images(some.float() / 255) for some in images.split(256)])


def grade_images(data: ColouredDigits, labels: Tensor, logits: Tensor) -> Grades:
    """Grade logits (N, 10) against labels (N,)."""
    rows = grade_batch(logits, labels)
    return Grades(
        ids=torch.arange(len(labels)),
        labels=rows.labels,
        predictions=rows.predictions,
        confidence=rows.confidence,
        class_names=tuple(data.classes),
        groups=torch.as_tensor(data.groups),
    )


def columns(arms: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """{arm: {figure: value}} -> {figure: {arm: value}}."""
    figures = next(iter(arms.values()))
    return {figure: {arm: found[figure] for arm, found in arms.items()} for figure in figures}
