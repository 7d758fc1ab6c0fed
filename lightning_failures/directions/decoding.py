"""Embeddings along a failure direction that a decoder turns into images, without any caption.

Source: Jain, Lawrence, Moitra and Madry, Distilling Model Failures as Directions in Latent Space, ICLR 2023, appendix
A.6. Embeddings lie on the unit sphere, so the path from the reference caption towards the direction is an arc. The
direction must be fitted with ``whiten=False``: a whitened w is not a direction of the decoder's space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_failures.core.arrays import unit_vectors
from lightning_failures.errors import ConfigurationError, DataError

_SMALLEST = 1e-6  # sine of an angle below which rounding decides on the direction between two vectors


@dataclass(frozen=True, eq=False)
class DecodingTargets:
    """Three embeddings of one class to decode, (D,) float32 unit vectors.

    Attributes:
        hard: On the arc from the reference to -w, the side that the class's SVM predicts to fail.
        reference: Embedding of the reference caption.
        easy: On the arc from the reference to +w.
    """

    hard: Tensor
    reference: Tensor
    easy: Tensor


def slerp(start: Tensor, end: Tensor, alpha: float | Tensor) -> Tensor:
    """Interpolate between two points of the unit sphere along the shorter great circle.

    Args:
        start: (..., D) floats, scaled to unit length.
        end: (..., D) floats, scaled to unit length; ``start`` and ``end`` are broadcast.
        alpha: Fraction of the angle between them, in [0, 1]: one number, or (...,).

    Returns:
        (..., D) float32 unit vectors.

    Raises:
        ConfigurationError: ``alpha`` is out of range.
        DataError: A vector has no direction (it is zero or not finite), or two vectors are opposite, so no great circle
            between them is the shortest.

    >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), 1 / 3)
    tensor([0.8660, 0.5000])
    """
    fraction = torch.as_tensor(alpha, dtype=torch.float64).unsqueeze(-1)
    if not bool(((fraction >= 0) & (fraction <= 1)).all()):
        raise ConfigurationError(f"slerp: alpha must be in [0, 1], got {alpha}.")
    a, b = _checked_units(start, "start"), _checked_units(end, "end")
    # half the angle from chord and sum is accurate for nearly equal vectors, unlike the arc cosine
    angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    sine = angle.sin()
    if bool(((sine < _SMALLEST) & (angle > 1)).any()):
        raise DataError("slerp: start and end are opposite, so every great circle joins them")
    close = sine < _SMALLEST  # interpolate linearly, where the spherical weights would be 0 / 0
    safe = torch.where(close, 1.0, sine)
    interpolated = torch.where(
        close,
        a + fraction * (b - a),
        (((1 - fraction) * angle).sin() * a + (fraction * angle).sin() * b) / safe,
    )
    return torch.nn.functional.normalize(interpolated, dim=-1).float()


def decoding_targets(reference: Tensor, weight: Tensor, *, alpha: float = 0.2) -> DecodingTargets:
    """Return the embeddings to decode for one class: slerp(t(ref), -w, alpha), t(ref) and slerp(t(ref), w, alpha).

    Args:
        reference: (D,) embedding of the reference caption, t(ref).
        weight: (D,) normal w of the class's SVM, of any length > 0, fitted on unit vectors with ``whiten=False``.
        alpha: Fraction of the arc, in [0, 1].

    Raises:
        ConfigurationError: ``alpha`` is out of range.
        DataError: Shapes do not match, or a vector has no direction.

    >>> targets = decoding_targets(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]))
    >>> targets.hard, targets.easy
    (tensor([ 0.9511, -0.3090]), tensor([0.9511, 0.3090]))
    """
    if reference.ndim != 1 or reference.shape != weight.shape:
        raise DataError(
            f"reference and weight must be vectors of the same length, got shapes {tuple(reference.shape)} and "
            f"{tuple(weight.shape)}"
        )
    return DecodingTargets(
        hard=slerp(reference, -weight, alpha),
        reference=_checked_units(reference, "reference").float(),
        easy=slerp(reference, weight, alpha),
    )


def _checked_units(vectors: Tensor, name: str) -> Tensor:
    """Return (..., D) float64 unit vectors on the CPU.

    Raises:
        DataError: A vector has no direction.
    """
    rows = vectors.detach().cpu().double()
    lengths = torch.linalg.vector_norm(rows, dim=-1)
    if not bool((lengths > 0).all() and torch.isfinite(lengths).all()):
        raise DataError(f"{name} has no direction: its length is zero or not finite")
    return unit_vectors(rows)
