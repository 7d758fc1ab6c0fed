"""Suspected label errors on coloured digits: recall of planted flips, and false alarms in the minority.

    python benchmarks/suspects.py
    python benchmarks/suspects.py --seeds 1 2 --output /tmp/suspects.json

Labels of the training set are flipped, the demo's classifier is trained on them, and ``suspect_labels`` is applied to
this training set. The true minority are the images in the unusual tint of their class with a right label. Those that
the model misclassifies are the target of an intervention, and the only ones that can be suspected. The rule is also
evaluated without either of its two criteria, and with embeddings in which colour outweighs shape: the leading 32
principal components of the pixels. Every seed takes two trainings of the demo's classifier.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from digits import Split, digits_encoder, grade, progress, read_options, train
from numpy.typing import NDArray
from scipy.stats import t

from lightning_failures.bundled.digits import ColouredDigits
from lightning_failures.interventions.label_errors import suspect_labels

SETTINGS = ((0.95, 0.1), (0.8, 0.1))
"""Strength of the shortcut, share of the labels that are flipped."""
RULES: dict[str, dict[str, Any]] = {"as given": {}, "probe alone": {"agreeing": 0}, "neighbours alone": {"below": 1.0}}
TARGETS = {"flips caught": 0.5, "minority spared": 0.95}


def run(seed: int, shortcut: float, share: float) -> list[dict[str, Any]]:
    """Return a row for every embedding and rule of one training."""
    truth: dict[str, NDArray[Any]] = {}

    def flip(data: ColouredDigits) -> None:
        rng = np.random.default_rng([seed, 4])
        labels = data.labels.numpy().copy()
        truth["labels"] = labels.copy()
        flips = rng.permutation(len(labels))[: round(share * len(labels))]
        labels[flips] = (labels[flips] + rng.integers(1, 10, len(flips))) % 10
        data.labels = torch.from_numpy(labels)

    model, modules = train(seed, shortcut, prepare=flip, val_size=100)
    split = grade(model, modules.sets["train"], digits_encoder())
    pixels = split.data.images.flatten(1).float() / 255
    pixels = pixels - pixels.mean(dim=0)
    components = torch.linalg.eigh(pixels.T @ pixels)[1][:, -32:]
    return [
        {"seed": seed, "shortcut": shortcut, "share": share, "embeddings": name, "rule": rule}
        | judge(split, embeddings, truth["labels"], rule)
        for name, embeddings in (("digits-CLIP", split.embeddings), ("pixels", pixels @ components))
        for rule in RULES
    ]


def judge(split: Split, embeddings: torch.Tensor, true: NDArray[np.int64], rule: str) -> dict[str, Any]:
    """Return counts and rates of one set of suspects."""
    grades = split.grades
    options = {"agreeing": 8, "below": 0.1} | RULES[rule]
    if not options["agreeing"]:  # one neighbour is always looked up
        found = suspect_labels(embeddings, grades.labels, grades.predictions, groups=grades.groups)
        suspect = np.zeros(len(grades), dtype=np.bool_)
        suspect[found.rows[found.probability < options["below"]].numpy()] = True
    else:
        found = suspect_labels(embeddings, grades.labels, grades.predictions, groups=grades.groups, **options)
        suspect = found.suspect.numpy()
    flipped, wrong = grades.labels.numpy() != true, grades.failed.numpy()
    unusual = np.zeros(len(true), dtype=np.bool_)
    for k in range(len(grades.class_names)):
        unusual |= split.unusual(k).numpy() & (true == k)
    minority = unusual & ~flipped
    return {
        "flips": int(flipped.sum()),
        "flips caught": mean(suspect[flipped]),
        "flips caught, of those the model gets wrong": mean(suspect[flipped & wrong]),
        "minority": int(minority.sum()),
        "minority that the model gets wrong": int((minority & wrong).sum()),
        "minority spared": 1 - mean(suspect[minority & wrong]),
        "minority spared, of all": 1 - mean(suspect[minority]),
        "suspects": int(suspect.sum()),
        "suspects that are flips": mean(flipped[suspect]),
    }


def mean(values: NDArray[np.bool_]) -> float:
    """Return the mean, and NaN for no values."""
    return float(values.mean()) if len(values) else float("nan")


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean over seeds and its 95 % interval by Student's t."""
    centre = float(values.mean())
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return centre, centre - half, centre + half


def main() -> None:
    """Run, print, write."""
    options = read_options(__doc__, seeds=range(1, 11), name="suspects")
    torch.set_num_threads(1)
    rows = [row for seed in progress(options.seeds, "seed") for setting in SETTINGS for row in run(seed, *setting)]
    summary = []
    print(f"mean over {len(options.seeds)} seeds [95 % interval]; least over seeds")
    for shortcut, share in SETTINGS:
        for name in ("digits-CLIP", "pixels"):
            for rule in RULES:
                key = {"shortcut": shortcut, "share": share, "embeddings": name, "rule": rule}
                mine = [row for row in rows if all(row[k] == v for k, v in key.items())]
                print(f"shortcut {shortcut}, {share:.0%} flipped, {name}, {rule}")
                for figure in ("flips caught", "minority spared", "suspects that are flips"):
                    values = np.array([row[figure] for row in mine])
                    values = values[~np.isnan(values)]
                    if not len(values):
                        continue
                    centre, low, high = interval(values)
                    entry = key | {"figure": figure, "mean": centre, "interval": [low, high], "least": values.min()}
                    holds = ""
                    if figure in TARGETS:
                        entry["holds"] = bool(low >= TARGETS[figure])
                        holds = f" at least {TARGETS[figure]}: {entry['holds']}"
                    summary.append(entry)
                    print(f"  {figure:<24} {centre:.3f} [{low:.3f}, {high:.3f}]; {values.min():.3f}{holds}")
                print(f"  suspects                 {np.mean([row['suspects'] for row in mine]):.1f}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"summary": summary, "seeds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
