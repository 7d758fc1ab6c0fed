"""Weights & Biases: one bounded table an analysis, and pictures."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from lightning_failures.gallery import Gallery
from lightning_failures.records import FailureReport
from lightning_failures.sinks.base import found_captions, tag_prefix
from lightning_failures.text import enrichment_markdown, rank_classes, tree_markdown

__all__ = ["WandbSink"]

MAX_ROWS = 10_000
MAX_IMAGES = 108
"""Of one analysis. W&B keeps 200,000 rows of a table, and 108 images of a step."""

COLUMNS = (
    "epoch", "class", "examples", "accuracy", "cv_score", "cv_score_stderr", "p_value", "pattern", "aler",
    "base_error_rate", "hardest_caption", "easiest_caption", "skipped",
)  # fmt: skip


@dataclass(frozen=True)
class WandbSink:
    """Writes through a WandbLogger. It never names a step: W&B drops what goes back in steps."""

    logger: Any

    def write(self, report: FailureReport, step: int) -> None:
        """Write one analysis."""
        import wandb

        prefix = tag_prefix(report)
        table = wandb.Table(columns=list(COLUMNS), data=_rows(report))
        values: dict[str, Any] = {f"{prefix}/table": table, "trainer/global_step": step}
        for key, text in (("enrichment", enrichment_markdown(report)), ("rules", tree_markdown(report))):
            if text:
                values[f"{prefix}/{key}"] = wandb.Html(f"<pre>{html.escape(text)}</pre>")
        run = self.logger.experiment
        run.log(values)
        run.summary.update({f"{prefix}/last/{key}": value for key, value in report.summary.items()})

    def show(self, report: FailureReport, gallery: Gallery, step: int) -> None:
        """Add the pictures."""
        import wandb

        values: dict[str, Any] = {"trainer/global_step": step}
        for picture in gallery.pictures[:MAX_IMAGES]:
            image = wandb.Image(picture.image.permute(1, 2, 0).numpy(), caption=picture.caption)
            # a key each: W&B shows a list only where all sizes are equal
            values[f"{tag_prefix(report)}/{picture.tag}"] = image
        self.logger.experiment.log(values)


def _rows(report: FailureReport) -> list[list[Any]]:
    rows = []
    for entry in rank_classes(report)[:MAX_ROWS]:
        plain = entry.to_dict() | found_captions(entry) | {"epoch": report.epoch, "class": entry.name}
        rows.append([_text(plain[column]) for column in COLUMNS])
    return rows


def _text(value: Any) -> Any:
    """W&B takes no bytes that are no UTF-8, as names of folders on Linux may hold."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
