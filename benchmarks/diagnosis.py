"""Which kind of failure is it, and which remedy fits? Planted kinds are told apart on another task than fitted on.

    python benchmarks/diagnosis.py --fit --output benchmarks/results/diagnosis_fit.json
    python benchmarks/diagnosis.py --output benchmarks/results/diagnosis.json

A shortcut, an under-represented subpopulation, label noise, intrinsically hard images, or nothing is planted in the
classes of a world (planted_kinds.py). ``--fit`` collects the statistics of coloured digits (rendered by the package, in
the space of the packaged CLIP) and of Gaussian classes with simulated answers, fits the logistic regressions, prints
the constants of lightning_failures/analysis/diagnosis.py, and judges them with every sixth seed left out in turn.

Without it, the packaged constants are judged on pairs of MNIST digits in the
space of EfficientNet-Lite0: other images, another encoder, other subpopulations, other hard images, other seeds.

A plant counts if the model falls for it: at least 10 failures of its class, and half of them, are of the plant.

* ``right``: share of the planted classes whose kind is named, the mean over kinds; of those that are diagnosed, and of
  all. A class without a pattern, and without many doubtful labels, is not diagnosed.
* ``unsure``: share of the diagnosed classes for which no kind is probable enough.
* ``remedy``: share of the planted classes for which the named remedy is the best of four: weights that balance flagged
  and others in each class; a new head on the network's own features with the same balance; for each class the 100
  images of a pool that are flagged most; nothing. The figure is the F1 score of the class on a test set with the mix
  of validation and right labels, the mean of three trainings. These training sets are small, so that any further
  images help: the gain of the pool is that over as many random images of it. A remedy is the best if no other one
  gains 0.02 more. A shortcut asks for weights or a new head, an under-represented subpopulation for the pool, and
  noise and hard images for neither.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import progress
from numpy.typing import NDArray
from planted_kinds import (
    HARD,
    KINDS,
    NOISE,
    NOTHING,
    SHORTCUT,
    UNDER,
    Answers,
    Part,
    World,
    coloured_digits,
    fit,
    gaussians,
    inputs,
    logits,
    mnist_pairs,
)
from sklearn.linear_model import LogisticRegression
from torch import nn

from lightning_failures.analysis import diagnosis
from lightning_failures.analysis.diagnosis import ClassExamples, Dichotomy, FailureStatistics, Term, TrainingExamples
from lightning_failures.core.atomic import write_atomically
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.directions.standardize import standardize
from lightning_failures.stats.intervals import benjamini_hochberg

FIT_SEEDS, FIT_NULL_SEEDS = tuple(range(100, 108)), tuple(range(110, 114))
GAUSSIAN_SEEDS = tuple(range(200, 220))
SEEDS, NULL_SEEDS = tuple(range(41, 51)), tuple(range(51, 61))
"""Not used while the statistics and the threshold were chosen."""
STEPS = 500
MAX_FACTOR = 20.0
MIN_PLANT_FAILURES, MIN_PLANT_SHARE = 10, 0.5
PICKS = 100
TRAININGS = 3
TOLERANCE = 0.02
REMEDY = {SHORTCUT: ("balanced", "head"), UNDER: ("pool",), NOISE: ("nothing",), HARD: ("nothing",)}
STRENGTH = 10.0
"""C of the logistic regression of kinds."""

TARGETS = {"right": 0.75, "unsure where planted": 0.2, "unsure where nothing": 0.6, "remedy": 0.75}


# -- one world ---------------------------------------------------------------------------------------------------------


def measure(world: World, seed: int, *, remedies: bool = False) -> list[dict[str, Any]]:
    """Train the network, fit the directions, and return the statistics of every class."""
    train, validation = world.train, world.validation
    classes = len(world.kinds)
    model = fit(train, classes, seed=seed, steps=STEPS)
    predictions = logits(model, validation.images).argmax(1).numpy()
    directions = fit_failure_directions(
        *(validation.x, validation.labels, predictions == validation.labels),
        groups=validation.groups,
        reference=train.x,
        seed=seed,
    )
    patterns = dict(zip(directions.classes.tolist(), benjamini_hochberg(directions.p_value).tolist(), strict=True))
    cases = [
        class_case(k, kind, validation, predictions, train, directions, patterns.get(k, False)) | {"seed": seed}
        for k, kind in enumerate(world.kinds)
    ]
    if remedies:
        arms = remedy_arms(world, model, directions, patterns, seed)
        for case in cases:
            case["f1"] = {arm: scores[case["class"]] for arm, scores in arms.items()}
    return cases


def class_case(
    k: int,
    kind: str,
    validation: Part | Answers,
    predictions: NDArray[np.int64],
    train: Part | Answers,
    directions: FailureDirections,
    pattern: bool,
) -> dict[str, Any]:
    """Return what is planted in a class, and its statistics if it is diagnosed."""
    rows = np.flatnonzero(validation.labels == k)
    failed = predictions[rows] != k
    case: dict[str, Any] = {"class": k, "planted": kind, "failures": int(failed.sum()), "pattern": pattern}
    case["failures of the plant"] = int((failed & validation.sub[rows]).sum())
    if not diagnosis.is_diagnosed(pattern=pattern, failed=failed, in_doubt=directions.in_doubt.numpy()[rows]):
        return case
    weight, bias = None, 0.0
    if k in directions.classes.tolist():
        row = directions.row(k)
        weight, bias = directions.weight[row].numpy(), float(directions.bias[row])
    values, margins = directions.out_of_fold.double().numpy(), directions.label_margin.double().numpy()
    phi = standardize(validation.x[rows], directions.mean.numpy(), directions.std.numpy())
    statistics = diagnosis.failure_statistics(
        k,
        ClassExamples(phi, predictions[rows], values[rows], margins[rows]),
        wrong_answers=int(validation.labels.max()),
        weight=weight,
        bias=bias,
        training=TrainingExamples.of(train.x, train.labels, directions),
    )
    return case | {"statistics": asdict(statistics)}


def gaussian_cases(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the cases of Gaussian classes, one of every kind for each seed."""
    cases = []
    for seed in seeds:
        for kind in (*KINDS, NOTHING):
            train, validation = gaussians(kind, seed)
            directions = fit_failure_directions(
                *(validation.x, validation.labels, validation.predictions == validation.labels),
                reference=train.x,
                permutations=199,
                seed=seed,
            )
            patterns = dict(zip(directions.classes.tolist(), (directions.p_value <= 0.05).tolist(), strict=True))
            pattern = patterns.get(0, False)
            case = class_case(0, kind, validation, validation.predictions, train, directions, pattern)
            cases.append(case | {"seed": seed, "task": "gaussians"})
    return cases


def remedy_arms(
    world: World, model: nn.Sequential, directions: FailureDirections, patterns: dict[int, bool], seed: int
) -> dict[str, list[float]]:
    """Return the F1 score of every class on the test set after each remedy, for all classes at once.

    The mean over some trainings, each remedy with the same initial weights and order.
    """
    train, pool, classes = world.train, world.pool, len(world.kinds)
    values = directions.decision_values(train.x, train.labels).numpy()
    weights = np.ones(len(train.labels))
    for k in (k for k, pattern in patterns.items() if pattern):
        mine = train.labels == k
        flagged = mine & (values < 0)
        if 0 < flagged.sum() < mine.sum():
            weights[flagged] = np.clip((mine.sum() - flagged.sum()) / flagged.sum(), 1.0, MAX_FACTOR)

    rng, pool_values = np.random.default_rng([seed, 9]), directions.decision_values(pool.x, pool.labels).numpy()
    picks, random_picks = [], []
    for k in range(classes):
        rows = rng.permutation(np.flatnonzero(pool.labels == k))
        random_picks.append(rows[:PICKS])
        picks.append((rows[np.argsort(pool_values[rows], kind="stable")] if patterns.get(k) else rows)[:PICKS])
    extended, extended_at_random = (with_rows(train, pool, np.concatenate(rows)) for rows in (picks, random_picks))

    test, head = world.test, LogisticRegression(C=1.0, max_iter=500)
    scores: dict[str, list[list[float]]] = {}
    for again in range(TRAININGS):
        mine = seed + 1000 * again
        plain = fit(train, classes, seed=mine, steps=STEPS) if again else model
        head.fit(features(plain, train), train.labels, sample_weight=group_weights(train.labels, values < 0))
        models = {
            "nothing": plain,
            "balanced": fit(train, classes, seed=mine, steps=STEPS, weights=weights),
            "pool": fit(extended, classes, seed=mine, steps=STEPS),
            "random pool": fit(extended_at_random, classes, seed=mine, steps=STEPS),
        }
        answers = {arm: logits(one, test.images).argmax(1).numpy() for arm, one in models.items()}
        answers["head"] = head.predict(features(plain, test))
        for arm, given in answers.items():
            scores.setdefault(arm, []).append(f1_scores(given, test.labels, classes))
    return {arm: np.mean(some, axis=0).tolist() for arm, some in scores.items()}


def with_rows(train: Part, pool: Part, rows: NDArray[np.int64]) -> Part:
    """Return the training set with some images of the pool."""
    images = torch.cat([train.images, pool.images[torch.from_numpy(rows)]])
    return replace(train, images=images, labels=np.concatenate([train.labels, pool.labels[rows]]))


@torch.no_grad()
def features(model: nn.Sequential, part: Part) -> NDArray[np.float32]:
    """Return the features (n, 64) before the last layer."""
    return torch.cat([model[:-1](inputs(some)) for some in part.images.split(512)]).numpy()


def group_weights(labels: NDArray[np.int64], flagged: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return weights (n,) with which every class, flagged or not, has the same mass, but at most 20 times its own."""
    group = 2 * labels + flagged
    counts = np.bincount(group, minlength=2 * (labels.max() + 1)).reshape(-1, 2)
    factor = np.clip(counts.sum(1, keepdims=True) / (2 * np.maximum(counts, 1)), None, MAX_FACTOR)
    return factor.ravel()[group]


def f1_scores(answers: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> list[float]:
    """Return the F1 score of each class."""
    scores = []
    for k in range(classes):
        hits = int(((answers == k) & (labels == k)).sum())
        scores.append(2 * hits / max(int((answers == k).sum() + (labels == k).sum()), 1))
    return scores


# -- fitting -----------------------------------------------------------------------------------------------------------


SIDES = {
    "wrong label": ((NOISE,), (SHORTCUT, UNDER, HARD, NOTHING)),
    "lacking": ((SHORTCUT, UNDER), (HARD, NOTHING)),
    "shortcut": ((SHORTCUT,), (UNDER,)),
    "hard": ((HARD,), (NOTHING,)),
}
"""Of each question: the kinds with the answer yes, and those with the answer no."""


def fitted_dichotomies(cases: Sequence[dict[str, Any]]) -> dict[str, Dichotomy]:
    """Fit the logistic regression of every question to diagnosed cases; every kind has the same mass."""
    known = [case for case in cases if "statistics" in case and counts(case)]
    fitted = {}
    for question, (yes, no) in SIDES.items():
        some = [case for case in known if case["planted"] in yes + no]
        names = list(diagnosis.DICHOTOMIES[question].terms)
        x = np.array([[case["statistics"][name] for name in names] for case in some], dtype=np.float64)
        mean, scale = np.nanmean(x, axis=0), np.nanstd(x, axis=0)
        planted = [case["planted"] for case in some]
        mass = np.array([1 / planted.count(kind) for kind in planted])
        model = LogisticRegression(C=STRENGTH, max_iter=5000)
        model.fit(
            np.nan_to_num(np.clip((x - mean) / scale, -3, 3)),
            [kind in yes for kind in planted],
            sample_weight=mass * len(some) / mass.sum(),
        )
        numbers = np.stack([mean, scale, model.coef_[0]], axis=1).round(3).tolist()
        terms = {name: Term(*row) for name, row in zip(names, numbers, strict=True)}
        fitted[question] = Dichotomy(round(float(model.intercept_[0]), 3), terms)
    return fitted


def cross_fitted(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the cases of every sixth seed by the fit to the others, in turn."""
    seeds = sorted({(case.get("task", ""), case["seed"]) for case in cases})
    found = []
    for part in range(6):
        left_out = set(seeds[part::6])
        fitted = fitted_dichotomies([case for case in cases if (case.get("task", ""), case["seed"]) not in left_out])
        some = [case for case in cases if (case.get("task", ""), case["seed"]) in left_out]
        found += [judged(case, fitted) for case in some]
    return found


def counts(case: dict[str, Any]) -> bool:
    """Return whether nothing is planted in a class, or the model falls for it."""
    of_plant = case["failures of the plant"]
    falls_for_it = of_plant >= max(MIN_PLANT_FAILURES, MIN_PLANT_SHARE * case["failures"])
    return case["planted"] == NOTHING or falls_for_it


# -- judging -----------------------------------------------------------------------------------------------------------


def judged(case: dict[str, Any], dichotomies: Mapping[str, Dichotomy] = diagnosis.DICHOTOMIES) -> dict[str, Any]:
    """Add the diagnosis of a case, by the packaged constants or others, and whether the named remedy is the best."""
    case = {key: value for key, value in case.items() if key not in ("kind", "probability", "remedy is best")}
    if "statistics" not in case:
        return case | {"kind": None}
    found = diagnosis.diagnose(FailureStatistics(**case["statistics"]), dichotomies=dichotomies)
    case = case | {"kind": found.kind, "probability": found.probability}
    if "f1" in case and found.kind in REMEDY:
        case["remedy is best"] = is_best(found.kind, case["f1"])
    return case


def is_best(kind: str, f1: dict[str, float], *, over_random: bool = True) -> bool:
    """Return whether no arm gains 0.02 more than the remedy of a kind."""
    gains = {arm: f1[arm] - f1["nothing"] for arm in ("nothing", "balanced", "head", "pool")}
    if over_random:
        gains["pool"] = f1["pool"] - f1["random pool"]
    return max(gains[arm] for arm in REMEDY[kind]) >= max(gains.values()) - TOLERANCE


def summary(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures over all seeds, the mean over kinds."""
    kinds = (*KINDS, NOTHING)
    of = {kind: [case for case in cases if case["planted"] == kind and counts(case)] for kind in kinds}
    diagnosed = {kind: [case for case in some if case["kind"] is not None] for kind, some in of.items()}

    def mean(shares: Sequence[float | None]) -> float | None:
        known = [share for share in shares if share is not None]
        return float(np.mean(known)) if known else None

    def share(some: Sequence[dict[str, Any]], is_one: Callable[[dict[str, Any]], bool]) -> float | None:
        return mean([float(is_one(case)) for case in some])

    right = {kind: share(diagnosed[kind], lambda case: case["kind"] == case["planted"]) for kind in KINDS}
    unsure = {kind: share(some, lambda case: case["kind"] == diagnosis.UNSURE) for kind, some in diagnosed.items()}
    with_arms = {kind: [case for case in some if "f1" in case] for kind, some in of.items()}
    named = [case for kind in KINDS for case in diagnosed[kind] if "remedy is best" in case]
    return {
        "planted": {kind: sum(case["planted"] == kind for case in cases) for kind in kinds},
        "cases": {kind: len(some) for kind, some in of.items()},
        "diagnosed": {kind: len(some) for kind, some in diagnosed.items()},
        "right": mean(list(right.values())),
        "right by kind": right,
        "right of all": mean([share(of[kind], lambda case: case["kind"] == case["planted"]) for kind in KINDS]),
        "unsure by kind": unsure,
        "unsure where planted": mean([unsure[kind] for kind in KINDS]),
        "unsure where nothing": unsure[NOTHING],
        "unsure or not diagnosed where nothing": share(
            of[NOTHING], lambda case: case["kind"] in (None, diagnosis.UNSURE)
        ),
        "remedy": share(named, lambda case: case["remedy is best"]),
        "remedy by kind": {
            kind: share([case for case in named if case["planted"] == kind], lambda case: case["remedy is best"])
            for kind in KINDS
        },
        "named remedies": len(named),
        "remedy, gain of the pool over nothing": share(
            named, lambda case: is_best(case["kind"], case["f1"], over_random=False)
        ),
        "remedy of the planted kind is best": {
            kind: share(with_arms[kind], lambda case: is_best(case["planted"], case["f1"])) for kind in KINDS
        },
        "f1": {
            kind: {arm: float(np.mean([case["f1"][arm] for case in some])) for arm in some[0]["f1"]}
            for kind, some in with_arms.items()
            if some
        },
        "confusion": {
            kind: {name: sum(case["kind"] == name for case in some) for name in (*KINDS, diagnosis.UNSURE)}
            for kind, some in diagnosed.items()
        },
        "targets": TARGETS,
    }


def judge_again(path: Path) -> None:
    """Judge the cases of a file of results by the packaged constants."""
    cases = [judged(case) for case in json.loads(path.read_text())["raw"]]
    result = {"summary": summary(cases), "raw": cases}
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result["summary"], indent=1))


def print_fit(path: Path) -> None:
    """Fit the dichotomies to the cases of a file of results, judge them on seeds left out, and print both."""
    cases = json.loads(path.read_text())["raw"]
    fitted = fitted_dichotomies(cases)
    result = {
        "dichotomies": {question: asdict(one) for question, one in fitted.items()},
        "left out": summary(cross_fitted(cases)),
        "raw": cases,
    }
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result["left out"], indent=1))
    for question, one in fitted.items():
        print(f"{question!r}: {one!r},")


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="collect the cases of the fit, and print the constants")
    parser.add_argument("--seeds", type=int, nargs="*", help="of the planted worlds")
    parser.add_argument("--null-seeds", type=int, nargs="*", help="of the worlds with nothing planted")
    parser.add_argument(
        "--again", action="store_true", help="judge the cases in the output file by the constants of now"
    )
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.again:
        (print_fit if options.fit else judge_again)(options.output)
        return
    make = coloured_digits if options.fit else mnist_pairs
    seeds = (FIT_SEEDS if options.fit else SEEDS) if options.seeds is None else options.seeds
    null_seeds = (FIT_NULL_SEEDS if options.fit else NULL_SEEDS) if options.null_seeds is None else options.null_seeds
    cases: list[dict[str, Any]] = gaussian_cases(GAUSSIAN_SEEDS) if options.fit else []
    for seed, planted in progress([(s, True) for s in seeds] + [(s, False) for s in null_seeds], make.__name__):
        cases += measure(make(seed, planted=planted), seed, remedies=planted and not options.fit)
        if options.fit:
            result = {"raw": cases}
        else:
            result = {"summary": summary([judged(case) for case in cases]), "raw": [judged(case) for case in cases]}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.output, (json.dumps(result, indent=1) + "\n").encode())
    if options.fit:
        print_fit(options.output)
    else:
        print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
