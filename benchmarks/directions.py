"""Failure directions against scikit-learn: the same results, and CPU times alternated in one run.

    python benchmarks/directions.py

Takes some minutes. Peer: the published procedure, 21 fits of ``SVC(kernel="linear")`` per class (7 values of C; two
folds and one fit on all examples). Data: classes of n x 512 with a weak planted direction and a third of failures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.svm import SVC

from lightning_failures.core.threads import one_thread
from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.standardize import mean_and_std, standardize
from lightning_failures.directions.svm import (
    FIXABLE_MULTIPLE,
    PUBLISHED_CS,
    WHOLE_MULTIPLE,
    balanced_signs,
    fit_published,
    fit_scaled,
)
from lightning_failures.stats.folds import stratified_group_folds

Data = tuple[np.ndarray, np.ndarray, np.ndarray]
SIZES = (250, 500, 1000)
MULTIPLES = (FIXABLE_MULTIPLE, 10.0, WHOLE_MULTIPLE, 100.0)  # of the critical C, above which no closed form helps


def graded(classes: int, n: int, dim: int, seed: int) -> Data:
    """Return embeddings, labels and correctness of classes with a planted direction; about a third fail."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(classes * n, dim)).astype(np.float32)
    labels = np.repeat(np.arange(classes), n)
    x[:, 0] += 0.02 * labels
    correct = 0.3 * x[:, 0] + 0.3 * x[:, 1] + rng.normal(size=len(x)) > -0.45
    return x, labels, correct


def published(x: np.ndarray, labels: np.ndarray, correct: np.ndarray) -> None:
    """Fit as the published code does, 21 fits per class: two folds and one fit on all examples for 7 values of C."""
    mean, std = mean_and_std(x)
    for label in np.unique(labels):
        z, y = standardize(x[labels == label], mean, std), correct[labels == label]
        grid = [SVC(kernel="linear", class_weight="balanced", C=c) for c in PUBLISHED_CS]
        scores = [cross_val_score(svc, z, y, cv=2, scoring="balanced_accuracy").mean() for svc in grid]
        fitted = [svc.fit(z, y) for svc in grid]
        assert fitted[int(np.argmax(scores))].coef_.shape == (1, x.shape[1])


def ratios(peer: Callable[[], object], ours: Callable[[], object], rounds: int) -> list[float]:
    """Return the CPU time of the peer over ours, alternated."""

    def cpu_seconds(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    ours()  # compiled and warm
    return [cpu_seconds(peer) / cpu_seconds(ours) for _ in range(rounds)]


def spread_text(values: list[float]) -> str:
    """Return median and spread as text."""
    return f"{np.median(values):.1f} x ({min(values):.1f} to {max(values):.1f}, {len(values)} rounds)"


def speed(classes: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure the ratios of CPU times by the size of the classes."""
    fit_failure_directions(*graded(1, 250, 512, seed=0))  # the test is compiled too
    result = {}
    for n in SIZES:
        data = graded(classes, n, 512, seed=n)
        result[str(n)] = {
            "published / ours": ratios(
                lambda d=data: published(*d), lambda d=data: fit_failure_directions(*d, permutations=0), rounds
            ),
            "with 999 permutations / without": ratios(
                lambda d=data: fit_failure_directions(*d, permutations=999),
                lambda d=data: fit_failure_directions(*d, permutations=0),
                3 * rounds,
            ),
            'published / selection="published"': ratios(
                lambda d=data: published(*d),
                lambda d=data: fit_failure_directions(*d, permutations=0, selection="published"),
                rounds,
            ),
        }
        print(
            f"{classes} classes x {n} x 512", *(f"  {k}: {spread_text(v)}" for k, v in result[str(n)].items()), sep="\n"
        )
    return result


def critical_c(gram: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """Return the largest C at which every multiplier is at its bound: 2 / (max f of successes - min f of failures)."""
    f = gram @ balanced_signs(correct)
    return 2.0 / float(f[correct].max() - f[~correct].min())


def same_answers(classes: int) -> dict[str, dict[str, float]]:
    """Compare ours with SVC at two tolerances, at equal C above the critical C."""
    result = {}
    for n in SIZES:
        x, labels, correct = graded(classes, n, 512, seed=n + 1)
        mean, std = mean_and_std(x)
        flips, flips_default, cosine, cells = 0, 0, 1.0, 0
        for label in range(classes):
            z, y = standardize(x[labels == label], mean, std), correct[labels == label]
            fold = stratified_group_folds(~y, np.arange(n))
            cv = list(PredefinedSplit(fold).split())
            critical = [critical_c((z @ z.T)[np.ix_(kept, kept)], y[kept]) for kept, _ in cv]
            for c in np.array(MULTIPLES) * max(critical):
                fit = fit_scaled(z.astype(np.float32), y, fold, (float(c),))
                exact = SVC(kernel="linear", class_weight="balanced", C=c, tol=1e-8)
                default = SVC(kernel="linear", class_weight="balanced", C=c)
                weight = exact.fit(z, y).coef_[0]
                alike = weight @ fit.weight / np.linalg.norm(weight) / np.linalg.norm(fit.weight)
                cosine, cells = min(cosine, float(alike)), cells + 1
                for kept, held in cv:
                    ours = fit.out_of_fold[held] > 0
                    flips += int((exact.fit(z[kept], y[kept]).predict(z[held]) != ours).sum())
                    differ = int((default.fit(z[kept], y[kept]).predict(z[held]) != ours).sum())
                    flips_default = max(flips_default, differ)
        result[str(n)] = {
            "cells": cells,
            "held-out predictions": cells * n,
            "that differ from tol=1e-8": flips,
            "least cosine of weights": cosine,
            "most that differ in a fold from the default tolerance": flips_default,
        }
        print(f"same answers, {n} x 512: {result[str(n)]}", flush=True)
    return result


def same_choice(classes: int) -> dict[str, int]:
    """Compare ``selection="published"`` with scikit-learn's functions, cell by cell."""
    cells, same_scores, same_c = 0, 0, 0
    for n in SIZES:
        x, labels, correct = graded(classes, n, 512, seed=n + 2)
        mean, std = mean_and_std(x)
        for label in range(classes):
            z, y = standardize(x[labels == label], mean, std), correct[labels == label]
            fold = np.zeros(n, dtype=np.int64)
            peers = [SVC(kernel="linear", class_weight="balanced", C=c) for c in PUBLISHED_CS]
            scores = [cross_val_score(svc, z, y, cv=2, scoring="balanced_accuracy").mean() for svc in peers]
            for k, (_, held) in enumerate(_two_folds(y)):
                fold[held] = k
            ours = [fit_published(z, y, fold, (c,)).score for c in PUBLISHED_CS]
            cells += len(scores)
            same_scores += int(sum(a == b for a, b in zip(scores, ours, strict=True)))
            same_c += int(fit_published(z, y, fold).c == PUBLISHED_CS[int(np.argmax(scores))])
    result = {"cells": cells, "with the same score": same_scores, "classes": 3 * classes, "with the same C": same_c}
    print(f'selection="published": {result}', flush=True)
    return result


def _two_folds(y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedKFold

    return list(StratifiedKFold(2).split(y, y))


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/directions.json"))
    arguments = parser.parse_args()
    with one_thread():
        figures = {
            "same answers": same_answers(max(1, arguments.classes // 5)),
            "same choice": same_choice(max(1, arguments.classes // 5)),
            "speed": speed(arguments.classes, arguments.rounds),
        }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
