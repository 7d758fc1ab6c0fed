"""Worlds with a planted kind of failure in every class, for diagnosis.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

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
from lightning_failures.encoders.cache.store import EmbeddingCache, embed

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


def fit(
    part: Part, classes: int, *, seed: int, steps: int, weights: NDArray[np.float64] | None = None
) -> nn.Sequential:
    """Train the network with batches of 64, at a decaying rate, drawn in proportion to the weights (n,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(part.images.shape[-1], classes)
    images, labels = inputs(part.images), torch.from_numpy(part.labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)  # its end is no accident
    rng = np.random.default_rng([seed, 1])
    share = None if weights is None else weights / weights.sum()
    for _ in range(steps):
        rows = torch.from_numpy(rng.choice(len(labels), 64, p=share))
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
        decay.step()
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
      40 % of validation in one class, and 15 % in the other one.
    * label noise, two classes: 15 to 30 % of the images with this label show another digit.
    * intrinsically hard, three classes: of each 35 % are covered by a gray square, almost all noise, or cut
      into tiles that are shuffled.
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
        degrade=(_covered, _noisy, _shuffled)[seed % 3],
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
            share = {"train": RARE_IN_TRAINING, "pool": 0.5}.get(name, 0.15 if number else 0.4)
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


def _shuffled(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Cut each image into 4 x 4 tiles, and shuffle these."""
    tiles = images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3).clone()  # (n, 3, 16, 8, 8)
    for row in range(len(tiles)):
        tiles[row] = tiles[row][:, torch.from_numpy(rng.permutation(16))]
    rows = tiles.reshape(-1, 3, 4, 4, 8, 8).permute(0, 1, 2, 4, 3, 5)
    return rows.reshape(-1, 3, 32, 32)


# -- MNIST, in the space of EfficientNet-Lite0 ------------------------------------------------------------------------

MNIST_SHARES = {"train": 0.44, "validation": 0.26, "test": 0.1, "pool": 0.2}
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


def mnist_pairs(seed: int, *, planted: bool = True) -> World:
    """Five classes of two MNIST digits each, with red or green strokes.

    * shortcut, one class: 96 to 99 % of training are red, and half of validation. Another class, in which nothing is
      planted, is green in that share of all parts, so that green is a cue of it.
    * under-represented, one class: of one of its digits 90 % are cut from training and, with even seeds, from
      validation and test too (there 50 %).
    * label noise, one class: 15 to 30 % of the images with this label show a digit of another class.
    * intrinsically hard, one class: a third of its images are superimposed with a digit of another class. Half of all
      these blends have the label of the one digit, half of the other.
    * nothing: with ``planted=False``, all five classes, and a third of the training images.

    All other images are red; with nothing planted colours are drawn by lot. Train, validation, test and pool share no
    digit; every part has the mix of validation, except training.
    """
    gray, digits = mnist()
    rng = np.random.default_rng([seed, 41])
    pairs = rng.permutation(10).reshape(5, 2)
    class_of = np.empty(10, dtype=np.int64)
    class_of[pairs] = np.arange(5)[:, None]
    kinds = (SHORTCUT, NOTHING, UNDER, NOISE, HARD) if planted else (NOTHING,) * 5

    place = np.empty(len(digits))  # of a digit among those that show the same, in [0, 1)
    order = rng.permutation(len(digits))
    for digit in range(10):
        same = order[digits[order] == digit]
        place[same] = np.arange(len(same)) / len(same)
    usual, noise = rng.uniform(0.96, 0.99), rng.uniform(0.15, 0.3)
    parts, start = {}, 0.0
    for name, share in MNIST_SHARES.items():
        end = start + share * (1 / 3 if name == "train" and not planted else 1)
        rows = rng.permutation(np.flatnonzero((place >= start) & (place < end)))
        tint = rng.integers(0, 2, len(rows))
        if name == "test":  # every digit in either colour
            rows, tint = np.repeat(rows, 2), np.tile([0, 1], len(rows))
        start += share
        true = class_of[digits[rows]]
        kept = np.ones(len(rows), dtype=np.bool_)
        sub = np.zeros(len(rows), dtype=np.bool_)
        labels = true.copy()
        blended = np.full(len(rows), -1)
        if planted:
            in_half = name == "test"  # which has each digit in either colour
            shortcut, cued = np.flatnonzero(true == 0), np.flatnonzero(true == 1)
            if not in_half:
                tint[shortcut] = rng.random(len(shortcut)) >= (usual if name == "train" else 0.5)
            sub[shortcut] = tint[shortcut] == 1
            tint[cued] = rng.random(len(cued)) < usual
            tint[true > 1] = 0
            sub |= digits[rows] == pairs[2, 0]
            cut = 0.9 if name == "train" else 0.5 if seed % 2 == 0 and name != "pool" else 0.0
            kept &= (digits[rows] != pairs[2, 0]) | (rng.random(len(rows)) >= cut)
            if name != "test":
                others = rng.permutation(np.flatnonzero(kept & (true != 3) & ~sub))
                wrong = others[: round(noise / (1 - noise) * int((true == 3).sum()))]
                labels[wrong], sub[wrong] = 3, True
            _blend(rows, labels, sub, blended, class_of, rng)
        images = (paint(gray[torch.from_numpy(rows)], tint) * 255).round().to(torch.uint8)
        x = embeddings()[rows, tint].numpy()
        blend_images, _, _, blend_x = blends()
        mixed = blended >= 0
        images[mixed], x[mixed] = blend_images[blended[mixed]], blend_x[blended[mixed]]
        parts[name] = Part(images[kept], labels[kept], true[kept], sub[kept], rows[kept], x[kept])
    return World(kinds, **parts)


def _blend(rows: Any, labels: Any, sub: Any, blended: Any, class_of: Any, rng: np.random.Generator) -> None:
    """Replace images of class 4 by blends with a digit of another class; half of these get the label of that class."""
    _, first, second, _ = blends()
    _, digits = mnist()
    classes = class_of[digits[first]], class_of[digits[second]]
    with_other = (classes[0] == 4) != (classes[1] == 4)
    other = np.where(classes[0] == 4, classes[1], classes[0])
    here = np.isin(first, rows)  # of this part
    for blend in np.flatnonzero(with_other & here).tolist():
        places = np.flatnonzero(rows == first[blend])
        if sub[places].any() or (labels[places] != class_of[digits[first[blend]]]).any():
            continue  # it has another plant
        labels[places] = 4 if rng.random() < 0.5 else other[blend]
        blended[places], sub[places] = blend, labels[places] == 4


# -- Gaussian classes, without a network -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """n embedded examples with the answers of a model: ``x`` (n, D), ``labels``, ``predictions`` and ``sub`` (n,)."""

    x: NDArray[np.float32]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    sub: NDArray[np.bool_]


def gaussians(kind: str, seed: int) -> tuple[Answers, Answers]:
    """Return training and validation of 3 to 12 Gaussian classes; ``kind`` is planted in class 0.

    The model answers with the nearest class of a noisy view. In addition it takes images of class 0 for class 1 where
    they lack their cue (shortcut), or for one of some classes where they are rare in training (under-represented) or
    where their class hardly shows (intrinsically hard).
    """
    rng = np.random.default_rng([seed, 51, (*KINDS, NOTHING).index(kind)])
    classes = int(rng.integers(3, 13))
    cues, trait, noise = (classes, classes + 1), classes + 2, rng.uniform(0.4, 0.7)
    blur = rng.uniform(0.9, 1.3) if kind == NOTHING else rng.uniform(0.3, 0.9)
    rare, often = rng.uniform(0.02, 0.06), rng.uniform(0.15, 0.5)
    share, visible, shift = rng.uniform(0.15, 0.4), rng.uniform(0.0, 0.4), rng.uniform(0.5, 2.5)
    wrong_classes = rng.permutation(np.arange(1, classes))[: rng.integers(min(2, classes - 1), classes)]

    def draw(training: bool) -> Answers:
        labels = np.arange(150 * classes) % classes
        n, true = len(labels), labels.copy()
        is_rare = kind in (SHORTCUT, UNDER)
        special = (labels == 0) & (rng.random(n) < ((rare if training else often) if is_rare else share))
        special &= kind != NOTHING
        x = noise * rng.normal(size=(n, classes + 20))
        strength = np.full(n, 2.0)
        if kind == NOISE:
            true[special] = rng.integers(1, classes, special.sum())
        if kind == HARD:
            strength[special] *= visible
        x[np.arange(n), true] += strength
        if kind == SHORTCUT:
            x[(labels == 0) & ~special, cues[0]] += 2
            x[special | (labels == 1), cues[1]] += 2
        if kind in (UNDER, HARD):
            x[special, trait] += shift
        predictions = (x[:, :classes] + blur * rng.normal(size=(n, classes))).argmax(axis=1)
        fails = special & (rng.random(n) < 0.7)
        if kind == SHORTCUT:
            predictions[fails] = 1
        elif kind in (UNDER, HARD):
            predictions[fails] = rng.choice(wrong_classes, fails.sum())
        return Answers(x.astype(np.float32), labels, predictions, special)

    return draw(True), draw(False)
