"""TensorBoard: one ranked table, the rules of the trees, and pictures under stable tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_failures.gallery import Gallery
from lightning_failures.records import FailureReport
from lightning_failures.sinks.base import tag_prefix
from lightning_failures.text import enrichment_markdown, markdown_table, tree_markdown

__all__ = ["TensorBoardSink"]


@dataclass(frozen=True)
class TensorBoardSink:
    """Writes through the ``SummaryWriter`` of a TensorBoardLogger. The callback logs scalars itself.

    TensorBoard keeps about ten images for each tag, so a tag means the same at every step.
    """

    logger: Any

    def write(self, report: FailureReport, step: int) -> None:
        """Write one analysis."""
        writer = self.logger.experiment
        prefix = tag_prefix(report)
        writer.add_text(f"{prefix}/table", markdown_table(report), step)
        for tag, text in (("enrichment", enrichment_markdown(report)), ("rules", tree_markdown(report))):
            if text:
                writer.add_text(f"{prefix}/{tag}", text, step)
        writer.flush()

    def show(self, report: FailureReport, gallery: Gallery, step: int) -> None:
        """Add the pictures."""
        writer = self.logger.experiment
        for picture in gallery.pictures:
            writer.add_image(f"{tag_prefix(report)}/{picture.tag}", picture.image, step)
        writer.flush()
