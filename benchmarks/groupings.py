"""Which kinds of groups do failure trees explain? Held-out ALER - BER of labels, predictions, pairs and unions.

    python benchmarks/groupings.py --output benchmarks/results/groupings.json

Two tasks of ``fixable.py``: MNIST digits in five pairs with the features of EfficientNet-Lite0 (ImageNet), and coloured
digits with the packaged CLIP's image features. Trees are grown on the validation sets of eight seeds, at depth 1 and 3.
Each kind counts its groups with a tree; the interval is that of Student's t over seeds.

Source: Singla et al., Understanding Failures of Deep Networks via Robust Feature Extraction, CVPR 2021, section 5,
where label groups are explained better than prediction groups.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import progress
from fixable import SEEDS, TASKS, Task
from scipy.stats import t as student

from lightning_failures.core.atomic import write_atomically
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import LABEL, PAIR, PREDICTION, UNION
from lightning_failures.trees import fit_failure_tree

DEPTHS = (1, 3)
KINDS = (LABEL, PREDICTION, PAIR, UNION)


def gains(task: Task, depth: int) -> dict[str, float | None]:
    """Return the mean held-out ALER - BER by kind of group; None where no group has a tree."""
    data = task.validation
    columns = (np.arange(len(data.labels)), data.labels, data.predictions)
    names = tuple(map(str, range(int(data.labels.max()) + 1)))
    grades = Grades(*map(torch.from_numpy, columns), None, names)
    means: dict[str, float | None] = {}
    for kind in KINDS:
        assignment, found = kind.assign(grades), []
        for name in assignment.names:
            rows = assignment.rows_of(name)
            tree = fit_failure_tree(data.x[rows], grades.failed[rows], groups=data.groups[rows], max_depth=depth)
            if tree.skipped is None and not np.isnan(tree.heldout_aler_minus_ber):
                found.append(tree.heldout_aler_minus_ber)
        means[kind.name] = float(np.mean(found)) if found else None
    return means


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/groupings.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    raw: dict[str, Any] = {}
    for name in ("superclasses", "coloured_digits"):
        by_depth: dict[str, dict[int, Any]] = {f"depth {depth}": {} for depth in DEPTHS}
        for seed in progress(options.seeds, name):
            task = TASKS[name](seed)
            for depth in DEPTHS:
                by_depth[f"depth {depth}"][seed] = gains(task, depth)
        raw[name] = by_depth
        for depth_name, rows in by_depth.items():
            for kind in KINDS:
                values = np.array([row[kind.name] for row in rows.values() if row[kind.name] is not None])
                half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
                print(f"{name}, {depth_name}, {kind.name}: {values.mean():.3f} +- {half:.3f} ({len(values)} seeds)")
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.output, (json.dumps(raw, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
