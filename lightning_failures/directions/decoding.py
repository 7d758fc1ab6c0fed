"""From a failure direction to the embedding that a decoder turns into an image, without any caption.

Source: Jain, Lawrence, Moitra and Madry, Distilling Model Failures as Directions in Latent Space, ICLR 2023, appendix
A.6. Embeddings live on the unit sphere, so the way from the reference caption towards the direction is an arc. The
direction must be fitted with ``whiten=False``: a whitened w is no direction in the decoder's space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_failures.core.arrays import unit_vectors
from lightning_failures.errors import ConfigurationError, DataError

_SMALLEST = 1e-6  # length, and sine of an angle, below which a direction is a matter of rounding


@dataclass(frozen=True, eq=False)
class DecodingTargets:
    """Three embeddings of one class, (D,) float32 unit vectors.

    Attributes:
        hard: On the way from the reference to -w, what the class's SVM calls a failure.
        reference: The reference caption.
        easy: On the way from the reference to +w.
    """

    hard: Tensor
    reference: Tensor
    easy: Tensor


def slerp(start: Tensor, end: Tensor, alpha: float | Tensor) -> Tensor:
    """Go a fraction of the way from one point of the unit sphere to another, along the shorter great circle.

    Args:
        start: (..., D) floats; brought to unit length.
        end: (..., D) likewise; the two are broadcast.
        alpha: Fraction of the angle between them, in [0, 1]; one for all, or (...,).

    Returns:
        (..., D) float32 unit vectors.

    Raises:
        ConfigurationError: ``alpha`` is out of range.
        DataError: A vector without a direction (zero, or not finite), or two opposite ones, between which no great
            circle is the shortest.

    >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), 1 / 3)
    tensor([0.8660, 0.5000])
    """
    fraction = torch.as_tensor(alpha, dtype=torch.float64).unsqueeze(-1)
    if not bool(((fraction >= 0) & (fraction <= 1)).all()):
        raise ConfigurationError(f"slerp: alpha must be in 0 ... 1; got {alpha}.")
    a, b = _checked_units(start, "start"), _checked_units(end, "end")
    # half of the angle from chord and sum: exact where vectors nearly agree, as an arc cosine is not
    angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    sine = angle.sin()
    if bool(((sine < _SMALLEST) & (angle > 1)).any()):
        raise DataError("slerp: start and end are opposite, so that every great circle joins them")
    close = sine < _SMALLEST
    safe = torch.where(close, 1.0, sine)
    mixed = torch.where(
        close,
        a + fraction * (b - a),
        (((1 - fraction) * angle).sin() * a + (fraction * angle).sin() * b) / safe,
    )
    return torch.nn.functional.normalize(mixed, dim=-1).float()


def decoding_targets(reference: Tensor, weight: Tensor, *, alpha: float = 0.2) -> DecodingTargets:
    """Embeddings to decode for one class: hard = slerp(t(ref), -w, alpha), easy = slerp(t(ref), w, alpha).

    Args:
        reference: (D,) embedding of the reference caption, t(ref).
        weight: (D,) normal w of the class's SVM, of any length > 0, fitted on unit vectors with ``whiten=False``.
        alpha: Fraction of the arc, in [0, 1].

    Raises:
        ConfigurationError: ``alpha`` is out of range.
        DataError: Shapes that do not match, or a vector without a direction.

    >>> targets = decoding_targets(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]))
    >>> targets.hard, targets.easy
    (tensor([ 0.9511, -0.3090]), tensor([0.9511, 0.3090]))
    """
    if reference.ndim != 1 or reference.shape != weight.shape:
        raise DataError(
            f"reference and weight must be two vectors of one length, got {tuple(reference.shape)} and "
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
