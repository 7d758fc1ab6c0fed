"""The page of a single result, without a run: to a file, and inline in notebooks."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_failures.analysis.result import AnalysisResult, register_display
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import to_bytes
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import ConfigurationError
from lightning_failures.report.drawing import draw_report
from lightning_failures.report.run_folder import Run

NOTEBOOK_HEIGHT = 1600
"""Height in pixels of a result in a notebook: about two screens."""

Images = Tensor | Sequence[Any] | Callable[[Sequence[int]], Sequence[Tensor]]


def save_html(
    result: AnalysisResult | FailureReport,
    path: str | Path,
    *,
    images: Images | None = None,
    embeddings: Tensor | Any | None = None,
) -> Path:
    """Write the page of a result as one HTML file that needs neither network nor server, and return its path.

    Args:
        result: What :func:`~lightning_failures.analyse` returns, ``FailureModes.last_report``, or a report alone.
        path: The file to write.
        images: The images, each (C, H, W) uint8 or floats in [0, 1]: a tensor (U, C, H, W) or a sequence in the order
            of the U distinct ids, ascending, or a function from ids to images. None: a page without pictures.
        embeddings: (U, D) floats, the embeddings of the U distinct ids, ascending, for the map of the page, which needs
            images. None: there is no map.

    Raises:
        ConfigurationError: The number of images or of embeddings does not match the examples.
        OSError: The page cannot be written.
    """
    from lightning_failures.report.html.render import render  # loads the template engine

    target = Path(path)
    write_atomically(target, to_bytes(render(_run_of(result, target.parent, images, embeddings))))
    return target


def notebook_html(result: AnalysisResult) -> str:
    """Return a result as HTML for a notebook: its page in a frame of its own, without charts."""
    from lightning_failures.report.html.render import render

    page = render(_run_of(result, Path("notebook"), None), charts=False)
    return (
        f'<iframe srcdoc="{html.escape(page)}" sandbox="allow-scripts" title="Failures of the model"'
        f' style="width:100%;height:{NOTEBOOK_HEIGHT}px;border:1px solid #8884;border-radius:8px"></iframe>'
    )


def _run_of(
    result: AnalysisResult | FailureReport, folder: Path, images: Images | None, embeddings: Any | None = None
) -> Run:
    """Return a run that holds nothing but one result."""
    report, table = (result, None) if isinstance(result, FailureReport) else (result.report, result.table)
    if images is None:
        return Run(folder, report, (report,), table)
    ids = torch.empty(0) if table is None else torch.unique(table.ids)
    if not callable(images):
        images = _by_id(images, ids.numpy())
    vectors = None if embeddings is None else torch.as_tensor(embeddings)
    if vectors is not None and (vectors.ndim != 2 or len(vectors) != len(ids)):
        raise ConfigurationError(
            f"save_html: embeddings must be (U, D), a row for each of the {len(ids)} distinct ids of the result;"
            f" got shape {tuple(vectors.shape)}."
        )
    return Run(folder, report, (report,), table, draw_report(report, table, images, vectors))


def _by_id(images: Tensor | Sequence[Any], ids: Any) -> Callable[[Sequence[int]], Sequence[Tensor]]:
    """Return a function from ids to images that are in the order of all ids, ascending."""
    if len(images) != len(ids):
        raise ConfigurationError(
            f"save_html: images must be one for each of the {len(ids)} distinct ids of the result, in ascending order,"
            f" or a function from ids to images; got {len(images)}."
        )

    def fetch(wanted: Sequence[int]) -> list[Tensor]:
        return [torch.as_tensor(images[int(np.searchsorted(ids, example))]) for example in wanted]

    return fetch


register_display(notebook_html)
