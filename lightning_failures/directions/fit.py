"""Fit failure directions: one linear SVM per class that separates correct examples from failures in an embedding space.

Source: Jain, Lawrence, Moitra and Madry, Distilling Model Failures as Directions in Latent Space, ICLR 2023, section 3.

``selection="published"`` reproduces the paper's procedure. The default, ``"scaled"``, departs from it twice:

* Rounding decides on the published grid: below a critical value of C every multiplier is at its bound, the direction is
  the class-weighted difference of means, and any bias of an interval is optimal. Therefore C is one multiple of the
  critical C of the data, the same for all classes.
* Failures whose label the embeddings do not support leave the fit: they are to be reviewed, not explained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array, as_mask, as_rows, as_vector, finite_rows_of
from lightning_failures.core.budget import SKIPPED_FOR_TIME, Deadline
from lightning_failures.core.text import fit_failed
from lightning_failures.core.threads import one_thread
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.directions.effects import measure_effect
from lightning_failures.directions.one_class import ALL_THE_SAME, DirectionSearch, FittedClass, class_problems
from lightning_failures.directions.probe import doubted_labels, label_margins
from lightning_failures.directions.result import NO_ADDITIONAL_PATTERN, FailureDirections
from lightning_failures.directions.standardize import reference_moments, standardize
from lightning_failures.directions.svm import FIXABLE_MULTIPLE, WHOLE_MULTIPLE
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.stats.agreement import auc
from lightning_failures.stats.folds import join_copies

Doubted = Literal["failures", "examples"] | None
"""Which examples leave a fit if their label is in doubt."""

_IDENTICAL = 1e-6  # largest range of a coordinate at which unit vectors count as identical


def fit_failure_directions(
    embeddings: Any,
    labels: Any,
    correct: Any,
    *,
    ids: Any = None,
    groups: Any = None,
    reference: Any = None,
    whiten: bool = True,
    cs: Sequence[float] | None = None,
    folds: int = 2,
    selection: Literal["scaled", "published"] = "scaled",
    n_directions: int = 1,
    permutations: int = 999,
    seed: int = 0,
    device: str | torch.device = "cpu",
    classes_in_all: int | None = None,
    deadline: Deadline | None = None,
    on_class_error: Callable[[int, Exception], None] | None = None,
    doubted: Doubted = "failures",
    margins: Any = None,
    probe_support: float | None = None,
) -> FailureDirections:
    """Fit one SVM per class that separates its correctly classified examples from its failures.

    Args:
        embeddings: (N, D) float tensor or array, any float dtype, never written to.
        labels: (N,) int >= 0, the true class of each example.
        correct: (N,) bool, whether the classifier was right.
        ids: (N,) names of the examples, unique within a class. Rows are sorted by id first, so their order has no
            influence. Default: the row number.
        groups: (N,) names of the sources. Examples of one source stay together in folds and permutations. Default:
            every example is its own source. Examples with exactly equal embeddings are copies of one image, and always
            one source, except with ``selection="published"``.
        reference: (M, D) embeddings from which phi takes mean and standard deviation (training embeddings where
            available), or their :class:`~lightning_failures.directions.standardize.Moments`. Default: ``embeddings``.
        whiten: Subtract the mean and divide by the standard deviation. If False, phi only scales to unit length, and w
            is a direction of the encoder's own space (the paper's appendix A.6, for decoders).
        cs: Absolute values of C to choose from. Default: as ``selection`` says.
        folds: Number of cross-validation folds.
        selection: ``"scaled"``: 3 times the critical C (of each training fold, then of all data), or 30 times with
            ``doubted=None``; folds by stratified hash of the group. Of several ``cs``, the smallest within two standard
            errors of the best score wins. A class of more than 5,000 examples is fitted on a fixed sample of 5,000 and
            scored on all.
            ``"published"``: scikit-learn's ``SVC(kernel="linear", class_weight="balanced")``, C from 1e-6 to 1,
            ``cross_val_score(cv=folds, scoring="balanced_accuracy")``, the first best C, refit on all; unshuffled folds
            unless there are groups.
        n_directions: Maximum number of directions per class. An additional direction is reported where failures are in
            excess at both ends of an axis along which they differ: see :mod:`lightning_failures.directions.additional`.
            Its p-value permutes correctness within strata of the previous directions; the first p > 0.05 ends the
            search.
        permutations: Permutations of the screening test for every class. Classes with p <= 0.01 get at least 20 x the
            total number of classes, so that one true mode among hundreds can survive Benjamini-Hochberg. 0: no test.
        seed: The only source of randomness; no global generator is used.
        device: Device on which Gram matrices and the products of the permutations are computed, in single precision.
        classes_in_all: Total number of classes that are tested, if ``labels`` holds only some of them. Default: the
            number of classes in ``labels`` that can be fitted.
        deadline: Classes are fitted in the order of their number of failures, most first; those that the deadline
            leaves out are in ``skipped``.
        on_class_error: Called with a class whose fit raises an error, and the error; the class is then in ``skipped``.
            None: the error is raised.
        doubted: Which examples leave the fit if a cross-fitted probe of the label on the embeddings does not support
            their label (:mod:`lightning_failures.directions.probe`): ``"failures"``, all ``"examples"``, or None.
            A class is left alone if the probe does not support 60 % of its labels, and all are if it supports less
            than that on average. Examples that leave the fit keep
            their decision values. The CV score and the p-value are those of the examples, failures and
            successes, whose labels are not in doubt. With ``selection="published"`` nothing leaves the fit.
        margins: (N,) label margins of these examples, if the probe was fitted on more than them; see
            :func:`~lightning_failures.directions.probe.label_margins`.
        probe_support: Mean share of the labels of a class that this probe supports, over all classes.

    Returns:
        The directions. A class with fewer than 10 failures or 10 successes, with fewer than 5 of either whose labels
        are not in doubt, or with too few sources to fill the folds, is in ``skipped`` with the reason.

    Raises:
        DataError: Shapes do not match, a value is not finite, a label is negative, or a class has an id twice.
        ConfigurationError: An option outside its range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(200, 8))
        >>> correct = x[:, 0] + 0.3 * rng.normal(size=200) > 0
        >>> directions = fit_failure_directions(x, np.zeros(200, dtype=int), correct)
        >>> int(directions.weight[0].abs().argmax()), bool(directions.p_value[0] <= 0.001)
        (0, True)
    """
    _check_options(selection, folds, n_directions, permutations, seed, cs, doubted)
    x = as_rows(embeddings, "embeddings")
    n, dim = x.shape
    y = as_vector(labels, "labels", n)
    if n and (y.dtype.kind != "i" or y.min() < 0):
        raise DataError("labels must be integers >= 0")
    right = as_mask(correct, "correct", n)
    names = np.arange(n) if ids is None else as_vector(ids, "ids", n)
    sources = names if groups is None else as_vector(groups, "groups", n)
    published = selection == "published"
    if not published:
        sources = join_copies(sources, x)

    with one_thread():
        mean, std = np.zeros(dim), np.ones(dim)
        if whiten:
            moments = reference_moments(reference, x, names)
            mean, std = moments.mean, moments.std
            if max(np.abs(mean).max(initial=0.0), std.max(initial=0.0)) > np.finfo(np.float32).max:
                raise DataError("embeddings must lie within the range of float32")
        precision = np.float64 if published else np.float32
        phi_mean, phi_std = mean.astype(precision), std.astype(precision)

        # the labels in doubt, then the classes that can be fitted, most failures first, so that a deadline costs those
        # that matter least
        margin, doubt = np.full(n, np.nan), np.zeros(n, dtype=np.bool_)
        if doubted is not None and not published:
            margin = _margins(x, y, sources, mean, std, seed) if margins is None else _given_margins(margins, n)
            doubt = doubted_labels(margin, y, probe_support)
        problems, skipped = class_problems(
            x,
            y,
            names,
            right,
            sources,
            folds,
            seed,
            doubted=doubt,
            fitted=~doubt if doubted == "examples" else ~doubt | right,
            unshuffled=published and groups is None,
        )
        in_all = len(problems) if classes_in_all is None else classes_in_all
        problems.sort(key=lambda problem: -problem.failures)

        multiple = WHOLE_MULTIPLE if doubted is None else FIXABLE_MULTIPLE
        search = DirectionSearch(published, multiple, cs, permutations, 20 * in_all, n_directions, seed, device)
        fitted: list[FittedClass] = []
        for problem in problems:
            if deadline is not None and deadline.passed:
                skipped[problem.label] = SKIPPED_FOR_TIME
                continue
            try:
                features = _standardized(x[problem.rows], phi_mean, phi_std)
                if np.ptp(features, axis=0).max(initial=0.0) < _IDENTICAL:
                    skipped[problem.label] = ALL_THE_SAME
                    continue
                fitted.append(search.fit(problem, features))
            except Exception as error:
                if on_class_error is None:
                    raise
                on_class_error(problem.label, error)
                skipped[problem.label] = fit_failed(error)

    fitted.sort(key=lambda one: one.problem.label)
    phi: dict[str, Any] = {
        "mean": torch.from_numpy(mean.astype(np.float32)),
        "std": torch.from_numpy(std.astype(np.float32)),
        "whiten": whiten,
        "multiple": multiple,
    }
    ranks = []
    for rank in range(max((len(one.directions) for one in fitted), default=1)):
        reasons = dict(sorted(skipped.items()))
        if rank:
            ended = [one.problem.label for one in fitted if len(one.directions) == rank]
            reasons = dict.fromkeys(ended, NO_ADDITIONAL_PATTERN)
        ranks.append(FailureDirections(**_stack(fitted, rank, margin, doubt, dim), **phi, skipped=reasons))
    return dataclasses.replace(ranks[0], further=tuple(ranks[1:]))


def _margins(
    x: NDArray[Any], labels: IntArray, sources: NDArray[Any], mean: FloatArray, std: FloatArray, seed: int
) -> FloatArray:
    """Return the label margins (n,) of the examples."""
    codes = sources if sources.dtype.kind == "i" else np.unique(sources, return_inverse=True)[1]
    return label_margins(x, labels, codes, mean, std, classes=np.unique(labels), seed=seed)


def _given_margins(margins: Any, n: int) -> FloatArray:
    """Return label margins that were computed elsewhere, (n,)."""
    given = as_array(margins)
    if given.shape != (n,) or given.dtype.kind != "f":
        raise DataError(f"margins must be ({n},) float, got {given.dtype} of shape {given.shape}")
    return given.astype(np.float64)


def _standardized(x: NDArray[Any], mean: NDArray[Any], std: NDArray[Any]) -> NDArray[Any]:
    """Return phi of the embeddings (n, D) of a class.

    Raises:
        DataError: It is not finite: the embeddings lie too far from those that phi standardizes with.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        features = standardize(x, mean, std)
    n_bad = np.count_nonzero(~finite_rows_of(features))
    if n_bad:
        raise DataError(
            f"{n_bad} of its {len(x)} embeddings, up to {float(np.abs(x).max()):.3g}, lie too far from the mean for"
            f" {mean.dtype} numbers"
        )
    return features


def _stack(fitted: list[FittedClass], rank: int, margins: FloatArray, in_doubt: BoolArray, dim: int) -> dict[str, Any]:
    """Return the directions of one rank as tensors of K rows, and their values for the examples as tensors of n rows.

    Args:
        fitted: The classes, ascending.
        rank: 0 for the first direction.
        margins: (n,) label margins; NaN without a probe.
        in_doubt: (n,) bool.
        dim: D.
    """
    found = [one for one in fitted if len(one.directions) > rank]
    tested = [one.directions[rank] for one in found]
    svms = [direction.svm for direction in tested]
    out_of_fold = np.full(len(margins), np.nan, dtype=np.float32)
    left_out = np.zeros(len(margins), dtype=np.bool_)
    effects, aucs = [], []
    for one, svm in zip(found, svms, strict=True):
        problem = one.problem
        out_of_fold[problem.rows], left_out[problem.rows] = svm.out_of_fold, ~problem.fitted
        sources = np.unique(problem.sources, return_inverse=True)[1]
        effects.append(measure_effect(svm.out_of_fold, ~problem.correct, sources))
        aucs.append([auc(values, problem.correct) for values in (margins[problem.rows], one.whole_values)])
    columns: dict[str, Sequence[Any]] = {
        "cv_score": [svm.score for svm in svms],
        "cv_score_stderr": [svm.stderr for svm in svms],
        "c": [svm.c for svm in svms],
        "p_value": [direction.p_value for direction in tested],
        "effect": [effect.difference for effect in effects],
        "margin_auc": [pair[0] for pair in aucs],
        "whole_auc": [pair[1] for pair in aucs],
        "flag_agreement": [float("nan") if rank else one.flag_agreement for one in found],
    }
    return {
        "classes": torch.tensor([one.problem.label for one in found], dtype=torch.int64),
        "weight": torch.from_numpy(np.array([svm.weight for svm in svms], dtype=np.float32).reshape(-1, dim)),
        "bias": torch.tensor([svm.bias for svm in svms], dtype=torch.float32),
        **{name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()},
        "effect_interval": torch.tensor([effect.interval for effect in effects], dtype=torch.float64).reshape(-1, 2),
        "out_of_fold": torch.from_numpy(out_of_fold),
        "label_margin": torch.from_numpy(margins.astype(np.float32)),
        "in_doubt": torch.from_numpy(in_doubt),
        "doubted": torch.from_numpy(left_out),
    }


def _check_options(
    selection: str,
    folds: int,
    n_directions: int,
    permutations: int,
    seed: int,
    cs: Sequence[float] | None,
    doubted: str | None,
) -> None:
    """Raise a ConfigurationError for an option outside its range."""
    if selection not in ("scaled", "published"):
        raise ConfigurationError(
            f"fit_failure_directions: selection must be 'scaled' or 'published', got {selection!r}"
        )
    if doubted not in ("failures", "examples", None):
        raise ConfigurationError(
            f"fit_failure_directions: doubted must be 'failures', 'examples' or None, got {doubted!r}"
        )
    for name, value, least in (
        ("folds", folds, 2),
        ("n_directions", n_directions, 1),
        ("permutations", permutations, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigurationError(f"fit_failure_directions: {name} must be at least {least}, got {value}")
    if cs is not None and (len(cs) == 0 or min(cs) <= 0):
        raise ConfigurationError(f"fit_failure_directions: cs must hold positive numbers, got {cs!r}")
