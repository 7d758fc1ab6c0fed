"""Failure trees (Barlow: Singla et al., CVPR 2021) as a method of the callback."""

from __future__ import annotations

from typing import Any

from lightning_failures.analysis.fits import TreesFit
from lightning_failures.methods.base import Method


class Trees(Method):
    """Shallow trees on robust features, one for each label group and prediction group."""

    name = "trees"
    title = "failure trees"
    source = "robust_encoder"
    aggregates = {  # noqa: RUF012 - read only
        "aler_minus_ber_mean": 1.0,
        "heldout_aler_minus_ber_mean": 1.0,
        "valid_leaf_fraction": 1.0,
        "worst_slice_error_rate": 1.0,
    }
    remedy = "FailureModes(robust_encoder=...), a robust checkpoint or 'embedded:digits'"

    def fitter(self, callback: Any) -> TreesFit:
        """Return the fit with the default definition of a valid leaf."""
        return TreesFit()
