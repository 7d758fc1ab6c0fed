"""How well each candidate caption describes a failure direction.

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, section 3. A score is low where
the caption describes what fails: the hardest caption has the lowest score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array, as_mask, as_matrix, as_vector
from lightning_failures.directions.result import FailureDirections
from lightning_failures.directions.standardize import standardize
from lightning_failures.directions.svm import balanced_signs
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.stats.folds import permuted_outcomes

Floats = NDArray[Any]
Mask = NDArray[np.bool_]

_CELLS_AT_ONCE = 1 << 18
_TINY = float(np.finfo(np.float32).tiny)


def score_captions(
    directions: FailureDirections,
    class_index: int | Sequence[int] | None,
    caption_embeddings: Any,
    reference_embedding: Any,
    method: Literal["direction", "published"] = "direction",
) -> Tensor:
    """Score how a caption relates to what a class fails on: the lowest is the hardest, the highest the easiest.

    With z = (t(caption) - t(reference)) / std the score is w . z / |z|. A difference of two embeddings is a direction,
    so neither the image mean is subtracted from it nor the bias added.

    Args:
        directions: Fitted on image embeddings of the same encoder.
        class_index: The class, as it occurs in ``labels`` (not the row of ``directions.weight``); or K of them; or None
            for all of ``directions.classes``.
        caption_embeddings: (M, D) unit vectors, which several classes share: one matrix product scores them for all.
            Or (K, M, D), candidates for each class of its own.
        reference_embedding: (D,) or (1, D) unit vector of the reference caption; (K, D) with own candidates.
        method: ``"direction"`` as above (a departure); ``"published"`` takes the decision value of the difference as
            if it were an image: the mean is subtracted, the bias added.

    Returns:
        (M,) float32 for one class, else (K, M); 0 for a caption whose embedding equals the reference's
        (``"direction"``).

    Raises:
        DataError: A class has no SVM, shapes do not match, or a value is not finite.
        ConfigurationError: An unknown method.

    >>> from lightning_failures.directions.fit import fit_failure_directions
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 3))
    >>> directions = fit_failure_directions(x, np.zeros(200, dtype=int), x[:, 0] > 0)
    >>> score_captions(directions, 0, np.eye(3), np.zeros(3)).argmax()  # the first axis is what is easy
    tensor(0)
    >>> score_captions(directions, None, np.eye(3), np.zeros(3)).shape
    torch.Size([1, 3])
    """
    if method not in ("direction", "published"):
        raise ConfigurationError(f"score_captions: method must be 'direction' or 'published', got {method!r}")
    one = class_index is not None and np.ndim(class_index) == 0
    rows: slice | list[int] = slice(None)
    if class_index is not None:
        rows = [directions.row(k) for k in np.atleast_1d(class_index).tolist()]
        rows = slice(rows[0], rows[0] + 1) if one else rows
    weight = directions.weight[rows].numpy()
    captions, references = _candidates(directions, caption_embeddings, reference_embedding, classes=len(weight))
    if method == "published":
        references = references + directions.mean.numpy()
    if captions.ndim == 2:
        scores = _scores(weight, captions, references[0], directions.std)
    else:
        each = zip(weight[:, None], captions, references, strict=True)
        scores = np.concatenate([_scores(w, c, r, directions.std) for w, c, r in each])
    if method == "published":
        scores += directions.bias[rows].numpy()[:, None]
    return torch.from_numpy(scores[0] if one else scores)


def mean_shift_scores(
    directions: FailureDirections, embeddings: Any, correct: Any, caption_embeddings: Any, reference_embedding: Any
) -> Tensor:
    """Score captions by the class-weighted difference of means in place of the SVM: the simple baseline.

    Args:
        directions: Gives mean and standard deviation of phi.
        embeddings: (n, D) of one class.
        correct: (n,) bool.
        caption_embeddings: (M, D) unit vectors.
        reference_embedding: (D,) or (1, D).

    Returns:
        (M,) float32 in [-1, 1], the cosine with (mean of successes - mean of failures); the lowest is the hardest.
    """
    x, right = _one_class(directions, embeddings, correct)
    captions, references = _candidates(directions, caption_embeddings, reference_embedding)
    weight = (balanced_signs(right) @ x)[None]
    weight /= max(float(np.linalg.norm(weight)), _TINY)
    return torch.from_numpy(_scores(weight, captions, references[0], directions.std)[0])


@dataclass(frozen=True)
class BestCaption:
    """The caption that tells some images from others best: a hypothesis.

    Attributes:
        index: Which of the candidates.
        score: Cosine, in [-1, 1].
        margin: How far the score lies beyond the mean of all candidates, in their standard deviations.
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
    """Find the caption that describes what the chosen images have and the others of their group have not.

    The direction is the mean of the chosen less that of the group (which is parallel to the mean of the chosen less
    that of the others); captions are scored along it as along a failure direction, see :func:`score_captions`.

    Args:
        directions: Gives mean and standard deviation of phi.
        embeddings: (n, D) of the group.
        chosen: (n,) bool, for instance the images that activate a feature most.
        caption_embeddings: (M, D) unit vectors.
        reference_embedding: (D,) or (1, D).

    Returns:
        The best, or None where there is nothing to tell: no captions, or all or none of the images are chosen.
    """
    mask = as_mask(chosen, "chosen", len(embeddings))
    if mask.all() or not mask.any() or len(caption_embeddings) == 0:
        return None
    scores = mean_shift_scores(directions, embeddings, mask, caption_embeddings, reference_embedding).double()
    best = int(scores.argmax())
    spread = float(scores.std(correction=0))
    margin = float(scores[best] - scores.mean()) / spread if spread > 0 else 0.0
    return BestCaption(best, float(scores[best]), margin)


def caption_p_value(
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
) -> float:
    """Return the p-value of the best caption: how often chance scores *some* candidate as high.

    A direction here is the class-weighted difference of means, for the true labels as for the permuted ones. Its score
    for a caption, w . z / |z|, is how far failures and successes lie apart along that caption; the statistic is the
    largest absolute score over all candidates, so that choosing the best of them is paid for (the max-T test of
    Westfall and Young, 1993). Directions are not scaled to unit length: where captions name all that varies within a
    class, as in a small vocabulary, any direction is *parallel* to some caption, and only the distance tells chance
    from a pattern. One matrix product gives all permutations.

    Args:
        directions: Gives mean and standard deviation of phi; the class must have an SVM.
        class_index: The class, as it occurs in ``labels``.
        embeddings: (n, D) of the examples of this class.
        correct: (n,) bool.
        caption_embeddings: (M, D) unit vectors.
        reference_embedding: (D,) or (1, D).
        ids: (n,) names of the examples, which make the order of the rows irrelevant.
        groups: (n,) names of the sources; whole groups are permuted.
        permutations: Their number P.
        seed: The only source of randomness.

    Returns:
        (1 + number as extreme) / (1 + P), in (0, 1]; NaN without permutations or without captions.
    """
    directions.row(class_index)
    x, right = _one_class(directions, embeddings, correct)
    n, dim = x.shape
    names = np.arange(n) if ids is None else as_vector(ids, "ids", n)
    sources = names if groups is None else as_vector(groups, "groups", n)
    captions, references = _candidates(directions, caption_embeddings, reference_embedding)
    if permutations == 0 or len(captions) == 0:
        return float("nan")
    order = np.argsort(names, kind="stable")
    x, failed, sources = x[order], ~right[order], sources[order]
    x = (x - x.mean(axis=0)).astype(np.float32)  # then the sum over the failures alone gives the difference of means
    along = partial(_scores, captions=captions, reference=references[0], std=directions.std)  # (k, D) -> (k, M)
    # whichever order of products is cheaper: examples x captions first, or permutations x examples
    captions_first = n * len(captions) * (dim + permutations) < permutations * dim * (n + len(captions))
    rows_of_x = along(x) if captions_first else x

    def furthest(labellings: Mask) -> Floats:  # (P, n) -> (P,)
        sums = labellings.astype(np.float32) @ rows_of_x
        failures = np.maximum(labellings.sum(axis=1), 1)
        rates = 1 / failures + 1 / np.maximum(n - failures, 1)
        return np.asarray(rates * np.abs(sums if captions_first else along(sums)).max(axis=1))

    observed = furthest(failed[None])[0] * (1 - 1e-5)  # the same labels count as such despite rounding
    blocks = permuted_outcomes(failed, sources, permutations, np.random.default_rng([seed, int(class_index), 1]))
    return (1 + sum(int((furthest(labellings) >= observed).sum()) for labellings in blocks)) / (1 + permutations)


def _scores(weight: Floats, captions: Floats, reference: Floats, std: Tensor) -> Floats:
    """Return w . z / |z|, z = (caption - reference) / std, of K directions and M captions: (K, M) float32.

    A block of differences at a time stays in the processor's cache, and serves all directions.

    Args:
        weight: (K, D).
        captions: (M, D) float32.
        reference: (D,).
        std: (D,); a dimension where it is 0 contributes 0.
    """
    scale = np.divide(1, std.numpy(), out=np.zeros(len(std), dtype=np.float32), where=std.numpy() > 0)
    scale /= max(float(scale.max(initial=0)), _TINY)  # scores do not depend on its unit; squares must fit
    weight = weight * scale
    scores = np.empty((len(weight), len(captions)), dtype=np.float32)
    block = max(1, _CELLS_AT_ONCE // max(len(scale), 1))
    difference = np.empty((min(block, len(captions)), len(scale)), dtype=np.float32)
    length = np.empty(len(captions), dtype=np.float32)
    with np.errstate(all="ignore"):  # what is not finite is told of below
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
) -> tuple[Floats, Floats]:
    """Captions (M, D) and one reference (1, D), or (K, M, D) and (K, D) where classes may have their own; float32."""
    captions = as_array(caption_embeddings).astype(np.float32, copy=False)
    references = np.atleast_2d(as_array(reference_embedding)).astype(np.float32, copy=False)
    dim = directions.weight.shape[1]
    own = captions.ndim == 3 and classes > 0
    if captions.ndim != 2 + own or captions.shape[-1] != dim or references.shape != (len(captions) if own else 1, dim):
        raise DataError(
            f"captions must be embedded in the {dim} dimensions of the directions, one reference among them; got "
            f"{captions.shape} and {references.shape}"
        )
    if own and len(captions) != classes:
        raise DataError(f"candidates are given for {len(captions)} classes, but {classes} are to be scored")
    return captions, references


def _one_class(directions: FailureDirections, embeddings: Any, correct: Any) -> tuple[Floats, Mask]:
    x = as_matrix(embeddings, "embeddings")
    if x.shape[1] != len(directions.mean):
        raise DataError(f"embeddings must have {len(directions.mean)} dimensions, got {x.shape[1]}")
    return standardize(x, directions.mean.numpy(), directions.std.numpy()), as_mask(correct, "correct", len(x))
