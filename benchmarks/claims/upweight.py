"""More weight on flagged examples, or a new head, lifts the minority, near the oracle (Table 1).

Arms weigh by the same factor: ``flagged``, the training examples that the intervention flags; ``random``, as many of
every class; ``oracle``, those in the unusual tint. The factor is the paper's 2; in the arms ``..., balanced`` flagged
and other examples of a class have equal mass, as with ``Upweight()``. ``plain`` weighs nothing. As in the callback,
classes without a pattern are left alone, and so are flagged examples whose labels are suspected. ``published`` is the
paper's procedure: every training example with a negative decision value counts twice.

Of the continued training, ``head`` keeps all of the plain model but its last layer, refitted with the same flags;
``head, uniform`` without flags, ``head, random`` with as many flags at random.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from claims.common import MORE_EPOCHS, Trained, World, columns, fit, unusual
from claims.comparing import Comparison
from lightning_failures.interventions import JudgedExamples, Upweight
from lightning_failures.interventions.head import fit_head, random_flags
from lightning_failures.interventions.label_errors import suspect_labels

__all__ = ["COMPARISONS", "run"]

FACTORS: dict[str, float | Literal["balanced"]] = {"": 2.0, ", balanced": "balanced"}
SHARES = {"": 0.6, ", balanced": 0.95}
"""Share of the gain of the oracle that is claimed."""

LEAST_GAIN, LOSS = 0.05, 0.01
HEAD_LOSS, HEAD_TIME = 0.02, 0.07

COMPARISONS = (
    *(
        comparison
        for way in ("retrained", "continued")
        for form in FACTORS
        for comparison in (
            Comparison(
                f"minority accuracy, flagged > plain{form}, {way}", (way, "minority"), f"flagged{form}", "plain"
            ),
            Comparison(
                f"minority accuracy, flagged > random{form}, {way}",
                (way, "minority"),
                f"flagged{form}",
                f"random{form}",
            ),
            Comparison(
                f"gain of flagged >= {SHARES[form]} of the gain of the oracle{form}, {way}",
                (way, "gain"),
                f"flagged{form}",
                f"{SHARES[form]} of the oracle{form}",
            ),
            Comparison(
                f"overall accuracy in the mix of training, flagged not below plain by {LOSS}{form}, {way}",
                (way, "all, in the mix of training"),
                f"flagged{form}",
                "plain",
                margin=LOSS,
            ),
        )
    ),
    *(
        Comparison(
            f"minority accuracy, {arm} not below published by {LOSS}, {way}",
            (way, "minority"),
            arm,
            "published",
            margin=LOSS,
        )
        for arm in ("flagged", "flagged, balanced")
        for way in ("retrained", "continued")
    ),
    *(
        Comparison(f"minority accuracy, head > {rival}, continued", ("continued", "minority"), "head", rival)
        for rival in ("plain", "head, uniform", "head, random")
    ),
    Comparison(
        f"minority accuracy, head not below flagged, balanced by {HEAD_LOSS}, continued",
        ("continued", "minority"),
        "head",
        "flagged, balanced",
        margin=HEAD_LOSS,
    ),
    Comparison(
        f"CPU seconds, {HEAD_TIME:.0%} of flagged, balanced > head, continued",
        ("continued", "allowed_seconds"),
        "allowed",
        "head",
    ),
)


def run(world: World) -> dict[str, Any]:
    """Train every arm both ways."""
    data, base = world.data("train"), world.base()
    weights = _weights(world)
    tables: dict[str, Any] = {}
    for way, start, epochs in (("retrained", None, base.epochs), ("continued", base, MORE_EPOCHS)):
        arms, seconds = {"plain": world.judge(base if start is None else world.continued())}, {}
        for arm, drawn in weights.items():
            model, seconds[arm] = _timed(
                lambda drawn=drawn, start=start, epochs=epochs: fit(
                    data.images, data.labels, seed=world.seed, epochs=epochs, weights=drawn, start=start
                )
            )
            arms[arm] = world.judge(model)
        if start is not None:
            for arm, flagged in _head_flags(world, weights["flagged, balanced"] > 1).items():
                model, seconds[arm] = _timed(lambda flagged=flagged: _with_new_head(world, base, flagged))
                arms[arm] = world.judge(model)
            allowed = HEAD_TIME * seconds["flagged, balanced"]
            tables[way] = {"allowed_seconds": {"allowed": allowed, "head": seconds["head"]}}
        tables[way] = tables.get(way, {}) | columns(arms) | {"cpu_seconds": seconds}
        gain = {arm: figures["minority"] - arms["plain"]["minority"] for arm, figures in arms.items() if arm != "plain"}
        if gain["oracle"] >= LEAST_GAIN:  # else a share of it says nothing
            tables[way]["gain"] = gain | {
                f"{share} of the oracle{form}": share * gain[f"oracle{form}"] for form, share in SHARES.items()
            }
    minority = unusual(data)[0].numpy()
    flagged = weights["flagged"] > 1
    tables["flags"] = {
        "flagged": int(flagged.sum()),
        "unusual": int(minority.sum()),
        "unusual among flagged": float(minority[flagged].mean()) if flagged.any() else None,
        "flagged among unusual": float(flagged[minority].mean()),
    }
    return tables


def _timed(work: Callable[[], Trained]) -> tuple[Trained, float]:
    """Return a model and the CPU seconds that it took."""
    began = time.process_time()
    model = work()
    return model, time.process_time() - began


def _weights(world: World) -> dict[str, NDArray[np.float64]]:
    """Return the weights of the training examples in each arm."""
    data, report = world.data("train"), world.report()
    labels = data.labels.numpy()
    values = world.directions().decision_values(world.embeddings("train"), labels).numpy()
    reasons = tuple(None if entry.pattern else "no pattern" for entry in report.classes)
    grades = world.split("train").grades
    found = suspect_labels(world.embeddings("train"), labels, grades.predictions, groups=grades.groups)
    values[found.suspect.numpy()] = np.inf
    minority, planted = (rows.numpy() for rows in unusual(data))
    by_paper = world.published().decision_values(world.embeddings("train"), labels).numpy()
    weights = {"published": np.where(by_paper < 0, 2.0, 1.0)}
    for form, factor in FACTORS.items():
        one = Upweight(factor)
        flagged = one.decide(JudgedExamples(labels, values, tuple(data.classes), reasons)).weights
        truth = JudgedExamples(
            labels, np.where(minority, -1.0, 1.0).astype(np.float32), tuple(data.classes), (None,) * len(data.classes)
        )
        random, rng = flagged.copy(), world.rng(2)
        for k in range(len(data.classes)):
            rows = np.flatnonzero(labels == k)
            random[rows] = rng.permutation(flagged[rows])
        oracle = np.where(minority & planted, one.decide(truth).weights, 1.0)
        weights |= {f"flagged{form}": flagged, f"random{form}": random, f"oracle{form}": oracle}
    return weights


def _head_flags(world: World, flagged: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_] | None]:
    """Return the flags of the arms that refit the head."""
    labels = world.data("train").labels.numpy()
    return {
        "head": flagged,
        "head, uniform": None,
        "head, random": random_flags(labels, flagged, seed=world.seed),
    }


def _with_new_head(world: World, base: Trained, flagged: NDArray[np.bool_] | None) -> Trained:
    """Return the plain model with its last layer refitted on the training set."""
    data, model = world.data("train"), copy.deepcopy(base.model)
    features: list[torch.Tensor] = []
    handle = model.net[-1].register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    Trained(model, base.optimizer, base.epochs).logits(data.images)
    handle.remove()
    found = fit_head(torch.cat(features), data.labels, flagged, groups=data.groups, seed=world.seed)
    with torch.no_grad():
        model.net[-1].weight.copy_(torch.from_numpy(found.weight))
        model.net[-1].bias.copy_(torch.from_numpy(found.bias))
    return Trained(model, base.optimizer, base.epochs)
