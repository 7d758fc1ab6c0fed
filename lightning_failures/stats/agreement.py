"""Agreement of two binary judgements beyond chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cohen_kappa(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float | None:
    """Return Cohen's kappa of two binary judgements, the agreement beyond chance.

    Args:
        one: (n,) bool.
        other: (n,) bool.

    Returns:
        At most 1; 0 means agreement by chance. None if both judgements are constant and equal, where kappa is
        undefined.

    Reference:
        Cohen, A Coefficient of Agreement for Nominal Scales, 1960.

    >>> cohen_kappa(np.array([True, True, False, False]), np.array([True, False, False, False]))
    0.5
    """
    by_chance = one.mean() * other.mean() + (~one).mean() * (~other).mean()
    return None if by_chance >= 1 else float(((one == other).mean() - by_chance) / (1 - by_chance))
