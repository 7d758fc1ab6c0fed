"""How well each candidate caption describes a failure direction.

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, section 3. A score is low where
the caption describes what fails: the hardest caption has the lowest score.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.arrays import as_array, as_mask, as_matrix, as_vector
from lightning_failures.directions import FailureDirections, phi
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.grammar import CaptionGrammar, CaptionVocabulary
from lightning_failures.splits import permutation_blocks
from lightning_failures.svm import balanced_signs

__all__ = ["CaptionGrammar", "CaptionVocabulary", "caption_p_value", "mean_shift_scores", "score_captions"]


def score_captions(
    directions: FailureDirections,
    class_index: int,
    caption_embeddings: Any,
    reference_embedding: Any,
    method: Literal["direction", "published"] = "direction",
) -> Tensor:
    """Score how a caption relates to what a class fails on: the lowest is the hardest, the highest the easiest.

    With z = (t(caption) - t(reference)) / std the score is w . z / |z|. A difference of two embeddings is a direction,
    so neither the image mean is subtracted from it nor the bias added.

    Args:
        directions: Fitted on image embeddings of the same encoder.
        class_index: The class, as it occurs in ``labels`` (not the row of ``directions.weight``).
        caption_embeddings: (M, D) unit vectors.
        reference_embedding: (D,) or (1, D) unit vector of the reference caption.
        method: ``"direction"`` as above (a departure); ``"published"`` takes the decision value of the difference as
            if it were an image: the mean is subtracted, the bias added.

    Returns:
        (M,) float32; 0 for a caption whose embedding equals the reference's (``"direction"``).

    Raises:
        DataError: The class has no SVM, or shapes do not match.
        ConfigurationError: An unknown method.

    >>> from lightning_failures.directions import fit_failure_directions
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 3))
    >>> directions = fit_failure_directions(x, np.zeros(200, dtype=int), x[:, 0] > 0)
    >>> score_captions(directions, 0, np.eye(3), np.zeros(3)).argmax()  # the first axis is what is easy
    tensor(0)
    """
    if method not in ("direction", "published"):
        raise ConfigurationError(f"score_captions: method must be 'direction' or 'published', got {method!r}")
    row = directions.row(class_index)
    shift = _shifts(directions, caption_embeddings, reference_embedding)
    weight, mean, std = (t.double().numpy() for t in (directions.weight[row], directions.mean, directions.std))
    if method == "published":
        scores = phi(shift, mean, std) @ weight + float(directions.bias[row])
    else:
        scores = phi(shift, np.zeros_like(mean), std) @ weight
    return torch.from_numpy(scores.astype(np.float32))


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
    mean, std = directions.mean.double().numpy(), directions.std.double().numpy()
    z = phi(_shifts(directions, caption_embeddings, reference_embedding), np.zeros_like(mean), std)
    return torch.from_numpy((z @ _unit(balanced_signs(right)[None] @ x)[0]).astype(np.float32))


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
    n = len(x)
    names = np.arange(n) if ids is None else as_vector(ids, "ids", n)
    sources = names if groups is None else as_vector(groups, "groups", n)
    mean, std = directions.mean.double().numpy(), directions.std.double().numpy()
    z = phi(_shifts(directions, caption_embeddings, reference_embedding), np.zeros_like(mean), std)
    if permutations == 0 or len(z) == 0:
        return float("nan")
    order = np.argsort(names, kind="stable")
    x, right, sources = x[order], right[order], sources[order]

    def best(labellings: NDArray[np.bool_]) -> NDArray[np.float64]:  # (P, n) -> (P,)
        return np.asarray(np.abs(balanced_signs(labellings) @ x @ z.T).max(axis=1))

    observed = best(right[None])[0] * (1 - 1e-9)  # the same labels count as such despite rounding
    blocks = permutation_blocks(sources, permutations, np.random.default_rng([seed, int(class_index), 1]))
    return (1 + sum(int((best(right[rows]) >= observed).sum()) for rows in blocks)) / (1 + permutations)


def _shifts(directions: FailureDirections, caption_embeddings: Any, reference_embedding: Any) -> NDArray[np.float64]:
    """t(caption) - t(reference): (M, D)."""
    captions = as_matrix(caption_embeddings, "caption_embeddings").astype(np.float64)
    reference = as_matrix(np.atleast_2d(as_array(reference_embedding)), "reference_embedding")
    dim = directions.weight.shape[1]
    if captions.shape[1] != dim or reference.shape != (1, dim):
        raise DataError(
            f"captions must be embedded in the {dim} dimensions of the directions, one reference among them; got "
            f"{captions.shape} and {reference.shape}"
        )
    return np.asarray(captions - reference)


def _one_class(
    directions: FailureDirections, embeddings: Any, correct: Any
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    x = as_matrix(embeddings, "embeddings")
    if x.shape[1] != len(directions.mean):
        raise DataError(f"embeddings must have {len(directions.mean)} dimensions, got {x.shape[1]}")
    return phi(x, directions.mean.double().numpy(), directions.std.double().numpy()), as_mask(
        correct, "correct", len(x)
    )


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, length, out=np.zeros_like(rows), where=length > 0))
