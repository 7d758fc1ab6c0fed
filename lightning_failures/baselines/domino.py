"""The error-aware mixture model of Domino.

Source: Eyuboglu et al., *Domino: Discovering Systematic Errors with Cross-Modal Embeddings*, ICLR 2022, section 4. A
slice is a component of a mixture over embedding, label and answer: inside a slice the three are independent, the
embedding is Gaussian with a diagonal covariance, label and answer are categorical. The log-likelihoods of label and
answer are multiplied by weights (gamma), so that slices are pure in them. Fitted by expectation maximisation from the
confusion matrix: its cells are dealt to the components, or divided among them by chance. Embeddings are first projected
to their principal components.

Departure: a variance has a floor relative to the variance of all embeddings, instead of an absolute one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp  # type: ignore[import-untyped]
from sklearn.decomposition import PCA

from lightning_failures.core.arrays import as_array, as_rows, as_vector
from lightning_failures.core.types import FloatArray, IntArray
from lightning_failures.errors import DataError

_LEAST_PROBABILITY = 1e-6
_LEAST_VARIANCE = 1e-6  # of the mean variance of all embeddings
_CONVERGED = 1e-3  # change of the mean log-likelihood
_RANDOM_SHARE = 0.1  # of an initial responsibility, so that no component is locked into its cell


@dataclass(frozen=True, eq=False)
class ErrorAwareMixture:
    """A fitted mixture of S slices, those in which label and answer differ most first.

    Attributes:
        mean: (D,), subtracted from embeddings.
        components: (P, D), the principal components.
        means: (S, P), centre of each slice.
        variances: (S, P).
        shares: (S,), prior probability of each slice.
        label_probabilities: (S, K), of each label inside a slice.
        answer_probabilities: (S, K), of each answer inside a slice.
        label_weight: Weight of the log-likelihood of the label.
        answer_weight: Weight of the log-likelihood of the answer.
        log_likelihood: Mean log-likelihood of the examples after each iteration; it never falls by more than rounding.
    """

    mean: FloatArray
    components: FloatArray
    means: FloatArray
    variances: FloatArray
    shares: FloatArray
    label_probabilities: FloatArray
    answer_probabilities: FloatArray
    label_weight: float
    answer_weight: float
    log_likelihood: tuple[float, ...]

    @property
    def discrepancy(self) -> FloatArray:
        """(S,) in [0, 1]: the largest difference, over classes, between how frequent it is as label and as answer."""
        return np.asarray(np.abs(self.label_probabilities - self.answer_probabilities).max(axis=1))

    def responsibilities(self, embeddings: Any, labels: Any = None, answers: Any = None) -> FloatArray:
        """Return the probability of each slice, given what is known of an example, (n, S) float64.

        Args:
            embeddings: (n, D).
            labels: (n,) int, or None.
            answers: (n, K) predicted probabilities, (n,) int predictions, or None.
        """
        x = as_rows(embeddings, "embeddings").astype(np.float64)
        classes = self.label_probabilities.shape[1]
        joint = _log_gaussian((x - self.mean) @ self.components.T, self.means, self.variances) + np.log(self.shares)
        if labels is not None:
            joint += self.label_weight * _log_categorical(_shares(labels, len(x), classes), self.label_probabilities)
        if answers is not None:
            joint += self.answer_weight * _log_categorical(_shares(answers, len(x), classes), self.answer_probabilities)
        return np.asarray(np.exp(joint - logsumexp(joint, axis=1, keepdims=True)))

    def prototypes(self) -> FloatArray:
        """Return the centre of each slice among the embeddings, (S, D)."""
        return np.asarray(self.mean + self.means @ self.components)

    def caption_scores(self, captions: Any, class_mean: Any) -> FloatArray:
        """Return how well each caption describes each slice, (S, M) float64, the larger the better.

        Source: Domino, section 5: the inner product of a caption with the prototype of the slice minus the mean
        embedding of the class, so that a caption that fits the whole class scores low.

        Args:
            captions: (M, D) embeddings of captions, in the space of the images.
            class_mean: (D,) mean embedding of the images of the class.

        Raises:
            DataError: The dimensions differ from those of the images.

        >>> model = ErrorAwareMixture(
        ...     mean=np.zeros(2), components=np.eye(2), means=np.array([[1.0, 1.0]]), variances=np.ones((1, 2)),
        ...     shares=np.ones(1), label_probabilities=np.eye(1), answer_probabilities=np.eye(1), label_weight=1.0,
        ...     answer_weight=1.0, log_likelihood=(0.0,),
        ... )
        >>> model.caption_scores(np.eye(2), [1.0, 0.0]).tolist()
        [[0.0, 1.0]]
        """
        texts = as_rows(captions, "captions").astype(np.float64)
        centre = as_array(class_mean).astype(np.float64)
        if centre.shape != self.mean.shape or texts.shape[1:] != self.mean.shape:
            raise DataError(f"captions and class_mean must have {len(self.mean)} dimensions, as the images have.")
        return np.asarray((self.prototypes() - centre) @ texts.T)


def fit_error_aware_mixture(
    embeddings: Any,
    labels: Any,
    answers: Any,
    *,
    slices: int = 25,
    components: int = 128,
    label_weight: float = 10.0,
    answer_weight: float = 10.0,
    iterations: int = 100,
    seed: int = 0,
) -> ErrorAwareMixture:
    """Fit the mixture by expectation maximisation.

    Args:
        embeddings: (N, D) float.
        labels: (N,) int, 0 ... K - 1.
        answers: (N, K) predicted probabilities, or (N,) int predictions.
        slices: Number of components of the mixture.
        components: Number of principal components; fewer where N or D are smaller.
        label_weight: Weight of the log-likelihood of the label; the paper's gamma, 10.
        answer_weight: The same of the answer.
        iterations: Maximum number of iterations.
        seed: Seed of the initial responsibilities.

    Raises:
        DataError: There are fewer examples than slices, or shapes do not fit.

    >>> rng = np.random.default_rng(0)
    >>> hard = np.arange(400) % 4 == 0                     # a quarter is taken for class 1, and looks different
    >>> x = rng.normal(size=(400, 8)) + 4 * hard[:, None]
    >>> model = fit_error_aware_mixture(x, np.zeros(400, int), hard.astype(int), slices=2)
    >>> found = model.responsibilities(x)[:, 0] > 0.5      # the first slice, from the embedding alone
    >>> bool((found == hard).mean() > 0.99)
    True
    """
    x = as_rows(embeddings, "embeddings").astype(np.float64)
    y = as_vector(labels, "labels", len(x)).astype(np.int64)
    given = as_array(answers)
    classes = given.shape[1] if given.ndim == 2 else int(max(y.max(initial=0), given.max(initial=0))) + 1
    if len(x) < slices:
        raise DataError(f"{len(x)} examples are too few for {slices} slices.")
    label_shares, answer_shares = _shares(y, len(x), classes), _shares(given, len(x), classes)

    mean = x.mean(axis=0)
    with np.errstate(invalid="ignore"):  # scikit-learn divides by the variance, which constant embeddings lack
        axes = PCA(min(components, *x.shape), svd_solver="full").fit(x).components_.astype(np.float64)
    z = (x - mean) @ axes.T
    floor = max(_LEAST_VARIANCE * float(z.var(axis=0).mean()), np.finfo(np.float64).tiny)
    r = _initial(y, answer_shares.argmax(axis=1), slices, np.random.default_rng(seed))
    likelihoods: list[float] = []
    while True:
        mass = r.sum(axis=0) + np.finfo(np.float64).eps
        shares = mass / mass.sum()
        means = r.T @ z / mass[:, None]
        variances = np.maximum(r.T @ z**2 / mass[:, None] - means**2, floor)
        of_labels, of_answers = (
            np.maximum(r.T @ one / mass[:, None], _LEAST_PROBABILITY) for one in (label_shares, answer_shares)
        )
        joint = _log_gaussian(z, means, variances) + np.log(shares)
        joint += label_weight * _log_categorical(label_shares, of_labels)
        joint += answer_weight * _log_categorical(answer_shares, of_answers)
        total = logsumexp(joint, axis=1, keepdims=True)
        r = np.exp(joint - total)
        likelihoods.append(float(total.mean()))
        if len(likelihoods) >= iterations or (len(likelihoods) > 1 and np.diff(likelihoods[-2:])[0] < _CONVERGED):
            break

    order = np.argsort(-np.abs(of_labels - of_answers).max(axis=1), kind="stable")
    return ErrorAwareMixture(
        mean=mean,
        components=axes,
        means=means[order],
        variances=variances[order],
        shares=shares[order],
        label_probabilities=of_labels[order],
        answer_probabilities=of_answers[order],
        label_weight=label_weight,
        answer_weight=answer_weight,
        log_likelihood=tuple(likelihoods),
    )


def _shares(given: Any, size: int, classes: int) -> FloatArray:
    """Return (n, K): probabilities as they are, classes as one 1 in each row."""
    array = as_array(given)
    if array.ndim == 1 and len(array) == size:
        chosen = array.astype(np.int64)
        if size and not 0 <= chosen.min() <= chosen.max() < classes:
            raise DataError(f"labels and answers must be 0 ... {classes - 1}.")
        return np.asarray(np.eye(classes)[chosen])
    if array.shape != (size, classes):
        raise DataError(f"answers must have the shape ({size}, {classes}) or ({size},); got {array.shape}.")
    return array.astype(np.float64)


def _initial(labels: IntArray, predictions: IntArray, slices: int, rng: np.random.Generator) -> FloatArray:
    """Return initial responsibilities (N, S): the cells of the confusion matrix dealt to slices, and a random part."""
    _, cell = np.unique(np.stack([labels, predictions]), axis=1, return_inverse=True)
    cell = cell.ravel()
    cells = int(cell.max()) + 1
    if cells >= slices:  # several cells share a slice
        slice_of = cell % slices
    else:  # a cell is divided by chance among its slices
        of_cell = [np.flatnonzero(np.arange(slices) % cells == one) for one in range(cells)]
        slice_of = np.array([rng.choice(of_cell[one]) for one in cell])
    random = rng.random((len(labels), slices))
    return np.asarray(
        (1 - _RANDOM_SHARE) * np.eye(slices)[slice_of] + _RANDOM_SHARE * random / random.sum(axis=1, keepdims=True)
    )


def _log_gaussian(z: FloatArray, means: FloatArray, variances: FloatArray) -> FloatArray:
    """Return the log density of each row (n, P) under each diagonal Gaussian, (n, S)."""
    precision = 1 / variances
    squares = z**2 @ precision.T - 2 * z @ (means * precision).T + (means**2 * precision).sum(axis=1)
    constant = np.log(2 * np.pi * variances).sum(axis=1)
    return np.asarray(-0.5 * (squares + constant))


def _log_categorical(shares: FloatArray, probabilities: FloatArray) -> FloatArray:
    """Return the expected log-likelihood of each row's shares (n, K) under the probabilities (S, K), (n, S)."""
    return np.asarray(shares @ np.log(np.maximum(probabilities, _LEAST_PROBABILITY)).T)
