"""Power and level of the test for a pattern that all classes share, where single classes have too few images.

    python benchmarks/shared_pattern.py            # --quick for a tenth of the trials

200 classes of 5 images, 64 dimensions, Gaussian noise around the means of the classes:

* planted: a fifth of all images is shifted by 3 standard deviations along one direction and fails at a rate of 0.5, the
  others at 0.2;
* null, equal rates: the same images, every one fails at a rate of 0.26;
* null, classes differ: the same images, each class has an error rate of its own (Beta(1, 3));
* null, hard classes lie apart: the error rate of a class rises with the position of its mean along the direction.

For each seed: the p-value, effect, score, and the cosine between the found and the planted direction. Beside it the
direction of the plain difference of means, not within classes, whose test permutes correctness over all images: it
mistakes hard classes for a pattern. Writes a table to stdout and the figures of every seed to JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.directions.shared import fit_shared_direction
from lightning_failures.directions.standardize import mean_and_std, standardize
from lightning_failures.stats.intervals import wilson_interval
from lightning_failures.stats.permutation_test import permutation_p_value

CLASSES, IMAGES, DIM = 200, 5, 64
SHARE, SHIFT, INSIDE, OUTSIDE = 0.2, 3.0, 0.5, 0.2
LEVEL = 0.05
ARMS = ("planted", "null, equal rates", "null, classes differ", "null, hard classes lie apart")


def draw(arm: str, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Return embeddings, labels, correctness and the planted direction."""
    rng = np.random.default_rng([seed, ARMS.index(arm)])
    labels = np.repeat(np.arange(CLASSES), IMAGES)
    direction = rng.normal(size=DIM)
    direction /= np.linalg.norm(direction)
    means = rng.normal(size=(CLASSES, DIM))
    inside = rng.random(len(labels)) < SHARE
    x = means[labels] + rng.normal(size=(len(labels), DIM)) + SHIFT * inside[:, None] * direction
    if arm == "planted":
        rate = np.where(inside, INSIDE, OUTSIDE)
    elif arm == "null, equal rates":
        rate = np.full(len(labels), SHARE * INSIDE + (1 - SHARE) * OUTSIDE)
    elif arm == "null, classes differ":
        rate = rng.beta(1, 3, size=CLASSES)[labels]
    else:
        rate = (1 / (1 + np.exp(1.2 - 1.5 * means @ direction)))[labels]
    return x.astype(np.float32), labels, rng.random(len(labels)) >= rate, direction


def one_run(arm: str, seed: int) -> dict[str, Any]:
    """Fit one data set."""
    x, labels, correct, direction = draw(arm, seed)
    start = time.perf_counter()
    shared = fit_shared_direction(x, labels, correct, seed=seed)
    seconds = time.perf_counter() - start
    if isinstance(shared, str):
        raise RuntimeError(shared)
    mean, std = mean_and_std(x)
    phi = standardize(x, mean.astype(np.float32), std.astype(np.float32))
    plain = permutation_p_value(
        phi, None, correct, np.arange(len(x)), permutations=999, rng=np.random.default_rng(seed)
    )
    planted = direction / std
    return {
        "arm": arm,
        "seed": seed,
        "p_value": shared.p_value,
        "plain_p_value": plain,
        "effect": shared.effect.difference,
        "effect_interval": shared.effect.interval,
        "strength": shared.effect.strength,
        "flagged": shared.effect.flagged,
        "failures_flagged": shared.effect.coverage,
        "cv_score": shared.cv_score,
        "cosine": float(-shared.weight @ planted / np.linalg.norm(planted)),
        "seconds": round(seconds, 3),
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares of the runs of one arm in which a pattern is found, with 95 % intervals."""
    found = sum(run["p_value"] <= LEVEL for run in runs)
    plain = sum(run["plain_p_value"] <= LEVEL for run in runs)
    return {
        "runs": len(runs),
        "found": found / len(runs),
        "found_interval": wilson_interval(found, len(runs)),
        "found_by_plain_difference": plain / len(runs),
        "effect": float(np.mean([run["effect"] for run in runs])),
        "cv_score": float(np.mean([run["cv_score"] for run in runs])),
        "cosine": float(np.mean([run["cosine"] for run in runs])),
        "failures_flagged": float(np.mean([run["failures_flagged"] for run in runs])),
        "seconds": float(np.median([run["seconds"] for run in runs])),
    }


def main() -> None:
    """Run all arms and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 data sets an arm instead of 200")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "shared_pattern.json")
    options = parser.parse_args()
    trials = 20 if options.quick else 200

    runs, table = [], {}
    for arm in ARMS:
        of_arm = [one_run(arm, seed) for seed in range(trials)]
        runs += of_arm
        row = table[arm] = summarise(of_arm)
        low, high = row["found_interval"]
        print(
            f"{arm:30} found {row['found']:.3f} ({low:.3f} to {high:.3f})  plain difference of means"
            f" {row['found_by_plain_difference']:.3f}  effect {row['effect']:+.3f}  CV score {row['cv_score']:.3f}"
            f"  cosine {row['cosine']:.2f}  {row['seconds']:.2f} s",
            flush=True,
        )
    figures = {"summary": table, "runs": runs}
    options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
