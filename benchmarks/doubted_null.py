"""Do doubted failures keep the tests honest? Level, false discoveries and power where a part of the labels is wrong.

    python benchmarks/doubted_null.py --output benchmarks/results/doubted_null.json

Simulated: each seed draws 100 classes of 150 examples, clusters in 128 dimensions that overlap a little; 12 % of the
labels are wrong, and the classifier fails on all of these. In half of the classes 15 % of the other examples fail at
random: there is no pattern. In the others a fifth of the class is shifted by three standard deviations and fails half
of the time, the rest one time in twenty. Discoveries are classes that pass Benjamini-Hochberg at 0.05, as in
``analyse``. Without doubts wrong labels are a pattern of every class: they lie in other clusters.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import progress
from numpy.typing import NDArray

from lightning_failures.core.atomic import write_atomically
from lightning_failures.directions import fit_failure_directions
from lightning_failures.stats.intervals import benjamini_hochberg, wilson_interval

CLASSES, SIZE, DIM = 100, 150, 128
ARMS = ("failures", "examples", None)
LEVEL = 0.05


def draw(seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return embeddings, labels and correctness; a pattern is planted in classes of odd numbers."""
    rng = np.random.default_rng([seed, 19])
    true = np.repeat(np.arange(CLASSES), SIZE)
    centres = rng.normal(size=(CLASSES, DIM))
    x = rng.normal(size=(len(true), DIM)) + centres[true]
    shifts = rng.normal(size=(CLASSES, DIM))
    shifts *= 3 / np.linalg.norm(shifts, axis=1, keepdims=True)
    planted, inside = true % 2 == 1, rng.random(len(true)) < 0.2
    x[planted & inside] += shifts[true][planted & inside]
    rate = np.where(planted, np.where(inside, 0.5, 0.05), 0.15)
    wrong = rng.random(len(true)) < 0.12
    labels = np.where(wrong, (true + rng.integers(1, CLASSES, len(true))) % CLASSES, true)
    return x, labels, ~wrong & (rng.random(len(true)) >= rate)


def measure(seed: int) -> dict[str, Any]:
    """Return by arm how many null classes have p <= 0.05, and the false and true discoveries."""
    x, labels, correct = draw(seed)
    arms: dict[str, Any] = {}
    for doubted in ARMS:
        found = fit_failure_directions(x, labels, correct, permutations=199, doubted=doubted, seed=seed)
        p, planted = found.p_value.numpy(), found.classes.numpy() % 2 == 1
        discovered = np.asarray(benjamini_hochberg(p, LEVEL))
        arms[str(doubted)] = {
            "null": int((~planted).sum()),
            "null, p <= 0.05": int((p[~planted] <= LEVEL).sum()),
            "discoveries": int(discovered.sum()),
            "false": int((discovered & ~planted).sum()),
            "planted": int(planted.sum()),
        }
    return arms


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(20)))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/doubted_null.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    raw = {seed: measure(seed) for seed in progress(options.seeds, "seed")}
    for arm in map(str, ARMS):
        total = {key: sum(row[arm][key] for row in raw.values()) for key in next(iter(raw.values()))[arm]}
        low, high = wilson_interval(total["null, p <= 0.05"], total["null"])
        shares = [row[arm]["false"] / max(row[arm]["discoveries"], 1) for row in raw.values()]
        error = np.std(shares, ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else float("nan")
        true = total["discoveries"] - total["false"]
        print(
            f"doubted={arm}: p <= 0.05 in {total['null, p <= 0.05'] / total['null']:.3f} [{low:.3f}, {high:.3f}] of"
            f" {total['null']} null classes; false discoveries {np.mean(shares):.3f} +- {error:.3f}; power"
            f" {true / total['planted']:.3f} of {total['planted']}"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, (json.dumps(raw, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
