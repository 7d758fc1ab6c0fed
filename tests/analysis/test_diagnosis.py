"""Statistics by hand, planted kinds in feature space, words, and what stays unsure."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest

from lightning_failures.analysis.diagnosis import (
    HARD,
    KINDS,
    LABEL_NOISE,
    NOTHING,
    SHORTCUT,
    STATISTICS,
    UNDER_REPRESENTED,
    UNSURE,
    ClassExamples,
    Dichotomy,
    FailureStatistics,
    Term,
    TrainingExamples,
    diagnose,
    failure_statistics,
    is_diagnosed,
)
from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.standardize import standardize
from lightning_failures.errors import DataError


def unit(rows: list[list[float]]) -> np.ndarray:
    array = np.array(rows, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_failure_statistics__flagged_shares_and_wrong_classes_by_hand() -> None:
    # of 4 validation examples 2 are flagged, of 8 training examples 1: (1.5 / 9) / (2.5 / 5)
    w = np.array([1.0, 0.0], dtype=np.float32)
    own = unit([[1, 0]] * 7 + [[-1, 0.1]])
    other = unit([[-1, 0], [-1, 0.5], [1, 1], [1, 0]])  # classes 1, 1, 2, 2
    training = TrainingExamples(np.vstack([own, other]), np.array([0] * 8 + [1, 1, 2, 2]))
    examples = ClassExamples(
        unit([[1, 0], [1, 0.1], [-1, 0], [-1, 0.2]]),
        np.array([0, 0, 1, 1]),
        np.array([0.5, 0.4, -0.5, -0.4]),
        np.array([0.4, 0.6, 0.1, -0.35]),
    )
    found = failure_statistics(0, examples, wrong_answers=2, weight=w, training=training)
    assert found.flag_ratio == pytest.approx(math.log((1.5 / 9) / (2.5 / 5)))
    assert found.wrong_class_auc == 1.0  # class 1 lies at the failure end, class 2 at the other one
    assert found.probe_support == 0.5
    assert found.probe_margin == pytest.approx(((0.1 - 0.35) / 2) / 0.5)
    assert found.density is None  # fewer examples than neighbours
    assert found.flagged_error_rate == 1.0


def test_failure_statistics__density_by_hand() -> None:
    # 20 successes at 0 degrees, with training examples there; 12 failures at 90 degrees, training has none
    rng = np.random.default_rng(0)

    def near(angle: float, n: int) -> np.ndarray:
        angles = np.deg2rad(angle + rng.normal(0, 0.5, n))
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    validation = np.vstack([near(0, 20), near(90, 12)])
    training = TrainingExamples(near(0, 40), np.zeros(40, dtype=np.int64))
    nan = np.full(32, np.nan)
    predictions = np.repeat([0, 1], [20, 12])
    found = failure_statistics(0, ClassExamples(validation, predictions, nan, nan), wrong_answers=1, training=training)
    # near failures: 0 of 10 neighbours from training; near successes about 10 * 40 / 60
    assert found.density is not None
    least = 0.5 / 40
    assert found.density < math.log(least) - math.log(10 / 32 + least)
    assert (found.flag_ratio, found.probe_support, found.wrong_class_auc) == (None, None, None)


def test_failure_statistics__of_equal_training_and_validation_are_near_zero() -> None:
    rng = np.random.default_rng(1)
    x = unit(rng.normal(size=(1200, 5)).tolist())
    failed = rng.random(600) < 0.3
    nan = np.full(600, np.nan)
    found = failure_statistics(
        0,
        ClassExamples(x[:600], np.where(failed, 1, 0), x[:600, 0].astype(np.float64), nan),
        wrong_answers=1,
        weight=np.eye(5, dtype=np.float32)[0],
        training=TrainingExamples(x[600:], np.zeros(600, dtype=np.int64)),
    )
    assert found.flag_ratio == pytest.approx(0, abs=0.2)
    assert found.density == pytest.approx(0, abs=0.2)


def test_failure_statistics__compare_the_wrong_class_with_others_or_with_the_only_other() -> None:
    w = np.array([1.0, 0.0], dtype=np.float32)
    nan = np.full(5, np.nan)
    examples = ClassExamples(unit([[1, 0]] * 5), np.array([0, 1, 1, 2, 3]), nan, nan)
    own, first, second = [[1, 0.1], [1, 0]], [[1, 1], [-1, 1]], [[-1, 0], [-1, 0]]
    training = TrainingExamples(unit(own + first + second), np.array([0, 0, 1, 1, 2, 2]))

    def of(wrong_answers: int) -> float | None:
        return failure_statistics(0, examples, wrong_answers=wrong_answers, weight=w, training=training).wrong_class_auc

    assert of(2) == 0.0  # two of four failures go to class 1, which lies at the other end than class 2
    assert of(4) == 1.0  # one in four is an even share, so class 2 counts too
    two = TrainingExamples(unit(own + first), np.array([0, 0, 1, 1]))
    binary = ClassExamples(examples.phi, np.array([0, 1, 1, 1, 1]), nan, nan)
    found = failure_statistics(0, binary, wrong_answers=1, weight=w, training=two)
    assert found.wrong_class_auc == 1.0  # compared with class 0 itself


@pytest.mark.parametrize("predictions", [[0, 0], [1, 2]])
def test_failure_statistics__without_failures_or_successes_are_unknown(predictions: list[int]) -> None:
    nan = np.full(2, np.nan)
    examples = ClassExamples(np.eye(2, dtype=np.float32), np.array(predictions), nan, nan)
    assert failure_statistics(0, examples, wrong_answers=2) == FailureStatistics()


def test_diagnose__without_statistics_is_unsure() -> None:
    found = diagnose(FailureStatistics())
    assert (found.kind, found.remedy) == (UNSURE, None)
    assert list(found.probabilities.values()) == pytest.approx([0.2] * 5)  # four kinds, and nothing


def test_diagnose__without_training_keeps_kinds_that_need_it_equally_probable() -> None:
    of_probe = FailureStatistics(probe_support=0.9, probe_margin=0.8, flagged_error_rate=0.9)
    found = diagnose(of_probe).probabilities
    assert found[LABEL_NOISE] < 0.01
    assert found[SHORTCUT] == pytest.approx(found[UNDER_REPRESENTED])
    assert found[SHORTCUT] + found[UNDER_REPRESENTED] == pytest.approx(0.5, abs=0.01)
    assert diagnose(of_probe).kind == UNSURE  # training may hold few such images


def test_diagnose__probabilities_by_hand() -> None:
    asked = {
        "wrong label": Dichotomy(0.0, {"probe_margin": Term(1.0, 2.0, math.log(3))}),
        "lacking": Dichotomy(0.0, {"density": Term(0.0, 1.0, 1.0)}),
        "shortcut": Dichotomy(math.log(4), {"wrong_class_auc": Term(0.5, 1.0, 7.0)}),
        "hard": Dichotomy(0.0, {"flagged_error_rate": Term(0.5, 0.1, 1.0)}),
    }
    found = diagnose(
        FailureStatistics(density=0.0, wrong_class_auc=0.5, probe_margin=-1.0, flagged_error_rate=9.0),
        dichotomies=asked,
    )
    hard = 1 / (1 + math.exp(-3))  # three deviations at most
    expected = {LABEL_NOISE: 1 / 4, SHORTCUT: 3 / 8 * 4 / 5, UNDER_REPRESENTED: 3 / 8 / 5, HARD: 3 / 8 * hard}
    assert {kind: found.probabilities[kind] for kind in expected} == pytest.approx(expected)
    assert [reason.split()[-1] for reason in found.reasons] == ["fail.", "theirs."]  # what adds most comes first
    assert set(found.probabilities) == {*KINDS, NOTHING}


TYPICAL = {
    SHORTCUT: FailureStatistics(-3.0, -2.0, 0.96, 1.0, 1.0),
    LABEL_NOISE: FailureStatistics(0.0, -0.1, 0.6, 0.15, -1.3),
}


@pytest.mark.parametrize("kind", TYPICAL)
def test_diagnose__names_kind_reasons_and_remedy(kind: str) -> None:
    found = diagnose(TYPICAL[kind], class_index=3)
    assert found.kind == kind
    assert found.probability == found.probabilities[kind] > 0.5
    assert 1 <= len(found.reasons) <= 3
    assert all(reason.endswith(".") for reason in found.reasons)
    assert found.remedy is not None
    assert ("RetrainHead()" if kind == SHORTCUT else "classes[3].doubted_ids") in found.remedy


def test_diagnose__extreme_statistics_stay_finite() -> None:
    for value in (-1e9, 1e9):
        found = diagnose(FailureStatistics(**dict.fromkeys(STATISTICS, value)))
        assert all(0 <= share <= 1 for share in found.probabilities.values())


def test_is_diagnosed__needs_a_pattern_or_doubts_and_enough_failures() -> None:
    failed = np.arange(40) < 20
    none, half = np.zeros(40, dtype=bool), np.arange(40) < 10
    assert is_diagnosed(pattern=True, failed=failed, in_doubt=none)
    assert not is_diagnosed(pattern=False, failed=failed, in_doubt=none)
    assert is_diagnosed(pattern=False, failed=failed, in_doubt=half)
    assert not is_diagnosed(pattern=True, failed=np.arange(40) < 9, in_doubt=half)
    assert not is_diagnosed(pattern=True, failed=np.ones(40, dtype=bool), in_doubt=half)


def test_training_examples__labels_of_another_length_are_an_error() -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    directions = fit_failure_directions(x, np.zeros(60, dtype=int), x[:, 0] > 0)
    with pytest.raises(DataError, match=r"training labels must be \(60,\)"):
        TrainingExamples.of(x, np.zeros(59), directions)
    x[5] = np.nan
    assert len(TrainingExamples.of(x, np.zeros(60), directions).labels) == 59


# -- planted kinds in feature space ------------------------------------------------------------------------------------

DIM = 12


def planted(kind: str, seed: int) -> FailureStatistics:
    """Plant a kind in class 0 of five Gaussian classes, and return the statistics of that class.

    Dimensions 0 to 4 say the class, 5 and 6 a cue, 7 a subpopulation; the others are noise.
    """
    rng = np.random.default_rng(seed)

    def draw(n: int, training: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = np.arange(n) % 5
        x = 0.5 * rng.normal(size=(n, DIM))
        true, predictions = labels.copy(), labels.copy()
        special = (labels == 0) & (rng.random(n) < 0.35)
        if kind == SHORTCUT:  # class 0 shows cue 5, class 1 cue 6; without its cue, class 0 is taken for class 1
            special = (labels == 0) & (rng.random(n) < (0.03 if training else 0.5))
            x[(labels == 0) & ~special, 5] += 2
            x[special | (labels == 1), 6] += 2
            predictions[special & (rng.random(n) < 0.8)] = 1
        elif kind == UNDER_REPRESENTED:
            special = (labels == 0) & (rng.random(n) < (0.03 if training else 0.3))
            x[special, 7] += 2
            wrong = special & (rng.random(n) < 0.7)
            predictions[wrong] = rng.integers(1, 5, wrong.sum())
        elif kind == LABEL_NOISE:
            true[special] = rng.integers(1, 5, special.sum())
            predictions = true.copy()
        elif kind == HARD:  # a trait of a third of all images, whose class hardly shows, makes the model waver
            special = rng.random(n) < 0.35
            x[special, 7] += 2
        strength = np.where(special & (kind == HARD), 0.8, 2.0)
        x[np.arange(n), true] += strength
        if kind == HARD:
            guesses = x[:, :5] + 0.3 * rng.normal(size=(n, 5))
            guesses[:, 1] += 0.3  # it prefers class 1
            predictions[special] = guesses[special].argmax(axis=1)
        return x.astype(np.float32), labels, predictions

    tx, ty, _ = draw(2000, True)
    x, y, predictions = draw(2000, False)
    directions = fit_failure_directions(x, y, predictions == y, reference=tx, permutations=0, seed=seed)
    phi = standardize(x, directions.mean.numpy(), directions.std.numpy())
    mine = y == 0
    weight, bias = None, 0.0
    if 0 in directions.classes.tolist():
        weight, bias = directions.weight[0].numpy(), float(directions.bias[0])
    values, margins = directions.out_of_fold.double().numpy(), directions.label_margin.double().numpy()
    return failure_statistics(
        0,
        ClassExamples(phi[mine], predictions[mine], values[mine], margins[mine]),
        wrong_answers=4,
        weight=weight,
        bias=bias,
        training=TrainingExamples.of(tx, ty, directions),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_diagnose__planted_kinds_in_feature_space(kind: str) -> None:
    cases = [planted(kind, seed) for seed in range(3)]
    kinds = [diagnose(case).kind for case in cases]
    assert kinds.count(kind) >= 2, [asdict(case) for case in cases]
    # failures of hard images that spread evenly over wrong classes look like wrong labels
    mistaken_for = {LABEL_NOISE} if kind == HARD else set()
    assert set(kinds) <= {kind, UNSURE} | mistaken_for, [asdict(case) for case in cases]
