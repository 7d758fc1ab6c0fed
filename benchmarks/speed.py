"""CPU time against what a user would otherwise run, alternated in one run: directions and feature selection.

    python benchmarks/speed.py

Peers: the published procedure (one ``SVC`` a class and value of C, ``cross_val_score``) and ``mutual_info_classif``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from lightning_failures.directions import fit_failure_directions, phi


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def ratio(peer: Callable[[], object], ours: Callable[[], object], rounds: int) -> str:
    """CPU time of the peer over ours, alternated."""
    ours()  # warm up
    ratios = [cpu_seconds(peer) / cpu_seconds(ours) for _ in range(rounds)]
    return f"{np.median(ratios):.1f} x ({min(ratios):.1f} to {max(ratios):.1f}, {rounds} rounds)"


def graded(classes: int, n: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of classes with a planted direction; about a third fail."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(classes * n, dim)).astype(np.float32)
    labels = np.repeat(np.arange(classes), n)
    x[:, 0] += 0.02 * labels
    correct = 0.3 * x[:, 0] + 0.3 * x[:, 1] + rng.normal(size=len(x)) > -0.45
    return x, labels, correct


def published(x: np.ndarray, labels: np.ndarray, correct: np.ndarray) -> None:
    """As in the published code, 21 fits a class: for 7 values of C two folds and one fit on all."""
    mean, std = x.mean(axis=0).astype(np.float64), x.std(axis=0).astype(np.float64)
    for label in np.unique(labels):
        z, y = phi(x[labels == label], mean, std), correct[labels == label]
        grid = [SVC(kernel="linear", class_weight="balanced", C=10.0**e) for e in range(-6, 1)]
        scores = [cross_val_score(svc, z, y, cv=2, scoring="balanced_accuracy").mean() for svc in grid]
        fitted = [svc.fit(z, y) for svc in grid]
        assert fitted[int(np.argmax(scores))].coef_.shape == (1, x.shape[1])


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for n in (250, 500, 1000):
            data = graded(arguments.classes, n, 512, seed=n)
            told = ratio(
                lambda d=data: published(*d),
                lambda d=data: fit_failure_directions(*d, permutations=0),
                arguments.rounds,
            )
            print(f"directions, {arguments.classes} classes x {n} x 512: published / ours {told}", flush=True)
            told = ratio(
                lambda d=data: fit_failure_directions(*d, permutations=999),
                lambda d=data: fit_failure_directions(*d, permutations=0),
                arguments.rounds,
            )
            print(f"  with 999 permutations / without: {told}", flush=True)


if __name__ == "__main__":
    main()
