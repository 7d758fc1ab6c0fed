"""Embeddings projected to a plane, for the map of the HTML page: the first two principal components."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_failures.core.arrays import finite_rows


def project(embeddings: Tensor) -> Tensor:
    """Return the place of each embedding in the plane of their first two principal components.

    The same embeddings always give the same places: the sign of each component is that of its largest weight.

    Args:
        embeddings: (n, D) floats. A row with NaN has no place, and no influence on the others.

    Returns:
        (n, 2) float32 in [0, 1]: each component scaled to its range; NaN where the row has no place. A component
        without any spread is 0.5.

    >>> project(torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 1.0], [float("nan"), 0.0]])).tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.5, 1.0], [nan, nan]]
    """
    known = finite_rows(embeddings)
    places = torch.full((len(embeddings), 2), float("nan"))
    if not known.any():
        return places
    values = embeddings[known].double()
    centred = values - values.mean(0)
    # eigenvectors of the smaller of both Gram matrices: a thousand rows of 512 numbers take milliseconds
    if centred.shape[0] < centred.shape[1]:
        weights = centred.T @ torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -2:].flip(1)
        weights = weights / weights.norm(dim=0).clamp_min(1e-12)
    else:
        weights = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:].flip(1)
    if weights.shape[1] < 2:
        weights = torch.nn.functional.pad(weights, (0, 2 - weights.shape[1]))
    signs = weights.gather(0, weights.abs().argmax(0, keepdim=True)).sign()
    scores = centred @ (weights * torch.where(signs == 0, 1.0, signs))
    low, spread = scores.amin(0), scores.amax(0) - scores.amin(0)
    flat = spread < 1e-9 * (1 + scores.abs().amax())
    scaled = (scores - low) / torch.where(flat, 1.0, spread)
    places[known] = torch.where(flat, 0.5, scaled).float()
    return places
