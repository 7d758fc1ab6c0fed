"""The kind of failure of a class, from statistics of validation and training that tell the kinds apart.

Four kinds call for four remedies. A *shortcut*: training shows the class with a cue that the failures lack. An
*under-represented* subpopulation: training hardly holds it. *Label noise*: the label is wrong, not the answer.
*Intrinsically hard* images: training holds as many as validation, and the model still fails.

The statistics answer four questions, one after the other, each by a logistic regression of one or two of them: nested
dichotomies (Frank and Kramer, Ensembles of Nested Dichotomies for Multi-class Problems, ICML 2004, section 2). Is the
label wrong? If not, does training lack such images? If it does, is it a shortcut, or a subpopulation? If it does not,
are they a group of hard images, or nothing in particular? ``benchmarks/diagnosis.py`` plants every kind, and nothing,
in coloured digits and in Gaussian classes, fits the coefficients below to them, and judges them on another data set
with another encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.analysis.confusions import has_several_wrong_answers
from lightning_failures.core.arrays import as_array, finite_rows_of
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.text import percent
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import RowValues, members_of
from lightning_failures.data.partition import Partition
from lightning_failures.data.records import UNSURE, DiagnosisReport
from lightning_failures.data.report import ClassReport
from lightning_failures.directions.result import FailureDirections
from lightning_failures.directions.standardize import standardize
from lightning_failures.errors import DataError
from lightning_failures.stats.agreement import auc

SHORTCUT, UNDER_REPRESENTED = "shortcut", "under-represented"
LABEL_NOISE, HARD = "label noise", "intrinsically hard"
KINDS = (SHORTCUT, UNDER_REPRESENTED, LABEL_NOISE, HARD)
NOTHING = "none of these"

_ANSWERS: Mapping[str, Mapping[str, bool]] = {
    SHORTCUT: {"wrong label": False, "lacking": True, "shortcut": True},
    UNDER_REPRESENTED: {"wrong label": False, "lacking": True, "shortcut": False},
    LABEL_NOISE: {"wrong label": True},
    HARD: {"wrong label": False, "lacking": False, "hard": True},
    NOTHING: {"wrong label": False, "lacking": False, "hard": False},
}
"""Of each kind, the answers to the questions of ``DICHOTOMIES`` that lead to it."""

MIN_PROBABILITY = 0.5
"""Probability below which the kind is "unsure"; by chance it is 0.2."""

MIN_FAILURES = 10
"""Number of failures from which a class is diagnosed."""

MIN_DOUBTED = 0.5
"""Share of doubtful labels among its failures from which a class without a pattern is diagnosed, too."""

MOST_TRAINING_EXAMPLES = 20_000
MOST_NEIGHBOURS_OF = 2000  # examples of a class, of training and of validation each, among which neighbours are sought
NEIGHBOURS = 10
_MOST_DEVIATIONS = 3.0  # a statistic farther from the mean of the fitted cases says no more than one as far

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class ClassExamples:
    """The n validation examples of one class.

    Attributes:
        phi: (n, D), standardized embeddings.
        predictions: (n,) int, predicted classes.
        values: (n,) cross-fitted decision values; NaN in a class without a direction.
        margins: (n,) label margins of a probe (:mod:`lightning_failures.directions.probe`); NaN without a probe.
    """

    phi: Rows
    predictions: IntArray
    values: FloatArray
    margins: FloatArray


@dataclass(frozen=True)
class TrainingExamples:
    """M training examples of all classes.

    Attributes:
        phi: (M, D), standardized embeddings.
        labels: (M,) int.
    """

    phi: Rows
    labels: IntArray

    @classmethod
    def of(cls, embeddings: Any, labels: Any, directions: FailureDirections) -> TrainingExamples:
        """Standardize embeddings (M, D) of examples with labels (M,) as the directions do.

        Rows that are not finite are left out.

        Raises:
            DataError: There are more or fewer labels than embeddings.
        """
        x, y = as_array(embeddings), as_array(labels)
        if y.shape != (len(x),):
            raise DataError(f"training labels must be ({len(x)},) like the training embeddings, got {y.shape}")
        known = finite_rows_of(x)
        phi = standardize(x[known], directions.mean.numpy(), directions.std.numpy())
        return cls(phi.astype(np.float32), y[known].astype(np.int64))

    @classmethod
    def joined(cls, parts: Sequence[TrainingExamples]) -> TrainingExamples:
        """Join the training examples of several processes."""
        return cls(np.concatenate([part.phi for part in parts]), np.concatenate([part.labels for part in parts]))


@dataclass(frozen=True)
class FailureStatistics:
    """What tells the kinds of failure of a class apart; None where it is not known.

    Attributes:
        flag_ratio: Log of the flagged share of the class in training over that in validation.
        density: Log of the density of training over that of validation near the failures, minus the same near the
            successes.
        wrong_class_auc: AUC of -w . phi for telling training examples of a wrong class from those of other classes, the
            largest over the wrong classes that at least an even share of the failures goes to: near 1, the failures
            look like that class in training. With two classes, from those of the class itself.
        probe_support: Share of the failures whose label the probe supports.
        probe_margin: Median label margin of the failures, in units of that of the successes.
        flagged_error_rate: Error rate of the flagged examples, whose cross-fitted decision values are negative.
    """

    flag_ratio: float | None = None
    density: float | None = None
    wrong_class_auc: float | None = None
    probe_support: float | None = None
    probe_margin: float | None = None
    flagged_error_rate: float | None = None


@dataclass(frozen=True)
class Term:
    """A statistic in a logistic regression: (value - mean) / scale times the coefficient."""

    mean: float
    scale: float
    coefficient: float


@dataclass(frozen=True)
class Dichotomy:
    """A question with two answers, as a logistic regression: the log odds of "yes".

    Attributes:
        intercept: Log odds where every statistic has its mean.
        terms: The statistics that answer it.
    """

    intercept: float
    terms: Mapping[str, Term]


STATISTICS = tuple(one.name for one in fields(FailureStatistics))


def failure_statistics(
    class_index: int,
    examples: ClassExamples,
    *,
    wrong_answers: int,
    weight: Rows | None = None,
    bias: float = 0.0,
    training: TrainingExamples | None = None,
) -> FailureStatistics:
    """Return the statistics that tell the kinds of failure of a class apart.

    Args:
        class_index: The class.
        examples: Its validation examples, failures and successes.
        wrong_answers: Number of wrong answers that the model can give.
        weight: (D,) w of its direction; None without one.
        bias: b of its direction.
        training: Training examples of all classes; None if they are not known.

    >>> phi = np.eye(4, dtype=np.float32)
    >>> nan = np.full(4, np.nan)
    >>> examples = ClassExamples(phi, np.array([0, 0, 1, 1]), nan, np.array([0.5, 0.5, -0.2, 0.1]))
    >>> found = failure_statistics(0, examples, wrong_answers=2)
    >>> found.probe_support, round(found.probe_margin, 2), found.density
    (0.5, -0.1, None)
    """
    failed = examples.predictions != class_index
    if not failed.any() or failed.all():
        return FailureStatistics()
    found: dict[str, float | None] = _of_probe(examples.margins, failed)
    flagged = examples.values < 0
    found["flagged_error_rate"] = float(failed[flagged].mean()) if flagged.any() else None
    if training is not None:
        own = training.labels == class_index
        if weight is not None:
            scores = training.phi @ weight
            found["flag_ratio"] = _flag_ratio(scores[own] + bias < 0, examples.values)
            wrong_classes, counts = np.unique(examples.predictions[failed], return_counts=True)
            often = wrong_classes[counts * wrong_answers >= counts.sum()]
            compared = ~own if wrong_answers > 1 else np.ones_like(own)
            aucs = [auc(-scores[compared], training.labels[compared] == wrong_class) for wrong_class in often]
            found["wrong_class_auc"] = max((one for one in aucs if math.isfinite(one)), default=None)
        found["density"] = _density(training.phi[own], examples.phi, failed)
    return FailureStatistics(**found)


def diagnose(
    statistics: FailureStatistics, *, class_index: int = 0, dichotomies: Mapping[str, Dichotomy] | None = None
) -> DiagnosisReport:
    """Return the kind of failure with the highest probability, the statistics that speak for it, and the remedy.

    An unknown statistic takes the mean of the cases to which the coefficients were fitted, so it says nothing. Where
    all statistics of a question are unknown, the kinds that its answers lead to are equally probable.

    Args:
        statistics: The statistics of the class.
        class_index: Its index, for the remedy.
        dichotomies: The fitted questions, by name. None: :data:`DICHOTOMIES`.

    >>> noise = FailureStatistics(0.0, 0.0, probe_support=0.1, probe_margin=-1.5)
    >>> diagnose(noise).kind, diagnose(FailureStatistics()).kind
    ('label noise', 'unsure')
    """
    asked = DICHOTOMIES if dichotomies is None else dichotomies
    likely = {question: _probability(question, one, statistics) for question, one in asked.items()}
    probabilities = {
        kind: math.prod(likely[question] if yes else 1 - likely[question] for question, yes in _ANSWERS[kind].items())
        for kind in _ANSWERS
    }
    likeliest = max(KINDS, key=lambda kind: probabilities[kind])
    probability = probabilities[likeliest]
    is_known = any(math.isfinite(_value(statistics, name)) for name in STATISTICS)
    is_sure = probability >= MIN_PROBABILITY and is_known
    speaks_for = {
        name: value if yes else -value
        for question, yes in _ANSWERS[likeliest].items()
        for name, value in _evidence(asked[question], statistics).items()
    }
    leading = [name for name in sorted(speaks_for, key=lambda name: -speaks_for[name])[:3] if speaks_for[name] > 0]
    return DiagnosisReport(
        kind=likeliest if is_sure else UNSURE,
        probability=probability,
        probabilities=probabilities,
        reasons=tuple(_SENTENCES[name](_value(statistics, name)) for name in leading),
        remedy=REMEDIES[likeliest].format(class_index=class_index) if is_sure else None,
    )


def _evidence(question: Dichotomy, statistics: FailureStatistics) -> dict[str, float]:
    """Return what each statistic adds to the log odds of "yes"; 0 if it is unknown."""
    found = {}
    for name, term in question.terms.items():
        deviations = (_value(statistics, name) - term.mean) / term.scale
        bounded = min(max(deviations, -_MOST_DEVIATIONS), _MOST_DEVIATIONS)
        found[name] = 0.0 if math.isnan(deviations) else term.coefficient * bounded
    return found


def _probability(name: str, question: Dichotomy, statistics: FailureStatistics) -> float:
    """Return the probability of "yes"."""
    if all(math.isnan(_value(statistics, term)) for term in question.terms):
        answers = [answers[name] for answers in _ANSWERS.values() if name in answers]
        return sum(answers) / len(answers)
    odds = math.exp(question.intercept + sum(_evidence(question, statistics).values()))
    return odds / (1 + odds)


def is_diagnosed(*, pattern: bool, failed: BoolArray, in_doubt: BoolArray) -> bool:
    """Return whether a class is diagnosed: it has a pattern, or most of its failures have doubtful labels.

    Failures with doubtful labels leave the fit of a direction, so the class may have no pattern without them.

    Args:
        pattern: Whether the class has a pattern.
        failed: (n,) bool.
        in_doubt: (n,) bool, whether the label is in doubt.

    >>> failed = np.arange(30) < 12
    >>> [is_diagnosed(pattern=False, failed=failed, in_doubt=np.arange(30) < doubts) for doubts in (5, 6)]
    [False, True]
    """
    failures = int(failed.sum())
    doubted = int((failed & in_doubt).sum())
    return MIN_FAILURES <= failures < len(failed) and (pattern or doubted >= MIN_DOUBTED * failures)


def diagnose_class(
    class_index: int,
    directions: FailureDirections,
    rows: IntArray,
    embeddings: NDArray[Any],
    predictions: IntArray,
    *,
    wrong_answers: int,
    training: TrainingExamples | None = None,
) -> DiagnosisReport:
    """Return the diagnosis of a class.

    Args:
        class_index: The class.
        directions: The directions of the analysis.
        rows: (n,) the rows of the class among the examples that the directions were fitted on.
        embeddings: (n, D) of these rows.
        predictions: (n,) int, their predicted classes.
        wrong_answers: Number of wrong answers that the model can give.
        training: Training examples of all classes; None if they are not known.
    """
    phi = standardize(embeddings, directions.mean.numpy(), directions.std.numpy())
    values, margins = (as_array(one)[rows] for one in (directions.out_of_fold, directions.label_margin))
    weight, bias = None, 0.0
    if class_index in directions.classes.tolist():
        row = directions.row(class_index)
        weight, bias = directions.weight[row].numpy(), float(directions.bias[row])
    statistics = failure_statistics(
        class_index,
        ClassExamples(phi, predictions, values.astype(np.float64), margins.astype(np.float64)),
        wrong_answers=wrong_answers,
        weight=weight,
        bias=bias,
        training=training,
    )
    return diagnose(statistics, class_index=class_index)


def add_diagnoses(
    classes: tuple[ClassReport, ...],
    grades: Grades,
    directions: FailureDirections,
    embeddings: RowValues,
    partition: Partition,
    training: TrainingExamples | None,
) -> tuple[ClassReport, ...]:
    """Add the diagnoses to the reports of all classes that are diagnosed. Collective.

    Without predicted classes there are none.

    Args:
        classes: The reports of all classes.
        grades: N rows.
        directions: Directions that were fitted on the analysed rows.
        embeddings: Embeddings of the rows that this process holds.
        partition: The analysed rows, and the processes.
        training: Training examples of all classes, the same on all processes; None if they are not known.
    """
    if grades.predictions is None:
        return classes
    predictions, in_doubt = as_array(grades.predictions), as_array(directions.in_doubt)
    wrong_answers = len(classes) - 1 if has_several_wrong_answers(grades) else 1
    members = members_of(grades, sampled=partition.sampled)

    def of_class(k: int) -> DiagnosisReport | None:
        rows, failed = members[k].rows, members[k].failed
        if not is_diagnosed(pattern=classes[k].pattern, failed=failed, in_doubt=in_doubt[rows]):
            return None
        return diagnose_class(
            k,
            directions,
            rows,
            as_array(embeddings[rows]),
            predictions[rows],
            wrong_answers=wrong_answers,
            training=training,
        )

    found = partition.merge_results(lambda: {k: of_class(k) for k in range(len(classes)) if partition.owns(k)})
    return tuple(replace(entry, diagnosis=found[k]) for k, entry in enumerate(classes))


# -- the statistics --------------------------------------------------------------------------------------------------


def _of_probe(margins: FloatArray, failed: BoolArray) -> dict[str, float | None]:
    """Return how far a probe of the label supports the labels of the failures."""
    known = np.isfinite(margins)
    if not (known & failed).any() or not (known & ~failed).any():
        return {}
    of_failures, unit = margins[known & failed], float(np.median(margins[known & ~failed]))
    return {
        "probe_support": float((of_failures >= 0).mean()),
        "probe_margin": float(np.median(of_failures)) / unit if unit > 0 else None,
    }


def _flag_ratio(flagged_in_training: BoolArray, values: FloatArray) -> float | None:
    """Return the log ratio of the flagged shares of training and validation, with half an example added to each."""
    known = values[np.isfinite(values)]
    if not len(flagged_in_training) or not len(known):
        return None
    training = (flagged_in_training.sum() + 0.5) / (len(flagged_in_training) + 1)
    validation = ((known < 0).sum() + 0.5) / (len(known) + 1)
    return math.log(training / validation)


def _density(training: Rows, validation: Rows, failed: BoolArray) -> float | None:
    """Return the log density of training over validation near the failures of a class, minus that near its successes.

    Args:
        training: (m, D) phi of training examples of the class.
        validation: (n, D) phi of its validation examples.
        failed: (n,) bool.
    """
    training, chosen = _some(training), _some_rows(len(validation))
    validation, failed = validation[chosen], failed[chosen]
    if min(len(training), len(validation)) <= NEIGHBOURS or not failed.any() or failed.all():
        return None
    to_training, to_validation = validation @ training.T, validation @ validation.T
    np.fill_diagonal(to_validation, -np.inf)  # no example is its own neighbour

    # the nearest of both together: of which are there more, compared with their numbers?
    both = np.hstack([to_training, to_validation])
    nearest = np.argpartition(-both, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    of_training = (nearest < len(training)).sum(axis=1)
    least = 0.5 / max(len(training), len(validation))
    density = np.log(of_training / len(training) + least)
    density -= np.log((NEIGHBOURS - of_training) / len(validation) + least)
    return float(density[failed].mean() - density[~failed].mean())


def _some(rows: Rows) -> Rows:
    return rows[_some_rows(len(rows))]


def _some_rows(n: int) -> IntArray:
    """Return the indices, ascending, of all rows, or of a fixed sample of at most ``MOST_NEIGHBOURS_OF``."""
    order = np.argsort(stable_hash(np.arange(n), 0), kind="stable")
    return np.sort(order[:MOST_NEIGHBOURS_OF])


def _value(statistics: FailureStatistics, name: str) -> float:
    value: float | None = getattr(statistics, name)
    return math.nan if value is None else value


# -- words and remedies ----------------------------------------------------------------------------------------------


def _times(log_ratio: float) -> str:
    return f"{math.exp(min(log_ratio, 20.0)):.2g} times"


_SENTENCES: Mapping[str, Callable[[float], str]] = {
    "flag_ratio": lambda value: f"Flagged images are {_times(value)} as frequent in training as in validation.",
    "density": lambda value: f"Near the failures, training holds {_times(value)} as many images as it should.",
    "wrong_class_auc": lambda value: (
        f"In training, {'a' if value > 0.6 else 'no'} class that they are taken for looks like the failures"
        f" (AUC {value:.2f})."
    ),
    "probe_support": lambda value: f"The embeddings support the label of {percent(value)} of the failures.",
    "probe_margin": lambda value: (
        f"The embeddings of the failures speak {'for' if value >= 0 else 'against'} the label,"
        f" {abs(value):.2g} times as clearly as those of the successes speak for theirs."
    ),
    "flagged_error_rate": lambda value: f"Of the flagged images, {100 * value:.0f} % fail.",
}

REMEDIES = {
    SHORTCUT: 'interventions=[RetrainHead()]  # or Upweight(factor="balanced")',
    UNDER_REPRESENTED: "interventions=[AddFiltered(pool)]  # to choose what to label: lightning-failures embed --shop",
    LABEL_NOISE: "callback.last_report.classes[{class_index}].doubted_ids  # the labels to review",
    HARD: "interventions=[]  # nothing to add or to weigh: the model needs more capacity, or better images",
}
"""The remedy of each kind as a line of code."""


# -- the fitted model: python benchmarks/diagnosis.py --fit ----------------------------------------------------------


DICHOTOMIES: Mapping[str, Dichotomy] = {
    "wrong label": Dichotomy(
        -5.884, {"probe_support": Term(0.675, 0.34, -0.207), "probe_margin": Term(0.121, 0.927, -6.497)}
    ),
    "lacking": Dichotomy(2.261, {"flag_ratio": Term(-0.908, 1.128, -0.294), "density": Term(-0.627, 0.817, -6.783)}),
    "shortcut": Dichotomy(0.566, {"wrong_class_auc": Term(0.78, 0.172, 5.102)}),
    "hard": Dichotomy(
        0.817, {"flagged_error_rate": Term(0.496, 0.273, 2.137), "wrong_class_auc": Term(0.691, 0.146, -0.887)}
    ),
}
"""The questions in the order in which they are asked."""
