"""CPU time of scoring captions for every class, against ``SVC.decision_function`` per class as in the published code.

    python benchmarks/captions.py            # most of the time is the peer's; --classes 200 takes a sixth

Both score the same standardized differences of 512-dimensional embeddings, 500 candidate captions per class. The SVMs
of the peer are fitted beforehand on 250 or 500 examples per class, a few distinct ones in turn. Only its
``decision_function`` is timed, without the standardization that ours includes. Both alternate in one run; ratios are
those of CPU times on one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from lightning_failures.captions import score_captions
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.directions.standardize import standardize

DIM, CAPTIONS, FITTED = 512, 500, 4


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def many_directions(classes: int, examples: int, rng: np.random.Generator) -> tuple[FailureDirections, list[SVC]]:
    """Return SVMs of a few classes, fitted by us and by scikit-learn, repeated until every class has one."""
    x = rng.normal(size=(FITTED * examples, DIM)).astype(np.float32)
    labels = np.repeat(np.arange(FITTED), examples)
    correct = 0.3 * x[:, 0] + rng.normal(size=len(x)) > -0.45
    found = fit_failure_directions(x, labels, correct, permutations=0)
    peers = []
    for k in range(FITTED):
        z = standardize(x[labels == k], found.mean.double().numpy(), found.std.double().numpy())
        svc = SVC(kernel="linear", class_weight="balanced", C=float(found.c[k])).fit(z, correct[labels == k])
        peers.append(svc)
    turn = torch.arange(classes) % FITTED
    per_class = ("weight", "bias", "cv_score", "cv_score_stderr", "c", "p_value")
    repeated = {name: getattr(found, name)[turn] for name in per_class}
    directions = dataclasses.replace(found, classes=torch.arange(classes), **repeated)
    return directions, [peers[k] for k in turn.tolist()]


def unit(rows: np.ndarray) -> np.ndarray:
    """Return the rows scaled to length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def measure(classes: int, examples: int, rounds: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Measure shared candidates, then separate ones per class as users call it: (500, 512) tensors and a reference."""
    directions, peers = many_directions(classes, examples, rng)
    mean, std = directions.mean.double().numpy(), directions.std.double().numpy()
    reference = unit(rng.normal(size=(1, DIM)))
    sets = unit(reference + 0.3 * unit(rng.normal(size=(min(classes, 50), CAPTIONS, DIM))))
    standardised = [standardize(captions - reference, mean, std) for captions in sets]

    def own() -> list[torch.Tensor]:
        return [score_captions(directions, k, sets[k % len(sets)], reference, "published") for k in range(classes)]

    cases: dict[str, tuple[Callable[[], list[Any]], Callable[[], Any]]] = {
        "shared": (
            lambda: [svc.decision_function(standardised[0]) for svc in peers],
            lambda: score_captions(directions, None, sets[0], reference, "published"),
        ),
        "own": (
            lambda: [svc.decision_function(standardised[k % len(sets)]) for k, svc in enumerate(peers)],
            own,
        ),
    }
    found = []
    for candidates, (theirs, ours) in cases.items():
        ours()  # warm up
        seconds = [(cpu_seconds(theirs), cpu_seconds(ours)) for _ in range(rounds)]
        ratios = [peer / mine for peer, mine in seconds]
        found.append(
            {
                "candidates": candidates,
                "classes": classes,
                "examples a class": examples,
                "support vectors": float(np.mean([len(svc.support_) for svc in peers[:FITTED]])),
                "ratio": {"median": float(np.median(ratios)), "min": min(ratios), "max": max(ratios)},
                "seconds (peer, ours)": seconds,
            }
        )
    return found


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--classes", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--examples", type=int, nargs="+", default=[250, 500])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/captions.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print("candidates  classes  examples  SVC.decision_function / ours, CPU time: median (min to max)")
    with threadpool_limits(1):
        for classes in arguments.classes:
            for examples in arguments.examples:
                rng = np.random.default_rng([classes, examples])
                for row in measure(classes, examples, arguments.rounds, rng):
                    rows.append(row)
                    ratio = "{median:.0f} x ({min:.0f} to {max:.0f})".format(**row["ratio"])
                    print(f"{row['candidates']:<10}  {classes:>7}  {examples:>8}  {ratio}", flush=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "sklearn": sklearn.__version__}
    data = {"dimensions": DIM, "captions": CAPTIONS, "rounds": arguments.rounds, "versions": versions, "rows": rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
