"""Filtering a pool by decision value beats random and, with label noise and blur about, confidence (Fig. 6, A.4).

The pool: fresh images of training digits, a fifth of them in the unusual tint of their class. Of each class with a
direction the same number is picked and joins the training set, under the label that the pool gives it. The arm
``decision_value, published`` takes the directions of the paper's procedure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from claims.common import MORE_EPOCHS, Trained, World, columns, embed, fit, flip
from claims.comparing import Comparison
from lightning_failures.bundled.digits import TINTS
from lightning_failures.bundled.digits.render import draw_looks, render, source_digits, source_split
from lightning_failures.bundled.digits.shortcut import NOTHING, Shortcut, draw_tints
from lightning_failures.interventions.label_errors import suspect_labels
from lightning_failures.interventions.selection.picker import By, PoolSelector

__all__ = ["COMPARISONS", "run"]

PER_CLASS, POOL, UNUSUAL = 20, 3000, 0.2
LABEL_NOISE, BLURRED, SIGMA = 0.15, 0.1, 2.0
LOSS = 0.01
PUBLISHED = "decision_value, published"
TRIAGED: dict[By, str] = {by: f"{by}, triaged" for by in ("confidence", "flagged_confidence")}
"""Arms that leave out suspected labels first; only where labels are wrong."""

COMPARISONS = tuple(
    comparison
    for way in ("retrained", "continued")
    for comparison in (
        Comparison(
            f"minority accuracy, clean pool, decision value > random, {way}",
            (way, "clean", "minority"),
            "decision_value",
            "random",
        ),
        Comparison(
            f"minority accuracy, clean pool, decision value not below confidence by {LOSS}, {way}",
            (way, "clean", "minority"),
            "decision_value",
            "confidence",
            margin=LOSS,
        ),
        Comparison(
            f"minority accuracy, noisy pool, decision value > random, {way}",
            (way, "noisy", "minority"),
            "decision_value",
            "random",
        ),
        Comparison(
            f"minority accuracy, noisy pool, decision value > confidence, {way}",
            (way, "noisy", "minority"),
            "decision_value",
            "confidence",
        ),
        *(
            Comparison(
                f"minority accuracy, {pool} pool, decision value not below published by {LOSS}, {way}",
                (way, pool, "minority"),
                "decision_value",
                PUBLISHED,
                margin=LOSS,
            )
            for pool in ("clean", "noisy")
        ),
        *(
            Comparison(
                f"minority accuracy, {pool} pool, {arm} > {rival}, {way}",
                (way, pool, "minority"),
                arm,
                rival,
            )
            for pool, arm, rivals in (
                ("clean", "flagged_confidence", ("decision_value", "confidence")),
                ("noisy", "flagged_confidence", ("decision_value",)),
                ("noisy", TRIAGED["flagged_confidence"], ("decision_value", "confidence", TRIAGED["confidence"])),
            )
            for rival in rivals
        ),
    )
)


@dataclass(frozen=True, eq=False)
class Pool:
    """N labelled images to select from: their given labels, embeddings, and true attributes.

    Attributes:
        images: (N, 3, 32, 32) uint8.
        labels: (N,) int64.
        groups: (N,) int64, the source digits.
        embeddings: (N, D) float32.
        true: (N,) int64, the right labels.
        unusual: (N,) bool, bears the unusual tint of the true class.
        blurred: (N,) bool.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor
    embeddings: Tensor
    true: Tensor
    unusual: Tensor
    blurred: Tensor


def run(world: World) -> dict[str, Any]:
    """Pick in every order from both pools, train both ways."""
    plain = {"retrained": world.judge(world.base()), "continued": world.judge(world.continued())}
    tables: dict[str, Any] = {way: {} for way in plain} | {"picks": {}}
    clean = clean_pool(world)
    for name, pool in (("clean", clean), ("noisy", spoiled(clean, world))):
        picks = pick(world, pool)
        tables["picks"][name] = {arm: describe(world, pool, rows) for arm, rows in picks.items()}
        for way in plain:
            arms = {arm: _train_with(world, pool, rows, way) for arm, rows in picks.items()}
            judged = {arm: world.judge(model) for arm, model in arms.items()}
            tables[way][name] = columns(judged | {"plain": plain[way]})
    return tables


def clean_pool(world: World) -> Pool:
    """Return digits of the training set in newly drawn looks."""
    rng = world.rng(3)
    shortcut = _shortcut(world)
    groups = torch.from_numpy(rng.choice(source_split("train").numpy(), size=POOL))
    labels = source_digits()[1][groups]
    tint = draw_tints(labels, shortcut, 1 - UNUSUAL, rng)
    images = render(source_digits()[0][groups], replace(draw_looks(POOL, rng), tint=tint), rng)
    unusual = (tint == shortcut.unusual[labels]) & (shortcut.unusual[labels] != NOTHING)
    return Pool(images, labels, groups, embed(images), labels, unusual, torch.zeros(POOL, dtype=torch.bool))


def spoiled(pool: Pool, world: World) -> Pool:
    """Return the pool with wrong labels and blurred images, drawn independently of each other."""
    rng = world.rng(4)
    blurred = torch.zeros(POOL, dtype=torch.bool)
    blurred[torch.from_numpy(rng.permutation(POOL)[: round(BLURRED * POOL)])] = True
    images, embeddings = pool.images.clone(), pool.embeddings.clone()
    images[blurred] = gaussian_blur(images[blurred], kernel_size=[13, 13], sigma=[SIGMA, SIGMA])
    embeddings[blurred] = embed(images[blurred])
    labels = flip(pool.labels, LABEL_NOISE, rng)
    return replace(pool, images=images, embeddings=embeddings, labels=labels, blurred=blurred)


def pick(world: World, pool: Pool) -> dict[str, Tensor]:
    """Return arm -> selected rows of the pool, under the labels of the pool."""
    directions = world.directions()
    classes = directions.classes.tolist()
    probability = torch.softmax(world.base().logits(pool.images), dim=1)
    values = {
        "decision_values": directions.decision_values(pool.embeddings, pool.labels),
        "confidence": probability[torch.arange(POOL), pool.labels],
    }
    published = {"decision_values": world.published().decision_values(pool.embeddings, pool.labels)}

    def picked(by: By, rows: Tensor, values: dict[str, Tensor] = values) -> Tensor:
        picker = PoolSelector(PER_CLASS, by=by, classes=classes, seed=world.seed)
        some = {name: column[rows] for name, column in values.items()}
        picker.add(rows, pool.labels[rows], embeddings=pool.embeddings[rows], **some)
        training = world.data("train").labels
        return picker.pick(training=lambda k: [world.embeddings("train")[training == k]]).ids

    everything = torch.arange(POOL)
    arms = {str(by): picked(by, everything) for by in get_args(By)}
    arms[PUBLISHED] = picked("decision_value", everything, published)
    if bool((pool.labels != pool.true).any()):
        kept = everything[~suspected(world, pool, probability.argmax(dim=1))]
        arms |= {name: picked(by, kept) for by, name in TRIAGED.items()}
    return arms


def suspected(world: World, pool: Pool, predictions: Tensor) -> Tensor:
    """Return (N,) bool: labels of the pool that the model, neighbours and a probe contradict."""
    train = world.split("train")
    found = suspect_labels(
        torch.cat([train.embeddings, pool.embeddings]),
        torch.cat([train.grades.labels, pool.labels]),
        torch.cat([train.grades.predictions, predictions]),
        groups=torch.cat([torch.as_tensor(train.data.groups), pool.groups]),
        candidates=torch.arange(len(train.grades) + POOL) >= len(train.grades),
    )
    return found.suspect[len(train.grades) :]


def _train_with(world: World, pool: Pool, rows: Tensor, way: str) -> Trained:
    """Train on the training set and these rows of the pool."""
    train = world.data("train")
    images, labels = torch.cat([train.images, pool.images[rows]]), torch.cat([train.labels, pool.labels[rows]])
    if way == "retrained":
        return fit(images, labels, seed=world.seed)
    return fit(images, labels, seed=world.seed, epochs=MORE_EPOCHS, start=world.base())


def describe(world: World, pool: Pool, rows: Tensor) -> dict[str, Any]:
    """Return the kind of the selected rows, their difficulty for the plain model, and their mutual similarity."""
    labels = pool.labels[rows]
    wrong = labels != pool.true[rows]
    share = lambda of: float(of.float().mean())  # noqa: E731
    alike = []
    for k in labels.unique():
        mine = pool.embeddings[rows[labels == k]]
        alike += [(mine @ mine.T)[~torch.eye(len(mine), dtype=torch.bool)].mean()] if len(mine) > 1 else []
    return {
        "picks": len(rows),
        "unusual and right": share(pool.unusual[rows] & ~wrong),
        "wrong labels": share(wrong),
        "blurred": share(pool.blurred[rows]),
        "plain model right": share(world.base().logits(pool.images[rows]).argmax(dim=1) == labels),
        "cosine within a class": float(torch.stack(alike).mean()),
    }


def _shortcut(world: World) -> Shortcut:
    """The tints of this seed, as indices."""
    tints, truth = list(TINTS), world.data("train").truth
    columns = (
        torch.tensor([NOTHING if planted is None else tints.index(planted[f"{kind}_tint"]) for planted in truth])
        for kind in ("usual", "unusual")
    )
    return Shortcut(*columns)
