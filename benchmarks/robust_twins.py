"""Failure trees on the features of a robust network, of its non-robust twin, and of an untrained network.

    python benchmarks/robust_twins.py --output benchmarks/results/robust_twins.json

The classifier and its errors are the same; only the features differ. Seeds and data are those of the demo.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from digits import Split, digits_encoder, grade, progress, read_options, train

from lightning_failures.encoders import load_encoder
from lightning_failures.trees import fit_failure_tree

VARIANTS = {"robust": "embedded:digits", "plain": "embedded:digits-plain", "untrained": "embedded:digits-untrained"}


def heldout_gains(split: Split, spec: str) -> list[float]:
    """Return held-out ALER - BER of each label group that has folds."""
    encoder = load_encoder(spec, robust=True)
    rows = torch.arange(len(split.data)).split(512)
    features = torch.cat([encoder.encode_images(split.data.images[r].float() / 255) for r in rows])
    gains = []
    for k in range(len(split.grades.class_names)):
        mine = split.grades.labels == k
        assert split.grades.groups is not None
        tree = fit_failure_tree(features[mine], split.grades.failed[mine], groups=split.grades.groups[mine])
        gains.append(tree.heldout_aler_minus_ber)
    return gains


def main() -> None:
    """Run, print the table, write the raw figures."""
    arguments = read_options(__doc__, seeds=range(10, 15), name="robust_twins")
    torch.set_num_threads(1)
    encoder = digits_encoder()
    gains: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for seed in progress(arguments.seeds, "seed"):
        model, data = train(seed, 0.95)
        split = grade(model, data.sets["validation"], encoder)
        for name, spec in VARIANTS.items():
            gains[name].append(heldout_gains(split, spec))
    rows = {name: np.array(values) for name, values in gains.items()}
    known = ~np.isnan(np.stack(list(rows.values()))).any(axis=0)
    print(f"\nheld-out ALER - BER, label groups with folds: {known.sum()} of {known.size}")
    for name, values in rows.items():
        difference = (rows["robust"] - values)[known]
        stderr = difference.std(ddof=1) / np.sqrt(known.sum())
        print(
            f"  {name:<10} {values[known].mean():.3f}   robust ahead by {difference.mean():+.3f} +- {1.96 * stderr:.3f}"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"seeds": arguments.seeds, "gains": gains}, indent=1) + "\n")


if __name__ == "__main__":
    main()
