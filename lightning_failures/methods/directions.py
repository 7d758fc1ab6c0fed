"""Failure directions (Jain et al., ICLR 2023) as a method of the callback."""

from __future__ import annotations

from typing import Any

from lightning_failures.analysis.fits import DirectionsFit
from lightning_failures.methods.base import Method


class Directions(Method):
    """One failure SVM per class in the space of an image encoder, with captions if it has a text tower."""

    name = "directions"
    title = "failure directions"
    source = "encoder"
    aggregates = {  # noqa: RUF012 - read only
        "cv_score_mean": 1.0,
        "flagged_fraction": 1.0,
        "shared/p_value": 0.0,
        "shared/effect": 1.0,
    }
    remedy = "FailureModes(encoder=...)"

    def fitter(self, callback: Any) -> DirectionsFit:
        """Return the fit with the options of a callback."""
        return DirectionsFit(callback.n_directions, callback.permutations, callback.doubted)
