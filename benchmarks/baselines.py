"""Failure directions beside other methods: who ranks the planted subpopulation first, and in what time?

    python benchmarks/baselines.py --output benchmarks/results/baselines.json
    python benchmarks/baselines.py --tasks superclasses --seeds 31 --output /tmp/baselines.json

The three tasks of ``fixable.py``, and ``two_modes``, the strength of a mixture: coloured digits where each class has
one usual tint and two unusual ones, each in 10 % of the images, and 12 % of the training labels are wrong.

Every method sees the validation set, and ranks the test set by class. Figures are means over the classes that every
method ranks: ``precision at 10`` and ``at 50``, the share of the subpopulation among the hardest images of a class;
in ``two_modes`` also ``rarer mode at 50``, the share of the mode that a method finds less of; and ``seconds``, the CPU
time of fitting and ranking, with the training of a twin where a method needs one. Checkpoints of the training itself
cost a pass over the images, which is not counted.

Methods: ``directions`` (this package's default), ``published`` (the paper's procedure) and ``directions, persistent``
(the default, of those failures alone that the model made after one epoch too); ``domino, 2 slices`` (as in
Jain et al., B.1.4) and ``domino, 25 slices`` of all classes together (its defaults: the hardness is the
responsibility of the slice with the highest error rate in the class); ``clusters`` (k-means on failures).
These see no label of a test image but its class. Four know the answers on the test set: ``learning from failure``
(the loss of a twin trained with generalised cross-entropy, q = 0.7), ``early stopping`` (the confidence after one
epoch, as in Just Train Twice), ``confidence`` and ``margin``. ``disagreement`` of the checkpoints after 1, 3 and all
epochs needs no label.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims.common import EPOCHS, embed, flip
from claims.common import fit as fit_digits
from claims.comparing import Comparison, compare
from digits import progress
from fixable import TASKS, Examples, Loss, Task
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_failures.baselines import (
    disagreement,
    fit_error_aware_mixture,
    generalised_cross_entropy,
    hardness_by_class,
    margins,
)
from lightning_failures.baselines.ranking import FINDERS, compare_rankings
from lightning_failures.bundled.digits.render import (
    SPLITS,
    TINTS,
    DigitSplit,
    draw_looks,
    render,
    source_digits,
    source_split,
)
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.types import FloatArray
from lightning_failures.directions import fit_failure_directions

SEEDS = tuple(range(31, 39))
TOPS = (10, 50)
OURS, PERSISTENT = "directions", "directions, persistent"
USUAL, NOISE = 0.8, 0.12
"""Share of the usual tint in ``two_modes``, and of wrong labels in its training set."""
RARER = "rarer mode at 50"
CHECKPOINTS = (1, 3)
"""Epochs after which answers are kept, beside those at the end."""


@lru_cache(maxsize=1)
def _two_modes(seed: int, size: int) -> dict[DigitSplit, tuple[Tensor, Tensor, Tensor, NDArray[np.int64], Tensor]]:
    """Return images, labels, embeddings, modes (0: usual) and sources of each part."""
    rng = np.random.default_rng([seed, 0x2B])
    tints = rng.permutation(len(TINTS))
    parts = {}
    for part in SPLITS:
        sources = source_split(part)
        sources = sources[torch.from_numpy(rng.integers(len(sources), size=size))]
        pictures, digits = source_digits()
        labels = digits[sources]
        mode = rng.choice(3, size=size, p=[USUAL, (1 - USUAL) / 2, (1 - USUAL) / 2])
        looks = draw_looks(size, rng)
        looks.tint[:] = torch.from_numpy(tints[(labels.numpy() + np.array([0, 3, 7])[mode]) % len(tints)])
        images = render(pictures[sources], looks, rng)
        parts[part] = images, labels, embed(images), mode, sources
    return parts


def two_modes(seed: int, *, epochs: int | None = None, loss: Loss = cross_entropy, size: int = 4000) -> Task:
    """Coloured digits with one usual tint in training and two unusual ones for each class, usual ones of others."""
    parts = _two_modes(seed, size)
    images, labels, x, _, _ = parts["train"]
    noisy = flip(labels, NOISE, np.random.default_rng([seed, 0x2C]))
    model = fit_digits(images, noisy, seed=seed, epochs=epochs or EPOCHS, loss=loss)
    graded = []
    for part in SPLITS[1:]:
        pictures, digits, embedded, mode, sources = parts[part]
        graded.append(Examples.graded(embedded, digits, model.logits(pictures), mode > 0, sources))
    return Task(x.numpy(), *graded)


def modes_of(name: str, seed: int, size: int) -> dict[str, NDArray[np.bool_]]:
    """Return the subpopulations of the test set that are to be found both, {name: (n,) bool}; none in most tasks."""
    if name != two_modes.__name__:
        return {}
    mode = _two_modes(seed, size)["test"][3]
    return {"first mode": mode == 1, "second mode": mode == 2}


ALL_TASKS: dict[str, Callable[..., Task]] = {**TASKS, two_modes.__name__: two_modes}


def rankings(make: Callable[..., Task], seed: int) -> tuple[Task, dict[str, FloatArray], dict[str, float]]:
    """Return the task, the hardness (n,) of the test images by method, and the CPU seconds of each method."""
    task = make(seed)
    seen, test = task.validation, task.test
    correct = seen.predictions == seen.labels
    early = [make(seed, epochs=epochs) for epochs in CHECKPOINTS]
    correct_early = early[0].validation.predictions == seen.labels
    found, seconds = {}, {}

    def timed(name: str, rank: Callable[[], Any]) -> None:
        start = time.process_time()
        found[name] = np.asarray(rank(), dtype=np.float64)
        seconds[name] = time.process_time() - start

    def directions(right: Any = correct, **options: Any) -> Any:
        fitted = fit_failure_directions(
            seen.x, seen.labels, right, groups=seen.groups, reference=task.train, permutations=0, seed=seed, **options
        )
        return -fitted.decision_values(test.x, test.labels).numpy()

    timed(OURS, directions)
    timed("published", lambda: directions(selection="published", doubted=None))
    timed(PERSISTENT, lambda: directions(correct | correct_early))
    for name, label in (("domino", "domino, 2 slices"), ("clusters", "clusters")):
        timed(
            label,
            lambda name=name: hardness_by_class(
                *(FINDERS[name], seen.x, seen.labels, ~correct), new=(test.x, test.labels), seed=seed
            ),
        )
    timed("domino, 25 slices", lambda: _mixture_of_all(task, seed))
    timed("learning from failure", lambda: 1 - make(seed, loss=generalised_cross_entropy).test.confidence)
    timed("early stopping", lambda: 1 - early[0].test.confidence)
    timed("confidence", lambda: 1 - test.confidence)
    timed("margin", lambda: -margins(test.probabilities, test.labels))
    answers = [*(one.test.probabilities for one in early), test.probabilities]
    timed("disagreement", lambda: disagreement(np.stack(answers)))
    return task, found, seconds


def _mixture_of_all(task: Task, seed: int) -> FloatArray:
    """Return the responsibility of the slice whose error rate in the class is the highest."""
    seen, test = task.validation, task.test
    model = fit_error_aware_mixture(seen.x, seen.labels, seen.predictions, seed=seed)
    own, others = model.responsibilities(seen.x, seen.labels), model.responsibilities(test.x, test.labels)
    failed = seen.predictions != seen.labels
    hardness = np.full(len(test.labels), np.nan)
    for label in np.unique(test.labels):
        rows, of_test = seen.labels == label, test.labels == label
        mass = own[rows].sum(axis=0)
        rate = np.where(mass >= 1, (own[rows] * failed[rows][:, None]).sum(axis=0) / np.maximum(mass, 1), -1)
        hardness[of_test] = others[of_test, int(rate.argmax())]
    return hardness


def measure(name: str, seed: int) -> dict[str, Any]:
    """Return the figures of every method, {figure: {method: value}}."""
    task, found, seconds = rankings(ALL_TASKS[name], seed)
    test = task.test
    scores = compare_rankings(found, test.labels, {"planted": test.sub}, top=TOPS)
    figures: dict[str, Any] = {f"precision at {k}": {} for k in TOPS}
    for one in scores:
        figures[f"precision at {one.top}"][one.method] = one.precision
    modes = modes_of(name, seed, len(test.labels))
    by_mode = compare_rankings(found, test.labels, modes, top=TOPS[-1:])
    rarer: dict[str, float] = {}
    for one in by_mode:
        rarer[one.method] = min(one.precision, rarer.get(one.method, 1.0))
    failed = test.predictions != test.labels
    return (
        figures
        | ({RARER: rarer} if rarer else {})
        | {
            "seconds": seconds,
            "classes": scores[0].classes if scores else 0,
            "chance": scores[0].chance if scores else None,
            "error rate": float(failed.mean()),
            "error rate of the subpopulation": float(failed[test.sub].mean()),
        }
    )


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(ALL_TASKS), default=list(ALL_TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/baselines.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"raw": {}, "comparisons": []}
    for name in options.tasks:
        raw = {seed: measure(name, seed) for seed in progress(options.seeds, name)}
        result["raw"][name] = raw
        figures = [f"precision at {k}" for k in TOPS] + [RARER] * any(RARER in row for row in raw.values())
        methods = list(next(iter(raw.values()))["seconds"])
        result["comparisons"] += [
            compare(name, Comparison(f"{figure}, {OURS} not below {rival}", (figure,), OURS, rival, 0.02), raw)
            for figure in figures
            for rival in methods[1:]
        ]
        result["comparisons"] += [
            compare(
                name, Comparison(f"{figure}, {PERSISTENT} not below {rival}", (figure,), PERSISTENT, rival, 0.02), raw
            )
            for figure in figures
            for rival in (OURS, "early stopping")
        ]
        chance = np.mean([row["chance"] for row in raw.values() if row["chance"] is not None])
        print(f"{name}: {len(raw)} seeds, chance {chance:.3f}")
        for method in methods:
            shares = [np.mean([row[f][method] for row in raw.values() if method in row[f]]) for f in figures]
            taken = np.mean([row["seconds"][method] for row in raw.values()])
            print(f"  {method}: " + ", ".join(f"{share:.3f}" for share in shares) + f", {taken:.1f} s", flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.output, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
