"""Scores and p-values of captions as descriptions of a failure direction.

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, section 3. A caption that
describes the failures has a low score: the hardest caption has the lowest one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array, as_mask, as_matrix, as_vector, on_device
from lightning_failures.core.precision import full_precision
from lightning_failures.core.types import BoolArray
from lightning_failures.directions.result import FailureDirections
from lightning_failures.directions.standardize import standardize
from lightning_failures.directions.svm import balanced_signs
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.stats.folds import permuted_outcomes
from lightning_failures.stats.sequential import ENOUGH, SequentialTest

_CELLS_AT_ONCE = 1 << 18
_TINY = float(np.finfo(np.float32).tiny)
_ROUNDING = 1e-5


def score_captions(
    directions: FailureDirections,
    class_index: int | Sequence[int] | None,
    caption_embeddings: Any,
    reference_embedding: Any,
    method: Literal["direction", "published"] = "direction",
) -> Tensor:
    """Score captions along the failure direction of a class: the lowest score is the hardest caption.

    The score is ``w . z / |z|`` with ``z = (t(caption) - t(reference)) / std``. A difference of two embeddings is a
    direction, so the image mean is not subtracted from it and the bias is not added.

    Args:
        directions: Directions fitted on image embeddings of the same encoder.
        class_index: The class as it occurs in ``labels`` (not the row of ``directions.weight``), or K of them, or None
            for all of ``directions.classes``.
        caption_embeddings: (M, D) unit vectors that all classes share: one matrix product scores them for all classes.
            Or (K, M, D), separate candidates for each class.
        reference_embedding: (D,) or (1, D) unit vector of the reference caption; (K, D) for separate candidates.
        method: ``"direction"`` as above (a departure from the paper). ``"published"`` treats the difference as an image
            and returns its decision value: the mean is subtracted and the bias added.

    Returns:
        (M,) float32 for one class, else (K, M). With ``"direction"`` the score of a caption whose embedding equals that
        of the reference is 0.

    Raises:
        DataError: A class has no SVM, shapes do not match, or a value is not finite.
        ConfigurationError: The method is unknown.

    >>> from lightning_failures.directions import fit_failure_directions
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 3))
    >>> directions = fit_failure_directions(x, np.zeros(200, dtype=int), x[:, 0] > 0)
    >>> score_captions(directions, 0, np.eye(3), np.zeros(3)).argmax()  # successes lie along the first axis
    tensor(0)
    >>> score_captions(directions, None, np.eye(3), np.zeros(3)).shape
    torch.Size([1, 3])
    """
    if method not in ("direction", "published"):
        raise ConfigurationError(f"score_captions: method must be 'direction' or 'published', got {method!r}")
    is_single = class_index is not None and np.ndim(class_index) == 0
    rows: slice | list[int] = slice(None)
    if class_index is not None:
        rows = [directions.row(k) for k in np.atleast_1d(class_index).tolist()]
        rows = slice(rows[0], rows[0] + 1) if is_single else rows
    weight = directions.weight[rows].numpy()
    captions, references = _candidates(directions, caption_embeddings, reference_embedding, classes=len(weight))
    if method == "published":
        references = references + directions.mean.numpy()
    if captions.ndim == 2:
        scores = _scores(weight, captions, references[0], directions.std)
    else:
        of_classes = zip(weight[:, None], captions, references, strict=True)
        scores = np.concatenate([_scores(w, c, r, directions.std) for w, c, r in of_classes])
    if method == "published":
        scores += directions.bias[rows].numpy()[:, None]
    return torch.from_numpy(scores[0] if is_single else scores)


def mean_shift_scores(
    directions: FailureDirections, embeddings: Any, correct: Any, caption_embeddings: Any, reference_embedding: Any
) -> Tensor:
    """Score captions by the class-weighted difference of means instead of the SVM: the simple baseline.

    Args:
        directions: Provides mean and standard deviation of phi.
        embeddings: (n, D) of one class.
        correct: (n,) bool.
        caption_embeddings: (M, D) unit vectors.
        reference_embedding: (D,) or (1, D).

    Returns:
        (M,) float32 in [-1, 1], the cosine with (mean of successes - mean of failures); the hardest caption is lowest.
    """
    x, right = _one_class(directions, embeddings, correct)
    captions, references = _candidates(directions, caption_embeddings, reference_embedding)
    weight = (balanced_signs(right) @ x)[None]
    weight /= max(float(np.linalg.norm(weight)), _TINY)
    return torch.from_numpy(_scores(weight, captions, references[0], directions.std)[0])


@dataclass(frozen=True)
class BestCaption:
    """The caption that separates some images best from others: a hypothesis.

    Attributes:
        index: Index of the candidate.
        score: Cosine, in [-1, 1].
        margin: z-score of the score among all candidates.
    """

    index: int
    score: float
    margin: float


def most_distinctive_caption(
    directions: FailureDirections,
    embeddings: Any,
    chosen: Any,
    caption_embeddings: Any,
    reference_embedding: Any,
) -> BestCaption | None:
    """Find the caption that best describes the difference between the chosen images and the others of their group.

    The direction is the mean of the chosen images minus the mean of the group (parallel to the mean of the chosen minus
    the mean of the others). Captions are scored along it as along a failure direction, see :func:`score_captions`.

    Args:
        directions: Provides mean and standard deviation of phi.
        embeddings: (n, D) embeddings of the group.
        chosen: (n,) bool, for instance the images that activate a feature most.
        caption_embeddings: (M, D) unit vectors.
        reference_embedding: (D,) or (1, D).

    Returns:
        The best caption; None without captions, or if all or none of the images are chosen.
    """
    mask = as_mask(chosen, "chosen", len(embeddings))
    if mask.all() or not mask.any() or len(caption_embeddings) == 0:
        return None
    scores = mean_shift_scores(directions, embeddings, mask, caption_embeddings, reference_embedding).double()
    best = int(scores.argmax())
    spread = float(scores.std(correction=0))
    margin = float(scores[best] - scores.mean()) / spread if spread > 0 else 0.0
    return BestCaption(best, float(scores[best]), margin)


def permuted_distances(
    directions: FailureDirections,
    class_index: int,
    embeddings: Any,
    correct: Any,
    caption_embeddings: Any,
    reference_embedding: Any,
    *,
    ids: Any = None,
    groups: Any = None,
    permutations: int = 999,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Iterator[NDArray[np.float32]]:
    """Yield how far failures lie beyond successes along each caption: observed, then under permuted correctness.

    The direction is the class-weighted difference of means, for the observed labels and for the permuted ones. Its
    score for a caption, w . z / |z|, is the distance between failures and successes along this caption. Directions are
    not scaled to unit length: if the captions span all variation within a class, as in a small vocabulary, every
    direction is *parallel* to some caption, and only the distance separates chance from a pattern. One matrix product
    computes all permutations.

    Args:
        directions: Provides mean and standard deviation of phi; the class must have an SVM.
        class_index: The class as it occurs in ``labels``.
        embeddings: (n, D) embeddings of the examples of the class.
        correct: (n,) bool.
        caption_embeddings: (M, D) unit vectors.
        reference_embedding: (D,) or (1, D).
        ids: (n,) names of the examples, which make the order of the rows irrelevant. Default: the row number.
        groups: (n,) names of the sources; whole groups are permuted. Default: every example is its own source.
        permutations: Number P of permutations.
        seed: The only source of randomness.
        device: Device on which the products are computed.

    Yields:
        (1, M) the observed distances, then (P_i, M) blocks with P rows in total; nothing without permutations or
        without captions.
    """
    directions.row(class_index)
    x, right = _one_class(directions, embeddings, correct)
    n, dim = x.shape
    names = np.arange(n) if ids is None else as_vector(ids, "ids", n)
    sources = names if groups is None else as_vector(groups, "groups", n)
    captions, references = _candidates(directions, caption_embeddings, reference_embedding)
    if permutations == 0 or len(captions) == 0:
        return
    order = np.argsort(names, kind="stable")
    x, failed, sources = x[order], ~right[order], sources[order]
    # on centred features the sum over the failures alone determines the difference of means
    x = (x - x.mean(axis=0)).astype(np.float32)
    along = partial(_scores, captions=captions, reference=references[0], std=directions.std)  # (k, D) -> (k, M)
    # the cheaper order of products: examples x captions first, or permutations x examples first
    captions_first = n * len(captions) * (dim + permutations) < permutations * dim * (n + len(captions))
    rows_of_x = on_device(along(x) if captions_first else x, device)

    def distances(labellings: BoolArray) -> NDArray[np.float32]:  # (P, n) -> (P, M)
        with full_precision(device):
            sums = as_array(on_device(labellings.astype(np.float32), device) @ rows_of_x)
        failures = np.maximum(labellings.sum(axis=1), 1)
        rates = (1 / failures + 1 / np.maximum(n - failures, 1)).astype(np.float32)
        return np.asarray(rates[:, None] * (sums if captions_first else along(sums)))

    yield distances(failed[None])
    for labellings in permuted_outcomes(
        failed, sources, permutations, np.random.default_rng([seed, int(class_index), 1])
    ):
        yield distances(labellings)


class CaptionComparison(NamedTuple):
    """A caption against a shorter one.

    Attributes:
        caption: Index of the caption.
        shorter: Index of the shorter one; None for the reference.
        rivals: Indices of the captions that the caption was chosen from: they lengthen the shorter one, too.
        sign: 1 if the caption describes failures, -1 if it describes successes.
    """

    caption: int
    shorter: int | None
    rivals: tuple[int, ...]
    sign: int = 1


class CaptionGain(NamedTuple):
    """How much better a caption is than a shorter one.

    Attributes:
        margin: Difference of the distances, in standard deviations of the difference under permuted correctness.
        p_value: Share of permutations in which a rival gains as much over the shorter caption.
    """

    margin: float
    p_value: float


def compare_captions(
    distances: Iterable[NDArray[np.float32]], comparisons: Sequence[CaptionComparison] = (), *, enough: int = ENOUGH
) -> tuple[float, dict[CaptionComparison, CaptionGain]]:
    """Test all captions at once, and captions against shorter ones, by the same permutations.

    The statistic of the first test is the largest absolute distance over all captions, which accounts for the selection
    of the best one (the max-T test of Westfall and Young, 1993). Where ``enough`` permutations are as extreme, no
    caption is found, and no more permutations are read; see
    :class:`~lightning_failures.stats.sequential.SequentialTest`.

    Args:
        distances: The output of :func:`permuted_distances`.
        comparisons: The comparisons to test.
        enough: Number of permutations as extreme after which no more are read: with more than 999 permutations, give
            :func:`~lightning_failures.stats.sequential.enough_of` them, so that no p-value up to 0.05 changes.

    Returns:
        The p-value of the best caption, (1 + number as extreme) / (1 + P), in (0, 1], and the gain of each comparison.
        Without permutations the p-value is NaN, and there are no gains.
    """
    blocks = iter(distances)
    observed = next(blocks, None)
    if observed is None:
        return float("nan"), {}
    threshold = np.abs(observed).max() * (1 - _ROUNDING)  # the observed labels count as extreme despite rounding
    differences = {one: _gain(observed, one, (one.caption,))[0] for one in comparisons}
    test, permutations = SequentialTest(enough), 0
    gains: dict[CaptionComparison, list[NDArray[Any]]] = {one: [] for one in comparisons}
    as_large = dict.fromkeys(comparisons, 0)
    for block in blocks:
        permutations += len(block)
        decided = test.add(np.abs(block).max(axis=1) >= threshold)
        for one, difference in differences.items():
            gains[one].append(_gain(block, one, (one.caption,)))
            as_large[one] += int((_gain(block, one, one.rivals) >= difference - _ROUNDING * abs(difference)).sum())
        if decided:
            break
    found = {}
    for one, difference in differences.items():
        spread = max(float(np.concatenate(gains[one]).std()), _TINY)
        found[one] = CaptionGain(float(difference) / spread, (1 + as_large[one]) / (1 + permutations))
    return test.p_value, found


def _gain(distances: NDArray[np.float32], comparison: CaptionComparison, captions: Sequence[int]) -> NDArray[Any]:
    """Return how much further the best of some captions lies than the shorter caption: (P, M) -> (P,)."""
    base = 0 if comparison.shorter is None else comparison.sign * distances[:, comparison.shorter]
    return np.asarray((comparison.sign * distances[:, list(captions)]).max(axis=1) - base)


def scores_along(weight: NDArray[Any], captions: NDArray[Any], reference: NDArray[Any], std: Any) -> NDArray[Any]:
    """Score M captions along K directions of any kind: (K, M) float32, see :func:`score_captions`.

    Args:
        weight: (K, D) float32.
        captions: (M, D) float32.
        reference: (D,) float32.
        std: (D,) that phi divides by.
    """
    return _scores(weight, captions, reference, torch.as_tensor(std))


def _scores(weight: NDArray[Any], captions: NDArray[Any], reference: NDArray[Any], std: Tensor) -> NDArray[Any]:
    """Return w . z / |z| with z = (caption - reference) / std for K directions and M captions: (K, M) float32.

    Differences are computed in blocks that fit the processor's cache, and each block serves all directions.

    Args:
        weight: (K, D).
        captions: (M, D) float32.
        reference: (D,).
        std: (D,); a dimension with standard deviation 0 contributes 0.
    """
    scale = np.divide(1, std.numpy(), out=np.zeros(len(std), dtype=np.float32), where=std.numpy() > 0)
    scale /= max(float(scale.max(initial=0)), _TINY)  # keeps squares from overflowing; scores do not depend on it
    weight = weight * scale
    scores = np.empty((len(weight), len(captions)), dtype=np.float32)
    block = max(1, _CELLS_AT_ONCE // max(len(scale), 1))
    difference = np.empty((min(block, len(captions)), len(scale)), dtype=np.float32)
    length = np.empty(len(captions), dtype=np.float32)
    with np.errstate(all="ignore"):  # values that are not finite are reported below
        for start in range(0, len(captions), block):
            part = slice(start, start + block)
            d = difference[: len(captions[part])]
            np.subtract(captions[part], reference, out=d)
            np.matmul(weight, d.T, out=scores[:, part])
            np.dot(np.square(d, out=d), scale * scale, out=length[part])
    if not np.isfinite(length).all():
        as_matrix(captions, "caption_embeddings")
        raise DataError("reference_embedding is not finite")
    np.sqrt(length, out=length)
    return np.divide(scores, length, out=scores, where=length > 0)


def _candidates(
    directions: FailureDirections, caption_embeddings: Any, reference_embedding: Any, *, classes: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return captions and reference as float32: (M, D) and (1, D), or (K, M, D) and (K, D) for separate candidates.

    Separate candidates are allowed if ``classes``, the number of classes K, is given.
    """
    captions = as_array(caption_embeddings).astype(np.float32, copy=False)
    references = np.atleast_2d(as_array(reference_embedding)).astype(np.float32, copy=False)
    dim = directions.weight.shape[1]
    own = captions.ndim == 3 and classes > 0
    if captions.ndim != 2 + own or captions.shape[-1] != dim or references.shape != (len(captions) if own else 1, dim):
        raise DataError(
            f"captions and one reference must be embedded in the {dim} dimensions of the directions, got shapes "
            f"{captions.shape} and {references.shape}"
        )
    if own and len(captions) != classes:
        raise DataError(f"candidates are given for {len(captions)} classes, but {classes} classes are scored")
    return captions, references


def _one_class(directions: FailureDirections, embeddings: Any, correct: Any) -> tuple[NDArray[Any], BoolArray]:
    """Return phi of the examples of one class, (n, D), and their correctness, (n,)."""
    x = as_matrix(embeddings, "embeddings")
    if x.shape[1] != len(directions.mean):
        raise DataError(f"embeddings must have {len(directions.mean)} dimensions, got {x.shape[1]}")
    return standardize(x, directions.mean.numpy(), directions.std.numpy()), as_mask(correct, "correct", len(x))
