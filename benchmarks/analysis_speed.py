"""How long the analysis takes: its trees against scikit-learn and against sorting every feature, and all of it.

    python benchmarks/analysis_speed.py
    python benchmarks/analysis_speed.py --sections whole --cases 10x1000 2x40000 --against ../of-before

Sections: ``trees``, the features of a group that are selected (without and with each of five folds) and its six trees:
CPU seconds of ours and of the peers, alternated; the features must be the same, and the trees have the same ALER.
``whole``, an analysis of CASES (classes x examples; embeddings of 512, features of 2,048 dimensions, captions): CPU
seconds, peak memory beyond the inputs, and the seconds of each stage. With ``--against``, the folder of another version
of this repository, both versions are measured in turn, each time in a new process.

All on one thread. The figures are in benchmarks/results/analysis_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from lightning_failures.stats.folds import stratified_group_folds
from lightning_failures.trees import average_leaf_error_rate
from lightning_failures.trees.growing import grow_trees, min_leaf_size, select_features
from lightning_failures.trees.information_gain import fold_gains

ROOT = Path(__file__).resolve().parent.parent
TOP, WIDTH, FOLDS = 20, 2048, 5
MEASURE = """
import json, sys
sys.path.insert(0, "benchmarks")
import imagenet_size, torch
torch.set_num_threads(1)
print(json.dumps(imagenet_size.measure(imagenet_size.Case({classes}, examples={examples}))))
"""


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def draw(kind: str, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw features (n, WIDTH) and failures (n,), more frequent where the first feature is high."""
    rng = np.random.default_rng(n)
    x = rng.standard_cauchy(size=(n, WIDTH)) if kind == "heavy tails" else rng.normal(size=(n, WIDTH))
    failed = rng.random(n) < np.where(x[:, 0] > 0.7, 0.5, 0.2)
    if kind == "half zeros":
        x = np.maximum(x, 0)
    return x.astype(np.float16 if kind == "float16" else np.float32), failed


def trees(rounds: int, sizes: list[int]) -> dict[str, Any]:
    """Measure the selection of features and the growth of six trees, and compare the results."""
    result: dict[str, Any] = {}
    for kind in ("normal", "half zeros", "heavy tails", "float16"):
        for n in sizes:
            x, failed = draw(kind, n)
            fold = stratified_group_folds(failed, np.arange(n), folds=FOLDS)
            kept = [np.full(n, True), *(fold != k for k in range(FOLDS))]
            least = [min_leaf_size(int(rows.sum()), None) for rows in kept]
            options: dict[str, Any] = {"top_features": TOP, "min_leaf": None, "seed": 0}

            def select(x: Any = x, failed: Any = failed, fold: Any = fold, options: Any = options) -> Any:
                return select_features(x, failed, fold, feature_selection="information_gain", **options)

            def sort_all(x: Any = x, failed: Any = failed, fold: Any = fold, least: Any = least) -> Any:
                gains = fold_gains(x, failed, fold, least)
                return [np.argsort(-row, kind="stable")[:TOP] for row in gains]

            selected = select()
            same = all(np.array_equal(a, b) for a, b in zip(selected, sort_all(), strict=True))

            def grow(x: Any = x, failed: Any = failed, fold: Any = fold, selected: Any = selected) -> Any:
                return grow_trees(x, failed, fold, selected, max_depth=3, min_leaf=None)

            def peers(
                x: Any = x, failed: Any = failed, kept: Any = kept, selected: Any = selected, least: Any = least
            ) -> Any:
                found = []
                for rows, features, size in zip(kept, selected, least, strict=True):
                    weights = {False: 1.0, True: (~failed[rows]).sum() / failed[rows].sum()}
                    peer = DecisionTreeClassifier(
                        criterion="entropy", max_depth=3, min_samples_leaf=size, class_weight=weights, random_state=0
                    )
                    found.append(peer.fit(x[np.ix_(np.flatnonzero(rows), features)], failed[rows]))
                return found

            differences = [
                abs(
                    average_leaf_error_rate(ours.apply(x[rows]), failed[rows])
                    - average_leaf_error_rate(peer.apply(x[np.ix_(np.flatnonzero(rows), features)]), failed[rows])
                )
                for ours, peer, rows, features in zip(grow(), peers(), kept, selected, strict=True)
            ]
            work = {"selection": select, "every feature sorted": sort_all, "trees": grow, "peers": peers}
            seconds: dict[str, list[float]] = {name: [] for name in work}
            for _ in range(rounds):
                for name, call in work.items():
                    seconds[name].append(cpu_seconds(call))
            middle = {name: float(np.median(values)) for name, values in seconds.items()}
            print(
                f"{kind:<12}{n:>7} x {WIDTH}: selection {1000 * middle['selection']:.1f} ms,"
                f" {middle['every feature sorted'] / middle['selection']:.1f} x as fast as sorting every feature"
                f" ({'the same' if same else 'OTHER'} features); trees {1000 * middle['trees']:.2f} ms,"
                f" {middle['peers'] / middle['trees']:.1f} x scikit-learn's"
                f" (ALER differs by at most {max(differences):.2g})",
                flush=True,
            )
            result[f"{kind}, {n}"] = {"seconds": seconds, "same features": same, "ALER differences": differences}
    return result


def whole(rounds: int, cases: list[str], against: Path | None) -> dict[str, Any]:
    """Measure analyses in new processes, of this version and, in turn with it, of another one."""
    versions = {"this version": ROOT} | ({"the other": against.resolve()} if against else {})
    result: dict[str, Any] = {}
    for case in cases:
        classes, examples = case.split("x")
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in versions}
        for _ in range(rounds):
            for name, folder in versions.items():
                rows[name].append(measure(folder, int(classes), int(examples)))
        for name, found in rows.items():
            cpu = [row["cpu_seconds"] for row in found]
            stages = found[-1]["stage_seconds"]
            total = sum(value for stage, value in stages.items() if stage != "shared")
            shares = ", ".join(f"{stage} {value / total:.0%}" for stage, value in stages.items() if stage != "shared")
            print(
                f"{case:>9}  {name:<12} {np.median(cpu):7.2f} CPU s ({min(cpu):.2f} to {max(cpu):.2f}),"
                f" peak {found[-1]['peak_mib']:.0f} MiB beyond {found[-1]['inputs_mib']:.0f} MiB of inputs; {shares}",
                flush=True,
            )
        if against:
            ratios = [b["cpu_seconds"] / a["cpu_seconds"] for a, b in zip(*rows.values(), strict=True)]
            print(f"{case:>9}  {np.median(ratios):.1f} x as fast ({min(ratios):.1f} to {max(ratios):.1f})", flush=True)
        result[case] = rows
    return result


def measure(folder: Path, classes: int, examples: int) -> dict[str, Any]:
    """Return the row of ``imagenet_size.py`` of the version in a folder, on one thread."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE.format(classes=classes, examples=examples)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Run the selected sections and write their raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=("trees", "whole"), default=("trees", "whole"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 1300, 10_000], help="of the groups of 'trees'")
    parser.add_argument("--cases", nargs="+", default=["10x1000"], help="of 'whole': classes x examples")
    parser.add_argument("--against", type=Path, help="a folder with another version of the repository")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/analysis_speed.json")
    arguments = parser.parse_args()
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "trees": lambda: trees(arguments.rounds, arguments.sizes),
        "whole": lambda: whole(arguments.rounds, arguments.cases, arguments.against),
    }
    figures = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for name in arguments.sections:
        found = sections[name]()
        figures[name] = figures.get(name, {}) | found
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
