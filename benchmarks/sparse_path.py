"""Sparse paths against other solvers, alternated in one run: CPU time, objective and optimality at equal lambdas.

    python benchmarks/sparse_path.py                                   # small
    python benchmarks/sparse_path.py --full --output benchmarks/results/sparse_path.json

Data: correlated Gaussian features, 20 classes of a sparse softmax layer, 30 values of lambda down to 0.01 of the
largest. Peers, where they can be imported:

* ``saga``: scikit-learn's, with warm starts, to a tolerance of 1e-4.
* ``glm_saga``: the authors' (``PYTHONPATH`` with a checkout of github.com/MadryLab/glm_saga), each value from the
  state of the last, at the step size of their example, until three epochs in a row gain less than 1e-4.
* ``glmnet``: ``pip install python-glmnet`` (GPL, so it is no dependency).
* ``adelie``: ``pip install adelie ipython``. It knows groups of the weights of a feature only, so it is compared with
  ``grouped=True``.

The first two fit the first values only (``--first``), and are compared with the time of ours on the same values. Every
fit runs in a process of its own, with one thread, after a small one that loads libraries and compiled code; times are
CPU times of the fit. The objective of every solver is evaluated in double precision.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
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


def objectives(
    x: NDArray[Any], y: NDArray[Any], layers: Layers, lambdas: NDArray[Any], *, grouped: bool
) -> list[float]:
    """Return the penalised mean cross-entropy of each layer in double precision."""
    z, values = x.astype(np.float64), []
    for (weight, bias), strength in zip(layers, lambdas, strict=False):
        loss = -log_softmax(z @ weight.T + bias, axis=1)[np.arange(len(y)), y].mean()
        norm = np.linalg.norm(weight, axis=0).sum() if grouped else np.abs(weight).sum()
        penalty = ALPHA * norm + (1 - ALPHA) / 2 * np.square(weight).sum()
        values.append(float(loss + strength * penalty))
    return values


def ours(x: NDArray[Any], y: NDArray[Any], lambdas: NDArray[Any], *, grouped: bool = False) -> Layers:
    """Fit by this package."""
    path = fit_sparse_path(x, y, alpha=ALPHA, lambdas=lambdas.tolist(), standardize=False, grouped=grouped)
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


def glm_saga(x: NDArray[Any], y: NDArray[Any], lambdas: NDArray[Any]) -> Layers:
    """Fit by the code of the paper, with its state as warm start."""
    import warnings

    from glm_saga.elasticnet import IndexedTensorDataset, train_saga

    warnings.simplefilter("ignore")
    data = IndexedTensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    loader = torch.utils.data.DataLoader(data, batch_size=256, shuffle=True)
    linear = torch.nn.Linear(x.shape[1], CLASSES)
    linear.weight.data.zero_()
    linear.bias.data.zero_()
    layers, state = [], None
    for strength in lambdas.tolist():
        state = train_saga(
            linear, loader, 0.1, 1000, strength, ALPHA, group=False, state=state, n_ex=len(x), n_classes=CLASSES,
            tol=1e-4, lookbehind=3, logger=lambda text: None,
        )  # fmt: skip
        layers.append((linear.weight.double().detach().numpy().copy(), linear.bias.double().detach().numpy().copy()))
    return layers


def glmnet(x: NDArray[Any], y: NDArray[Any], lambdas: NDArray[Any]) -> Layers:
    """Fit by glmnet."""
    from glmnet import LogitNet

    model = LogitNet(alpha=ALPHA, lambda_path=lambdas, standardize=False, n_splits=0).fit(x.astype(np.float64), y)
    weight, bias = model.coef_path_, model.intercept_path_
    return [(weight[..., row], bias[..., row]) for row in range(weight.shape[-1])]


def adelie(x: NDArray[Any], y: NDArray[Any], lambdas: NDArray[Any]) -> Layers:
    """Fit by adelie, whose loss is divided by the number of classes; the weights of a feature are a group."""
    import adelie as ad

    response = np.eye(CLASSES)[y]
    state = ad.grpnet(
        np.asfortranarray(x, dtype=np.float64), ad.glm.multinomial(response), alpha=ALPHA, lmda_path=lambdas / CLASSES,
        penalty=np.ones(x.shape[1]), early_exit=False, progress_bar=False, adev_tol=1.0,
    )  # fmt: skip
    weights = state.betas.toarray().reshape(len(state.lmdas), x.shape[1], CLASSES)
    return [(weight.T, bias) for weight, bias in zip(weights, state.intercepts, strict=True)]


SOLVERS: dict[str, Callable[..., Layers]] = {
    "ours": ours,
    "ours_grouped": partial(ours, grouped=True),
    "saga": saga,
    "glm_saga": glm_saga,
    "glmnet": glmnet,
    "adelie": adelie,
}
PEERS = {
    "saga": ("sklearn", True),
    "glm_saga": ("glm_saga", True),
    "glmnet": ("glmnet", False),
    "adelie": ("adelie", False),
}
"""Module of each peer, and whether it fits the first values only."""


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
    grouped = solver in ("ours_grouped", "adelie")
    return {"cpu_seconds": seconds, "peak_mib": peak, "objectives": objectives(x, y, layers, grid, grouped=grouped)}


def measure(n: int, d: int, rounds: int, first: int) -> dict[str, Any]:
    """Alternate the solvers on one problem; times are medians over rounds."""
    x, y = draw(n, d)
    one_hot = np.eye(CLASSES)[y]
    largest = float(np.abs(x.T @ (one_hot - one_hot.mean(axis=0))).max()) / n / ALPHA
    lambdas = (largest * np.geomspace(1, RATIO, POINTS)).tolist()
    peers = {name: few for name, (module, few) in PEERS.items() if find_spec(module)}
    jobs = {"ours": ("ours", POINTS), "ours_first": ("ours", first)}
    jobs |= {"ours_grouped": ("ours_grouped", POINTS)} if "adelie" in peers else {}
    jobs |= {name: (name, first if few else POINTS) for name, few in peers.items()}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (solver, points) in jobs.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                results[name].append(pool.submit(run, solver, n, d, lambdas[:points]).result())

    row: dict[str, Any] = {"n": n, "d": d, "points": POINTS, "first": first}
    for same in (("ours_grouped", "adelie"), [name for name in jobs if name not in ("ours_grouped", "adelie")]):
        found = {name: results[name][0]["objectives"] for name in same if name in results}
        best = [min((v[i] for v in found.values() if len(v) > i), default=np.inf) for i in range(POINTS)]
        for name, values in found.items():
            gaps = [value / least - 1 for value, least in zip(values, best, strict=False)]
            seconds = [one["cpu_seconds"] for one in results[name]]
            row[name] = {"cpu_seconds": seconds, "peak_mib": results[name][0]["peak_mib"], "largest_gap": max(gaps)}
    for name, few in peers.items():
        own = "ours_grouped" if name == "adelie" else "ours_first" if few else "ours"
        pairs = zip(row[name]["cpu_seconds"], row[own]["cpu_seconds"], strict=True)
        row[name]["times_ours"] = [theirs / mine for theirs, mine in pairs]
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--first", type=int, default=10, help="values of lambda for the slow peers")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    sizes = FULL if options.full else SMALL
    rows = []
    for n, d in sizes:
        rows.append(measure(n, d, options.rounds, options.first))
        if options.output:
            options.output.write_text(json.dumps({"threads": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
