"""A whole analysis of an ImageNet-size validation set in one process: time, memory, stages, growth with the classes.

    python benchmarks/imagenet_size.py                 # up to 100 classes
    python benchmarks/imagenet_size.py --full --output benchmarks/results/imagenet_size.json
    python benchmarks/imagenet_size.py --train-size    # only the memory of directions on 1,000 classes x 1,300

A class has 250 examples, about a quarter of them failures, with embeddings of 512 and robust features of 2,048
dimensions, both float16, and 500 candidate captions. A share of the classes fails along a planted direction. For these
the screening test continues up to 20 permutations per class of the data set, so its cost grows with the number of
classes. All classes get directions with 999 permutations and captions; all label and prediction groups get trees.

Each row is measured in its own process, after an analysis of two classes that loads libraries and compiled code.
``peak`` is the memory of the analysis beyond these and the inputs. The full run takes about ten times the quick one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_failures.analysis.analyse import analyse
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.data.grades import Grades
from lightning_failures.directions import fit_failure_directions

DIM, WIDTH, CAPTIONS, POOL = 512, 2048, 500, 4000
QUICK, FULL = (10, 30, 100), (10, 30, 100, 300, 1000)
STAGES = ("directions", "trees", "captions", "rest")
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One analysis to measure."""

    classes: int
    planted: float = 0.2
    captions: str = "shared"
    examples: int = 250
    trees: bool = True


@dataclass(frozen=True)
class Data:
    """The inputs of an analysis."""

    grades: Grades
    embeddings: torch.Tensor
    features: torch.Tensor | None
    captions: Callable[[int], ClassCaptions]


def draw(case: Case, seed: int = 0) -> Data:
    """Draw a validation set in random order, with correlated embeddings that cluster by class as CLIP's do."""
    rng = np.random.default_rng(seed)
    n = case.classes * case.examples
    order = rng.permutation(n)
    embeddings = torch.empty(n, DIM, dtype=torch.float16)
    features = torch.empty(n, WIDTH, dtype=torch.float16) if case.trees else None
    labels, failed = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.bool_)
    spectrum = 1 / np.sqrt(1 + np.arange(DIM, dtype=np.float32) / 10)
    mix = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32)
    for k in range(case.classes):
        rows = order[k * case.examples : (k + 1) * case.examples]
        centre = rng.standard_normal(DIM, dtype=np.float32)
        x = (rng.standard_normal((case.examples, DIM), dtype=np.float32) + centre) * spectrum
        hard = (x[:, 3] - x[:, 3].mean()) / x[:, 3].std() if k < case.planted * case.classes else 0.0
        labels[rows], failed[rows] = k, rng.random(case.examples) < 1 / (1 + np.exp(1.3 - 1.5 * hard))
        x = x @ mix
        embeddings[rows] = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).half()
        if features is not None:
            f = np.abs(rng.standard_normal((case.examples, WIDTH), dtype=np.float32))
            f[:, k % WIDTH] += 0.5 * hard
            features[rows] = torch.from_numpy(f).half()
    predictions = np.where(failed, (labels + rng.integers(1, max(case.classes, 2), size=n)) % case.classes, labels)
    grades = Grades(
        ids=torch.arange(n),
        labels=torch.from_numpy(labels),
        predictions=torch.from_numpy(predictions),
        confidence=torch.ones(n),
        class_names=tuple(f"class {k}" for k in range(case.classes)),
    )
    return Data(grades, embeddings, features, _captions(case.captions, seed))


def _captions(kind: str, seed: int) -> Callable[[int], ClassCaptions]:
    """Return candidates that all classes share, or a separate set for each class."""
    vectors = torch.randn(POOL, DIM, generator=torch.Generator().manual_seed(seed))
    vectors /= vectors.norm(dim=1, keepdim=True)
    texts = tuple(f"caption {i}" for i in range(POOL))
    shared = ClassCaptions(texts[:CAPTIONS], vectors[:CAPTIONS], vectors[-1])

    def of_class(k: int) -> ClassCaptions:
        rows = (torch.arange(CAPTIONS) * 7 + k) % (POOL - 1)
        return ClassCaptions(tuple(texts[i] for i in rows.tolist()), vectors[rows], vectors[-1])

    return of_class if kind == "per class" else lambda k: shared


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory() -> int:
    """Return the current memory of this process in bytes; its peak where the system does not report it."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else peak_memory()


def run(data: Data, case: Case) -> dict[str, float]:
    """Run the analysis and return the seconds of each stage."""
    if data.features is None:
        grades = data.grades
        start = time.perf_counter()
        fit_failure_directions(data.embeddings, grades.labels, grades.correct, ids=grades.ids)
        return {"directions": time.perf_counter() - start}
    report = analyse(
        data.grades,
        data.embeddings,
        features=data.features,
        captions=data.captions,
        captioned_classes=case.classes,
    )
    return report.timings | {"patterns": sum(entry.pattern for entry in report.classes)}


def measure(case: Case) -> dict[str, Any]:
    """Measure one analysis; call it in a separate process."""
    start = time.perf_counter()
    run(draw(Case(2, trees=case.trees)), Case(2))
    first = time.perf_counter() - start
    data = draw(case)
    inputs = sum(x.nbytes for x in (data.embeddings, data.features) if x is not None)
    before, wall, cpu = memory(), time.perf_counter(), time.process_time()
    seconds_of_stages = run(data, case)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    patterns = seconds_of_stages.pop("patterns", None)
    seconds_of_stages["rest"] = wall - sum(seconds_of_stages.values())
    return vars(case) | {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "stage_seconds": seconds_of_stages,
        "patterns": patterns,
        "first_time_seconds": first,
        "inputs_mib": inputs / MIB,
        "peak_mib": (peak_memory() - before) / MIB,
    }


def alone(case: Case) -> dict[str, Any]:
    """Measure in a new process, so that the peak memory is that of this analysis."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, case).result()


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    stages = "".join(f"{row['stage_seconds'].get(name, 0.0) / row['wall_seconds']:>11.0%}" for name in STAGES)
    return (
        f"{row['classes']:>7} x {row['examples']:<5}{row['planted']:>7.0%}  {row['captions']:<10}"
        f"{row['wall_seconds']:>8.1f}{row['cpu_seconds']:>8.1f}{1000 * row['cpu_seconds'] / row['classes']:>10.1f}"
        f"{stages}{row['inputs_mib']:>9.0f}{row['peak_mib']:>7.0f}"
    )


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the exponent e of CPU time ~ classes ** e from a linear fit of the logarithms."""
    logs = np.log([[row["classes"], row["cpu_seconds"]] for row in rows])
    return {"exponent": float(np.polyfit(*logs.T, 1)[0]), "from": rows[0]["classes"], "to": rows[-1]["classes"]}


def save(result: dict[str, Any], path: Path | None) -> None:
    """Write the raw figures after every row, because the last rows take long."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Measure, print the table, write the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", help=f"default: {QUICK}, with --full {FULL}")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--train-size", action="store_true", help="1,000 classes x 1,300 examples, directions only")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    sizes = tuple(arguments.classes or (FULL if arguments.full else QUICK))
    shares = {share: [Case(k, share) for k in sizes] for share in (0.2, 0.0)}
    cases = [case for group in shares.values() for case in group]
    cases += [Case(sizes[-1], captions="per class"), Case(min(100, sizes[-1]), planted=0.6)]
    large = Case(1000, examples=1300, trees=False)
    if arguments.train_size:
        cases = [large]
    elif arguments.full:
        cases.append(large)
    stages = "".join(f"{name:>11}" for name in STAGES)
    print(
        f"{'classes':>7} x n    planted  captions      wall     cpu  ms/class{stages}   inputs   peak MiB", flush=True
    )
    found: dict[Case, dict[str, Any]] = {}
    for case in cases:
        found[case] = alone(case)
        print(line(found[case]), flush=True)
        save({"rows": list(found.values())}, arguments.output)
    if not arguments.train_size and len(sizes) > 1:
        fits = {f"{share:.0%} planted": growth([found[c] for c in group]) for share, group in shares.items()}
        for name, fit in fits.items():
            print(f"{name}: CPU time grows as classes ** {fit['exponent']:.2f}, {fit['from']} to {fit['to']} classes")
        save({"rows": list(found.values()), "growth": fits}, arguments.output)


if __name__ == "__main__":
    main()
