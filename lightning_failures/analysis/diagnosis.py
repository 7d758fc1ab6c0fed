"""The kind of failure of a class, from statistics of validation and training that tell the kinds apart.

Four kinds call for four remedies. A *shortcut*: training shows the class with a cue that the failures lack. An
*under-represented* subpopulation: training hardly holds it. *Label noise*: the label is wrong, not the answer.
*Intrinsically hard* images: training holds as many as validation, and the model still fails.

The statistics enter a multinomial logistic regression. ``benchmarks/diagnosis.py`` plants every kind, and nothing, in
coloured digits and in Gaussian classes, fits the coefficients below to them, and judges them on another data set with
another encoder.
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

MIN_PROBABILITY = 0.55
"""Probability below which the kind is "unsure"."""

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
        one_wrong_class: How far the failures concentrate on the most frequent wrong class: 0 for an even spread over
            all wrong classes, 1 for a single one. None where there is only one wrong answer.
        wrong_class_auc: AUC of -w . phi for telling training examples of that wrong class from those of other classes:
            near 1, the failures look like this class in training.
        probe_support: Share of the failures whose label the probe supports.
        probe_margin: Median label margin of the failures, in units of that of the successes.
    """

    flag_ratio: float | None = None
    density: float | None = None
    one_wrong_class: float | None = None
    wrong_class_auc: float | None = None
    probe_support: float | None = None
    probe_margin: float | None = None


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
    >>> found.one_wrong_class, found.probe_support, round(found.probe_margin, 2), found.density
    (1.0, 0.5, -0.1, None)
    """
    failed = examples.predictions != class_index
    if not failed.any() or failed.all():
        return FailureStatistics()
    wrong_classes, counts = np.unique(examples.predictions[failed], return_counts=True)
    wrong_class = int(wrong_classes[counts.argmax()])
    found: dict[str, float | None] = _of_probe(examples.margins, failed)
    if wrong_answers > 1:
        chance = 1 / wrong_answers
        found["one_wrong_class"] = float((counts.max() / counts.sum() - chance) / (1 - chance))
    if training is not None:
        own = training.labels == class_index
        if weight is not None:
            scores = training.phi @ weight
            found["flag_ratio"] = _flag_ratio(scores[own] + bias < 0, examples.values)
            if wrong_answers > 1:
                found["wrong_class_auc"] = _defined(auc(-scores[~own], training.labels[~own] == wrong_class))
        found["density"] = _density(training.phi[own], examples.phi, failed)
    return FailureStatistics(**found)


def diagnose(statistics: FailureStatistics, *, class_index: int = 0) -> DiagnosisReport:
    """Return the kind of failure with the highest probability, the statistics that speak for it, and the remedy.

    An unknown statistic takes the mean of the cases to which the coefficients were fitted, so it says nothing.

    Args:
        statistics: The statistics of the class.
        class_index: Its index, for the remedy.

    >>> noise = FailureStatistics(0.0, 0.0, one_wrong_class=0.2, probe_support=0.1, probe_margin=-1.5)
    >>> diagnose(noise).kind, diagnose(FailureStatistics()).kind
    ('label noise', 'unsure')
    """
    values = np.array([_value(statistics, name) for name in STATISTICS])
    evidence = np.nan_to_num(np.clip((values - MEANS) / SCALES, -_MOST_DEVIATIONS, _MOST_DEVIATIONS))
    logits = np.array(list(COEFFICIENTS.values())) @ evidence + np.array(list(INTERCEPTS.values()))
    shares = np.exp(logits - logits.max())
    probabilities = dict(zip(COEFFICIENTS, (shares / shares.sum()).tolist(), strict=True))
    likeliest = max(KINDS, key=lambda kind: probabilities[kind])
    probability = probabilities[likeliest]
    is_sure = probability >= MIN_PROBABILITY and bool(np.isfinite(values).any())
    speaks_for = np.array(COEFFICIENTS[likeliest]) * evidence
    leading = [STATISTICS[place] for place in np.argsort(-speaks_for)[:3] if speaks_for[place] > 0]
    return DiagnosisReport(
        kind=likeliest if is_sure else UNSURE,
        probability=probability,
        probabilities=probabilities,
        reasons=tuple(_SENTENCES[name](_value(statistics, name)) for name in leading),
        remedy=REMEDIES[likeliest].format(class_index=class_index) if is_sure else None,
    )


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


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _value(statistics: FailureStatistics, name: str) -> float:
    value: float | None = getattr(statistics, name)
    return math.nan if value is None else value


# -- words and remedies ----------------------------------------------------------------------------------------------


def _times(log_ratio: float) -> str:
    return f"{math.exp(min(log_ratio, 20.0)):.2g} times"


_SENTENCES: Mapping[str, Callable[[float], str]] = {
    "flag_ratio": lambda value: f"Flagged images are {_times(value)} as frequent in training as in validation.",
    "density": lambda value: f"Near the failures, training holds {_times(value)} as many images as it should.",
    "one_wrong_class": lambda value: (
        f"The failures {'go to one wrong class' if value > 0.5 else 'spread over wrong classes'} ({value:.2f}; 0:"
        " evenly over all, 1: to a single one)."
    ),
    "wrong_class_auc": lambda value: (
        f"In training, that wrong class looks {'' if value > 0.6 else 'no more '}like the failures (AUC {value:.2f})."
    ),
    "probe_support": lambda value: f"The embeddings support the label of {percent(value)} of the failures.",
    "probe_margin": lambda value: (
        f"The embeddings of the failures speak {'for' if value >= 0 else 'against'} the label,"
        f" {abs(value):.2g} times as clearly as those of the successes speak for theirs."
    ),
}

REMEDIES = {
    SHORTCUT: 'interventions=[RetrainHead()]  # or Upweight(factor="balanced")',
    UNDER_REPRESENTED: "interventions=[AddFiltered(pool)]  # to choose what to label: lightning-failures embed --shop",
    LABEL_NOISE: "callback.last_report.classes[{class_index}].doubted_ids  # the labels to review",
    HARD: "interventions=[]  # nothing to add or to weigh: the model needs more capacity, or better images",
}
"""The remedy of each kind as a line of code."""


# -- the fitted model: python benchmarks/diagnosis.py --fit ----------------------------------------------------------

MEANS = np.array([-0.724, -0.51, 0.366, 0.638, 0.677, 0.125])
SCALES = np.array([1.116, 0.771, 0.276, 0.201, 0.34, 0.927])
INTERCEPTS = {SHORTCUT: 0.491, UNDER_REPRESENTED: -0.488, LABEL_NOISE: -2.46, HARD: 1.212, NOTHING: 1.245}
COEFFICIENTS = {
    SHORTCUT: (-0.242, -2.186, 2.197, 0.776, 0.83, -0.183),
    UNDER_REPRESENTED: (-1.271, -1.385, 0.17, -1.732, 0.857, 3.212),
    LABEL_NOISE: (0.66, 0.028, -2.645, 0.696, -1.757, -3.393),
    HARD: (0.848, 1.565, -0.402, 0.051, 0.02, -0.725),
    NOTHING: (0.005, 1.977, 0.68, 0.21, 0.05, 1.089),
}
"""Of the statistics in the order of their fields, in standard deviations from their means."""
