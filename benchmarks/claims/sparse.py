"""Sparse decision layers (Wong et al., ICML 2021): accuracy, errors that one feature fixes, counterfactuals that flip.

The path of the demo's classifier is fitted to the training images and the layer chosen on validation; all figures are
of the test set. The dense layer is the least sparse one of the path, so both rest on the same features.

* Accuracy: the layers that lose at most five, and at most two, points on validation, five points of margin on test.
* Fixed: the share of errors that become right when their problematic feature alone is removed. Controls: a random
  feature of the wrong class, any random one, and the share of correct predictions that removing their own top feature
  breaks.
* Counterfactuals: a person would describe the leading feature of a class by what its images share, which here is the
  tint that most of the 20 most active validation images show. Test images of the other classes are drawn again in that
  tint; one counts as flipped if the prediction becomes that class. The images are those that both layers predict
  correctly, and that do not have that tint yet. In feature space: the feature is raised to its 99th percentile on
  validation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from sparse_features import FeaturesOf, Part, layers_of, measured, penultimate_of

from claims.common import World
from claims.comparing import Comparison
from lightning_failures.bundled.digits import ColouredDigits
from lightning_failures.bundled.digits.render import DigitSplit, Looks, render, source_digits
from lightning_failures.core.types import IntArray
from lightning_failures.sparse import SparseLayer

__all__ = ["COMPARISONS", "run"]

TOP_IMAGES = 20
IMAGES = 60  # of a class, drawn again

COMPARISONS = (
    Comparison("accuracy of a layer chosen to lose at most 5 points", ("accuracy",), "sparse", "dense", margin=0.05),
    Comparison(
        "accuracy of a layer chosen to lose at most 2 points", ("accuracy",), "less sparse", "dense", margin=0.05
    ),
    Comparison("fixed by one feature > 30 %", ("fixed",), "one feature", "30 %"),
    Comparison(
        "fixed by one feature > by a random feature of the wrong class", ("fixed",), "one feature", "random used"
    ),
    Comparison(
        "errors fixed > correct predictions broken by their own top feature", ("fixed",), "one feature", "broken"
    ),
    Comparison("flipped by the tint of the leading feature, sparse > dense", ("redrawn",), "sparse", "dense"),
    Comparison("flipped by the leading feature at its 99th percentile, sparse > dense", ("raised",), "sparse", "dense"),
)


def run(world: World) -> dict[str, Any]:
    """Fit, choose and measure the layers of one seed."""
    data = {part: world.data(part) for part in ("train", "validation", "test")}
    features = penultimate_of(world.base().model, data["test"].transform)
    parts = {
        name: Part(features(one.images), np.asarray(one.labels), np.asarray(one.groups)) for name, one in data.items()
    }
    layers = layers_of(parts["train"], parts["validation"])
    sparse, dense = layers["5 points lost"], layers["dense"]
    found = {name: measured(layer, parts["test"]) for name, layer in layers.items()}
    of_sparse = found["5 points lost"]
    redrawn, raised = counterfactuals({"sparse": sparse, "dense": dense}, data, parts, features)
    return {
        "accuracy": {
            "sparse": of_sparse["accuracy"]["rate"],
            "less sparse": found["2 points lost"]["accuracy"]["rate"],
            "dense": found["dense"]["accuracy"]["rate"],
        },
        "features_per_class": {name: one["features_per_class"] for name, one in found.items()},
        "fixed": {
            "one feature": of_sparse["fixed"]["rate"],
            "30 %": 0.3,
            "random used": of_sparse["random_used"],
            "random any": of_sparse["random_any"],
            "broken": of_sparse["broken"]["rate"],
        },
        "redrawn": redrawn,
        "raised": raised,
        "layers": found,
    }


def counterfactuals(
    layers: dict[str, SparseLayer], data: dict[DigitSplit, ColouredDigits], parts: dict[str, Part], features: FeaturesOf
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the shares of images that flip to a class: drawn again in a tint, and with its leading feature raised.

    Args:
        layers: Layers on the same features, by name.
        data: Coloured digits by part.
        parts: Their features.
        features: Returns the features of images.
    """
    test, validation = parts["test"], parts["validation"]
    right = np.all([layer.decision(test.x).argmax(1).numpy() == test.y for layer in layers.values()], axis=0)
    high = np.quantile(validation.x, 0.99, axis=0)
    redrawn: dict[str, list[float]] = {name: [] for name in layers}
    raised: dict[str, list[float]] = {name: [] for name in layers}
    for k in range(len(data["test"].classes)):
        rows = np.flatnonzero(right & (test.y != k))[:: max(int(right.sum()) // IMAGES, 1)][:IMAGES]
        for name, layer in layers.items():
            feature = int((layer.weight[k] * layer.std).argmax())
            top = np.argsort(-validation.x[:, feature], kind="stable")[:TOP_IMAGES]
            tint = int(np.bincount(data["validation"].attributes.tint[torch.from_numpy(top)].numpy()).argmax())
            others = rows[data["test"].attributes.tint[torch.from_numpy(rows)].numpy() != tint]
            x = features(_redrawn(data["test"], others, tint))
            redrawn[name].append(float((layer.decision(x).argmax(1) == k).float().mean()))
            x = test.x[rows].copy()
            x[:, feature] = np.maximum(x[:, feature], high[feature])
            raised[name].append(float((layer.decision(x).argmax(1) == k).float().mean()))
    return tuple({name: float(np.mean(rates)) for name, rates in one.items()} for one in (redrawn, raised))


def _redrawn(data: ColouredDigits, rows: IntArray, tint: int) -> torch.Tensor:
    """Return images drawn again in one tint: (n, 3, 32, 32) uint8."""
    of = torch.from_numpy(rows)
    looks = Looks(*(getattr(data.attributes, one.name)[of] for one in dataclasses.fields(Looks)))
    looks = dataclasses.replace(looks, tint=torch.full((len(rows),), tint))
    return render(source_digits()[0][data.groups[of]], looks, np.random.default_rng(0))
