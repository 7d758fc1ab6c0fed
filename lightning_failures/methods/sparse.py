"""Sparse decision layers (Wong et al., ICML 2021) as a method of the callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.analysis.sparse_layers import SparseFit
from lightning_failures.core.text import clean
from lightning_failures.methods.base import ImageReader, Method
from lightning_failures.report.gallery import Picture, make_row
from lightning_failures.report.sparse import ErrorEntry, sparse_report

_FEATURES = 12  # behind errors that are shown
_IMAGES = 6  # in a row


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

    def pictures_of_examples(self, result: AnalysisResult, images: ImageReader, *, worst_k: int) -> Sequence[Picture]:
        """Return a picture for each feature behind errors and for the leading features of classes.

        The last row of each shows the images that activate the feature most; the row before, if there is one, errors
        that it is behind.
        """
        found = sparse_report(result.report)
        if found is None:
            return ()
        errors = {one.feature: one.error_ids[:_IMAGES] for one in found.problematic[:_FEATURES]}
        shown = found.shown[: _FEATURES + 4 * worst_k]
        top = {feature: found.top_ids.get(str(feature), ())[:_IMAGES] for feature in shown}
        wanted = sorted({i for ids in (*errors.values(), *top.values()) for i in ids})
        read = images(wanted)
        if not read:
            return ()
        of_error = {(one.id, one.feature): one for one in found.errors}
        pictures = []
        for feature in shown:
            name = found.label(feature)
            wrong = [i for i in errors.get(feature, ()) if i in read]
            active = [i for i in top[feature] if i in read]
            rows = []
            if wrong:
                texts = [_outcome(of_error.get((i, feature))) for i in wrong]
                rows.append(make_row(f"{name}: errors that it is behind", [read[i] for i in wrong], texts, wrong))
            rows.append(make_row(f"{name}: most active", [read[i] for i in active], ids=active))
            pictures.append(Picture(f"sparse/{feature}", tuple(rows), f"{name} of the model"))
        return pictures


def _outcome(error: ErrorEntry | None) -> str:
    """Return the text below an error."""
    if error is None:
        return ""
    change = "right without the feature" if error.fixed else "wrong without it too"
    return f"{clean(error.label, 30)} taken for {clean(error.prediction, 30)}\n{change}"
