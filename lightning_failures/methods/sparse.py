"""Sparse decision layers (Wong et al., ICML 2021) as a method of the callback."""

from __future__ import annotations

from typing import Any

from lightning_failures.analysis.sparse_layers import SparseFit
from lightning_failures.methods.base import Method


class SparseLayers(Method):
    """One sparse last layer on the model's penultimate features, and the feature behind each error."""

    name = "sparse"
    title = "sparse decision layers"
    source = "penultimate"
    last_only = True
    aggregates = {  # noqa: RUF012 - read only
        "sparse/accuracy": 0.0,
        "sparse/features_per_class": 1e6,
        "sparse/fixed_by_one_feature": 0.0,
        "sparse/broken_by_one_feature": 1.0,
    }
    remedy = "FailureModes(sparse=True)"

    def enabled(self, callback: Any) -> bool:
        """Return whether the option ``sparse`` is on."""
        return bool(callback.sparse)

    def fitter(self, callback: Any) -> SparseFit:
        """Return the fit with the default path."""
        return SparseFit()
