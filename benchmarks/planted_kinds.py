"""Worlds with a planted kind of failure in every class, for diagnosis.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from coloured_mnist import embeddings, mnist, paint
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_failures.bundled.digits.render import (
    draw_looks,
    render,
    source_digits,
    source_split,
)
from lightning_failures.encoders import load_encoder
from lightning_failures.encoders.cache.store import EmbeddingCache, content_keys, embed

SHORTCUT, UNDER, NOISE, HARD, NOTHING = "shortcut", "under-represented", "label noise", "intrinsically hard", "nothing"
KINDS = (SHORTCUT, UNDER, NOISE, HARD)


@dataclass(frozen=True)
class Part:
    """n examples of one part of a world.

    Attributes:
        images: (n, 3, H, W) uint8.
        labels: (n,) int64, with the planted label noise.
        true: (n,) int64, without.
        sub: (n,) bool, those that the plant is about: unusual tints, rare members, wrong labels, degraded images.
        groups: (n,) int64, sources.
        x: (n, D) float32 embeddings; None where nobody needs them.
    """

    images: Tensor
    labels: NDArray[np.int64]
    true: NDArray[np.int64]
    sub: NDArray[np.bool_]
    groups: NDArray[np.int64]
    x: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class World:
    """The planted kind of each class, and the four parts."""

    kinds: tuple[str, ...]
    train: Part
    validation: Part
    test: Part
    pool: Part


def network(size: int, classes: int) -> nn.Sequential:
    """Return a small CNN for images (n, 3, size, size); its last layer is linear."""
    side = (size // 2) // 2 // 2
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(32 * side * side, 64), nn.ReLU(), nn.Linear(64, classes)),
    )


def fit(part: Part, classes: int, *, seed: int, steps: int, weights: NDArray[np.float64] | None = None) -> nn.Sequential:
    """Train the network with batches of 64, drawn in proportion to the weights (n,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(part.images.shape[-1], classes)
    images, labels = inputs(part.images), torch.from_numpy(part.labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rng = np.random.default_rng([seed, 1])
    share = None if weights is None else weights / weights.sum()
    for _ in range(steps):
        rows = torch.from_numpy(rng.choice(len(labels), 64, p=share))
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model.eval()


def inputs(images: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 -> float32."""
    return images.float() / 127.5 - 1


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 -> (n, K)."""
    return torch.cat([model(inputs(some)) for some in images.split(512)])


def embedded(encoder: str, images: Tensor) -> NDArray[np.float32]:
    """Embed images (n, 3, H, W) uint8, each distinct one once, in the embedding cache."""
    one = load_encoder(encoder)
    store = EmbeddingCache().store(one.fingerprint)
    keys = torch.cat([embed(one, store, some.float() / 255) for some in images.split(250)])
    store.flush()
    return store.get(keys).numpy()


# -- coloured digits, in the space of the packaged CLIP ----------------------------------------------------------------

DIGITS_SIZES = {"train": 2000, "validation": 2500, "test": 2500, "pool": 2000}
RARE_IN_TRAINING = 0.03


def coloured_digits(seed: int, *, planted: bool = True, remedies: bool = False) -> World:
    """Ten classes of the digits that scikit-learn ships, rendered by the package.

    * shortcut, two classes: the usual cue (a tint, or a background with odd seeds) of each is the unusual one of the
      other; 93 to 98 % of training show the usual one, and half of validation.
    * under-represented, two classes: one of three backgrounds, or three of ten tints, are 3 % of training. They are
      40 % of validation in one class, and 10 % in the other one.
    * label noise, two classes: 15 to 30 % of the images with this label show another digit.
    * intrinsically hard, three classes: of each 35 % are covered by a gray square, or almost all noise.
    * nothing, one class, and with ``planted=False`` all ten.
    """
    rng = np.random.default_rng([seed, 31])
    kinds = [SHORTCUT] * 2 + [UNDER] * 2 + [NOISE] * 2 + [HARD] * 3 + [NOTHING] if planted else [NOTHING] * 10
    plan = _DigitsPlan(
        dict(zip(rng.permutation(10).tolist(), kinds, strict=True)),
        cue="background" if seed % 2 else "tint",
        tints=rng.permutation(10),
        backgrounds=rng.permutation(3),
        usual=rng.uniform(0.93, 0.98),
        noise=rng.uniform(0.15, 0.3),
        degrade=_covered if rng.random() < 0.5 else _noisy,
    )
    parts = {}
    for number, (name, size) in enumerate(DIGITS_SIZES.items()):
        parts[name] = plan.draw(name, size, np.random.default_rng([seed, 32, number]))
        if remedies or name in ("train", "validation"):
            parts[name] = replace(parts[name], x=embedded("embedded:digits", parts[name].images))
    return World(tuple(plan.kinds[k] for k in range(10)), **parts)


@dataclass(frozen=True)
class _DigitsPlan:
    kinds: dict[int, str]
    cue: str
    tints: NDArray[np.int64]
    backgrounds: NDArray[np.int64]
    usual: float
    noise: float
    degrade: Callable[[Tensor, np.random.Generator], Tensor]

    def of_kind(self, kind: str) -> list[int]:
        return [k for k, planted in self.kinds.items() if planted == kind]

    def draw(self, name: str, size: int, rng: np.random.Generator) -> Part:
        labels = rng.permutation(np.arange(size) % 10)
        true, sub = labels.copy(), np.zeros(size, dtype=np.bool_)
        for k in self.of_kind(NOISE):
            rows = np.flatnonzero(labels == k)
            wrong = rows[rng.random(len(rows)) < self.noise]
            true[wrong] = (k + rng.integers(1, 10, len(wrong))) % 10
            sub[wrong] = True

        # the cue of the pair with the shortcut is not seen in other classes, nor are other attributes
        looks = draw_looks(size, rng)
        looks.stroke.fill_(1)
        looks.posture.fill_(0)
        others = torch.from_numpy(rng.integers(2, len(self.tints), size))
        if self.cue == "tint":
            looks.tint[:] = torch.from_numpy(self.tints)[others]
        else:
            looks.background[:] = int(self.backgrounds[2])
        cues = {"tint": (looks.tint.numpy(), self.tints), "background": (looks.background.numpy(), self.backgrounds)}
        shown, values = cues.pop(self.cue)
        for usual, k in enumerate(self.of_kind(SHORTCUT)):
            rows = np.flatnonzero(labels == k)
            sub[rows] = rng.random(len(rows)) >= (self.usual if name == "train" else 0.5)
            shown[rows] = values[np.where(sub[rows], 1 - usual, usual)]
        ((shown, values),) = cues.values()
        rare = values[:1] if len(values) == 3 else values[:3]
        for number, k in enumerate(self.of_kind(UNDER)):
            rows = np.flatnonzero(labels == k)
            share = {"train": RARE_IN_TRAINING, "pool": 0.5}.get(name, 0.1 if number else 0.4)
            sub[rows] = rng.random(len(rows)) < share
            shown[rows] = np.where(sub[rows], rng.choice(rare, len(rows)), rng.choice(values[len(rare) :], len(rows)))

        sources = source_split("train" if name == "pool" else name).numpy()  # type: ignore[arg-type]
        digit_of = source_digits()[1].numpy()[sources]
        groups = np.array([rng.choice(sources[digit_of == k]) for k in true])
        images = render(source_digits()[0][groups], looks, rng)
        for k in self.of_kind(HARD):
            rows = np.flatnonzero(labels == k)
            sub[rows] = rng.random(len(rows)) < 0.35
            mine = rows[sub[rows]]
            images[mine] = self.degrade(images[mine], rng)
        return Part(images, labels, true, sub, groups)


def _covered(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Cover most of each image with a gray square."""
    covered = images.clone()
    for row, (top, left) in enumerate(rng.integers(0, 5, (len(images), 2)).tolist()):
        covered[row, :, top : top + 28, left : left + 28] = 128
    return covered


def _noisy(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur each image to 2 x 2 pixels, and add noise."""
    noise = torch.from_numpy(rng.normal(0, 90, tuple(images.shape))).float()
    return (F.interpolate(F.avg_pool2d(images.float(), 16), scale_factor=16) + noise).clamp(0, 255).to(torch.uint8)


# -- MNIST, in the space of EfficientNet-Lite0 --------------------------------------------------------------------------

MNIST_SHARES = {"train": 0.36, "validation": 0.28, "test": 0.12, "pool": 0.24}
BLENDS_OF_A_DIGIT = 200


@cache
def blends() -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Pairs of superimposed digits: images (n, 3, 28, 28), rows of both digits (n,), and the embeddings (n, D)."""
    gray, digits = mnist()
    rng = np.random.default_rng(2026)
    first = np.concatenate([rng.permutation(np.flatnonzero(digits == k))[:BLENDS_OF_A_DIGIT] for k in range(10)])
    second = np.array([rng.choice(np.flatnonzero(digits != digits[row])) for row in first])
    images = paint(torch.maximum(gray[first], gray[second]), rng.integers(0, 2, len(first)))
    images = (images * 255).round().to(torch.uint8)
    return images, first, second, embedded("efficientnet-lite0", images)
