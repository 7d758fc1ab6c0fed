"""TensorBoard: one ranked table, the rules of the trees, and pictures under stable tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_failures.records import FailureReport
from lightning_failures.sinks.base import tag_prefix
from lightning_failures.text import enrichment_markdown, markdown_table, tree_markdown
from lightning_failures.visuals import Picture

__all__ = ["TensorBoardSink"]


@dataclass(frozen=True)
class TensorBoardSink:
    """Writes through the ``SummaryWriter`` of a TensorBoardLogger. The callback logs scalars itself.

    TensorBoard keeps about ten images for each tag, so a tag means the same at every step.
    """

    logger: Any

    def write(self, report: FailureReport, pictures: Sequence[Picture], step: int) -> None:
        """Write one analysis."""
        writer = self.logger.experiment
        prefix = tag_prefix(report)
        writer.add_text(f"{prefix}/table", markdown_table(report), step)
        for tag, text in (("enrichment", enrichment_markdown(report)), ("rules", tree_markdown(report))):
            if text:
                writer.add_text(f"{prefix}/{tag}", text, step)
        for picture in pictures:
            writer.add_image(f"{prefix}/{picture.tag}", picture.image, step)
        writer.flush()
