"""Sparse paths against other solvers, alternated in one run: CPU time, objective and optimality at equal lambdas.

    python benchmarks/sparse_path.py                                   # small
    python benchmarks/sparse_path.py --full --output benchmarks/results/sparse_path.json

Data: correlated Gaussian features, 20 classes of a sparse softmax layer, 30 values of lambda down to 0.01 of the
largest. scikit-learn's saga fits the first values only (``--saga-points``), warm-started, and is compared with the time
of ours on the same values. Every fit runs in a process of its own, with one thread, after a small one that loads
libraries and compiled code; times are CPU times of the fit. The objective of every solver is evaluated in double
precision.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from lightning_failures.sparse import fit_sparse_path

Layers = list[tuple[NDArray[Any], NDArray[Any]]]
ALPHA, CLASSES, POINTS, RATIO = 0.99, 20, 30, 0.01
SMALL, FULL = [(1000, 128)], [(2500, 512), (5000, 512), (10_000, 512), (5000, 256), (5000, 1024), (10_000, 1280)]


def draw(n: int, d: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw standardized features (n, d), correlated by 32 common factors, and labels of ten features per class."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 32)) @ rng.normal(size=(32, d)) / np.sqrt(32)
    x = np.sqrt(0.5) * (common + rng.normal(size=(n, d)))
    weight = np.zeros((CLASSES, d))
    for k in range(CLASSES):
        weight[k, rng.choice(d, 10, replace=False)] = rng.normal(size=10)
    logits = x @ weight.T
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32), labels


def objectives(x: NDArray[Any], y: NDArray[Any], layers: Layers, lambdas: NDArray[Any]) -> list[float]:
    """Return the penalised mean cross-entropy of each layer in double precision."""
    z, values = x.astype(np.float64), []
    for (weight, bias), strength in zip(layers, lambdas, strict=False):
        loss = -log_softmax(z @ weight.T + bias, axis=1)[np.arange(len(y)), y].mean()
        penalty = ALPHA * np.abs(weight).sum() + (1 - ALPHA) / 2 * np.square(weight).sum()
        values.append(float(loss + strength * penalty))
    return values


def ours(x: NDArray[Any], y: NDArray[Any], lambdas: NDArray[Any]) -> Layers:
    """Fit by this package."""
    path = fit_sparse_path(x, y, alpha=ALPHA, lambdas=lambdas.tolist(), standardize=False)
    return [tuple(one.double().numpy() for one in path.layer(row)) for row in range(len(lambdas))]


def saga(x: NDArray[Any], y: NDArray[Any], lambdas: NDArray[Any]) -> Layers:
    """Fit by scikit-learn with warm starts, to the tolerance that its documentation gives."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    warnings.simplefilter("ignore")
    model = LogisticRegression(
        penalty="elasticnet", solver="saga", l1_ratio=ALPHA, tol=1e-4, max_iter=5000, warm_start=True
    )
    layers = []
    for strength in lambdas.tolist():
        model.set_params(C=1 / (strength * len(y))).fit(x, y)
        layers.append((model.coef_.copy(), model.intercept_.copy()))
    return layers


SOLVERS = {"ours": ours, "saga": saga}


def run(solver: str, n: int, d: int, lambdas: list[float]) -> dict[str, Any]:
    """Fit in this process, and return CPU seconds, peak memory beyond the data, and objectives."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    small, labels = draw(400, 16)
    SOLVERS[solver](small, labels, np.array([0.1, 0.05]))
    x, y = draw(n, d)
    grid, before = np.array(lambdas), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    layers = SOLVERS[solver](x, y, grid)
    seconds = time.process_time() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"cpu_seconds": seconds, "peak_mib": peak, "objectives": objectives(x, y, layers, grid)}


def measure(n: int, d: int, rounds: int, saga_points: int) -> dict[str, Any]:
    """Alternate the solvers on one problem; times are medians over rounds."""
    x, y = draw(n, d)
    one_hot = np.eye(CLASSES)[y]
    largest = float(np.abs(x.T @ (one_hot - one_hot.mean(axis=0))).max()) / n / ALPHA
    lambdas = (largest * np.geomspace(1, RATIO, POINTS)).tolist()
    jobs = {"ours": ("ours", POINTS), "ours_first": ("ours", saga_points), "saga_first": ("saga", saga_points)}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (solver, points) in jobs.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                results[name].append(pool.submit(run, solver, n, d, lambdas[:points]).result())
    row: dict[str, Any] = {"n": n, "d": d, "points": POINTS, "saga_points": saga_points}
    found = [one[0]["objectives"] for one in results.values()]
    best = [min(values[i] for values in found if len(values) > i) for i in range(POINTS)]
    for name, runs in results.items():
        gaps = [value / least - 1 for value, least in zip(runs[0]["objectives"], best, strict=False)]
        seconds = float(np.median([one["cpu_seconds"] for one in runs]))
        row[name] = {"cpu_seconds": seconds, "peak_mib": runs[0]["peak_mib"], "largest_gap": max(gaps, default=None)}
    row["saga_over_ours"] = row["saga_first"]["cpu_seconds"] / row["ours_first"]["cpu_seconds"]
    print(json.dumps(row))
    return row


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--saga-points", type=int, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sizes = FULL if options.full else SMALL
    rows = [measure(n, d, options.rounds, options.saga_points) for n, d in sizes]
    if options.output:
        options.output.write_text(json.dumps({"threads": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
