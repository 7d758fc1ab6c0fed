"""Other ways to find failures, as a method of the callback, for comparison only."""

from __future__ import annotations

from typing import Any

from lightning_failures.analysis.rankings import BaselinesFit
from lightning_failures.methods.base import Method


class Baselines(Method):
    """Domino's mixture and clusters of failures on the embeddings of the failure directions."""

    name = "baselines"
    title = "baselines"
    source = "encoder"

    def enabled(self, callback: Any) -> bool:
        """Return whether ``AdvancedOptions(compare_methods=True)`` is set, and there is an encoder."""
        return bool(getattr(callback, "compare_methods", False)) and callback.encoder is not None

    def fitter(self, callback: Any) -> BaselinesFit:
        """Return the fit of all baselines."""
        return BaselinesFit()
